"""What status says of models: what pods tell of them → conditions, messages, checks."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentStatus, Condition
from agent_api.wire import HealthOut, ModelCheck
from agent_operator.events import find_happenings
from agent_operator.status.models import MODEL_GRACE_SECONDS, MODEL_REASONS
from agent_operator.status.observed import Facts, Observation, Verdict
from agent_operator.status.pods import PodView
from agent_operator.status.summary import CHECKS_LIMIT, build_status, dump_status, parse_status
from agent_operator.status.timing import recheck_after
from tests.unit.agent_operator.makers import NOW, REVISION, at, health, make_agent, make_pod, observe, ready_pod

KEY = {"name": "llm", "key": "openai"}
PRIMARY = {"name": "primary", "provider": "openai", "model": "gpt-5-mini", "apiKeySecretRef": KEY}
BACKUP = {"name": "backup", "provider": "openai-compatible", "model": "small", "baseURL": "http://llm.shop.svc/v1"}
LINK = "docs/reasons"


def models(*entries: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(make_agent(models=list(entries)).spec.models)


def check(
    entry: dict[str, Any],
    ok: bool | None = True,
    reason: str = "",
    message: str = "",
    *,
    since: datetime | None = None,
    checked: datetime | None = None,
) -> ModelCheck:
    return ModelCheck(
        name=entry["name"], model=f"{entry['provider']}/{entry['model']}", ok=ok, reason=reason, message=message,
        since=since or at(-7), checked_at=checked or at(-1),
    )  # fmt: skip


DENIED = check(PRIMARY, False, "ModelAuthFailed", "answers 401")
FINE = check(PRIMARY)
OPEN = check(PRIMARY, None)


def told(*checks: ModelCheck) -> HealthOut:
    return health().model_copy(update={"models": list(checks)})


def seen(
    *checks: ModelCheck, pods: tuple[PodView, ...] = (), entries: Any = None, by: str = "probe", **changes: Any
) -> Observation:
    """Return an observation in which every pod says the same of its models, when asked or by heartbeat."""
    pods = pods or (ready_pod(),)
    entries = entries or ([PRIMARY] if len(checks) < 2 else [PRIMARY, BACKUP])
    given_: dict[str, Any] = {"models": models(*entries), "configured_model": "openai/gpt-5-mini", **changes}
    if by == "probe":
        given_.setdefault("probes", {pod.uid: told(*checks) for pod in pods})
    else:
        given_.setdefault("facts", Facts(models_by_pod={pod.name: tuple(checks) for pod in pods}))
    return observe(*pods, **given_)


def conditions(observation: Observation, previous: AgentStatus | None = None) -> dict[str, Condition]:
    status = build_status(observation, previous or AgentStatus())
    return {condition.type: condition for condition in status.conditions}


def said(observation: Observation, previous: AgentStatus | None = None) -> dict[str, str]:
    found = conditions(observation, previous)
    return {type_: f"{found[type_].status}/{found[type_].reason}" for type_ in ("Ready", "Degraded", "ModelReachable")}


@pytest.mark.parametrize("by", ["probe", "heartbeat"])
def test_a_refused_key_of_the_only_model(by: str) -> None:
    observation = seen(DENIED, by=by)
    status = build_status(observation, AgentStatus())
    found = {condition.type: condition for condition in status.conditions}
    assert said(observation) == {
        "Ready": "False/ModelAuthFailed",
        "Degraded": "False/NotServing",
        "ModelReachable": "False/ModelAuthFailed",
    }
    assert (status.desired_replicas, status.ready_replicas) == (1, 1)
    assert found["Ready"].message == (
        "openai/gpt-5-mini answers 401 since 2026-11-20T14:02:04Z (Secret shop/llm, key openai). "
        "Users get the fallback message. Put a valid key there; it is read within 60 s. "
        f"{LINK}/ModelAuthFailed.md"
    )
    assert (found["Accepted"].status, found["Progressing"].reason) == ("True", "UpToDate")


@pytest.mark.parametrize("provider", ["anthropic", "google"])
def test_other_providers_are_told_of_alike(provider: str) -> None:
    entry = {"name": "primary", "provider": provider, "model": "m", "apiKeySecretRef": {"name": "llm", "key": provider}}
    denied = check(entry, False, "ModelAuthFailed", "answers 401")
    observation = seen(denied, entries=[entry], configured_model=f"{provider}/m")
    assert said(observation)["Ready"] == "False/ModelAuthFailed"
    message = conditions(observation)["Ready"].message
    assert message.startswith(f"{provider}/m answers 401 since")
    assert f"(Secret shop/llm, key {provider}). Users get the fallback message." in message
    assert said(seen(check(entry, None), entries=[entry]))["ModelReachable"].startswith("Unknown/")
    fine = seen(check(entry), entries=[entry], configured_model=f"{provider}/m")
    assert conditions(fine)["Ready"].message == f"Serving with {provider}/m."


def test_a_model_that_can_be_called() -> None:
    observation = seen(FINE)
    assert said(observation) == {
        "Ready": "True/Serving", "Degraded": "False/AllWell", "ModelReachable": "True/Reachable",
    }  # fmt: skip
    assert conditions(observation)["Ready"].message == "Serving with openai/gpt-5-mini."


def test_a_fallback_model_serves() -> None:
    observation = seen(DENIED, check(BACKUP))
    found = conditions(observation)
    assert said(observation) == {
        "Ready": "True/ServingOnFallback",
        "Degraded": "True/ModelAuthFailed",
        "ModelReachable": "True/FallbackOnly",
    }
    assert found["Ready"].message.startswith(
        "Served by openai-compatible/small; openai/gpt-5-mini answers 401 since 2026-11-20T14:02:04Z (Secret shop/llm"
    )
    assert found["Ready"].message.endswith(f"{LINK}/ServingOnFallback.md")
    assert "Users get replies from openai-compatible/small." in found["Degraded"].message
    warned = {
        one.reason: one.normal for one in find_happenings(AgentStatus(), build_status(observation, AgentStatus()))
    }
    assert warned["ServingOnFallback"] is True


def test_a_fallback_message_is_not_serving() -> None:
    observation = seen(DENIED, check(BACKUP, False, "ModelUnreachable", "refuses connections"))
    assert said(observation)["Ready"] == "False/ModelAuthFailed"
    assert "No fallback model can be used either: users get the fallback message." in (
        conditions(observation)["Ready"].message
    )


MESSAGES = [
    ("ModelNotFound", "answers 404", "Correct spec.models[0].model or spec.models[0].baseURL"),
    ("ModelRateLimited", "answers 429", "It is tried again by itself; if it lasts"),
    ("ModelUnreachable", "refuses connections", "that pods may reach it; it is tried again by itself"),
    ("ModelRefused", "answers 400", "Correct spec.models[0]; the recorded errors"),
    ("UnknownParameter", "does not know parameter foo", "Correct or remove it in spec.models[0].parameters"),
    ("SomethingOfALaterVersion", "", "cannot be called since"),
]


@pytest.mark.parametrize(("reason", "phrase", "words"), MESSAGES, ids=[case[0] for case in MESSAGES])
def test_each_reason_has_its_remedy(reason: str, phrase: str, words: str) -> None:
    entry = {**BACKUP, "name": "primary"}
    found = conditions(seen(check(entry, False, reason, phrase), entries=[entry]))["Ready"]
    assert found.reason == (reason if reason in MODEL_REASONS else "ModelUnreachable")
    assert words in found.message
    assert found.message.startswith(f"openai-compatible/small {phrase or 'cannot be called'} since ")
    if reason in ("ModelUnreachable", "ModelNotFound", "ModelRefused"):
        assert "(http://llm.shop.svc/v1)" in found.message


def test_a_service_that_wants_a_key_and_was_given_none() -> None:
    entry = {**BACKUP, "name": "primary"}
    found = conditions(seen(check(entry, False, "ModelAuthFailed", "answers 401"), entries=[entry]))["Ready"]
    assert "Name a Secret with a valid key in spec.models[0].apiKeySecretRef." in found.message
    assert "Secret shop/" not in found.message


def test_what_a_provider_says_never_brings_a_key_into_status() -> None:
    echo = check(PRIMARY, False, "ModelAuthFailed", "answers 401: Incorrect API key provided: sk-abcdefghijklmnop")
    assert "abcdefghij" not in str(dump_status(build_status(seen(echo), AgentStatus())))


def test_nothing_is_called_serving_before_the_first_word_on_its_model() -> None:
    fresh = make_pod(ready=True, ready_at=at(-1), running_since=at(-4))
    for observation in (seen(OPEN, pods=(fresh,)), seen(pods=(fresh,), probes={}), seen(pods=(fresh,))):
        assert said(observation) == {
            "Ready": "False/Starting", "Degraded": "False/NotServing", "ModelReachable": "Unknown/Unknown",
        }  # fmt: skip
        assert recheck_after(observation) == pytest.approx(MODEL_GRACE_SECONDS - 1 + 0.1)
    waiting = seen(DENIED, check(BACKUP, None), pods=(fresh,))
    assert said(waiting)["Ready"] == "False/Starting"


def test_a_pod_that_never_says_anything_of_its_models_counts_as_serving_with_a_doubt() -> None:
    observation = seen(OPEN)
    assert said(observation) == {
        "Ready": "True/Serving", "Degraded": "False/AllWell", "ModelReachable": "Unknown/Unknown",
    }  # fmt: skip
    assert "does not say whether the model can be called" in conditions(observation)["Ready"].message


@pytest.mark.parametrize("checks", [(DENIED,), (DENIED, check(BACKUP)), (FINE,)], ids=["denied", "fallback", "fine"])
def test_what_the_pod_does_not_tell_any_more_keeps_its_last_value(checks: tuple[ModelCheck, ...]) -> None:
    before = build_status(seen(*checks), AgentStatus())
    entries = [PRIMARY, BACKUP]
    assert dump_status(build_status(seen(entries=entries, probes={}), before)) == dump_status(before)


def test_an_operator_that_just_started_keeps_a_new_pod_serving() -> None:
    fresh = make_pod(ready=True, ready_at=at(-1), running_since=at(-4))
    before = build_status(seen(FINE, pods=(fresh,)), AgentStatus())
    assert dump_status(build_status(seen(pods=(fresh,), probes={}), before)) == dump_status(before)


def test_a_new_revision_ends_what_was_last_known_of_another() -> None:
    before = build_status(seen(DENIED), AgentStatus())
    new = make_pod("agent-support-2", revision="1111111111", ready=True, ready_at=at(-30), running_since=at(-40))
    assert said(seen(pods=(new,), probes={}, revision="1111111111"), before)["Ready"] == "True/Serving"


@pytest.mark.parametrize("newer", ["probe", "heartbeat"])
def test_the_newer_word_counts(newer: str) -> None:
    pod = ready_pod()
    old, new = check(PRIMARY, False, "ModelAuthFailed", "answers 401", checked=at(-9)), check(PRIMARY, checked=at(-2))
    asked, beaten = (new, old) if newer == "probe" else (old, new)
    observation = seen(pods=(pod,), probes={pod.uid: told(asked)}, facts=Facts(models_by_pod={pod.name: (beaten,)}))
    assert said(observation)["Ready"] == "True/Serving"


def test_the_heartbeat_of_an_earlier_process_of_the_pod_says_nothing() -> None:
    old = check(PRIMARY, False, "ModelAuthFailed", "answers 401", checked=at(-31))
    assert said(seen(old, by="heartbeat"))["Ready"] == "True/Serving"


def test_pods_that_differ_serve_and_say_so() -> None:
    one, two = ready_pod(), ready_pod("agent-support-2")
    observation = seen(pods=(one, two), probes={one.uid: told(FINE), two.uid: told(DENIED)}, desired=2)
    found = conditions(observation)
    assert said(observation) == {
        "Ready": "True/ModelAuthFailed", "Degraded": "True/ModelAuthFailed", "ModelReachable": "True/Reachable",
    }  # fmt: skip
    assert found["Ready"].message.startswith("1 of 2 pods: openai/gpt-5-mini answers 401 since")


def test_a_pod_whose_fallback_works_serves_beside_one_whose_models_all_fail() -> None:
    one, two = ready_pod(), ready_pod("agent-support-2")
    down = check(BACKUP, False, "ModelUnreachable", "refuses connections")
    probes = {one.uid: told(DENIED, check(BACKUP)), two.uid: told(DENIED, down)}
    observation = seen(pods=(one, two), probes=probes, desired=2, entries=[PRIMARY, BACKUP])
    assert said(observation)["Ready"] == "True/ServingOnFallback"


def test_built_in_models_need_nothing() -> None:
    pod = make_pod(ready=True, ready_at=at(-1), running_since=at(-4))
    broken = ModelCheck(name="scripted", model="scripted/scripted", ok=False, reason="ModelUnreachable")
    for probes in ({}, {pod.uid: told(broken)}):
        entry = {"name": "scripted", "provider": "scripted", "model": "scripted", "parameters": {"replies": ["a"]}}
        observation = seen(pods=(pod,), probes=probes, entries=[entry], configured_model="scripted/scripted")
        assert said(observation)["Ready"] == "True/Serving"
        assert conditions(observation)["ModelReachable"].message == "scripted/scripted is built in: no network needed."


def test_a_built_in_fallback_serves_although_nobody_checks_it() -> None:
    entry = {"name": "echo", "provider": "echo", "model": "echo"}
    observation = seen(DENIED, check(entry, None), entries=[PRIMARY, entry])
    assert said(observation)["Ready"] == "True/ServingOnFallback"


def test_postgres_comes_before_the_model_and_the_model_is_still_told() -> None:
    pod = make_pod(running_since=at(-60), ready_at=at(-10))
    probe = health(("store", "ConnectionRefused", "down")).model_copy(update={"models": [DENIED]})
    found = said(seen(pods=(pod,), probes={pod.uid: probe}))
    assert found["Ready"] == "False/StateStoreUnreachable"
    assert found["ModelReachable"] == "False/ModelAuthFailed"


def test_a_broken_model_outranks_a_broken_rollout_since_nobody_gets_replies() -> None:
    new = make_pod("agent-support-2", revision="1111111111", waiting=("ErrImagePull", "x"), phase="Pending")
    old = ready_pod()
    observation = seen(pods=(old, new), probes={old.uid: told(DENIED)}, revision="1111111111")
    assert said(observation)["Ready"] == "False/ModelAuthFailed"
    assert conditions(observation)["Progressing"].reason == "RolloutFailed"


def test_a_missing_secret_of_the_new_spec_does_not_hide_that_nobody_gets_replies() -> None:
    verdict = Verdict(Reason.SECRET_MISSING, "spec.models[0].apiKeySecretRef: Secret shop/new does not exist.")
    observation = seen(DENIED, verdict=verdict)
    assert said(observation)["Ready"] == "False/ModelAuthFailed"
    assert conditions(observation)["Accepted"].reason == "SecretMissing"


def test_checks_of_status_have_one_entry_per_model_within_their_bound() -> None:
    status = build_status(seen(DENIED, check(BACKUP)), AgentStatus())
    found = {one.name: (one.ok, one.message) for one in status.health.checks}
    assert found["model/primary"] == (False, "openai/gpt-5-mini answers 401")
    assert found["model/backup"] == (True, "")
    assert list(found)[:3] == ["loop", "store", "lease"]
    many = [{**BACKUP, "name": f"m{number}"} for number in range(40)]
    crowded = build_status(seen(*(check(entry) for entry in many), entries=many[:10]), AgentStatus())
    assert len(crowded.health.checks) == CHECKS_LIMIT


def test_heartbeats_keep_the_checks_of_models_current() -> None:
    before = build_status(seen(DENIED), AgentStatus())
    after = build_status(seen(check(PRIMARY), by="heartbeat"), before)
    assert {one.name: one.ok for one in after.health.checks} == {
        "loop": True, "store": True, "lease": True, "model/primary": True,
    }  # fmt: skip


def test_the_instant_of_a_failure_stays_while_it_lasts() -> None:
    first = build_status(seen(DENIED), AgentStatus())
    again = seen(check(PRIMARY, False, "ModelAuthFailed", "answers 401", since=at(50), checked=at(60)), now=at(61))
    assert dump_status(build_status(again, first))["conditions"] == dump_status(first)["conditions"]


answers = st.lists(
    st.builds(
        check,
        st.sampled_from([PRIMARY, BACKUP]),
        st.sampled_from([True, False, None]),
        st.sampled_from(["", "ModelAuthFailed", "ModelUnreachable", "Nonsense"]),
        st.sampled_from(["", "answers 401"]),
        checked=st.sampled_from([at(-100), at(-3), None]),
    ),
    max_size=2,
    unique_by=lambda one: one.name,
)
some_pods = st.lists(
    st.builds(
        make_pod,
        name=st.sampled_from(["a", "b"]),
        revision=st.sampled_from([REVISION, "9999999999"]),
        ready=st.booleans(),
        ready_at=st.sampled_from([at(-40), at(-2)]),
        running_since=st.sampled_from([None, at(-300), at(-5)]),
    ),
    max_size=2,
    unique_by=lambda pod: pod.name,
)


@st.composite
def scenes(draw: st.DrawFn) -> Observation:
    pods = tuple(draw(some_pods))
    return observe(
        *pods,
        models=draw(st.sampled_from([models(PRIMARY), models(PRIMARY, BACKUP), ()])),
        configured_model="openai/gpt-5-mini",
        probes={pod.uid: told(*draw(answers)) for pod in pods if draw(st.booleans())},
        facts=Facts(
            models_by_pod=draw(st.sampled_from([None, {}])) or {pod.name: tuple(draw(answers)) for pod in pods}
        ),
        desired=2,
        now=draw(st.sampled_from([NOW, at(30)])),
    )


@settings(max_examples=300, deadline=None)
@given(first=scenes(), second=scenes())
def test_laws_of_status_with_models(first: Observation, second: Observation) -> None:
    before = build_status(first, AgentStatus())
    for observation, previous in ((first, AgentStatus()), (second, before)):
        status = build_status(observation, previous)
        found = {condition.type: condition for condition in status.conditions}
        if found["Ready"].status == "True":
            assert status.ready_replicas > 0
        else:
            assert found["Degraded"].status == "False"
        if found["ModelReachable"].reason == "FallbackOnly" and status.ready_replicas:
            assert found["Ready"].status == "True"
        if found["Ready"].reason in MODEL_REASONS and found["Ready"].status == "False":
            assert found["ModelReachable"].status == "False"
        for condition in status.conditions:
            assert condition.reason in Reason.__members__.values()
            assert "{" not in condition.message
        live = parse_status(dump_status(status))
        assert build_status(observation, live) == live
