"""Own code end to end: hooks around turns, tools from functions, and what happens when they fail."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent_api.v1alpha1 import Agent
from agent_runtime.clock import SystemClock
from agent_runtime.errors import SettingsError
from agent_runtime.hooks import code
from agent_runtime.hooks.toolset import OwnToolset
from tests.fakes.provider import ModelProvider
from tests.integration.agent_runtime.harness import Database, echo, manifest, scripted, serving, until
from tests.integration.agent_runtime.models import compatible

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module with a class `Mine` and gives its `module:Mine`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def write(body: str) -> str:
        name = f"own_{uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(f"import asyncio, time\nimport abide\n\n{textwrap.dedent(body)}")
        names.append(name)
        return f"{name}:Mine"

    yield write
    for name in names:
        sys.modules.pop(name, None)


async def errors_of(database: Database) -> list[str]:
    """Return what own code did wrong, as recorded."""
    rows = await database.rows(
        "SELECT message FROM abide.agent_errors WHERE error_type = 'OwnCodeFailed' ORDER BY occurred_at"
    )
    return [row["message"] for row in rows]


async def test_hooks_of_a_whole_life(postgres_url: str, provider: ModelProvider, secrets: Path, write: Write) -> None:
    name = write("""
        LOG = []

        class Mine(abide.Agent):
            async def init(self):
                LOG.append(("init", self.runtime.name, self.runtime.namespace, self.runtime.spec["limits"]["maxSteps"]))
            async def before_turn(self, turn):
                LOG.append(("before", turn.user, turn.session, turn.content))
                if turn.content == "ping":
                    return abide.Reply("pong")
                return turn.content.upper()
            def prompt(self, turn):
                return turn.system_prompt + " Speak to " + turn.user + "."
            async def after_turn(self, turn, outcome):
                LOG.append(("after", outcome.status, outcome.reply, outcome.model))
            def cleanup(self):
                LOG.append(("cleanup",))
    """)
    agent = manifest("a", compatible(provider))
    async with serving(postgres_url, agent, secrets_dir=secrets, agent_class=name) as served:
        talk = served.talk("a", "ann")
        assert await talk.say("ping") == "pong"
        assert await talk.say("hello") == "Hello from the provider."
        (asked,) = provider.asked("chat")
        assert [one["content"] for one in asked.body["messages"]] == [
            "You are a test. Speak to ann.",
            "ping",
            "pong",
            "HELLO",
        ]
        kept = [(one["role"], one["content"]) for one in await talk.messages()]
        assert kept[2] == ("user", "hello"), "what is kept is what the user wrote"
        log = sys.modules[name.partition(":")[0]].LOG

        async def told() -> bool:
            return sum(entry[0] == "after" for entry in log) == 2

        await until(told, "after_turn was called for both")
    assert log[0] == ("init", "a", "tests", 20)
    assert ("before", "ann", "s", "ping") in log
    assert ("after", "completed", "pong", None) in log
    assert log[-1] == ("cleanup",)


@pytest.mark.parametrize(
    ("method", "head", "statement", "why"),
    [
        ("before_turn", "async def", "raise ValueError('secret detail')", "raised ValueError: secret detail"),
        ("before_turn", "async def", "await asyncio.sleep(60)", "took longer than 0.3 s"),
        ("before_turn", "async def", "return 5", "returned int"),
        ("prompt", "def", "raise ValueError('secret detail')", "raised ValueError: secret detail"),
        ("prompt", "def", "time.sleep(1.5)", "took longer than 0.3 s"),
        ("prompt", "def", "return ['x']", "returned list"),
    ],
)
async def test_a_failing_hook_costs_that_turn_only(
    postgres_url: str,
    database: Database,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    head: str,
    statement: str,
    why: str,
) -> None:
    monkeypatch.setattr(code, "HOOK_SECONDS", 0.3)
    name = write(f"""
        class Mine(abide.Agent):
            {head} {method}(self, turn):
                if turn.content == 'bad':
                    {statement}
    """)
    async with serving(postgres_url, manifest("a", echo()), agent_class=name) as served:
        talk = served.talk("a")
        assert await talk.say("good") == "good [1]"
        answer = (await talk.post("bad")).json()
        assert (answer["turn"]["status"], answer["turn"]["error"]["type"]) == ("failed", "OwnCodeFailed")
        assert answer["turn"]["error"]["message"] == f"The agent's own code failed in {method}."
        assert answer["reply"]["content"].startswith("Sorry")
        assert await talk.say("good") == "good [3]"

        async def recorded() -> list[str]:
            return await errors_of(database)

        assert why in (await until(recorded, "the failure is recorded"))[0]


async def test_functions_are_tools(postgres_url: str, database: Database, write: Write) -> None:
    name = write("""
        from typing import Annotated, Literal
        from pydantic import BaseModel, Field

        class Item(BaseModel):
            sku: str
            count: int = 1

        CALLS = []

        class Mine(abide.Agent):
            @abide.tool(side_effects=False)
            async def price(self, item: Item, currency: Literal["EUR", "USD"] = "EUR") -> dict:
                "Say what an item costs."
                return {"sku": item.sku, "total": item.count * 2, "currency": currency}
            @abide.tool(idempotency_argument="key")
            def order(self, call: abide.Call, sku: str, key: str) -> str:
                "Order an item."
                CALLS.append((call.user, call.session, sku, key == call.key and bool(key)))
                return "ordered"
            @abide.tool
            async def refuse(self) -> str:
                "Refuse."
                raise abide.ToolError("sold out")
            @abide.tool
            async def crash(self) -> str:
                "Crash."
                raise RuntimeError("password=hunter2")
            @abide.tool(timeout=0.2)
            async def slow(self) -> str:
                "Take long."
                await asyncio.sleep(60)
    """)

    def call(tool: str, **arguments: Any) -> dict[str, Any]:
        return {"name": tool, "arguments": arguments}

    model = scripted(
        {"toolCalls": [call("price", item={"sku": "a1", "count": 3}), call("order", sku="a1")]},
        {"toolCalls": [call("refuse"), call("crash"), call("slow")]},
        {"toolCalls": [call("price", item={"count": 3}), call("price", item={"sku": "x"}, currency="DKK")]},
        "done",
    )
    async with serving(postgres_url, manifest("a", model), agent_class=name) as served:
        talk = served.talk("a", "ann")
        assert await talk.say("go") == "done"
        results = [one["content"] for one in await talk.messages() if one["role"] == "tool"]
        assert results[0] == '{"sku": "a1", "total": 6, "currency": "EUR"}'
        assert results[1] == "ordered"
        assert results[2] == "refuse: sold out"
        assert "hunter2" not in results[3]
        assert "internal error" in results[3]
        assert "longer than 0.2 s" in results[4]
        assert "sku" in results[5]
        assert "currency" in results[6]
        calls = sys.modules[name.partition(":")[0]].CALLS
        assert calls == [("ann", "s", "a1", True)]

        async def recorded() -> bool:
            return any("crash raised RuntimeError" in message for message in await errors_of(database))

        await until(recorded, "the crash is recorded")


async def test_own_code_remembers(postgres_url: str, write: Write) -> None:
    name = write("""
        class Mine(abide.Agent):
            async def before_turn(self, turn):
                known = await self.runtime.memories.recall(turn.user, turn.content)
                await self.runtime.memories.remember(turn.user, turn.content, tags=["said"])
                return abide.Reply("; ".join(one.content for one in known) or "nothing")
    """)
    async with serving(postgres_url, manifest("a", memories={"enabled": True}), agent_class=name) as served:
        talk = served.talk("a", "ann")
        assert await talk.say("the gate is green") == "nothing"
        assert await talk.say("gate?") == "the gate is green"
        assert await served.talk("a", "bob").say("gate?") == "nothing"


async def test_not_ready_until_init_has_succeeded(postgres_url: str, database: Database, write: Write) -> None:
    name = write("""
        TRIES, GO = [], asyncio.Event()

        class Mine(abide.Agent):
            async def init(self):
                TRIES.append(1)
                if len(TRIES) < 3:
                    raise ConnectionError("no database of mine")
    """)
    async with serving(postgres_url, manifest("a", echo()), agent_class=name) as served:
        tries = sys.modules[name.partition(":")[0]].TRIES
        assert len(tries) == 3, "ready means that init succeeded"
        checks = {one["name"]: one for one in (await served.http.get(f"{served.base}/readyz")).json()["checks"]}
        assert checks["code"]["ok"] is True

        async def recorded() -> bool:
            found = await errors_of(database)
            return len(found) == 2 and "init raised ConnectionError: no database of mine" in found[0]

        await until(recorded, "failures of init are recorded")
        assert await served.talk("a").say("hi") == "hi [1]"


@pytest.mark.parametrize(
    ("where", "step"), [("async def init", "init"), ("def __init__", "making an instance"), ("def tools", "tools")]
)
async def test_readiness_shows_what_failed_and_no_text_of_an_exception(write: Write, where: str, step: str) -> None:
    name = write(f"""
        class Mine(abide.Agent):
            {where}(self):
                raise ConnectionError("postgres://shop:hunter2@db refused")
    """)
    told: list[str] = []
    services = code.RuntimeServices(
        Agent.model_validate(manifest("a")),
        None,
        on_metric=lambda _type, _value: None,
        on_error=lambda _type, message, _trace: told.append(message),
    )
    clock = SystemClock()
    own = code.OwnCode(code.load_class(name), services, clock, lambda _type, message, _trace: told.append(message))

    def load(instance: Any) -> None:
        code.read_tools(instance)

    beginning = asyncio.create_task(own.begin(load))
    try:

        async def failed() -> bool:
            return bool(told)

        await until(failed, "it failed")
        shown = own.check().message
        assert f"{step} failed with ConnectionError; the text is among the agent's errors: abide errors a; " in shown
        assert "hunter2" not in shown
        assert f"{step} raised ConnectionError: postgres://shop:hunter2@db refused" in told[0]
    finally:
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)


async def test_a_function_that_is_no_tool_keeps_it_unready_and_says_why(write: Write) -> None:
    name = write("""
        class Mine(abide.Agent):
            @abide.tool
            async def look(self, what) -> str:
                "Look."
                return what
    """)
    told: list[str] = []
    services = code.RuntimeServices(
        Agent.model_validate(manifest("a")),
        None,
        on_metric=lambda _type, _value: None,
        on_error=lambda _type, message, _trace: told.append(message),
    )
    clock = SystemClock()
    own = code.OwnCode(code.load_class(name), services, clock, lambda _type, message, _trace: told.append(message))
    tools = OwnToolset(own, clock, lambda *_: None)
    beginning = asyncio.create_task(own.begin(tools.load))

    async def says() -> bool:
        return "parameter what has no type" in own.check().message

    try:
        assert own.check().reason == "Starting"
        await until(says, "the check says why")
        assert (own.check().ok, own.check().reason, tools.is_up) == (False, "ProbeFailing", False)
        assert "tool look: parameter what has no type; annotate it" in told[0]
    finally:
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        await own.end()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "write module:Class"),
        ("no_such_module_at_all:Mine", "No module named"),
        ("json:Nothing", "no subclass of abide.Agent"),
        ("json:JSONDecoder", "no subclass of abide.Agent"),
    ],
)
def test_a_class_that_cannot_be_used_is_named(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        code.load_class(name)


def test_a_module_that_breaks_is_named_with_its_line(write: Write) -> None:
    name = write("1 / 0")
    with pytest.raises(SettingsError, match=r"ZeroDivisionError: division by zero \(in .*line 4\)"):
        code.load_class(name)


def test_abide_dev_says_what_is_wrong_with_a_class(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(
        "apiVersion: abide.dev/v1alpha1\nkind: Agent\nmetadata: {name: a}\n"
        "spec: {systemPrompt: x, models: [{provider: echo}]}\n"
    )
    repository = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "agent_cli.main", "dev", "agent.yaml", "--no-chat", "--class", "shop:Support"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--class 'shop:Support': importing shop raised ModuleNotFoundError" in done.stderr
