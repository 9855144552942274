"""What agents refer to is looked at again: seldom while all is well, often while somebody is about to correct it."""

import asyncio
import random
from typing import Any

import pytest

from agent_operator.keys import AgentKey
from agent_operator.kube.port import SECRET, Object
from agent_operator.reconcile.references import Reference, References, Referent, relaxed_interval
from agent_operator.reconcile.rotation import secrets_version
from tests.unit.agent_operator.makers import make_agent
from tests.unit.agent_operator.virtualtime import run_virtually

KEY = AgentKey("shop", "support")
LLM = Reference(SECRET, "shop", "llm")


class Reads:
    """A cluster with one Secret, that counts how often it is read."""

    def __init__(self) -> None:
        self.count = 0
        self.version = 1

    async def get(self, kind: Any, namespace: str, name: str) -> Object:
        self.count += 1
        return {"metadata": {"name": name, "resourceVersion": str(self.version)}, "data": {"openai": "eA=="}}


async def count_reads(references: References, reads: Reads, seconds: float) -> int:
    before = reads.count
    running = asyncio.create_task(references.run())
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return reads.count - before


def test_a_secret_that_seems_wrong_is_looked_at_often() -> None:
    async def main() -> None:
        reads, woken = Reads(), []
        references = References(
            reads,  # type: ignore[arg-type]
            woken.append,
            missing_interval=2.0,
            present_interval=30.0,
            random_source=random.Random(1),
        )
        await references.resolve(KEY, {LLM: frozenset(("openai",))})
        assert 15 <= await count_reads(references, reads, 60) <= 20
        references.watch_closely(KEY, closely=True)
        assert await count_reads(references, reads, 60) >= 29
        assert woken == []
        reads.version = 2
        assert await count_reads(references, reads, 2.5) >= 1
        assert woken == [KEY]
        references.watch_closely(KEY, closely=False)
        await count_reads(references, reads, 3)
        assert 15 <= await count_reads(references, reads, 60) <= 20
        references.forget(KEY)
        assert await count_reads(references, reads, 60) == 0

    run_virtually(main())


def test_the_version_of_mounted_secrets_changes_with_each_of_them_only() -> None:
    models = [{"provider": "echo", "apiKeySecretRef": {"name": "llm", "key": "openai"}}]
    variable = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "side", "key": "token"}}}
    agent = make_agent(models=models, runtime={"env": [variable]})
    side = Reference(SECRET, "shop", "side")

    def version(llm: str, other: str) -> str:
        return secrets_version(agent, {LLM: Referent(True, version=llm), side: Referent(True, version=other)})

    assert version("1", "1") == version("1", "2") != version("2", "1")
    assert secrets_version(make_agent(), {}) == ""


@pytest.mark.parametrize(("count", "seconds"), [(1, 4.0), (40, 4.0), (120, 12.0), (1000, 30.0)])
def test_few_complete_objects_are_looked_at_often_and_many_within_a_bound(count: int, seconds: float) -> None:
    assert relaxed_interval(count, 30.0) == seconds
    assert relaxed_interval(count, 0.5) == 0.5
