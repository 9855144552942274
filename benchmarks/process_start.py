"""Time from the start of a process to ready, and its memory, for each of the things a runtime may have loaded.

    python -m benchmarks.process_start [--quick] [--rounds 5] [--turns 20]

Profiles, started in turn, each in a fresh process: `python` (an interpreter that imports nothing), `fastapi` (FastAPI
and uvicorn with one route, no database), and the runtime with an agent on `echo`, on `scripted` and on
`openai-compatible`, the latter talking to a small server on loopback that speaks chat completions. Memory is read
when the process is ready and again after a few turns, when everything a turn needs is loaded. RSS counts shared pages
in full, PSS by their share; `over fastapi` is what the product adds to its web framework.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from benchmarks import common
from benchmarks.common import NAMESPACE, REPLY, Report, Sample, Target
from benchmarks.processes import Memory, Runtime, ServerProcess, free_port, post_json, read_memory

MEGABYTE: Final = 1_000_000
BARE: Final = "import sys; print('ready', flush=True); sys.stdin.read()"
REFERENCE: Final = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.get("/readyz")
async def readyz(): return {"ok": True}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


@dataclass(frozen=True, slots=True)
class Started:
    """One process that was started: seconds to ready, memory then and after some turns."""

    seconds: float
    ready: Memory
    used: Memory


def main() -> None:
    """Measure and print."""
    made = common.parser(__doc__)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--turns", type=int, default=20, help="turns before memory is read again")
    options = made.parse_args()
    if options.quick:
        options.rounds, options.turns = 1, 2
    measure(options).publish(options.json)


def measure(options: argparse.Namespace) -> Report:
    """Start every profile `rounds` times, in turn."""
    found: dict[str, list[Started]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="abide-bench-") as folder,
        common.database() as (_, url),
        chat_completions() as provider,
    ):
        profiles = build_profiles(Path(folder), url, provider, options.turns)
        warm_up = 0 if options.quick else 1
        for number in range(warm_up + options.rounds):
            for name, start in profiles.items():
                common.progress(f"starting {name}")
                started = start()
                if number >= warm_up:  # the first start of all compiles and fills the page cache
                    found.setdefault(name, []).append(started)
    return describe(found)


def build_profiles(folder: Path, url: str, provider: str, turns: int) -> dict[str, Callable[[], Started]]:
    """Return what starts each profile once."""
    models: dict[str, Mapping[str, Any]] = {
        "runtime-echo": {"provider": "echo"},
        "runtime-scripted": {"provider": "scripted", "parameters": {"replies": [REPLY]}},
        "runtime-openai": {"provider": "openai-compatible", "model": "bench", "baseURL": provider},
    }

    def runtime(name: str, model: Mapping[str, Any]) -> Callable[[], Started]:
        return lambda: start_runtime(folder, url, common.agent_manifest(name, model), turns)

    return {
        "python": start_bare,
        "fastapi": lambda: start_reference(folder),
        **{name: runtime(name, model) for name, model in models.items()},
    }


def start_bare() -> Started:
    """Start an interpreter."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        seconds = time.perf_counter() - started
        memory = read_memory(process.pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)
    return Started(seconds, memory, memory)


def start_reference(folder: Path) -> Started:
    """Start the web framework alone."""
    port = free_port()
    command = [sys.executable, "-c", REFERENCE, str(port)]
    with ServerProcess(command, {"PATH": "/usr/bin:/bin"}, port, folder / "fastapi.log") as process:
        seconds = process.wait_ready()
        memory = read_memory(process.pid)
    return Started(seconds, memory, memory)


def start_runtime(folder: Path, url: str, agent: Mapping[str, Any], turns: int) -> Started:
    """Start a runtime and have it answer. Raises RuntimeError when it answers anything but the model's reply."""
    name = agent["metadata"]["name"]
    with Runtime(folder, url, agent) as process:
        seconds = process.wait_ready()
        ready = read_memory(process.pid)
        for number in range(turns):
            path = f"/v1/agents/{NAMESPACE}/{name}/sessions/s{number % 4}/messages"
            status, body = post_json(process.port, path, {"content": common.CONTENT})
            if status != 200 or json.loads(body)["turn"]["status"] != "completed":
                raise RuntimeError(f"{name} answered {status}: {body.decode(errors='replace')[:1000]}")
        return Started(seconds, ready, read_memory(process.pid))


def describe(found: Mapping[str, list[Started]]) -> Report:
    """Return rows and targets."""
    report = Report("process_start")
    reference = Sample([one.used.rss for one in found["fastapi"]]).median
    for name, started in found.items():
        seconds = Sample([one.seconds for one in started])
        used = Sample([one.used.rss for one in started]).median
        report.rows.append(
            {
                "profile": name,
                "ready s": round(seconds.median, 3),
                "spread": f"{seconds.spread:.0%}",
                "RSS MB": round(Sample([one.ready.rss for one in started]).median / MEGABYTE, 1),
                "RSS used MB": round(used / MEGABYTE, 1),
                "PSS used MB": round(Sample([one.used.pss for one in started]).median / MEGABYTE, 1),
                "over fastapi MB": round((used - reference) / MEGABYTE, 1),
            }
        )
    by_name = {row["profile"]: row for row in report.rows}
    report.targets += [
        Target("runtime with echo, seconds to ready", by_name["runtime-echo"]["ready s"], at_most=1.0),
        Target("runtime with echo, RSS in MB", by_name["runtime-echo"]["RSS used MB"], at_most=60),
        Target("runtime with a real provider, RSS in MB", by_name["runtime-openai"]["RSS used MB"], at_most=110),
    ]
    return report


class _Provider(BaseHTTPRequestHandler):
    """Answers chat completions, whole or streamed, with REPLY, and the list of models."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send("application/json", json.dumps({"object": "list", "data": [{"id": "bench", "object": "model"}]}))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        common_part = {"id": "c", "created": 1, "model": request["model"]}
        usage = {"prompt_tokens": 50, "completion_tokens": 100, "total_tokens": 150}
        if not request.get("stream"):
            message = {"role": "assistant", "content": REPLY}
            choices: list[dict[str, Any]] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            answer = {**common_part, "object": "chat.completion", "choices": choices, "usage": usage}
            self._send("application/json", json.dumps(answer))
            return
        deltas = [({"role": "assistant", "content": REPLY}, None), ({}, "stop")]
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} for delta, reason in deltas
        ]
        chunks.append({"choices": [], "usage": usage})
        lines = [json.dumps({**common_part, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        self._send("text/event-stream", "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]))

    def _send(self, content_type: str, body: str) -> None:
        data = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@contextmanager
def chat_completions() -> Iterator[str]:
    """Yield the base URL of a provider on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Provider)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


if __name__ == "__main__":
    main()
