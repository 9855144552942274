"""Tools in turns: the clock, HTTP requests and MCP servers, as callers see them over REST."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.tools import http_request, net
from tests.integration.agent_runtime.harness import (
    Database,
    Serving,
    Talk,
    agent_id,
    free_port,
    manifest,
    scripted,
    serving,
    until,
)
from tests.integration.agent_runtime.toolserver import Answer, Seen, answer_json, http_service, mcp_server

CLOCK = {"name": "time", "type": "Builtin", "builtin": {"name": "Clock"}}
ORDER = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "verbose": {"type": "boolean"}},
    "required": ["id"],
    "additionalProperties": False,
}


def calling(name: str, then: str = "done", **arguments: Any) -> dict[str, Any]:
    """Return a model that calls one tool and then answers."""
    return scripted({"toolCalls": [{"name": name, "arguments": arguments}]}, then)


def http_entry(url: str, name: str = "order_status", **more: Any) -> dict[str, Any]:
    """Return an entry of type HTTP."""
    outer = {key: more.pop(key) for key in ("timeoutSeconds", "sideEffects", "approval") if key in more}
    http = {"url": url, "description": "Status of an order.", "parameters": ORDER, **more}
    return {"name": name, "type": "HTTP", "http": http, **outer}


def mcp_entry(url: str, name: str = "github", **more: Any) -> dict[str, Any]:
    """Return an entry of type MCP."""
    headers = {"headersFrom": more.pop("headersFrom")} if "headersFrom" in more else {}
    return {"name": name, "type": "MCP", "mcp": {"url": url, **headers}, **more}


async def result_of(talk: Talk, session: str = "s") -> str:
    """Send a message and return the last tool result that the model got."""
    await talk.post("go", session)
    return str([line["content"] for line in await talk.messages(session) if line["role"] == "tool"][-1])


async def tools_of(served: Serving) -> dict[str, dict[str, Any]]:
    """Return what /readyz says of each entry."""
    answer = await served.http.get(f"{served.base}/readyz")
    return {entry["name"]: entry for entry in answer.json()["tools"]}


async def until_tool(served: Serving, name: str, ok: bool | None, timeout: float = 15.0) -> dict[str, Any]:
    """Wait until /readyz says this of an entry; return what it says."""

    async def found() -> dict[str, Any] | None:
        entry = (await tools_of(served))[name]
        return entry if entry["ok"] is ok else None

    entry = await until(found, f"{name} is ok={ok}", timeout)
    assert entry is not None
    return entry


async def ok(seen: Seen) -> Answer:
    return answer_json({"path": seen.path, "query": seen.query})


async def test_the_clock_answers_in_the_zone_that_was_asked_for(postgres_url: str) -> None:
    model = calling("current_time", time_zone="Asia/Kathmandu")
    async with serving(postgres_url, manifest("a", model, tools=[CLOCK])) as served:
        found = json.loads(await result_of(served.talk("a")))
        assert found["timeZone"] == "Asia/Kathmandu"
        assert found["time"].endswith("+05:45")
        assert (await tools_of(served))["time"]["tools"] == ["current_time"]


async def test_arguments_fill_address_and_query_and_headers_come_from_secrets(postgres_url: str, secrets: Path) -> None:
    (secrets / "shop").mkdir()
    (secrets / "shop" / "bearer").write_text("Bearer shop-token-0001\n")
    headers = [{"name": "Authorization", "secretKeyRef": {"name": "shop", "key": "bearer"}}]
    async with http_service(ok) as service:
        entry = http_entry(f"{service.url}/orders/{{id}}?unit=eur", headersFrom=headers)
        agent = manifest("a", calling("order_status", id="7/../x", verbose=True), tools=[entry])
        async with serving(postgres_url, agent, secrets_dir=secrets) as served:
            found = json.loads(await result_of(served.talk("a")))
            assert found == {"path": "/orders/7%2F..%2Fx", "query": "unit=eur&verbose=true"}
            assert service.requests[-1].headers["authorization"] == "Bearer shop-token-0001"
            (secrets / "shop" / "bearer").write_text("Bearer shop-token-0002")
            await result_of(served.talk("a"), "t")
            assert service.requests[-1].headers["authorization"] == "Bearer shop-token-0002"
            assert "shop-token" not in (await served.http.get(f"{served.base}/readyz")).text


async def test_arguments_that_do_not_fit_call_nothing_and_tell_the_model_why(postgres_url: str) -> None:
    async with http_service(ok) as service:
        agent = manifest(
            "a", calling("order_status", verbose="yes"), tools=[http_entry(f"{service.url}/orders/{{id}}")]
        )
        async with serving(postgres_url, agent) as served:
            found = await result_of(served.talk("a"))
        assert found.startswith("order_status: the arguments do not fit and nothing was called: ")
        assert "id: required but missing" in found
        assert "verbose: must be of type boolean, not string" in found
        assert not service.requests


# ---- what a service may do


async def test_an_error_of_the_service_is_for_the_model_to_read(postgres_url: str) -> None:
    async def missing(seen: Seen) -> Answer:
        return answer_json({"error": "no such order"}, 404)

    async with http_service(missing) as service:
        entry = http_entry(f"{service.url}/orders/{{id}}")
        async with serving(postgres_url, manifest("a", calling("order_status", id="7"), tools=[entry])) as served:
            assert await result_of(served.talk("a")) == (
                'order_status: the service answered 404: {"error": "no such order"}'
            )
            assert (await tools_of(served))["order_status"]["ok"] is True, "a 404 is an answer"


async def test_a_long_answer_is_cut_with_a_note(postgres_url: str) -> None:
    async def long(seen: Seen) -> Answer:
        return 200, {"content-type": "text/plain"}, b"x" * 10_000_000

    async with http_service(long) as service:
        entry = http_entry(f"{service.url}/orders/{{id}}")
        async with serving(postgres_url, manifest("a", calling("order_status", id="7"), tools=[entry])) as served:
            found = await result_of(served.talk("a"))
    assert found == "x" * 65_536 + "\n[cut: only the first 65536 characters are shown]"


async def test_a_slow_service_costs_its_timeout_and_not_the_turn(postgres_url: str) -> None:
    release = asyncio.Event()

    async def slow(seen: Seen) -> Answer:
        await release.wait()
        return answer_json({})

    async with http_service(slow) as service:
        entry = http_entry(f"{service.url}/orders/{{id}}", method="POST", timeoutSeconds=1)
        async with serving(postgres_url, manifest("a", calling("order_status", id="7"), tools=[entry])) as served:
            found = await result_of(served.talk("a"))
            assert found == "order_status: no answer within 1 s; whether it took effect is not known"
            assert (await served.talk("a").messages())[-1]["content"] == "done"
        release.set()


async def test_a_post_sends_json_and_a_key_of_its_own(postgres_url: str) -> None:
    async with http_service(ok) as service:
        entry = http_entry(f"{service.url}/orders", name="order", method="POST")
        model = scripted({"toolCalls": [{"name": "order", "arguments": {"id": one}} for one in ("1", "2")]}, "done")
        async with serving(postgres_url, manifest("a", model, tools=[entry])) as served:
            await result_of(served.talk("a"))
        assert sorted(seen.json["id"] for seen in service.requests) == ["1", "2"]
        assert len({seen.headers["idempotency-key"] for seen in service.requests}) == 2
        assert all(seen.headers["accept-encoding"] == "identity" for seen in service.requests)


async def test_redirects_are_followed_within_the_host_only(postgres_url: str) -> None:
    async def moved(seen: Seen) -> Answer:
        if seen.path == "/orders/here":
            return 302, {"location": "/orders/there"}, b""
        if seen.path == "/orders/out":
            return 302, {"location": f"http://localhost:{service.port}/orders/secret"}, b""
        if seen.path == "/orders/round":
            return 302, {"location": "/orders/round"}, b""
        return answer_json({"path": seen.path})

    async with http_service(moved) as service:
        entry = http_entry(f"{service.url}/orders/{{id}}")
        calls = [{"name": "order_status", "arguments": {"id": one}} for one in ("here", "out", "round")]
        async with serving(
            postgres_url, manifest("a", scripted({"toolCalls": calls}, "done"), tools=[entry])
        ) as served:
            await served.talk("a").post("go")
            lines = [line["content"] for line in await served.talk("a").messages() if line["role"] == "tool"]
        assert json.loads(lines[0]) == {"path": "/orders/there"}
        assert lines[1] == "order_status: the service answered 302, a redirect that is not followed"
        assert lines[2] == "order_status: the service redirects without end"
        assert "/orders/secret" not in {seen.path for seen in service.requests}


async def test_what_is_no_text_is_named_and_packed_answers_are_refused(postgres_url: str) -> None:
    async def odd(seen: Seen) -> Answer:
        if seen.path.endswith("image"):
            return 200, {"content-type": "image/png"}, b"\x89PNG"
        return 200, {"content-type": "text/plain", "content-encoding": "gzip"}, gzip.compress(b"x" * 1_000_000)

    async with http_service(odd) as service:
        entry = http_entry(f"{service.url}/orders/{{id}}")
        calls = [{"name": "order_status", "arguments": {"id": one}} for one in ("image", "bomb")]
        async with serving(
            postgres_url, manifest("a", scripted({"toolCalls": calls}, "done"), tools=[entry])
        ) as served:
            await served.talk("a").post("go")
            lines = [line["content"] for line in await served.talk("a").messages() if line["role"] == "tool"]
    assert lines[0].endswith("bytes of image/png, which is no text]")
    assert lines[1] == "order_status: the service sends answers that are too long or packed"


async def test_a_name_that_leads_into_the_cluster_is_not_connected_to(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.get_running_loop().getaddrinfo

    async def rebound(host: Any, port: Any, **more: Any) -> Any:
        return await real("127.0.0.1" if host == "api.example.com" else host, port, **more)

    async with http_service(ok) as service:
        entry = http_entry(f"http://api.example.com:{service.port}/orders/{{id}}")
        agent = manifest("a", calling("order_status", id="7"), tools=[entry])
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebound, raising=False)
        async with serving(postgres_url, agent) as served:
            found = await until_tool(served, "order_status", False)
            assert found["message"] == "has a host name that leads to this pod itself, which no tool may connect to"
            await result_of(served.talk("a"))
        assert not service.requests


async def test_a_service_that_is_away_is_told_and_comes_back_by_itself(postgres_url: str, database: Database) -> None:
    port = free_port()
    entry = http_entry(f"http://127.0.0.1:{port}/orders/{{id}}")
    agent = manifest("a", calling("order_status", id="7"), tools=[entry, CLOCK])
    async with serving(postgres_url, agent) as served:
        found = await until_tool(served, "order_status", False)
        assert (found["type"], found["reason"], found["message"]) == ("HTTP", "ToolDown", "refuses connections")
        assert (await served.http.get(f"{served.base}/readyz")).json()["ok"] is True, "a dead tool unreadies no pod"

        async def told() -> bool:
            query = "SELECT details FROM abide.agent_heartbeats WHERE agent_id = $1"
            details = await database.value(query, agent_id("a"))
            tools = json.loads(details).get("tools", []) if details else []
            return [(one["name"], one["ok"]) for one in tools] == [("order_status", False), ("time", True)]

        await until(told, "the heartbeat tells it")

        async def recorded() -> bool:
            answer = await served.talk("a").request("GET", "/errors")
            return "ToolDown" in [item["type"] for item in answer.json()["items"]]

        await until(recorded, "an error row")
        metrics = (await served.http.get(f"{served.base}/metrics")).text
        assert 'abide_tool_up{agent="a",agent_namespace="tests",tool="order_status"} 0.0' in metrics
        async with http_service(ok, port):
            await until_tool(served, "order_status", True, timeout=15.0)
            assert json.loads(await result_of(served.talk("a")))["path"] == "/orders/7"
            metrics = (await served.http.get(f"{served.base}/metrics")).text
            called = 'abide_tool_calls_total{agent="a",agent_namespace="tests",outcome="ok",tool="order_status"} 1.0'
            assert called in metrics


async def test_a_refusal_lasts_until_a_good_answer_or_other_headers(
    postgres_url: str, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_request, "WELL_SECONDS", 0.0)  # looks all the time, so that one could clear the refusal
    (secrets / "shop").mkdir()
    bearer = secrets / "shop" / "bearer"
    bearer.write_text("Bearer old")
    headers = [{"name": "Authorization", "secretKeyRef": {"name": "shop", "key": "bearer"}}]
    looks: list[str] = []
    status = 401

    async def guarded(seen: Seen) -> Answer:
        return answer_json({"path": seen.path}, status)

    async def look(self: http_request.HttpToolset, real: Any = http_request.HttpToolset._look) -> None:
        await real(self)
        looks.append(self.check().message)

    monkeypatch.setattr(http_request.HttpToolset, "_look", look)
    async with http_service(guarded) as service:
        entry = http_entry(f"{service.url}/orders/{{id}}", headersFrom=headers)
        agent = manifest("a", calling("order_status", id="7"), tools=[entry])
        async with serving(postgres_url, agent, secrets_dir=secrets) as served:
            await until_tool(served, "order_status", True)
            assert "answered 401" in await result_of(served.talk("a"), "refused")
            seen = len(looks)

            async def looked() -> bool:
                return len(looks) >= seen + 2

            await until(looked, "connections that are made")
            assert looks[seen + 1 :] == ["answers 401"] * len(looks[seen + 1 :])
            assert (await tools_of(served))["order_status"]["ok"] is False
            status = 200
            assert "/orders/7" in await result_of(served.talk("a"), "offered"), "a refused tool may be called"
            assert (await tools_of(served))["order_status"]["ok"] is True
            status = 403
            await result_of(served.talk("a"), "refused-again")
            assert (await until_tool(served, "order_status", False))["message"] == "answers 403"
            bearer.write_text("Bearer new")
            await until_tool(served, "order_status", True)


async def test_a_look_tries_the_other_addresses_of_a_name(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service listens on 127.0.0.1 alone."""

    async def both(host: str, port: int, *, allow_private: bool) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    async with http_service(ok) as service:
        entry = http_entry(f"http://localhost:{service.port}/orders/{{id}}")
        agent = manifest("a", scripted("hello"), tools=[entry])
        monkeypatch.setattr(net, "find_addresses", both)
        async with serving(postgres_url, agent) as served:
            await until_tool(served, "order_status", True)


