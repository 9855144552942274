"""Time from the start of a process to ready, and its memory, for each of the things a runtime may have loaded.

    python -m benchmarks.process_start [--quick] [--rounds 5] [--turns 20]

Profiles, started in turn, each in a fresh process: `python` (an interpreter that imports nothing), `fastapi` (FastAPI
and uvicorn with one route, no database), and the runtime with an agent on `echo`, on `scripted`, and on
`openai-compatible`, `anthropic` and `google`, which talk to a small server on loopback in their protocols. Memory is
read when the process is ready and again after a few turns, when everything a turn needs is loaded. RSS counts shared
pages in full, PSS by their share; `over fastapi` is what the product adds to its web framework.
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

from agent_api.v1alpha1 import KeyRef
from benchmarks import common
from benchmarks.common import NAMESPACE, REPLY, Report, Sample, Target
from benchmarks.processes import Memory, Runtime, ServerProcess, free_port, post_json, read_memory

MEGABYTE: Final = 1_000_000
KEY: Final = KeyRef(name="llm", key="bench")
KEYED: Final = {"model": "bench", "apiKeySecretRef": KEY.model_dump()}
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
        model_provider() as provider,
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
        "runtime-openai": {"provider": "openai-compatible", "model": "bench", "baseURL": f"{provider}/v1"},
        "runtime-anthropic": {**KEYED, "provider": "anthropic", "baseURL": f"{provider}/v1"},
        "runtime-google": {**KEYED, "provider": "google", "baseURL": f"{provider}/v1beta"},
    }
    (folder / KEY.name).mkdir()
    (folder / KEY.name / KEY.key).write_text("bench")

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
    with Runtime(folder, url, agent, ABIDE_SECRETS_DIR=str(folder)) as process:
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
        *(
            Target(f"runtime with {name}, RSS in MB", by_name[f"runtime-{name}"]["RSS used MB"], at_most=110)
            for name in ("openai", "anthropic", "google")
        ),
    ]
    return report


class _Provider(BaseHTTPRequestHandler):
    """Answers in each provider's protocol with REPLY, as a stream, and to checks of models."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send("application/json", json.dumps({"object": "list", "data": [{"id": "bench", "object": "model"}]}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/v1beta/"):
            events = google_events()
        else:
            events = anthropic_events() if self.path.startswith("/v1/messages") else openai_events()
        self._send("text/event-stream", "".join(events))

    def _send(self, content_type: str, body: str) -> None:
        data = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def openai_events() -> Iterator[str]:
    """Yield a reply as chat completions have it."""
    usage = {"prompt_tokens": 50, "completion_tokens": 100, "total_tokens": 150}
    deltas = [({"role": "assistant", "content": REPLY}, None), ({}, "stop")]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} for delta, reason in deltas
    ]
    chunks.append({"choices": [], "usage": usage})
    same = {"id": "c", "created": 1, "model": "bench", "object": "chat.completion.chunk"}
    lines = [json.dumps({**same, **chunk}) for chunk in chunks]
    yield from (f"data: {line}\n\n" for line in [*lines, "[DONE]"])


def anthropic_events() -> Iterator[str]:
    """Yield a reply as Anthropic's messages have it."""
    usage = {"input_tokens": 50, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "bench", "content": [], "usage": usage}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": REPLY}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 100}},
        {"type": "message_stop"},
    ]
    yield from (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


def google_events() -> Iterator[str]:
    """Yield a reply as Google generates content."""
    content = {"role": "model", "parts": [{"text": REPLY}]}
    usage = {"promptTokenCount": 50, "candidatesTokenCount": 100, "totalTokenCount": 150}
    candidates = [{"content": content, "finishReason": "STOP", "index": 0}]
    yield f"data: {json.dumps({'candidates': candidates, 'usageMetadata': usage})}\n\n"


@contextmanager
def model_provider() -> Iterator[str]:
    """Yield the address of a provider on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Provider)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


if __name__ == "__main__":
    main()
