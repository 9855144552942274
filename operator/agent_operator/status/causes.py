"""Why a pod does not serve: from its own state to one reason, with words for people."""

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from agent_api.conditions import Reason
from agent_api.wire import CheckResult, HealthOut
from agent_operator.status.observed import Observation, ProbeFailure, ProbeResult, Refusal, Verdict
from agent_operator.status.pods import Ended, PodView
from agent_operator.status.text import find_since, scrub

OOM_REPEATED: Final = 2
"""So many restarts make an out-of-memory kill a loop; one alone heals by itself."""
CRASH_REPEATED: Final = 2
"""So many restarts make an end of the process a loop; after one the kubelet starts it again at once."""
OOM_STABLE_SECONDS: Final = 60.0
"""A pod of such a loop counts as serving only after it ran this long."""
START_GRACE_SECONDS: Final = 3.0
"""A process that just started is not asked yet why it is not ready: its first checks are still under way."""
START_SECONDS: Final = 120.0
"""A pod that never answered within this time of its container's start is not starting any more (see startupProbe)."""
STORE_CHECK: Final = "store"

_IMAGE_REASONS: Final = frozenset(
    ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
     "RegistryUnavailable", "SignatureValidationFailed")
)  # fmt: skip
_CONFIG_REASONS: Final = frozenset(("CreateContainerConfigError",))
_CRASH_REASONS: Final = frozenset(("CrashLoopBackOff", "RunContainerError", "CreateContainerError", "StartError"))
_SINCE_NOTE: Final = re.compile(r"\s*\(since [^)]*\)")
_STORE_WORDS: Final = re.compile(r"Postgres at (?P<address>\S+): (?P<what>[^;]*)")
_STORE_PHRASES: Final = {
    Reason.CONNECTION_REFUSED: ("refuses connections", "Start Postgres, or correct host and port of its URL."),
    Reason.TIMEOUT: ("does not answer in time", "Relieve Postgres, or find what drops its packets."),
    Reason.AUTH_FAILED: ("refuses the user or password", "Correct user, password and rights in its URL's Secret."),
    Reason.TLS_FAILED: ("allows no TLS connection", "Correct sslmode in its URL, or its certificate."),
    Reason.CONNECTION_LIMIT: ("has no free connection", "Raise max_connections, or put a pooler in between."),
    Reason.READ_ONLY: ("is read-only", "Make the URL lead to the primary, and see that its disk is not full."),
    Reason.SCHEMA_TOO_OLD: (
        "has a schema that is older than this version needs",
        "The operator brings it up to date; if it does not, its log says why.",
    ),
    Reason.UNKNOWN: ("cannot be used", "See the log of Postgres."),
}  # fmt: skip
_POD_SUFFIX: Final = re.compile(r"pods \"[^\"]+\"")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something does not work. `since` is when it was first seen so; `what` has a place for it: `{since}`.

    `store_reason` tells more where the reason is StateStoreUnreachable. `starting` marks what is on its way.
    """

    reason: Reason
    what: str
    effect: str
    remedy: str
    since: datetime | None
    store_reason: Reason | None = None
    starting: bool = False


EFFECT_NONE_SERVE: Final = "New messages are refused; acknowledged ones are kept and go on afterwards."


def is_unstable(pod: PodView, now: datetime) -> bool:
    """Whether the pod was killed for memory again and again, and has not run long enough since to be trusted."""
    return _oom_loop(pod) and is_within(pod.started, now, OOM_STABLE_SECONDS)


def is_serving(pod: PodView, now: datetime) -> bool:
    """Whether messages sent now reach the pod and it can be trusted to keep serving."""
    return pod.serving and not is_unstable(pod, now)


def _oom_loop(pod: PodView) -> bool:
    return pod.restarts >= OOM_REPEATED and _was_oom(pod)


def _was_oom(pod: PodView) -> bool:
    """Whether the last run ended for memory; under the smallest limits not even the process can be started."""
    return pod.ended is not None and (pod.ended.reason == "OOMKilled" or "OOM-killed" in pod.ended.message)


def _is_restarted(pod: PodView, now: datetime) -> bool:
    """Whether the process just runs again after it ended, and is not ready: it may end in the same way any moment."""
    return pod.ended is not None and not pod.ready and is_within(pod.started, now, OOM_STABLE_SECONDS)


def is_within(at: datetime | None, now: datetime, seconds: float) -> bool:
    """Whether less than `seconds` have passed since an instant that is known."""
    return at is not None and now - at < timedelta(seconds=seconds)


def needs_probe(pod: PodView, now: datetime) -> bool:
    """Whether only the runtime itself can say why the pod is not ready."""
    return bool(
        pod.running
        and not pod.ready
        and not pod.deleting
        and pod.ip
        and not is_within(pod.started, now, START_GRACE_SECONDS)
    )


def diagnose_pod(pod: PodView, probe: ProbeResult | None, now: datetime, store: str = "") -> Cause:
    """Return why one pod does not serve; `starting` if there is nothing wrong yet. `store` is Postgres' host:port."""
    if pod.unscheduled is not None:
        return _unschedulable(pod)
    if pod.waiting in _IMAGE_REASONS:
        return _image_pull_failed(pod)
    if pod.waiting in _CONFIG_REASONS:
        return _config_missing(pod)
    if pod.ended is not None and _was_oom(pod) and (not pod.running or is_unstable(pod, now)):
        return _oom_killed(pod, pod.ended)
    if pod.waiting in _CRASH_REASONS or (pod.ended is not None and not pod.running and pod.restarts >= CRASH_REPEATED):
        return _crash_loop(pod)
    if pod.running:
        return _diagnose_running(pod, probe, now, store)
    return _starting(pod)


