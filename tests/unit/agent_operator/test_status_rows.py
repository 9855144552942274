"""The cases status was designed for: reason, other conditions, message, and what it must not do."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentStatus, Condition
from agent_operator.events import find_happenings
from agent_operator.status.observed import Observation, ProbeFailure, Refusal, Verdict
from agent_operator.status.pods import PodView
from agent_operator.status.summary import build_status, dump_status
from agent_operator.status.timing import recheck_after
from tests.unit.agent_operator.makers import REVISION, at, ended, health, make_pod, observe, ready_pod

OLD = "9999999999"


def by_type(status: AgentStatus) -> dict[str, Condition]:
    return {condition.type: condition for condition in status.conditions}


def brief(status: AgentStatus) -> dict[str, str]:
    return {type_: f"{one.status}/{one.reason}" for type_, one in by_type(status).items()}


def follow(*observations: Observation) -> list[AgentStatus]:
    """Return the statuses that follow each other."""
    statuses = [AgentStatus()]
    for observation in observations:
        statuses.append(build_status(observation, statuses[-1]))
    return statuses[1:]


def unready(since: float = -10) -> PodView:
    return make_pod(running_since=at(-600), ready_at=at(since))


STORE: list[tuple[str, str, str]] = [
    ("ConnectionRefused", "connection refused; check", "refuses connections since 2026-11-20T14:02:01Z. New messages"),
    (
        "ConnectionRefused",
        "its name cannot be resolved; check",
        "refuses connections since 2026-11-20T14:02:01Z: its name cannot be resolved. New",
    ),
    (
        "ConnectionRefused",
        "the database system is starting up (57P03); check",
        "refuses connections since 2026-11-20T14:02:01Z. New",
    ),
    ("Timeout", "no answer in time; check", "does not answer in time since 2026-11-20T14:02:01Z. New"),
    (
        "AuthFailed",
        'password authentication failed for user "abide" (28P01); check',
        'refuses the user or password since 2026-11-20T14:02:01Z: password authentication failed for user "abide"',
    ),
    ("TLSFailed", "it does not speak TLS; check", "allows no TLS connection since"),
    ("ConnectionLimit", "too many clients already (53300); raise", "has no free connection since"),
    ("ReadOnly", "it is read-only; check", "is read-only since"),
    ("SchemaTooOld", "schema 0001; run", "has a schema that is older than this version needs since"),
    ("Unknown", "syntax error; see", "cannot be used since 2026-11-20T14:02:01Z: syntax error."),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "words", "expected"), STORE, ids=[f"{case[0]} {case[1][:12]}" for case in STORE])
def test_postgres_is_down(reason: str, words: str, expected: str) -> None:
    pod = unready()
    probe = health(("store", reason, f"Postgres at db.internal:5433: {words} this"), ("lease", reason, "no lease"))
    before = build_status(observe(ready_pod()), AgentStatus())
    status = build_status(observe(pod, probes={pod.uid: probe}), before)
    found = by_type(status)
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "StateStoreUnreachable")
    assert (found["StateStoreReady"].status, found["StateStoreReady"].reason) == ("False", reason)
    assert (found["Degraded"].status, found["Degraded"].reason) == ("False", "NotServing")
    assert found["Progressing"].reason == "UpToDate"
    assert found["ModelReachable"].reason == "Reachable"  # the last known value
    assert (status.desired_replicas, status.ready_replicas) == (1, 0)
    message = found["Ready"].message
    assert message.startswith(f"Postgres db.internal:5433 {expected}")
    assert "New messages are refused with 503; acknowledged ones are kept and go on afterwards." in message
    assert message.endswith(" docs/reasons/StateStoreUnreachable.md")
    assert found["StateStoreReady"].message.endswith(f" docs/reasons/{reason}.md")


def test_where_the_runtime_names_no_address_the_operator_does() -> None:
    pod = unready()
    probe = health(("store", "Timeout", "Postgres does not answer in time (since 2026-11-20T14:00:00Z)."))
    message = by_type(build_status(observe(pod, probes={pod.uid: probe}), AgentStatus()))["Ready"].message
    assert message.startswith("Postgres pg.shop:5432 does not answer in time since 2026-11-20T14:00:00Z. New")


def test_an_outage_of_postgres_from_end_to_end_never_says_that_the_probe_fails() -> None:
    pod = unready()
    down = health(("store", "ConnectionRefused", "Postgres at pg:5432: connection refused; check"))
    statuses = follow(
        observe(ready_pod()),
        observe(pod),  # unready, and not asked yet
        observe(pod, probes={pod.uid: down}),
        observe(pod, probes={pod.uid: down}, now=at(60)),
        observe(pod, probes={pod.uid: health()}, now=at(61)),  # well again, which the kubelet sees a moment later
        observe(ready_pod(), now=at(63)),
    )
    reasons = [status.conditions[0].reason for status in statuses]
    assert reasons == [
        "Serving", "Starting", "StateStoreUnreachable", "StateStoreUnreachable", "Starting", "Serving",
    ]  # fmt: skip
    assert by_type(statuses[4])["StateStoreReady"].reason == "Connected"


def test_a_pod_that_says_that_it_is_ready_for_long_without_being_so_fails_its_probe() -> None:
    pod = unready()
    found = by_type(build_status(observe(pod, probes={pod.uid: ProbeFailure.NOT_SEEN}), AgentStatus()))["Ready"]
    assert found.reason == "ProbeFailing"
    assert "says that it is ready, and the kubelet does not see it on /readyz" in found.message


def test_a_runtime_that_only_begins_to_connect_is_starting() -> None:
    pod = make_pod(running_since=at(-4))
    probe = health(("store", "Starting", "Not connected to Postgres yet."))
    found = brief(build_status(observe(pod, probes={pod.uid: probe}), AgentStatus()))
    assert (found["Ready"], found["StateStoreReady"]) == ("False/Starting", "Unknown/Unknown")


class Looping:
    """A pod that ends after two seconds each time; the kubelet's pauses grow."""

    def __init__(self, reason: str, code: int, *, ready_after: float | None = None) -> None:
        self._end = reason, code
        self._ready_after = ready_after
        self.pauses = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0)

    def states(self) -> list[tuple[datetime, PodView]]:
        """Return (now, pod) at each moment something happens."""
        clock, found, last = at(0), [], None
        for restarts, pause in enumerate((*self.pauses, 300.0)):
            run = {"restarts": restarts, "last_ended": last, "running_since": clock}
            found.append((clock + timedelta(seconds=0.5), make_pod(**run, ready_at=at(-1))))
            if self._ready_after is not None:
                ready = clock + timedelta(seconds=self._ready_after)
                found.append((ready + timedelta(seconds=0.1), make_pod(**run, ready=True, ready_at=ready)))
            clock += timedelta(seconds=2)
            last = ended(*self._end, when=clock)
            found.append((clock, make_pod(restarts=restarts, ended=last, ready_at=clock)))
            if pause:
                back_off = ("CrashLoopBackOff", f"back-off {pause}s restarting failed container")
                waiting = make_pod(restarts=restarts, waiting=back_off, last_ended=last, ready_at=clock)
                found.append((clock + timedelta(seconds=1), waiting))
            clock += timedelta(seconds=pause)
        return found


