"""Recorded errors over HTTP: whose they are, their order, their pages."""

from tests.integration.agent_runtime.harness import Talk, manifest, scripted, serving, until


async def errors(talk: Talk, **params: object) -> list[dict[str, object]]:
    response = await talk.request("GET", "/errors", params=params)
    assert response.status_code == 200, response.text
    return list(response.json()["items"])


async def test_errors_of_failed_turns_are_listed_newest_first(postgres_url: str) -> None:
    failing = manifest("failing", scripted({"error": 500}))
    async with serving(postgres_url, failing, manifest("well")) as served:
        talk = served.talk("failing")
        turns = []
        for number in range(3):
            answer = await talk.as_user(f"user-{number}").post("hello")
            assert answer.json()["turn"]["status"] == "fallback"
            turns.append(answer.json()["turn"]["id"])

        async def recorded() -> bool:
            return set(turns) <= {item["turnId"] for item in await errors(talk)}

        await until(recorded, "the errors of every turn, whoever spoke")
        items = await errors(talk)
        times = [str(item["time"]) for item in items]
        assert times == sorted(times, reverse=True)
        assert all(set(item) == {"time", "type", "message", "turnId"} for item in items)
        assert [item["turnId"] for item in items if item["turnId"]] == turns[::-1]
        kind = next(item["type"] for item in items if item["turnId"])
        assert {item["type"] for item in await errors(talk, type=str(kind))} == {kind}
        assert await errors(talk, type="NoSuchType") == []
        assert await errors(served.talk("well")) == []


async def test_pages_join_to_the_whole_and_wrong_cursors_are_refused(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("failing", scripted({"error": 500}))) as served:
        talk = served.talk("failing")
        for _ in range(3):
            await talk.post("hello")

        async def all_there() -> bool:
            return len([item for item in await errors(talk) if item["turnId"]]) == 3

        await until(all_there, "three errors")
        whole = await errors(talk, limit=200)
        pages: list[dict[str, object]] = []
        cursor: str | None = None
        while True:
            response = await talk.request(
                "GET", "/errors", params={"limit": 1} | ({"cursor": cursor} if cursor else {})
            )
            body = response.json()
            pages += body["items"]
            cursor = body["nextCursor"]
            if not cursor:
                break
        assert pages == whole
        for params in ({"cursor": "nonsense"}, {"limit": 201}, {"limit": 0}, {"type": ""}):
            refused = await talk.request("GET", "/errors", params=params)
            assert refused.status_code == 422
            assert refused.json()["errors"][0]["field"] == next(iter(params))
        unknown = await served.talk("nobody").request("GET", "/errors")
        assert unknown.status_code == 404