def diagnose_refusal(refusal: Refusal) -> Cause:
    """Return why no pod can be created."""
    remedies = {
        Reason.QUOTA_EXCEEDED: "Raise the namespace's ResourceQuota or lower spec.runtime.resources.",
        Reason.POD_FORBIDDEN: "Allow it in the namespace's admission rules, or change the spec accordingly.",
    }
    what = scrub(_POD_SUFFIX.sub("pods", refusal.message))
    if refusal.reason is Reason.STATE_STORE_UNREACHABLE:
        return Cause(
            refusal.reason,
            f"Postgres does not answer the operator since {{since}}: {what.rstrip('.')}.",
            "What runs keeps running.",
            "Bring Postgres back; it goes on by itself.",
            refusal.since,
            store_reason=Reason.UNKNOWN,
        )
    return Cause(
        refusal.reason,
        f"Kubernetes refuses what the agent needs since {{since}}: {what.rstrip('.')}.",
        "",
        remedies.get(refusal.reason, "Change the spec accordingly."),
        refusal.since,
    )


def classify_refusal(message: str) -> Reason:
    """Return what kind of refusal a message from the API server or a ReplicaSet is."""
    return Reason.QUOTA_EXCEEDED if "exceeded quota" in message or "must specify" in message else Reason.POD_FORBIDDEN


def verdict_cause(verdict: Verdict) -> Cause:
    """Return the refused spec as a cause."""
    remedies = {
        Reason.SECRET_MISSING: "Create it; it is noticed within 5 s.",
        Reason.CONFIG_MAP_MISSING: "Create it; it is noticed within 5 s.",
        Reason.NAME_CONFLICT: "Delete or rename that object, or give the Agent another name.",
        Reason.INVALID_SPEC: "Correct the field.",
    }
    return Cause(verdict.reason, verdict.message, "", remedies.get(verdict.reason, ""), None)


def _unschedulable(pod: PodView) -> Cause:
    return Cause(
        Reason.UNSCHEDULABLE,
        f"No node takes the pod since {{since}}: {scrub(pod.unscheduled or '').rstrip('.')}.",
        "",
        _schedulable_by(pod.unscheduled or ""),
        pod.unscheduled_at or pod.created_at,
    )


def _schedulable_by(words: str) -> str:
    """Return what helps, from the scheduler's words: room, or nodes that fit the pod."""
    room = "add room or nodes, or lower spec.runtime.resources.requests" if "nsufficient" in words else ""
    selected = "correct spec.runtime.nodeSelector, or label a node" if "selector" in words else ""
    tainted = "add to spec.runtime.tolerations, or remove the taint" if "taint" in words else ""
    remedies = [remedy for remedy in (room, selected, tainted) if remedy]
    text = "; or ".join(remedies or ["add room or nodes, or lower spec.runtime.resources.requests"])
    return f"{text[0].upper()}{text[1:]}."