def test_a_loop_of_memory_kills_is_named_from_the_first_kill_on_and_does_not_flap() -> None:
    previous, told = AgentStatus(), []
    for now, pod in Looping("OOMKilled", 137).states():
        previous = build_status(observe(pod, now=now), previous)
        told.append(brief(previous))
    after_kill = told[1:]
    assert {one["Ready"] for one in after_kill} == {"False/OOMKilled"}
    assert {one["Degraded"] for one in after_kill} == {"False/NotServing"}
    message = previous.conditions[0].message
    assert message.startswith(
        "Container runtime killed for memory (limit 256Mi) repeatedly since 2026-11-20T14:02:13Z."
    )
    assert "Raise spec.runtime.resources.limits.memory." in message


def test_a_pod_that_becomes_ready_between_memory_kills_counts_again_after_a_stable_minute_only() -> None:
    previous, told = AgentStatus(), []
    for now, pod in Looping("OOMKilled", 137, ready_after=1.0).states():
        previous = build_status(observe(pod, now=now), previous)
        told.append((pod.restarts, pod.ready, brief(previous)["Ready"]))
    assert {ready for restarts, is_ready, ready in told if is_ready and restarts >= 2} == {"False/OOMKilled"}
    begun = at(1000)
    last = ended("OOMKilled", 137, when=at(700))
    stable = make_pod(restarts=5, last_ended=last, running_since=begun, ready=True, ready_at=begun)
    for seconds, expected in ((59.0, "False/OOMKilled"), (60.0, "True/Serving")):
        observation = observe(stable, now=begun + timedelta(seconds=seconds))
        assert brief(build_status(observation, previous))["Ready"] == expected
    assert recheck_after(observe(stable, now=begun + timedelta(seconds=10))) == pytest.approx(50.1)


def test_a_crash_loop_does_not_flap_either() -> None:
    previous, told = AgentStatus(), []
    for now, pod in Looping("Error", 1).states():
        previous = build_status(observe(pod, now=now), previous)
        told.append((pod.restarts, brief(previous)["Ready"]))
    assert {ready for restarts, ready in told if restarts >= 2} == {"False/CrashLoop"}


def test_a_limit_too_small_to_start_a_process_is_a_memory_kill() -> None:
    message = "failed to create shim task: container init was OOM-killed (memory limit too low?)"
    last = ended("StartError", 128, when=at(-5), message=message)
    pod = make_pod(waiting=("RunContainerError", message), last_ended=last, restarts=3)
    assert brief(build_status(observe(pod), AgentStatus()))["Ready"] == "False/OOMKilled"