# ---- MCP


async def test_tools_of_an_mcp_server_are_discovered_called_and_shown(postgres_url: str) -> None:
    async with mcp_server() as server:
        entry = mcp_entry(server.url, allow=["get_diff", "create_review"])
        async with serving(postgres_url, manifest("a", calling("get_diff", number=3), tools=[entry])) as served:
            assert await result_of(served.talk("a")) == "diff of 3", (
                "the first turn waits until it was looked for tools"
            )
            found = await until_tool(served, "github", True)
            assert found["tools"] == ["get_diff", "create_review"]
            await served.talk("a").post("again", "t")
        assert [name for name, _ in server.calls] == ["get_diff", "get_diff"]


async def test_a_tool_that_is_not_allowed_is_unknown(postgres_url: str) -> None:
    async with mcp_server() as server:
        entry = mcp_entry(server.url, allow=["get_diff"])
        model = calling("create_review", number=3, text="x")
        async with serving(postgres_url, manifest("a", model, tools=[entry])) as served:
            await until_tool(served, "github", True)
            found = await result_of(served.talk("a"))
            assert found == "unknown tool 'create_review'; there are: get_diff"
        assert not server.calls


async def test_an_mcp_server_that_is_away_degrades_and_is_back_within_15_s(postgres_url: str) -> None:
    port = free_port()
    agent = manifest("a", calling("get_diff", number=3), tools=[mcp_entry(f"http://127.0.0.1:{port}/mcp")])
    async with serving(postgres_url, agent) as served:
        found = await until_tool(served, "github", False)
        assert found["message"] == "refuses connections"
        assert "unknown tool 'get_diff'" in await result_of(served.talk("a"))
        async with mcp_server(port):
            await until_tool(served, "github", True, timeout=15.0)
            assert await result_of(served.talk("a"), "t") == "diff of 3"
        found = await until_tool(served, "github", False, timeout=20.0)
        assert "get_diff" in found["tools"], "what it had stays shown"
        async with mcp_server(port):
            await until_tool(served, "github", True, timeout=15.0)


