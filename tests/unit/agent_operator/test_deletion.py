"""The end of agents: what decides on the finalizer, and that nothing holds an Agent for ever."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent_api.conditions import Reason
from agent_operator.errors import Transient
from agent_operator.keys import AgentKey
from agent_operator.kube.port import AGENT, CONFIG_MAP, POD, ApiUnavailable, Forbidden, Invalid, Object
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.reconcile.debts import Debts
from agent_operator.reconcile.deletion import Deletions, plan_finalizer, wants_erasure
from agent_operator.reconcile.erasure import Eraser
from agent_operator.reconcile.outcome import Outcome
from agent_operator.resources.debt import Debt, build_debt, parse_debt
from agent_operator.telemetry.audit import Entry
from agent_store.errors import StoreUnavailable
from agent_store.ports import AgentRecord
from tests.unit.agent_operator.makers import UID, pod_body

KEY = AgentKey("shop", "support")
NOW = datetime(2026, 11, 20, 14, 0, tzinfo=UTC)
HELD = {
    "name": "support",
    "namespace": "shop",
    "uid": UID,
    "resourceVersion": "5",
    "finalizers": ["a", "abide.dev/erase-state"],
}


class Api:
    """The two writes a deletion makes; `refuse` is raised instead of creating."""

    def __init__(self, refuse: Exception | None = None) -> None:
        self.refuse = refuse
        self.created: list[Object] = []
        self.patches: list[list[Object]] = []
        self.moved = False

    async def create(self, kind: Any, body: Object) -> Object:
        assert kind is CONFIG_MAP
        if self.refuse:
            raise self.refuse
        self.created.append(body)
        return body

    async def patch_json(self, kind: Any, namespace: str, name: str, operations: list[Object]) -> Object:
        assert (kind, namespace, name) == (AGENT, "shop", "support")
        if self.moved:
            raise Invalid("the server rejected our request: testing value /metadata/resourceVersion failed")
        self.patches.append(operations)
        finalizers = operations[-1]["value"]
        return agent_body(metadata={**HELD, "resourceVersion": "9", "finalizers": finalizers})


class Rows:
    """A store with so many calls' worth of rows; None: it is away."""

    def __init__(self, calls: int | None) -> None:
        self.calls = calls
        self.erased: list[UUID] = []
        self.known: dict[UUID, AgentRecord] = {}

    async def check(self) -> None:
        if self.calls is None:
            raise StoreUnavailable(Reason.CONNECTION_REFUSED, "Postgres at pg:5432: connection refused")

    async def find_agent(self, agent_id: UUID) -> AgentRecord | None:
        return self.known.get(agent_id)

    async def erase_agent(self, agent_id: UUID) -> bool:
        assert self.calls is not None
        self.erased.append(agent_id)
        self.calls -= 1
        return self.calls <= 0


def agent_body(*, policy: str = "Delete", ago: float = 1.0, **changes: Any) -> Object:
    stamp = (NOW - timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {**changes.pop("metadata", HELD), "deletionTimestamp": stamp}
    kind = {"apiVersion": "abide.dev/v1alpha1", "kind": "Agent"}
    return {**kind, "metadata": metadata, "spec": {"state": {"deletionPolicy": policy}}, **changes}


class Scene:
    def __init__(self, api: Api, rows: Rows, *, pods: int = 0) -> None:
        self.api, self.rows = api, rows
        self.cache = ClusterCache()
        self.said: list[Entry] = []
        self.told: list[tuple[str, bool]] = []
        for number in range(pods):
            self.cache.put(POD, pod_body(f"pod-{number}"))
        self.deletions = Deletions(
            api, self.cache, Eraser(rows, self.cache.states), Debts(api, "own"),  # type: ignore[arg-type]
            check=rows.check, audit=self.said.append, tell=self.tell, now=lambda: NOW,
        )  # fmt: skip

    def tell(self, agent: Object, reason: str, message: str, *, normal: bool) -> None:
        self.told.append((reason, normal))

    async def end(self, body: Object, adopted_id: str = "") -> Outcome:
        self.cache.put(AGENT, body)
        cached = self.cache.agent(KEY)
        assert cached is not None
        return await self.deletions.end(KEY, cached, cached.body(), adopted_id)

    @property
    def released(self) -> bool:
        return bool(self.api.patches)


def test_the_policy_is_read_from_specs_that_are_wrong_otherwise() -> None:
    assert wants_erasure({"spec": {"models": "none", "state": {"deletionPolicy": "Delete"}}})
    for spec in ({}, {"state": None}, {"state": "Delete"}, {"state": {"deletionPolicy": "Retain"}}):
        assert not wants_erasure({"spec": spec})


def test_the_finalizer_comes_and_goes_beside_those_of_others() -> None:
    theirs = {**HELD, "finalizers": ["a"]}
    assert plan_finalizer(HELD, 5, wanted=True) == plan_finalizer(theirs, 5, wanted=False) == []
    *tests, change = plan_finalizer(theirs, 5, wanted=True)
    assert tests == [
        {"op": "test", "path": "/metadata/uid", "value": UID},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "5"},
    ]
    assert change == {"op": "add", "path": "/metadata/finalizers", "value": ["a", "abide.dev/erase-state"]}
    assert plan_finalizer(HELD, 5, wanted=False)[-1]["value"] == ["a"]