def _image_pull_failed(pod: PodView) -> Cause:
    return Cause(
        Reason.IMAGE_PULL_FAILED,
        # The kubelet alternates between the error and its back-off; quoting it would make the message flicker.
        f"Image {pod.image} cannot be pulled since {{since}}.",
        "",
        "Check its name and that nodes can reach the registry (kubectl describe pod shows the registry's words), "
        "then correct spec.runtime.image.",
        pod.created_at,
    )


def _config_missing(pod: PodView) -> Cause:
    reason = Reason.CONFIG_MAP_MISSING if "configmap" in pod.waiting_message.lower() else Reason.SECRET_MISSING
    return Cause(
        reason,
        f"The pod cannot start since {{since}}: {scrub(pod.waiting_message).rstrip('.')}.",
        "",
        "Create what is missing; the pod then starts by itself.",
        pod.created_at,
    )


def _oom_killed(pod: PodView, ended: Ended) -> Cause:
    limit = f" (limit {pod.memory_limit})" if pod.memory_limit else ""
    often = " repeatedly" if _oom_loop(pod) else ""
    return Cause(
        Reason.OOM_KILLED,
        f"Container runtime killed for memory{limit}{often} since {{since}}.",
        "",
        "Raise spec.runtime.resources.limits.memory.",
        ended.at or pod.created_at,
    )


def _crash_loop(pod: PodView) -> Cause:
    words = ""
    if pod.ended is not None:
        last = scrub(_last_words(pod.ended.message)).rstrip(".")
        words = f" with exit code {pod.ended.exit_code}" + (f"; its last words: {last}" if last else "")
    elif pod.waiting_message:
        words = f": {scrub(pod.waiting_message).rstrip('.')}"
    at = pod.ended.at if pod.ended is not None else None
    return Cause(
        Reason.CRASH_LOOP,
        f"Container runtime ends again and again since {{since}}{words}.",
        "",
        f"Read its log: kubectl logs {pod.name} --previous.",
        at or pod.created_at,
    )


def _last_words(message: str) -> str:
    """Return what a process said at its end, "" if its last line of log is about its daily work.

    Where it left no message the kubelet takes the end of its log, whose lines are JSON.
    """
    last = message.strip().rpartition("\n")[2]
    try:
        line = json.loads(last)
    except ValueError:
        return last
    if not isinstance(line, dict) or "event" not in line:
        return last
    if line.get("level") in ("debug", "info"):
        return ""
    return ": ".join(str(line[name]) for name in ("event", "error") if line.get(name))


def _starting(pod: PodView) -> Cause:
    since = pod.ended.at if pod.ended is not None and pod.ended.at is not None else pod.created_at
    return Cause(Reason.STARTING, "The pod is being started since {since}.", "", "", since, starting=True)


def _diagnose_running(pod: PodView, probe: ProbeResult | None, now: datetime, store: str) -> Cause:
    failed = _first_failed(probe) if isinstance(probe, HealthOut) else None
    if failed is not None and failed.reason != Reason.STARTING:
        return _failed_check(pod, failed, store)
    # Between two ends of a loop the process runs for a moment: status names the loop, it does not flap.
    if pod.ended is not None and _is_restarted(pod, now) and _was_oom(pod):
        return _oom_killed(pod, pod.ended)
    if pod.restarts >= CRASH_REPEATED and _is_restarted(pod, now):
        return _crash_loop(pod)
    if failed is not None:
        return _starting(pod)
    was_ready = pod.ready_at is not None and pod.started is not None and pod.ready_at > pod.started
    if not was_ready and is_within(pod.started, now, START_SECONDS):
        return _starting(pod)
    if not isinstance(probe, ProbeFailure):
        # Not asked yet, or well again a moment before the kubelet looks: a guess would be wrong most of the time.
        since = pod.ready_at or pod.started
        return Cause(Reason.STARTING, "The pod is not ready since {since}.", "", "", since, starting=True)
    said = f"; it {probe.value} on /readyz"
    return Cause(
        Reason.PROBE_FAILING,
        f"The runtime's readiness probe fails since {{since}}{said}.",
        "",
        f"Read its log: kubectl logs {pod.name}.",
        pod.ready_at or pod.started,
    )


def find_store_check(health: HealthOut) -> CheckResult | None:
    """Return the runtime's check of Postgres, if it has one."""
    return next((check for check in health.checks if check.name == STORE_CHECK), None)


