"""The store did what it was asked but its answer got lost, or it cannot take an outcome: each turn still ends once."""

from collections.abc import Sequence
from uuid import UUID

from agent_api.conditions import Reason
from agent_api.wire import TurnStatus
from agent_store.errors import StoreUnavailable
from agent_store.ports import Accepted, Claim, Completed, NewTurn, Outcome, Owner
from agent_store.postgres.store import PostgresStore
from tests.integration.agent_runtime.harness import Database, echo, manifest, serving, until

LOST = StoreUnavailable(Reason.TIMEOUT, "the answer got lost")


class LosesAnswers(PostgresStore):
    """Postgres behind a line that loses the answers to the next calls of a method, after they were carried out."""

    def __init__(self, url: str, **lose: int) -> None:
        super().__init__(url)
        self.lose = lose

    def _answer_is_lost(self, method: str) -> bool:
        left = self.lose.get(method, 0)
        self.lose[method] = max(0, left - 1)
        return left > 0

    async def accept(self, turn: NewTurn, owner: Owner) -> Accepted:
        accepted = await super().accept(turn, owner)
        if self._answer_is_lost("accept"):
            raise LOST
        return accepted

    async def complete(self, claim: Claim, owner: Owner, outcome: Outcome) -> Completed:
        completed = await super().complete(claim, owner, outcome)
        if self._answer_is_lost("complete"):
            raise LOST
        return completed

    async def start_next(self, agent_id: UUID, session_id: UUID, owner: Owner, *, most: int = 1) -> Claim | None:
        claim = await super().start_next(agent_id, session_id, owner, most=most)
        if claim is not None and self._answer_is_lost("start_next"):
            raise LOST
        return claim

    async def claim_orphans(
        self, agent_id: UUID, owner: Owner, *, limit: int, known: Sequence[UUID] = (), most: int = 1
    ) -> list[Claim]:
        claims = await super().claim_orphans(agent_id, owner, limit=limit, known=known, most=most)
        if claims and self._answer_is_lost("claim_orphans"):
            raise LOST
        return claims


async def outcomes(database: Database) -> list[str]:
    rows = await database.rows("SELECT status FROM abide.turns ORDER BY turn_seq")
    return [row["status"] for row in rows]


async def test_an_accept_whose_answer_got_lost_is_repeated_and_answered_once(
    postgres_url: str, database: Database
) -> None:
    async with serving(postgres_url, manifest("a"), store=LosesAnswers(postgres_url, accept=1)) as served:
        talk = served.talk("a")
        assert await talk.say("x") == "x [1]"
        assert await outcomes(database) == ["completed"]
        assert len(await talk.messages()) == 2


async def test_a_message_the_client_was_told_nothing_about_still_gets_its_outcome(
    postgres_url: str, database: Database
) -> None:
    async with serving(postgres_url, manifest("a"), store=LosesAnswers(postgres_url, accept=3)) as served:
        talk = served.talk("a")
        refused = await talk.post("x", key="k")
        assert refused.status_code == 503
        again = await talk.post("x", key="k")
        assert again.json()["reply"] == {"content": "x [1]"}
        assert await outcomes(database) == ["completed"]
        assert await talk.say("y") == "y [2]", "the session is not stuck"


async def test_a_completion_whose_answer_got_lost_counts_once(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a"), store=LosesAnswers(postgres_url, complete=2)) as served:
        talk = served.talk("a")
        assert await talk.say("x") == "x [1]"
        assert await talk.say("y") == "y [2]"
        assert await outcomes(database) == ["completed"] * 2
        assert len(await talk.messages()) == 4


async def test_a_queued_turn_whose_start_got_lost_is_found_by_the_sweep(postgres_url: str, database: Database) -> None:
    store = LosesAnswers(postgres_url, start_next=1, claim_orphans=1)
    async with serving(postgres_url, manifest("a", echo(0.1)), store=store) as served:
        talk = served.talk("a")
        turns = [(await talk.post(f"m{number}", wait=0)).json()["turn"]["id"] for number in range(3)]
        replies = [(await talk.outcome(turn))["reply"]["content"] for turn in turns]
        assert replies == ["m0 [1]", "m1 [2]", "m2 [3]"]
        assert await outcomes(database) == ["completed"] * 3
        assert len(await talk.messages()) == 6


class RefusesReplies(PostgresStore):
    """Postgres that cannot take one kind of outcome, as with a text it cannot encode."""

    async def complete(self, claim: Claim, owner: Owner, outcome: Outcome) -> Completed:
        if outcome.status is TurnStatus.COMPLETED:
            raise ValueError("this cannot be stored")
        return await super().complete(claim, owner, outcome)


async def test_an_outcome_that_cannot_be_stored_becomes_a_failure_that_leaks_nothing(
    postgres_url: str, database: Database
) -> None:
    agent = manifest("a", messages={"fallback": "Sorry."})
    async with serving(postgres_url, agent, store=RefusesReplies(postgres_url)) as served:
        response = await served.talk("a").post("x")
        assert response.status_code == 200
        body = response.json()
        assert (body["turn"]["status"], body["turn"]["error"]["type"]) == ("failed", "InternalError")
        assert body["reply"] == {"content": "Sorry."}
        assert "stored" not in response.text

        async def recorded() -> bool:
            rows = await database.rows("SELECT message, stack_trace FROM abide.agent_errors")
            return any("this cannot be stored" in row["message"] and "ValueError" in row["stack_trace"] for row in rows)

        await until(recorded, "the defect is recorded with its traceback")


class UnreadableHistory(PostgresStore):
    """A store with rows that no key opens."""

    async def load_history(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
        raise ValueError("no key opens this")


async def test_a_history_that_cannot_be_read_fails_the_turn_and_wedges_nothing(postgres_url: str) -> None:
    agent = manifest("a", messages={"fallback": "Sorry."})
    async with serving(postgres_url, agent) as served:
        assert (await served.talk("a").post("one")).json()["turn"]["status"] == "completed"
    async with serving(postgres_url, agent, store=UnreadableHistory(postgres_url)) as served:
        body = (await served.talk("a").post("two")).json()
        assert (body["turn"]["status"], body["turn"]["error"]["type"]) == ("failed", "InternalError")
    async with serving(postgres_url, agent) as served:
        assert (await served.talk("a").post("three")).json()["turn"]["status"] == "completed"


class BreaksOnReads(PostgresStore):
    """A store with a defect."""

    async def list_sessions(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
        raise KeyError("internal detail with password=hunter2222")


async def test_a_defect_answers_500_that_leaks_nothing_and_leaves_a_row(postgres_url: str, database: Database) -> None:
    async with serving(postgres_url, manifest("a"), store=BreaksOnReads(postgres_url)) as served:
        response = await served.talk("a").request("GET", "/sessions")
        assert response.status_code == 500
        assert response.json()["type"] == "https://abide.dev/problems/internal-error"
        assert "detail with" not in response.text

        async def recorded() -> bool:
            rows = await database.rows("SELECT * FROM abide.agent_errors WHERE error_type = 'InternalError'")
            return any("internal detail" in row["message"] and "hunter2222" not in str(row) for row in rows)

        await until(recorded, "the defect is recorded without the secret")
