"""Tool calls that wait for a person, over real HTTP and a real Postgres: approved, refused, timed out, cancelled."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.shop import Shop, asks, http_tool
from tests.integration.agent_runtime.harness import Database, Talk, manifest, scripted, serving, until
from tests.integration.agent_runtime.test_messages import problem_of


@pytest.fixture
def shop() -> Iterator[Shop]:
    """A service that counts what really happened."""
    with Shop().serving() as serving_shop:
        yield serving_shop


def buyer(shop: Shop, *replies: Any, timeout: int = 3600, on_timeout: str = "Reject", **spec: Any) -> dict[str, Any]:
    """Return an agent that asks a person before it wires, and not before it looks."""
    approval = {"for": ["wire"], "timeoutSeconds": timeout, "onTimeout": on_timeout}
    tools = [http_tool(shop, "wire", "POST", approval=approval), http_tool(shop, "look", "GET")]
    return manifest("a", scripted(*(replies or (asks("wire", "look"), "wired"))), tools=tools, **spec)


async def waiting_turn(talk: Talk, session: str = "s") -> dict[str, Any]:
    """Send a message whose turn waits, and return the turn as GET shows it."""
    response = await talk.post("wire it", session)
    assert response.status_code == 202, response.text
    body = response.json()
    assert body["turn"]["status"] == "waiting"
    assert response.headers["Location"].endswith(f"/turns/{body['turn']['id']}")
    found = await talk.request("GET", f"/turns/{body['turn']['id']}")
    assert found.status_code == 200
    return dict(found.json()["turn"])


async def decide(talk: Talk, turn: dict[str, Any], decision: str = "approve", **more: Any) -> Any:
    """Decide on the first call that waits."""
    call = turn["approvals"][0]["callId"]
    return await talk.request("POST", f"/turns/{turn['id']}/approvals/{call}", json={"decision": decision, **more})


async def finished(talk: Talk, turn: dict[str, Any]) -> dict[str, Any]:
    """Return the answer once the turn has its outcome."""

    async def probe() -> dict[str, Any]:
        body: dict[str, Any] = (await talk.request("GET", f"/turns/{turn['id']}")).json()
        return body if body["turn"]["finishedAt"] else {}

    return await until(probe, "the turn has its outcome")


async def test_a_call_waits_for_its_approval_and_the_turn_goes_on_with_it(postgres_url: str, shop: Shop) -> None:
    texts = {"waitingApproval": "One moment, I ask."}
    async with serving(postgres_url, buyer(shop, messages=texts)) as served:
        talk = served.talk("a")
        turn = await waiting_turn(talk)
        (approval,) = turn["approvals"]
        assert (approval["tool"], approval["arguments"], approval["onTimeout"]) == ("wire", {}, "Reject")
        assert (approval["session"], approval["user"], approval["turnId"]) == ("s", "anonymous", turn["id"])
        assert [(step["index"], step["kind"], step["name"], step["status"]) for step in turn["steps"]] == [
            (0, "model", "scripted/scripted", "finished"),
            (2, "tool", "look", "finished"),
        ]
        assert shop.counts() == {"look": 1}
        assert (await talk.request("GET", "/approvals")).json()["items"] == [approval]
        again = await talk.post("more", "s", Prefer="respond-async")
        assert again.json()["turn"]["status"] == "queued", "the session is busy"
        await talk.request("POST", f"/turns/{again.json()['turn']['id']}/cancel")
        assert (await talk.post("wire it", "t", key="k")).json()["reply"] == {"content": "One moment, I ask."}
        assert (await decide(talk, turn, comment="fine")).status_code == 200
        body = await finished(talk, turn)
        assert (body["turn"]["status"], body["reply"]) == ("completed", {"content": "wired"})
        assert body["turn"]["attempts"] == 1, "waiting is no failure"
        assert body["turn"]["approvals"] == []
        assert [step["status"] for step in body["turn"]["steps"]] == ["finished"] * 3
        assert shop.count("wire") == 1
        assert shop.count("look") == 2, "once in each session: a finished step is not made again"


async def test_a_refused_call_is_not_made_and_the_model_reads_why(postgres_url: str, shop: Shop) -> None:
    async with serving(postgres_url, buyer(shop)) as served:
        talk = served.talk("a")
        turn = await waiting_turn(talk)
        assert (await decide(talk, turn, "reject", comment="too much")).status_code == 200
        assert (await decide(talk, turn, "reject")).status_code == 200, "said again"
        problem_of(await decide(talk, turn, "approve"), 409, "approval-not-waiting")
        assert (await finished(talk, turn))["turn"]["status"] == "completed"
        told = [line["content"] for line in await talk.messages() if line["role"] == "tool"]
        assert "A person refused this call; it was not made. They say: too much" in told
        assert shop.count("wire") == 0


@pytest.mark.parametrize(("on_timeout", "made"), [("Reject", 0), ("Approve", 1)])
async def test_a_call_nobody_decides_on_times_out(postgres_url: str, shop: Shop, on_timeout: str, made: int) -> None:
    async with serving(postgres_url, buyer(shop, timeout=1, on_timeout=on_timeout)) as served:
        talk = served.talk("a")
        turn = await waiting_turn(talk)
        assert (await finished(talk, turn))["turn"]["status"] == "completed"
        assert shop.count("wire") == made
        problem_of(await decide(talk, turn), 409, "approval-not-waiting")


async def test_a_waiting_turn_can_be_cancelled_and_its_session_goes_on(postgres_url: str, shop: Shop) -> None:
    async with serving(postgres_url, buyer(shop)) as served:
        talk = served.talk("a")
        turn = await waiting_turn(talk)
        cancelled = await talk.request("POST", f"/turns/{turn['id']}/cancel")
        assert cancelled.status_code == 200, cancelled.text
        assert cancelled.json()["turn"]["status"] == "cancelled"
        assert cancelled.json()["turn"]["usage"]["inputTokens"] > 0, "what was used before is not forgotten"
        problem_of(await decide(talk, turn), 409, "approval-not-waiting")
        await waiting_turn(talk)
        assert shop.count("wire") == 0


async def test_several_calls_of_one_answer_are_decided_one_by_one(postgres_url: str, shop: Shop) -> None:
    async with serving(postgres_url, buyer(shop, asks("wire", "wire"), "both")) as served:
        talk = served.talk("a")
        turn = await waiting_turn(talk)
        first, second = turn["approvals"]
        place = f"/turns/{turn['id']}/approvals"
        await talk.request("POST", f"{place}/{second['callId']}", json={"decision": "reject"})
        still = (await talk.request("GET", f"/turns/{turn['id']}")).json()["turn"]
        assert still["status"] == "waiting"
        assert still["approvals"] == [first]
        await talk.request("POST", f"{place}/{first['callId']}", json={"decision": "approve"})
        assert (await finished(talk, turn))["turn"]["status"] == "completed"
        assert shop.count("wire") == 1


async def test_each_time_it_is_asked_anew(postgres_url: str, shop: Shop) -> None:
    async with serving(postgres_url, buyer(shop, asks("wire"), asks("wire"), "twice")) as served:
        talk = served.talk("a")
        turn = await waiting_turn(talk)
        await decide(talk, turn)

        async def asked_again() -> dict[str, Any]:
            found: dict[str, Any] = (await talk.request("GET", f"/turns/{turn['id']}")).json()["turn"]
            return found if found["status"] == "waiting" and shop.count("wire") == 1 else {}

        turn = await until(asked_again, "it waits for the second approval")
        await decide(talk, turn)
        assert (await finished(talk, turn))["reply"] == {"content": "twice"}
        assert shop.count("wire") == 2


async def test_what_cannot_be_decided_is_said(postgres_url: str, shop: Shop) -> None:
    async with serving(postgres_url, buyer(shop)) as served:
        talk = served.talk("a")
        turn = await waiting_turn(talk)
        unknown = f"/turns/{turn['id']}/approvals/call-9"
        problem_of(await talk.request("POST", unknown, json={"decision": "approve"}), 404, "approval-not-found")
        for body in ({}, {"decision": "yes"}, {"decision": "approve", "more": 1}):
            refused = await talk.request("POST", f"/turns/{turn['id']}/approvals/call-1", json=body)
            assert refused.status_code == 422, refused.text
        other = await talk.as_user("eve").request("GET", f"/turns/{turn['id']}")
        assert other.status_code == 404


async def test_a_client_that_streams_waits_along(postgres_url: str, shop: Shop) -> None:
    async with serving(postgres_url, buyer(shop)) as served:
        talk = served.talk("a")
        streamed = asyncio.create_task(talk.post("wire it", Accept="text/event-stream"))

        async def asked() -> list[dict[str, Any]]:
            return list((await talk.request("GET", "/approvals")).json()["items"])

        (approval,) = await until(asked, "somebody is asked")
        assert not streamed.done()
        await decide(talk, {"id": approval["turnId"], "approvals": [approval]})
        text = (await streamed).text
        assert "event: completed" in text
        assert "wired" in text


async def test_what_waits_survives_the_process_and_any_other_goes_on(postgres_url: str, shop: Shop) -> None:
    agent = buyer(shop)
    async with serving(postgres_url, agent) as first:
        turn = await waiting_turn(first.talk("a"))
    async with serving(postgres_url, agent) as second:
        talk = second.talk("a")
        await decide(talk, turn)
        body = await finished(talk, turn)
        assert (body["turn"]["status"], body["turn"]["attempts"]) == ("completed", 1)
        assert shop.counts() == {"look": 1, "wire": 1}


async def test_what_is_waited_for_is_kept_in_postgres_and_its_results_go_in_the_end(
    postgres_url: str, shop: Shop
) -> None:
    async with serving(postgres_url, buyer(shop)) as served:
        talk, rows = served.talk("a"), Database(postgres_url)
        turn = await waiting_turn(talk)
        assert await rows.rows("select 1 from abide.active_turns") == []
        await decide(talk, turn)
        await finished(talk, turn)

        async def forgotten() -> bool:
            return await rows.rows("select 1 from abide.steps where result is not null") == []

        await until(forgotten, "results that the messages hold are dropped")
        (row,) = await rows.rows("select decision, decided_by from abide.approvals")
        assert (row["decision"], row["decided_by"]) == ("approved", "anybody")


async def test_a_turn_stops_at_its_tokens(postgres_url: str, shop: Shop) -> None:
    spec = buyer(shop, asks("look"), limits={"turnTokens": 30})
    async with serving(postgres_url, spec) as served:
        body = (await served.talk("a").post("look again and again")).json()
        assert body["turn"]["status"] == "failed"
        assert body["turn"]["error"]["type"] == "TokenLimit"
        assert "limits.turnTokens" in body["turn"]["error"]["message"]
        assert 0 < shop.count("look") < 20
