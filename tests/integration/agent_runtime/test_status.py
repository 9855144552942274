"""What the runtime says about itself: probes, Prometheus metrics, rows in Postgres, documentation, keys."""

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from agent_runtime.settings import AuthMode
from tests.integration.agent_runtime.harness import Database, agent_id, echo, manifest, scripted, serving, until
from tests.integration.agent_runtime.test_messages import problem_of


async def test_probes_name_their_checks(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a"), revision="3f2a9c01de") as served:
        for path, names in (
            ("/livez", ["loop"]),
            ("/readyz", ["loop", "store", "lease"]),
            ("/health", ["loop", "store", "lease"]),
        ):
            response = await served.http.get(served.base + path)
            body = response.json()
            assert (response.status_code, body["ok"], body["revision"]) == (200, True, "3f2a9c01de")
            assert [check["name"] for check in body["checks"]] == names
            assert all(set(check) == {"name", "ok", "reason", "message"} for check in body["checks"])


async def test_metrics_are_named_labelled_and_bounded(postgres_url: str) -> None:
    async with serving(postgres_url, manifest("a", scripted({"error": 401}, name="x"), echo())) as served:
        talk = served.talk("a")
        for number in range(30):
            await talk.say("x", f"s{number}")
            await talk.as_user(f"u{number}").say("x")
        await served.http.get(f"{served.base}/nowhere")
        text = (await served.http.get(f"{served.base}/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert {sample.name.split("_")[0] for sample in samples} == {"abide"}
        assert len(samples) <= 150 + 38 * 2
        assert all("namespace" not in sample.labels for sample in samples)
        for sample in samples:
            if "agent" in sample.labels:
                assert (sample.labels["agent"], sample.labels["agent_namespace"]) == ("a", "tests")
        values = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
        labels = (("agent", "a"), ("agent_namespace", "tests"))
        assert values["abide_messages_received_total", labels] == 60
        assert values["abide_turns_total", (*labels, ("status", "completed"))] == 60
        assert values["abide_ready", labels] == 1
        assert values["abide_turn_duration_seconds_count", labels] == 60


async def test_metrics_and_heartbeats_are_in_postgres_within_five_seconds(
    postgres_url: str, database: Database
) -> None:
    async with serving(postgres_url, manifest("a"), pod_name="pod-7", revision="r1") as served:
        await served.talk("a").say("x")

        async def written() -> bool:
            rows = await database.rows(
                "SELECT metric_type, value FROM abide.agent_metrics WHERE agent_id = $1", agent_id("a")
            )
            return {row["metric_type"]: row["value"] for row in rows}.items() >= {
                "message_received": 1.0,
                "turn_completed": 1.0,
            }.items()

        await until(written, "the metrics are written", 5.0)

        async def beaten() -> list[dict[str, Any]]:
            return await database.rows(
                "SELECT * FROM abide.agent_heartbeats WHERE agent_id = $1 "
                "AND details #>> '{model,answering}' = 'echo/echo'",
                agent_id("a"),
            )

        (row,) = await until(beaten, "the heartbeat tells of the turn", 5.0)
        details = json.loads(row["details"])
        assert row["pod"] == "pod-7"
        assert (details["revision"], details["ready"], details["sessions"]) == ("r1", True, {"active": 1})
        assert details["model"] == {"configured": "echo/echo", "answering": "echo/echo"}
        assert [check["name"] for check in details["checks"]] == ["loop", "store", "lease"]


async def test_metrics_left_at_the_end_are_written_then(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a")) as served:
        await served.talk("a").say("x")
    received = "SELECT sum(value) FROM abide.agent_metrics WHERE metric_type = 'message_received'"
    assert await database.value(received) == 1


async def test_the_api_describes_itself_with_examples_that_are_true(postgres_url: str) -> None:
    from agent_api import wire

    async with serving(postgres_url, manifest("a")) as served:
        document = (await served.http.get(f"{served.base}/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        paths = document["paths"]
        send = paths["/v1/agents/{namespace}/{name}/sessions/{session}/messages"]["post"]
        assert set(send["responses"]) >= {"200", "202", "404", "409", "413", "422", "429", "503"}
        example = send["responses"]["200"]["content"]["application/json"]["example"]
        wire.TurnResponse.model_validate(example)
        assert example["reply"] == {"content": "hello [1]"}
        wire.MessageIn.model_validate(send["requestBody"]["content"]["application/json"]["example"])
        parameters = {parameter["name"] for parameter in send["parameters"]}
        assert parameters == {"namespace", "name", "session", "Abide-User", "Idempotency-Key", "waitSeconds"}
        references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
        assert references <= set(document["components"]["schemas"])
        for methods in paths.values():
            for operation in methods.values():
                assert operation["summary"]
                assert operation["operationId"]
        page = await served.http.get(f"{served.base}/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "http" not in re.sub(r"https?://abide\.dev\S*", "", page.text), "the page needs nothing from elsewhere"


# ---- keys


async def test_without_a_valid_key_there_is_no_answer(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("right-key\n")
    async with serving(postgres_url, manifest("a"), auth=AuthMode.KEY, api_keys_dir=tmp_path) as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic cmlnaHQta2V5"}):
            talk = served.talk("a", **headers)
            for response in (
                await talk.post("x"),
                await talk.request("GET", "/sessions"),
                await served.http.get(f"{served.base}/v1/nowhere", headers=headers),
            ):
                problem_of(response, 401, "unauthorized")
                assert response.headers["www-authenticate"].startswith("Bearer")
            for path in ("/v1/models", "/v1/chat/completions"):  # errors there have OpenAI's shape
                response = await served.http.get(served.base + path, headers=headers)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
                assert response.headers["www-authenticate"].startswith("Bearer")
        for path in ("/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/docs"):
            assert (await served.http.get(served.base + path)).status_code == 200
        right = served.talk("a", Authorization="Bearer right-key")
        assert await right.say("x") == "x [1]"
        assert await right.as_user("alice").say("x") == "x [1]"
        (tmp_path / "key").write_text("new-key\n")

        async def refused() -> bool:
            return (await right.request("GET", "/sessions")).status_code == 401

        await until(refused, "the replaced key is valid no more", 5.0)
        assert await served.talk("a", Authorization="Bearer new-key").say("y") == "y [2]"


async def test_an_empty_folder_of_keys_means_no_key_is_valid(postgres_url: str, tmp_path: Path) -> None:
    async with serving(postgres_url, manifest("a"), auth=AuthMode.KEY, api_keys_dir=tmp_path / "none") as served:
        problem_of(await served.talk("a", Authorization="Bearer x").post("x"), 401, "unauthorized")