def test_a_debt_survives_its_way_through_a_config_map() -> None:
    debt = Debt(UID, str(uuid4()), "shop", "support", "2026-11-20T14:00:00Z")
    body = build_debt(debt, "own")
    assert (body["metadata"]["namespace"], body["metadata"]["name"]) == ("own", f"abide-erase-{UID}")
    assert parse_debt(body) == debt
    for broken in ({}, {"data": {}}, {"data": {**body["data"], "uid": "x"}}, {"data": {"uid": UID}}):
        assert parse_debt(broken) is None


async def test_a_policy_changed_after_the_deletion_erases_nothing() -> None:
    scene = Scene(Api(), Rows(3))
    assert (await scene.end(agent_body(policy="Retain"))).result == "gone"
    assert scene.released
    assert scene.rows.erased == []


async def test_pods_are_waited_for_and_not_for_ever() -> None:
    scene = Scene(Api(), Rows(1), pods=1)
    assert (await scene.end(agent_body(ago=59))).recheck_in == 1.0
    assert not scene.released
    assert scene.rows.erased == []
    assert (await scene.end(agent_body(ago=61, metadata={**HELD, "resourceVersion": "6"}))).result == "gone"
    assert scene.released
    assert [entry.event_type for entry in scene.said] == ["StateErased"]


async def test_without_postgres_nothing_is_waited_for() -> None:
    scene = Scene(Api(), Rows(None), pods=1)
    assert (await scene.end(agent_body())).result == "gone"
    assert scene.released
    assert [parse_debt(body).uid for body in scene.api.created] == [UID]  # type: ignore[union-attr]
    assert scene.told == [("EraseDeferred", False)]


async def test_a_debt_that_cannot_be_recorded_holds_the_agent_for_a_while_only() -> None:
    for refusal, ago, released in (
        (Forbidden("exceeded quota"), 10, False),
        (Forbidden("exceeded quota"), 301, True),
        (Forbidden("namespace own is being terminated"), 10, True),
        (ApiUnavailable("ApiUnreachable", "no answer"), 301, False),
    ):
        scene = Scene(Api(refusal), Rows(None))
        if released:
            await scene.end(agent_body(ago=ago))
            assert scene.told == [("EraseImpossible", False)]
            assert UID in scene.said[0].message
        else:
            with pytest.raises(Transient):
                await scene.end(agent_body(ago=ago))
        assert scene.released is released


async def test_an_agent_that_changed_meanwhile_is_looked_at_again_and_nothing_is_said_yet() -> None:
    scene = Scene(Api(), Rows(1))
    scene.api.moved = True
    with pytest.raises(Transient):
        await scene.end(agent_body())
    assert scene.said == []
    scene.api.moved = False
    await scene.end(agent_body())
    assert [entry.event_type for entry in scene.said] == ["StateErased"]


async def test_an_adopted_id_is_erased_only_if_it_is_of_that_name_and_nobody_elses() -> None:
    adopted = uuid4()
    for found, user, expected in (
        (("shop", "support"), "", {UUID(UID), adopted}),
        (("shop", "other"), "", {UUID(UID)}),
        (None, "", {UUID(UID)}),
        (("shop", "support"), str(adopted), {UUID(UID)}),
    ):
        scene = Scene(Api(), Rows(1))
        if found:
            scene.rows.known[adopted] = AgentRecord(adopted, *found, created_at=NOW)
        if user:
            annotations = {"abide.dev/adopt-state": user}
            other = {**HELD, "name": "next", "uid": "u2", "annotations": annotations}
            scene.cache.put(AGENT, {**agent_body(), "metadata": other})
        await scene.end(agent_body(), str(adopted))
        assert set(scene.rows.erased) == expected


async def test_a_retained_agent_is_written_down_once() -> None:
    scene = Scene(Api(), Rows(1))
    scene.deletions.remember(KEY, UID, UID)
    successor = str(uuid4())
    scene.deletions.remember(KEY, successor, successor)
    scene.deletions.part(KEY)
    scene.deletions.part(KEY)
    assert [(entry.event_type, str(entry.agent_id)) for entry in scene.said] == [
        ("StateRetained", UID),
        ("StateRetained", successor),
    ]