async def test_a_token_that_is_corrected_in_its_secret_is_used(postgres_url: str, secrets: Path) -> None:
    (secrets / "gh").mkdir()
    (secrets / "gh" / "bearer").write_text("Bearer old")
    headers = [{"name": "Authorization", "secretKeyRef": {"name": "gh", "key": "bearer"}}]
    async with mcp_server(token="Bearer new") as server:
        agent = manifest("a", calling("get_diff", number=3), tools=[mcp_entry(server.url, headersFrom=headers)])
        async with serving(postgres_url, agent, secrets_dir=secrets) as served:
            assert (await until_tool(served, "github", False))["message"] == "answers 401"
            (secrets / "gh" / "bearer").unlink()
            missing = 'has no value for header Authorization: key "bearer" of Secret "gh" is missing or empty'

            async def told() -> bool:
                return bool((await tools_of(served))["github"]["message"] == missing)

            await until(told, "the missing key is told")
            (secrets / "gh" / "bearer").write_text("Bearer new\n")
            await until_tool(served, "github", True, timeout=5.0)
            assert await result_of(served.talk("a")) == "diff of 3"


# ---- structured messages and replies

ASKED = {
    "type": "object",
    "properties": {"order": {"type": "integer"}, "lines": {"type": "array", "items": {"type": "string"}}},
    "required": ["order"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ("hello", "content", "must be JSON"),
        ('{"order": "7"}', "content.order", "must be of type integer, not string"),
        ('{"lines": []}', "content.order", "required but missing"),
        ('{"order": 1, "lines": ["a", 2]}', "content.lines[1]", "must be of type string, not integer"),
        ('{"order": 1, "more": 2}', "content.more", "unknown; known here: lines, order"),
        ('{"order": NaN}', "content", "must be JSON"),
        ("[" * 50_000 + "]" * 50_000, "content", ""),
    ],
)
async def test_a_message_that_does_not_fit_is_refused_with_its_field(
    postgres_url: str, content: str, field: str, words: str
) -> None:
    async with serving(postgres_url, manifest("a", input={"schema": ASKED})) as served:
        answer = await served.talk("a").post(content)
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert error["field"] == field
        assert words in error["message"]
        assert await served.talk("a").messages() == []
        assert (await served.talk("a").post('{"order": 7}')).status_code == 200


