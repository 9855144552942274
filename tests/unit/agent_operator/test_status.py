"""Conditions and fields of status: what is observed → what is said."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_api.conditions import ConditionType, Reason
from agent_api.v1alpha1 import AgentStatus, Condition, LastError
from agent_operator.status.observed import Facts, Observation, ProbeFailure, Refusal, Verdict
from agent_operator.status.summary import build_status, decide, dump_status, parse_status
from agent_operator.status.timing import recheck_after
from tests.unit.agent_operator.makers import NOW, REVISION, at, ended, health, make_agent, make_pod, observe, ready_pod

OLD = "9999999999"
ORDER = ["Ready", "Accepted", "Progressing", "Degraded", "StateStoreReady", "ModelReachable", "Suspended"]


def conditions(observation: Observation, previous: AgentStatus | None = None) -> dict[str, Condition]:
    status = build_status(observation, previous or AgentStatus())
    return {condition.type: condition for condition in status.conditions}


def said(observation: Observation, previous: AgentStatus | None = None) -> dict[str, str]:
    return {
        type_: f"{condition.status}/{condition.reason}"
        for type_, condition in conditions(observation, previous).items()
    }


def test_a_healthy_agent_says_so_in_every_condition_and_in_order() -> None:
    found = said(observe(ready_pod()))
    assert list(found) == ORDER
    assert found == {
        "Ready": "True/Serving",
        "Accepted": "True/Valid",
        "Progressing": "False/UpToDate",
        "Degraded": "False/AllWell",
        "StateStoreReady": "True/Connected",
        "ModelReachable": "True/Reachable",
        "Suspended": "False/NotSuspended",
    }


def test_a_new_agent_is_starting() -> None:
    found = said(observe())
    assert found["Ready"] == "False/Starting"
    assert found["Progressing"] == "True/Starting"
    assert found["Degraded"] == "False/NotServing"
    assert found["StateStoreReady"] == "Unknown/Unknown"


OOM = ended("OOMKilled", 137, when=at(-5))
CAUSES: list[tuple[str, dict[str, Any], Reason, str]] = [
    (
        "image",
        {"waiting": ("ImagePullBackOff", 'Back-off pulling image "x"'), "phase": "Pending"},
        Reason.IMAGE_PULL_FAILED,
        "Image abide/runtime:1.2.3 cannot be pulled since",
    ),
    (
        "invalid image",
        {"waiting": ("InvalidImageName", "bad"), "phase": "Pending"},
        Reason.IMAGE_PULL_FAILED,
        "cannot be pulled",
    ),
    (
        "oom",
        {"waiting": ("CrashLoopBackOff", "back-off"), "last_ended": OOM, "restarts": 3},
        Reason.OOM_KILLED,
        "Container runtime killed for memory (limit 256Mi) repeatedly since",
    ),
    (
        "crash",
        {"waiting": ("CrashLoopBackOff", "back-off"), "restarts": 3,
         "last_ended": ended("Error", 1, when=at(-5), message="line one\nValueError: no manifest")},
        Reason.CRASH_LOOP,
        "with exit code 1; its last words: ValueError: no manifest.",
    ),
    (
        "unschedulable",
        {"unschedulable": "0/1 nodes are available: 1 Insufficient memory.", "phase": "Pending"},
        Reason.UNSCHEDULABLE,
        "No node takes the pod since 2026-11-20T14:01:21Z: 0/1 nodes are available: 1 Insufficient memory. ",
    ),
    (
        "secret",
        {"waiting": ("CreateContainerConfigError", 'secret "agent-support-postgres" not found')},
        Reason.SECRET_MISSING,
        'secret "agent-support-postgres" not found',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "reason", "words"), [case[1:] for case in CAUSES], ids=[case[0] for case in CAUSES])
def test_the_cause_of_the_only_pod_is_the_reason(given_: dict[str, Any], reason: Reason, words: str) -> None:
    found = conditions(observe(make_pod(**given_)))
    ready = found["Ready"]
    assert (ready.status, ready.reason) == ("False", reason)
    assert words in ready.message
    assert ready.message.endswith(f" docs/reasons/{reason}.md")
    assert found["Degraded"].reason == Reason.NOT_SERVING
    assert found["Progressing"].status == "False"


def test_an_unready_runtime_is_believed_when_it_names_postgres() -> None:
    pod = make_pod(running_since=at(-60), ready_at=at(-10))
    told = health(("lease", "ConnectionRefused", "no lease"), ("store", "ConnectionRefused", "pg.shop:5432 refuses"))
    found = conditions(observe(pod, probes={pod.uid: told}))
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "StateStoreUnreachable")
    assert (found["StateStoreReady"].status, found["StateStoreReady"].reason) == ("False", "ConnectionRefused")
    assert "pg.shop:5432 refuses" in found["Ready"].message
    assert "since 2026-11-20T14:02:01Z" in found["Ready"].message
    assert "503" in found["Ready"].message


def test_the_instant_the_runtime_names_is_the_one_status_names() -> None:
    pod = make_pod(running_since=at(-60), ready_at=at(-10))
    told = health(("store", "Timeout", "Postgres at pg:5432: no answer in time; look (since 2026-11-20T14:01:00Z)."))
    message = conditions(observe(pod, probes={pod.uid: told}))["Ready"].message
    assert message.startswith("Postgres pg:5432 does not answer in time since 2026-11-20T14:01:00Z. New messages")


def test_a_runtime_that_still_takes_its_lease_is_starting() -> None:
    pod = make_pod(running_since=at(-5))
    assert said(observe(pod, probes={pod.uid: health(("lease", "Starting", "not held"))}))["Ready"] == "False/Starting"


def test_a_runtime_that_was_ready_and_does_not_answer_fails_its_probe() -> None:
    pod = make_pod(running_since=at(-60), ready_at=at(-10))
    found = conditions(observe(pod, probes={pod.uid: ProbeFailure.NO_ANSWER}))
    assert found["Ready"].reason == Reason.PROBE_FAILING
    assert "does not answer" in found["Ready"].message


def test_a_runtime_that_just_started_is_starting_even_if_it_does_not_answer() -> None:
    pod = make_pod(running_since=at(-1))
    assert said(observe(pod))["Ready"] == "False/Starting"
    assert said(observe(pod, probes={pod.uid: ProbeFailure.NO_ANSWER}))["Ready"] == "False/Starting"


def test_a_runtime_that_never_became_ready_is_at_last_failing() -> None:
    pod = make_pod(running_since=at(-500), ready_at=at(-510))
    assert said(observe(pod, probes={pod.uid: ProbeFailure.NO_ANSWER}))["Ready"] == "False/ProbeFailing"


def test_other_checks_of_the_runtime_name_themselves() -> None:
    pod = make_pod(running_since=at(-60), ready_at=at(-10))
    found = conditions(observe(pod, probes={pod.uid: health(("loop", "", "frozen for 12 s"))}))
    assert found["Ready"].reason == Reason.PROBE_FAILING
    assert "check loop fails" in found["Ready"].message
    assert found["StateStoreReady"].reason == Reason.CONNECTED


def test_a_loop_of_memory_kills_is_trusted_again_only_after_a_minute() -> None:
    def pod(last: datetime) -> Any:
        return make_pod(
            ready=True, ready_at=at(-1), running_since=last, restarts=4, last_ended=ended("OOMKilled", 137, when=last)
        )

    assert said(observe(pod(at(-10))))["Ready"] == "False/OOMKilled"
    assert said(observe(pod(at(-61))))["Ready"] == "True/Serving"
    assert recheck_after(observe(pod(at(-10)))) == pytest.approx(50.1)


def test_a_process_that_ended_once_is_just_started_again() -> None:
    pod = make_pod(ended=ended("Error", 137, when=at(-1)))
    found = conditions(observe(pod))["Ready"]
    assert (found.status, found.reason) == ("False", "Starting")
    assert "since 2026-11-20T14:02:10Z" in found.message
    again = make_pod(ended=ended("Error", 137, when=at(-1)), restarts=2)
    assert said(observe(again))["Ready"] == "False/CrashLoop"


def test_a_new_revision_without_postgres_is_not_called_failed() -> None:
    new = make_pod("agent-support-2", running_since=at(-10), ready_at=at(-20))
    observation = observe(ready_pod(revision=OLD), new, probes={new.uid: health(("store", "Timeout", "x"))})
    found = said(observation)
    assert found["Ready"] == "True/StateStoreUnreachable"
    assert found["Progressing"] == "True/RollingOut"
    assert found["Degraded"] == "True/StateStoreUnreachable"
    message = conditions(observation)["Ready"].message
    assert f"revision {OLD} keeps serving" in message
    assert "503" not in message


def test_one_memory_kill_alone_does_not_hide_a_ready_pod() -> None:
    last = ended("OOMKilled", 137, when=at(-10))
    pod = make_pod(ready=True, ready_at=at(-1), running_since=at(-9), restarts=1, last_ended=last)
    assert said(observe(pod))["Ready"] == "True/Serving"


def test_a_broken_new_revision_leaves_the_old_one_serving() -> None:
    new = make_pod("agent-support-2", waiting=("ImagePullBackOff", "…"), phase="Pending")
    found = conditions(observe(ready_pod(revision=OLD), new))
    assert (found["Ready"].status, found["Ready"].reason) == ("True", "RolloutFailed")
    assert f"revision {OLD} keeps serving" in found["Ready"].message
    assert (found["Progressing"].status, found["Progressing"].reason) == ("False", "RolloutFailed")
    assert (found["Degraded"].status, found["Degraded"].reason) == ("True", "ImagePullFailed")


def test_a_rollout_under_way_is_no_problem() -> None:
    found = said(observe(ready_pod(revision=OLD), make_pod("agent-support-2", phase="Pending")))
    assert found["Ready"] == "True/Serving"
    assert found["Progressing"] == "True/RollingOut"
    assert found["Degraded"] == "False/AllWell"


def test_a_second_pod_of_the_same_revision_is_no_rollout() -> None:
    found = conditions(observe(ready_pod(), make_pod("agent-support-2", phase="Pending"), desired=2))["Progressing"]
    assert (found.status, found.reason) == ("True", "Starting")
    assert "serves: 1 of 2 pods since" in found.message
    mixed = observe(ready_pod(), ready_pod("agent-support-2", revision=OLD), desired=2)
    assert said(mixed)["Progressing"] == "True/RollingOut"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("0/3 nodes are available: 3 Insufficient cpu.", "spec.runtime.resources.requests"),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", "spec.runtime.nodeSelector"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}.", "spec.runtime.tolerations"),
        ("no nodes available to schedule pods", "spec.runtime.resources.requests"),
    ],
)
def test_the_remedy_fits_why_no_node_takes_the_pod(words: str, remedy: str) -> None:
    pod = make_pod(phase="Pending", unschedulable=words)
    message = conditions(observe(pod))["Ready"].message
    assert remedy in message
    fields = ("resources.requests", "nodeSelector", "tolerations")
    assert [f"spec.runtime.{field}" for field in fields if f"spec.runtime.{field}" in message] == [remedy]


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ('{"turn": "01a1", "ms": 5.1, "event": "turn_finished", "level": "info"}', ""),
        (
            '{"event": "no manifest", "error": "missing file", "level": "error"}',
            "its last words: no manifest: missing file.",
        ),
        ('{"event": "cut', 'its last words: {"event": "cut.'),
    ],
)
def test_last_words_are_those_of_a_failure(line: str, quoted: str) -> None:
    killed = ended("Error", 137, when=at(-5), message=f"before\n{line}\n")
    message = conditions(observe(make_pod(waiting=("CrashLoopBackOff", "…"), last_ended=killed, restarts=3)))[
        "Ready"
    ].message
    assert "turn" not in message
    assert ("its last words" in message) == bool(quoted)
    assert quoted in message


def test_one_of_two_pods_broken() -> None:
    broken = make_pod("agent-support-2", waiting=("CrashLoopBackOff", "…"), last_ended=OOM, restarts=3)
    found = conditions(observe(ready_pod(), broken, desired=2))
    assert (found["Ready"].status, found["Ready"].reason) == ("True", "OOMKilled")
    assert (found["Degraded"].status, found["Degraded"].reason) == ("True", "OOMKilled")
    assert "1 of 2 pods" in found["Degraded"].message


MISSING = Verdict(Reason.SECRET_MISSING, 'spec.models[0].apiKeySecretRef: Secret shop/llm has no key "openai".')


def test_a_missing_secret_of_a_new_agent() -> None:
    found = conditions(observe(verdict=MISSING))
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "SecretMissing")
    assert (found["Accepted"].status, found["Accepted"].reason) == ("False", "SecretMissing")
    assert found["Accepted"].message.startswith(MISSING.message)


def test_a_missing_secret_of_a_running_agent() -> None:
    found = conditions(observe(ready_pod(revision=OLD), verdict=MISSING))
    assert (found["Ready"].status, found["Ready"].reason) == ("True", "SecretMissing")
    assert (found["Degraded"].status, found["Degraded"].reason) == ("True", "SecretMissing")
    assert (found["Accepted"].status, found["Accepted"].reason) == ("False", "SecretMissing")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "agent-support-5d-x" is forbidden: exceeded quota: q, requested: pods=1', Reason.QUOTA_EXCEEDED),
        ('pods "agent-support-5d-x" is forbidden: violates PodSecurity "restricted:latest"', Reason.POD_FORBIDDEN),
    ],
)
def test_pods_that_may_not_be_created(message: str, reason: Reason) -> None:
    found = conditions(observe(refusal=Refusal(reason, message, at(-3))))
    assert (found["Ready"].status, found["Ready"].reason) == ("False", reason)
    assert "5d-x" not in found["Ready"].message
    assert "since 2026-11-20T14:02:08Z" in found["Ready"].message


def test_suspended_keeps_what_was_last_known() -> None:
    before = build_status(observe(ready_pod()), AgentStatus())
    found = said(observe(suspended=True, desired=0), before)
    assert found["Ready"] == "False/Suspended"
    assert found["Suspended"] == "True/Suspended"
    assert found["StateStoreReady"] == "True/Connected"
    assert found["Degraded"] == "False/NotServing"


def test_scaled_to_zero() -> None:
    assert said(observe(desired=0))["Ready"] == "False/ScaledToZero"


def test_transition_times_move_with_the_status_only_and_since_stays() -> None:
    def pod(version: int, when: datetime) -> Any:
        return make_pod(waiting=("CrashLoopBackOff", "…"), last_ended=ended("Error", 1, when=when), restarts=version)

    first = build_status(observe(pod(1, at(-5))), AgentStatus())
    again = build_status(observe(pod(9, at(300)), now=at(305)), first)
    assert dump_status(again) == dump_status(first)
    back = build_status(observe(ready_pod(), now=at(400)), again)
    ready = back.conditions[0]
    assert ready.last_transition_time == at(400)
    assert back.conditions[1].last_transition_time == first.conditions[1].last_transition_time


def test_every_condition_speaks_of_the_present_generation() -> None:
    status = build_status(observe(ready_pod(), generation=7), AgentStatus())
    assert status.observed_generation == 7
    assert {condition.observed_generation for condition in status.conditions} == {7}


def test_fields_follow_pods_and_answers() -> None:
    pod = ready_pod()
    facts = Facts({pod.name: 4, "gone": 9}, 12, "echo/echo")
    status = build_status(observe(pod, probes={pod.uid: health()}, facts=facts), AgentStatus())
    dumped = dump_status(status)
    assert dumped["desiredReplicas"] == dumped["readyReplicas"] == 1
    assert dumped["selector"] == "abide.dev/agent=support"
    assert dumped["endpoint"] == "http://agent-support.shop.svc:8080"
    assert dumped["revision"] == {"current": REVISION, "ready": REVISION}
    assert dumped["runtimeVersion"] == "1.2.3"
    assert dumped["sessions"] == {"active": 4, "total": 12}
    assert dumped["model"] == {"configured": "echo/echo", "answering": "echo/echo"}
    assert [check["name"] for check in dumped["health"]["checks"]] == ["loop", "store", "lease"]


def test_what_is_not_known_any_more_keeps_its_last_value() -> None:
    pod = ready_pod()
    facts = Facts({pod.name: 4}, 12, "echo/echo", LastError(time=NOW, type="ModelUnavailable", message="x"))
    before = build_status(observe(pod, probes={pod.uid: health()}, facts=facts), AgentStatus())
    after = build_status(observe(pod), before)
    assert dump_status(after) == dump_status(before)


def test_messages_hold_no_secrets() -> None:
    words = "cannot connect to postgresql://abide:s3cr3t@pg:5432/x?password=hunter2 with token=abcdef Bearer eyJhbGciOi"
    pod = make_pod(running_since=at(-60), ready_at=at(-10))
    status = build_status(observe(pod, probes={pod.uid: health(("store", "AuthFailed", words))}), AgentStatus())
    text = str(dump_status(status))
    for secret in ("s3cr3t", "hunter2", "abcdef", "eyJhbGciOi"):
        assert secret not in text


def decision(fresh: AgentStatus, previous: AgentStatus, now: datetime = NOW) -> Any:
    return decide(fresh, previous, now, counters_interval=60)


def with_counters(total: int, error: str | None = None, answering: str = "echo/echo") -> AgentStatus:
    last = LastError(time=NOW, type=error, message="x") if error else None
    return build_status(observe(ready_pod(), facts=Facts({}, total, answering, last)), AgentStatus())


def test_the_same_status_is_not_written_again() -> None:
    written = decision(with_counters(1), AgentStatus()).status
    assert written is not None
    live = parse_status(dump_status(written))
    assert decision(with_counters(1), live, at(3600)).status is None


def test_counters_wait_for_their_minute_and_conditions_do_not() -> None:
    written = decision(with_counters(1), AgentStatus()).status
    assert written is not None
    held = decision(with_counters(2), written, at(10))
    assert held.status is None
    assert held.due_in == pytest.approx(50)
    due = decision(with_counters(2), written, at(60))
    assert due.status is not None
    assert due.status.observed_at == at(60)
    broken = build_status(observe(facts=Facts({}, 2, "echo/echo"), now=at(10)), written)
    assert decision(broken, written, at(10)).status is not None


def test_a_new_kind_of_error_shows_at_once_and_a_repeated_one_within_the_minute() -> None:
    written = decision(with_counters(1), AgentStatus()).status
    assert written is not None
    first = decision(with_counters(1, "ModelUnavailable"), written, at(5)).status
    assert first is not None
    repeated = with_counters(1, "ModelUnavailable").model_copy(
        update={"last_error": LastError(time=at(6), type="ModelUnavailable", message="x")}
    )
    assert decision(repeated, first, at(7)).status is None


def test_observed_at_alone_is_no_reason_to_write() -> None:
    written = decision(with_counters(1), AgentStatus()).status
    assert written is not None
    moved = with_counters(1).model_copy(update={"observed_at": at(500)})
    assert decision(moved, written, at(500)).status is None


def test_a_broken_live_status_is_written_anew() -> None:
    assert parse_status({"conditions": "nonsense"}) == AgentStatus()


pods = st.lists(
    st.builds(
        make_pod,
        name=st.sampled_from(["a", "b", "c"]),
        revision=st.sampled_from([REVISION, OLD]),
        ready=st.booleans(),
        ready_at=st.sampled_from([at(-40), at(-2)]),
        running_since=st.sampled_from([None, at(-300), at(-30), at(-1)]),
        waiting=st.sampled_from([None, ("CrashLoopBackOff", "x"), ("ErrImagePull", "x"), ("ContainerCreating", "")]),
        last_ended=st.sampled_from([None, OOM, ended("Error", 1, when=at(-4))]),
        restarts=st.integers(0, 5),
        unschedulable=st.sampled_from([None, "no room"]),
        deleting=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda pod: pod.name,
)
observations = st.builds(
    lambda pods, desired, suspended, verdict, refusal, answers: observe(
        *pods,
        desired=0 if suspended else desired,
        suspended=suspended,
        verdict=verdict,
        refusal=refusal,
        probes=dict(zip((pod.uid for pod in pods), answers, strict=False)),
    ),
    pods,
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([observe().verdict, MISSING]),
    st.sampled_from([None, Refusal(Reason.QUOTA_EXCEEDED, "exceeded quota", at(-9))]),
    st.lists(
        st.sampled_from([health(), health(("store", "Timeout", "x")), ProbeFailure.NO_ANSWER]), min_size=3, max_size=3
    ),
)


@settings(max_examples=200, deadline=None)
@given(first=observations, second=observations)
def test_laws_of_status(first: Observation, second: Observation) -> None:
    before = build_status(first, AgentStatus())
    for observation, previous in ((first, AgentStatus()), (second, before)):
        status = build_status(observation, previous)
        found = {condition.type: condition for condition in status.conditions}
        assert list(found) == ORDER
        assert not (found["Degraded"].status == "True" and found["Ready"].status != "True")
        assert (found["Ready"].status == "True") == (status.ready_replicas > 0)
        for condition in status.conditions:
            assert condition.reason in Reason.__members__.values()
            assert "{" not in condition.message
        # Computing it again from its own result changes nothing: an idle operator writes nothing.
        live = parse_status(dump_status(status))
        assert build_status(observation, live) == live


def test_every_condition_type_is_reported() -> None:
    clock = {"name": "time", "type": "Builtin", "builtin": {"name": "Clock"}}
    observation = observe(tools=tuple(make_agent(tools=[clock]).spec.tools))
    assert [one.type for one in build_status(observation, AgentStatus()).conditions] == list(ConditionType)


def test_conditions_about_what_an_agent_does_not_use_are_absent() -> None:
    assert "ToolsReady" not in [one.type for one in build_status(observe(), AgentStatus()).conditions]


def test_recheck_is_due_only_when_time_alone_may_change_something() -> None:
    assert recheck_after(observe(ready_pod())) is None
    assert recheck_after(observe(make_pod(running_since=at(-1)))) == pytest.approx(2.1)
    assert recheck_after(observe(make_pod(running_since=at(-20)))) == pytest.approx(100.1)
    assert recheck_after(observe(make_pod(running_since=at(-4000), ready_at=at(-5)))) is None
    for pod in (make_pod(phase="Pending"), make_pod(deleting=True, running_since=at(-60))):
        assert recheck_after(observe(pod)) is None
