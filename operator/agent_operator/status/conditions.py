"""Conditions of an Agent: a pure function of what was observed and of what status said before.

What status said before matters for three things only: when a status last flipped, since when a cause has been there,
and what was last known of something nobody can be asked about any more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from agent_api.conditions import ConditionType, Reason
from agent_api.v1alpha1 import AgentStatus, Condition
from agent_api.wire import HealthOut
from agent_operator.status.causes import (
    EFFECT_NONE_SERVE,
    Cause,
    find_cause,
    find_store_check,
    is_serving,
    store_cause,
    verdict_cause,
)
from agent_operator.status.observed import Observation
from agent_operator.status.pods import PodView
from agent_operator.status.text import compose, find_since, instant

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one condition is to say. `message` may hold `{since}`, which `since` fills."""

    type: ConditionType
    status: Status
    reason: Reason
    message: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What the conditions are derived from: who serves, and what stands in the way.

    `rollout` is what keeps pods of the wanted revision from serving; `blocked` the first thing to name when nobody
    serves; `reduced` what is wrong although somebody serves.
    """

    serving: tuple[PodView, ...]
    current_serving: tuple[PodView, ...]
    rollout: Cause | None
    blocked: Cause | None
    reduced: Cause | None

    @property
    def rollout_failed(self) -> bool:
        """Whether the new revision is broken while an older one serves; an unreachable Postgres is not its fault."""
        broken = self.rollout is not None and not self.rollout.starting and self.rollout.store_reason is None
        return bool(broken and self.serving and not self.current_serving)


def assess(observation: Observation) -> Situation:
    """Return who serves and what stands in the way."""
    alive = tuple(pod for pod in observation.pods if not pod.deleting and not pod.finished)
    serving = tuple(pod for pod in alive if is_serving(pod, observation.now))
    wanted = tuple(pod for pod in alive if pod.revision == observation.revision)
    refused = None if observation.verdict.accepted else verdict_cause(observation.verdict)
    rollout = find_cause(observation, wanted)
    whole = find_cause(observation, alive)
    broken = whole if whole is not None and not whole.starting else None
    return Situation(
        serving=serving,
        current_serving=tuple(pod for pod in serving if pod.revision == observation.revision),
        rollout=rollout,
        blocked=refused or (rollout if rollout is not None and not rollout.starting else None) or broken or rollout,
        reduced=refused or broken,
    )


def build_conditions(observation: Observation, previous: AgentStatus) -> list[Condition]:
    """Return the conditions in their documented order."""
    known = {condition.type: condition for condition in previous.conditions}
    situation = assess(observation)
    findings: Iterable[Finding | None] = (
        _ready(observation, situation),
        _accepted(observation),
        _progressing(observation, situation, previous),
        _degraded(observation, situation),
        _state_store_ready(observation, known),
        _model_reachable(observation, situation, known),
        _suspended(observation),
    )
    return [_finish(finding, observation, known) for finding in findings if finding is not None]


def _finish(finding: Finding, observation: Observation, known: Mapping[str, Condition]) -> Condition:
    before = known.get(finding.type)
    same_status = before is not None and before.status == finding.status
    since = finding.since or observation.now
    if before is not None and same_status and before.reason == finding.reason:
        since = find_since(before.message) or since
    return Condition(
        type=finding.type,
        status=finding.status,
        reason=finding.reason,
        message=finding.message.replace("{since}", instant(since)),
        observed_generation=observation.generation,
        last_transition_time=(
            before.last_transition_time
            if before is not None and same_status
            else observation.now.replace(microsecond=0)
        ),
    )


def _from_cause(type_: ConditionType, status: Status, cause: Cause, *, effect: str, lead: str = "") -> Finding:
    message = compose(cause.reason, lead, cause.what, effect, cause.remedy)
    return Finding(type_, status, cause.reason, message, cause.since)


def _is_off(observation: Observation) -> bool:
    return observation.suspended or observation.desired == 0


def _ready(observation: Observation, situation: Situation) -> Finding:
    type_ = ConditionType.READY
    if observation.suspended:
        return Finding(
            type_, "False", Reason.SUSPENDED,
            compose(Reason.SUSPENDED, "Suspended since {since}: no pods run, the state is kept.",
                    "Set spec.suspend to false to go on."),
        )  # fmt: skip
    if observation.desired == 0:
        return Finding(
            type_, "False", Reason.SCALED_TO_ZERO,
            compose(Reason.SCALED_TO_ZERO, "Scaled to zero since {since}: no pods run, the state is kept.",
                    "Raise spec.replicas to go on."),
        )  # fmt: skip
    if situation.serving:
        return _ready_true(observation, situation)
    if situation.blocked is not None and not situation.blocked.starting:
        return _from_cause(type_, "False", situation.blocked, effect=situation.blocked.effect or EFFECT_NONE_SERVE)
    since = situation.blocked.since if situation.blocked is not None else None
    message = compose(Reason.STARTING, "A pod is being started since {since}.", "Messages are taken once it is ready.")
    return Finding(type_, "False", Reason.STARTING, message, since)


def _ready_true(observation: Observation, situation: Situation) -> Finding:
    type_ = ConditionType.READY
    if situation.rollout_failed:
        message = (
            f"Revision {observation.revision} does not become ready since {{since}}; "
            f"revision {situation.serving[0].revision} keeps serving."
        )
        return Finding(
            type_, "True", Reason.ROLLOUT_FAILED,
            compose(Reason.ROLLOUT_FAILED, message, "Users notice nothing.", "See condition Degraded for the cause."),
            situation.rollout.since if situation.rollout else None,
        )  # fmt: skip
    if situation.reduced is not None:
        return _from_cause(type_, "True", situation.reduced, effect=_still_serving(situation))
    return Finding(type_, "True", Reason.SERVING, f"Serving with {observation.configured_model}.")


def _still_serving(situation: Situation) -> str:
    revision = situation.serving[0].revision
    return f"Users notice nothing: revision {revision} keeps serving."


def _accepted(observation: Observation) -> Finding:
    verdict = observation.verdict
    if verdict.accepted:
        return Finding(ConditionType.ACCEPTED, "True", Reason.VALID, verdict.message)
    effect = "Pods that run already keep running."
    return _from_cause(ConditionType.ACCEPTED, "False", verdict_cause(verdict), effect=effect)


def _progressing(observation: Observation, situation: Situation, previous: AgentStatus) -> Finding:
    type_ = ConditionType.PROGRESSING
    if _is_off(observation):
        return Finding(type_, "False", Reason.UP_TO_DATE, "No pods should run.")
    if not observation.verdict.accepted:
        cause = verdict_cause(observation.verdict)
        return _from_cause(type_, "False", cause, effect="", lead="The present spec is not rolled out:")
    if len(situation.current_serving) >= observation.desired:
        return Finding(type_, "False", Reason.UP_TO_DATE, f"Revision {observation.revision} serves.")
    if situation.rollout_failed and situation.rollout is not None:
        message = (
            f"Revision {observation.revision} does not become ready since {{since}}; "
            f"revision {situation.serving[0].revision} keeps serving."
        )
        return Finding(
            type_, "False", Reason.ROLLOUT_FAILED, compose(Reason.ROLLOUT_FAILED, message), situation.rollout.since
        )
    if situation.rollout is not None and not situation.rollout.starting and not situation.serving:
        if previous.revision.ready == observation.revision:
            return Finding(type_, "False", Reason.UP_TO_DATE, f"Revision {observation.revision} is rolled out.")
        return _from_cause(type_, "False", situation.rollout, effect="")
    if situation.serving:
        message = f"Revision {observation.revision} is being rolled out since {{since}}; the last good one serves."
        return Finding(type_, "True", Reason.ROLLING_OUT, compose(Reason.ROLLING_OUT, message))
    message = f"Revision {observation.revision} is being started since {{since}}."
    return Finding(type_, "True", Reason.STARTING, compose(Reason.STARTING, message))


def _degraded(observation: Observation, situation: Situation) -> Finding:
    type_ = ConditionType.DEGRADED
    if _is_off(observation) or not situation.serving:
        return Finding(type_, "False", Reason.NOT_SERVING, "Not applicable while the agent does not serve; see Ready.")
    if situation.reduced is None:
        return Finding(type_, "False", Reason.ALL_WELL, "Nothing is broken.")
    broken = len([pod for pod in observation.pods if not pod.deleting and not pod.finished]) - len(situation.serving)
    lead = ""
    if situation.rollout_failed:
        lead = f"Revision {observation.revision}:"
    elif observation.verdict.accepted and broken > 0 and len(situation.serving) < observation.desired:
        lead = f"{broken} of {observation.desired} pods:"
    return _from_cause(type_, "True", situation.reduced, effect=_still_serving(situation), lead=lead)


def _state_store_ready(observation: Observation, known: Mapping[str, Condition]) -> Finding:
    type_ = ConditionType.STATE_STORE_READY
    if any(pod.serving for pod in observation.pods):
        return Finding(type_, "True", Reason.CONNECTED, "The runtime reaches Postgres.")
    for pod in observation.pods:
        probe = observation.probes.get(pod.uid)
        check = find_store_check(probe) if isinstance(probe, HealthOut) and not pod.deleting else None
        if check is not None and check.ok:
            return Finding(type_, "True", Reason.CONNECTED, "The runtime reaches Postgres.")
        if check is not None:
            cause = store_cause(pod, check)
            reason = cause.store_reason or Reason.UNKNOWN
            return Finding(type_, "False", reason, compose(reason, cause.what, cause.effect, cause.remedy), cause.since)
    return _last_known(type_, known)


def _model_reachable(observation: Observation, situation: Situation, known: Mapping[str, Condition]) -> Finding:
    type_ = ConditionType.MODEL_REACHABLE
    if situation.serving:
        return Finding(
            type_, "True", Reason.REACHABLE, f"{observation.configured_model} is built in: no network needed."
        )
    return _last_known(type_, known)


def _last_known(type_: ConditionType, known: Mapping[str, Condition]) -> Finding:
    """Return what was last known of something that cannot be asked now."""
    before = known.get(type_)
    if before is None:
        return Finding(type_, "Unknown", Reason.UNKNOWN, "Not known yet: no pod has answered.")
    reason = Reason(before.reason) if before.reason in Reason.__members__.values() else Reason.UNKNOWN
    return Finding(type_, before.status, reason, before.message)


def _suspended(observation: Observation) -> Finding:
    if observation.suspended:
        message = compose(Reason.SUSPENDED, "spec.suspend is true: no pods run, the state is kept.")
        return Finding(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, message)
    return Finding(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "spec.suspend is false.")