async def test_a_reply_that_does_not_fit_is_asked_for_once_more(postgres_url: str) -> None:
    agent = manifest("a", scripted("It is seven.", '```json\n{"order": 7}\n```', "next"), output={"schema": ASKED})
    async with serving(postgres_url, agent) as served:
        talk = served.talk("a")
        answer = (await talk.post("which?")).json()
        assert (answer["turn"]["status"], answer["reply"]["content"]) == ("completed", '{"order": 7}')
        assert [line["content"] for line in await talk.messages()] == ["which?", '{"order": 7}']


async def test_a_reply_that_never_fits_fails_the_turn(postgres_url: str) -> None:
    agent = manifest("a", scripted("It is seven.", '{"order": "7"}'), output={"schema": ASKED})
    async with serving(postgres_url, agent) as served:
        answer = (await served.talk("a").post("which?")).json()
        assert answer["turn"]["status"] == "failed"
        assert answer["turn"]["error"] == {
            "type": "OutputInvalid",
            "message": "The model's reply did not fit spec.output.schema, also when it was asked again: "
            "order: must be of type integer, not string.",
        }


# ---- approval


@pytest.mark.parametrize(("decision", "requests"), [("approve", 1), ("reject", 0)])
async def test_a_call_that_needs_approval_is_made_only_after_it(
    postgres_url: str, decision: str, requests: int
) -> None:
    async with http_service(ok) as service:
        entry = http_entry(
            f"{service.url}/orders", name="order", method="POST", approval={"for": ["order"], "timeoutSeconds": 60}
        )
        async with serving(postgres_url, manifest("a", calling("order", id="7"), tools=[entry])) as served:
            talk = served.talk("a")
            turn = (await talk.post("order it", wait=0)).json()["turn"]
            await talk.wait_status(turn["id"], "waiting")
            (asked,) = (await talk.request("GET", "/approvals")).json()["items"]
            assert asked["tool"] == "order"
            assert not service.requests
            path = f"/turns/{turn['id']}/approvals/{asked['callId']}"
            assert (await talk.request("POST", path, json={"decision": decision})).status_code == 200
            assert (await talk.outcome(turn["id"]))["turn"]["status"] == "completed"
        assert len(service.requests) == requests