def _first_failed(health: HealthOut) -> CheckResult | None:
    """Return the check to blame: the store first, since the others depend on it; None if all passed."""
    store = find_store_check(health)
    if store is not None and not store.ok:
        return store
    return next((check for check in health.checks if not check.ok), None)


def store_cause(pod: PodView, check: CheckResult, store: str = "") -> Cause:
    """Return a failed check of Postgres as a cause; `store_reason` says what is wrong with Postgres.

    `store` is the host:port to name where the runtime names none.
    """
    reason = _known_reason(check.reason)
    if reason is Reason.ENCRYPTION_KEY_MISMATCH:
        return _key_mismatch(pod, check)
    reason = reason if reason in _STORE_PHRASES else Reason.UNKNOWN
    phrase, remedy = _STORE_PHRASES[reason]
    address, details = _read_store_words(check.message)
    place = " ".join(part for part in ("Postgres", scrub(address or store)) if part)
    return Cause(
        Reason.STATE_STORE_UNREACHABLE,
        f"{place} {phrase} since {{since}}{_quote(reason, details)}.",
        "New messages are refused with 503; acknowledged ones are kept and go on afterwards.",
        f"{remedy} The agent goes on by itself.",
        _since(pod, check),
        store_reason=reason,
    )


def _key_mismatch(pod: PodView, check: CheckResult) -> Cause:
    what, _, remedy = _words(check).partition("; ")
    return Cause(
        Reason.ENCRYPTION_KEY_MISMATCH,
        f"The state cannot be decrypted since {{since}}: {what}.",
        "New messages are refused and nothing is written; what is kept stays as it is.",
        f"{remedy[:1].upper()}{remedy[1:]}{'; the' if remedy else 'The'} agent goes on by itself.",
        _since(pod, check),
    )


def _read_store_words(message: str) -> tuple[str, str]:
    """Return host:port and what happened from the runtime's words `Postgres at HOST:PORT: WHAT; REMEDY`."""
    text = _SINCE_NOTE.sub("", message)
    if found := _STORE_WORDS.match(text):
        return found["address"], found["what"]
    return "", text


def _quote(reason: Reason, details: str) -> str:
    """Return Postgres' own words where they tell more than the reason; they must not change while it lasts."""
    telling = reason is not Reason.CONNECTION_REFUSED or "resolved" in details
    words = scrub(details).rstrip(".") if telling and reason is not Reason.TIMEOUT else ""
    return f": {words}" if words else ""


def _failed_check(pod: PodView, check: CheckResult, store: str) -> Cause:
    if check.name == STORE_CHECK:
        return store_cause(pod, check, store)
    return Cause(
        _known_reason(check.reason) or Reason.PROBE_FAILING,
        f"The runtime's check {scrub(check.name, limit=60)} fails since {{since}}: {_words(check)}.",
        "",
        f"Read its log: kubectl logs {pod.name}.",
        _since(pod, check),
    )


def _since(pod: PodView, check: CheckResult) -> datetime | None:
    """Return since when a check fails: as the runtime says, else since the pod is not ready."""
    return find_since(check.message) or pod.ready_at or pod.started


def _words(check: CheckResult) -> str:
    """Return what a check says, without the instant, which the condition names itself."""
    return scrub(_SINCE_NOTE.sub("", check.message) or check.reason or "no details").rstrip(".")


def _known_reason(text: str) -> Reason | None:
    return Reason(text) if text in Reason.__members__.values() else None


def worst(causes: list[Cause]) -> Cause | None:
    """Return the cause to show for several pods: what is broken before what only starts; else the first."""
    return next((cause for cause in causes if not cause.starting), causes[0] if causes else None)


def find_cause(observation: Observation, pods: tuple[PodView, ...]) -> Cause | None:
    """Return why these pods do not all serve, or why none can be created; None if nothing is known."""
    now = observation.now
    causes = [
        diagnose_pod(pod, observation.probes.get(pod.uid), now, observation.store)
        for pod in pods
        if not pod.deleting and not pod.finished and not is_serving(pod, now)
    ]
    cause = worst(causes)
    if (cause is None or cause.starting) and observation.refusal is not None:
        return diagnose_refusal(observation.refusal)
    return cause
