"""A real MCP server as a process of its own: `python -m tests.fakes.mcp_process PORT [TOKEN]`."""

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 20.0


class McpProcess:
    """Starts and stops a server on one port; `token` is what Authorization must say, if anything."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self._token = token
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return once it takes connections."""
        command = [sys.executable, "-m", "tests.fakes.mcp_process", str(self.port), self._token]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self._process.poll() is None, "the MCP server ended"
            assert time.monotonic() < deadline, f"the MCP server does not listen after {START_TIMEOUT:g} s"
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it; its connections are cut."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)


def main(port: int, token: str) -> None:
    """Serve until killed."""
    import uvicorn
    from mcp.server.fastmcp import FastMCP
    from mcp.types import ToolAnnotations
    from starlette.types import Receive, Scope, Send

    server = FastMCP("reviews", host="0.0.0.0", port=port, log_level="CRITICAL")

    @server.tool(annotations=ToolAnnotations(readOnlyHint=True))
    def get_diff(number: int) -> str:
        """Return the diff of a pull request."""
        return f"diff of {number}"

    @server.tool()
    def create_review(number: int, text: str) -> str:
        """Write a review."""
        return f"review of {number}: {text}"

    app = server.streamable_http_app()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers") or ())
        if scope["type"] == "http" and token and headers.get(b"authorization") != token.encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"wrong token"})
            return
        await app(scope, receive, send)

    uvicorn.run(guarded, host="0.0.0.0", port=port, log_config=None, access_log=False, ws="none")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