LAST = ended("OOMKilled", 137, when=at(-5))
BROKEN_NEW: list[tuple[str, dict[str, Any], str]] = [
    ("oom", {"waiting": ("CrashLoopBackOff", "…"), "last_ended": LAST, "restarts": 2}, "OOMKilled"),
    ("image", {"waiting": ("ImagePullBackOff", "…"), "phase": "Pending"}, "ImagePullFailed"),
    ("oom, running again", {"running_since": at(-1), "last_ended": LAST, "restarts": 1}, "OOMKilled"),
]


@pytest.mark.parametrize(("given_", "cause"), [case[1:] for case in BROKEN_NEW], ids=[case[0] for case in BROKEN_NEW])
def test_only_the_new_revision_is_broken(given_: dict[str, Any], cause: str) -> None:
    before = build_status(observe(ready_pod(revision=OLD), revision=OLD), AgentStatus())
    new = make_pod("agent-support-2", **given_)
    status = build_status(observe(ready_pod(revision=OLD), new), before)
    found = by_type(status)
    assert brief(status)["Ready"] == "True/RolloutFailed"
    assert brief(status)["Progressing"] == "False/RolloutFailed"
    assert brief(status)["Degraded"] == f"True/{cause}"
    assert (status.desired_replicas, status.ready_replicas) == (1, 1)
    for type_ in ("Ready", "Progressing"):
        assert found[type_].message.startswith(f"Revision {REVISION} does not become ready since")
        assert f"revision {OLD} keeps serving." in found[type_].message
    assert status.revision.ready == OLD
    reasons = [one.reason for one in find_happenings(before, status)]
    assert reasons == ["RolloutFailed", cause]


def pods_of(count: int, *broken: PodView) -> tuple[PodView, ...]:
    return (*(ready_pod(f"agent-support-ok-{number}") for number in range(count)), *broken)


@pytest.mark.parametrize(("desired", "broken"), [(2, 1), (3, 2), (100, 37)])
def test_some_of_several_pods_are_broken(desired: int, broken: int) -> None:
    bad = [
        make_pod(f"bad-{number}", waiting=("CrashLoopBackOff", "…"), last_ended=LAST, restarts=3)
        for number in range(broken)
    ]
    status = build_status(observe(*pods_of(desired - broken, *bad), desired=desired), AgentStatus())
    assert (status.desired_replicas, status.ready_replicas) == (desired, desired - broken)
    for type_ in ("Ready", "Degraded"):
        found = by_type(status)[type_]
        assert (found.status, found.reason) == ("True", "OOMKilled")
        assert found.message.startswith(f"{broken} of {desired} pods: Container runtime killed for memory")
        whose = "its" if broken == 1 else "their"
        assert f"{whose} sessions were taken over." in found.message


def test_pods_that_cannot_be_made_beside_others_that_serve() -> None:
    refusal = Refusal(Reason.QUOTA_EXCEEDED, 'pods "agent-support-x" is forbidden: exceeded quota: q', at(-3))
    status = build_status(observe(ready_pod(), desired=3, refusal=refusal), AgentStatus())
    assert brief(status)["Ready"] == "True/QuotaExceeded"
    assert by_type(status)["Ready"].message.startswith("2 of 3 pods: Kubernetes refuses")


def test_pods_that_only_start_beside_others_are_no_problem() -> None:
    status = build_status(
        observe(ready_pod(), make_pod("agent-support-2", running_since=at(-2)), desired=2), AgentStatus()
    )
    assert brief(status)["Ready"] == "True/Serving"
    assert brief(status)["Degraded"] == "False/AllWell"


KEY = Verdict(Reason.SECRET_MISSING, 'spec.models[0].apiKeySecretRef: Secret shop/llm has no key "openai".')


def test_a_missing_secret_of_a_new_agent() -> None:
    status = build_status(observe(verdict=KEY), AgentStatus())
    assert (status.desired_replicas, status.ready_replicas) == (1, 0)
    assert brief(status)["Ready"] == brief(status)["Accepted"] == "False/SecretMissing"
    message = by_type(status)["Accepted"].message
    assert message.startswith('spec.models[0].apiKeySecretRef: Secret shop/llm has no key "openai". ')
    assert "noticed within 5 s" in message


def test_a_missing_secret_of_an_agent_that_runs() -> None:
    status = build_status(observe(ready_pod(revision=OLD), verdict=KEY), AgentStatus())
    assert brief(status)["Ready"] == "True/SecretMissing"
    assert brief(status)["Degraded"] == "True/SecretMissing"
    assert brief(status)["Accepted"] == "False/SecretMissing"
    assert f"revision {OLD} keeps serving" in by_type(status)["Degraded"].message


def test_the_same_trouble_seen_again_writes_nothing() -> None:
    pod = unready()
    probe = health(
        ("store", "ConnectionRefused", "Postgres at pg:5432: connection refused; check (since 2026-11-20T14:00:00Z).")
    )
    first, again = follow(observe(pod, probes={pod.uid: probe}), observe(pod, probes={pod.uid: probe}, now=at(100)))
    assert dump_status(first) == dump_status(again)
