"""The reference: a LangGraph graph of one node with its own asynchronous Postgres saver, in an environment of its own.

    python -m benchmarks.workers.langgraph URL THREADS TURNS_PER_THREAD REPLY_BYTES

As its documentation shows it for servers: a pool of autocommit connections, durability "async" being its default. The
node adds a reply of REPLY_BYTES to the messages; no model is called, and no tracing is on.
"""

# mypy: disable-error-code="import-not-found"
import asyncio
import itertools
import sys
import time
from typing import Any

import uvloop
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.contest import serve_rounds

CONTENT = "u" * 200
CONNECTIONS = 10


def build_graph(saver: AsyncPostgresSaver, reply: str) -> Any:
    """Return the compiled graph."""

    async def respond(_state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(reply)]}

    graph = StateGraph(MessagesState)
    graph.add_node("respond", respond)
    graph.add_edge(START, "respond")
    graph.add_edge("respond", END)
    return graph.compile(checkpointer=saver)


async def talk(graph: Any, thread: str, turns: int, deadline: float) -> int:
    """Run turns one after the other in one thread until it has `turns` or time is over; return how many."""
    for done in range(turns):
        if time.perf_counter() >= deadline:
            return done
        await graph.ainvoke({"messages": [HumanMessage(CONTENT)]}, {"configurable": {"thread_id": thread}})
    return turns


async def main() -> None:
    """Serve rounds."""
    url, threads, turns, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(url, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs=options, open=False) as pool:
        await pool.wait(30)
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        graph = build_graph(saver, "a" * size)
        names = itertools.count()

        async def client(deadline: float) -> int:
            done = 0
            while time.perf_counter() < deadline:
                done += await talk(graph, f"t{next(names)}", turns, deadline)
            return done

        async def run(seconds: float) -> int:
            # For sizes: exactly this many threads of all their turns.
            if seconds <= 0:
                every = (talk(graph, f"t{next(names)}", turns, float("inf")) for _ in range(threads))
                return sum(await asyncio.gather(*every))
            deadline = time.perf_counter() + seconds
            return sum(await asyncio.gather(*(client(deadline) for _ in range(threads))))

        await serve_rounds(run)


if __name__ == "__main__":
    uvloop.run(main())
