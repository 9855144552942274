"""The turn engine of one runtime process without its HTTP part: SESSIONS sessions that always have a turn running.

    python -m benchmarks.workers.engine URL SESSIONS TURNS_PER_SESSION

Everything else is as in a pod: lease, sweeps, heartbeats, metrics, automatic saves, one log line per turn on stdout.
"""

import asyncio
import itertools
import sys
import time

import uvloop

from agent_api.v1alpha1 import Agent
from agent_runtime.app import build_store
from agent_runtime.clock import SystemClock
from agent_runtime.loop.engine import AgentEngine
from agent_runtime.process import build_runtime, build_scrubber
from agent_runtime.settings import RuntimeSettings
from agent_runtime.telemetry import logs
from benchmarks.common import CONTENT, REPLY, agent_manifest
from benchmarks.contest import serve_rounds


async def talk(engine: AgentEngine, name: str, turns: int, deadline: float) -> int:
    """Run turns one after the other in one session until it has `turns` or time is over; return how many."""
    for done in range(turns):
        if time.perf_counter() >= deadline:
            return done
        turn = await engine.accept("bench", name, CONTENT, None)
        turn = await engine.wait_outcome(turn, 60.0)
        if turn.reply != REPLY:
            raise RuntimeError(f"turn {turn.id} is {turn.status}: {turn.error_message}")
    return turns


async def main() -> None:
    """Serve rounds."""
    url, sessions, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = RuntimeSettings(postgres_url=url, agents=(Agent.model_validate(agent_manifest("engine")),))
    clock = SystemClock()
    scrubber = build_scrubber(settings, clock)
    logs.configure(settings.log_format, settings.log_level, scrubber.scrub)
    runtime = build_runtime(settings, build_store(settings), clock=clock, scrubber=scrubber)
    runtime.start()
    async with asyncio.timeout(30):
        await runtime.wait_ready()
    (engine,) = runtime.context.engines.values()
    names = itertools.count()

    async def client(deadline: float) -> int:
        done = 0
        while time.perf_counter() < deadline:
            done += await talk(engine, f"s{next(names)}", turns, deadline)
        return done

    async def run(seconds: float) -> int:
        deadline = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(client(deadline) for _ in range(sessions))))

    try:
        await serve_rounds(run)
    finally:
        await runtime.drain(1.0)
        await runtime.stop()


if __name__ == "__main__":
    uvloop.run(main())
