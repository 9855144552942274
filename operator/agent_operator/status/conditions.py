"""Conditions of an Agent: a pure function of what was observed and of what status said before.

What status said before matters for three things only: when a status last flipped, since when a cause has been there,
and what was last known of something nobody can be asked about any more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from agent_api.conditions import ConditionType, Reason
from agent_api.v1alpha1 import AgentStatus, Condition
from agent_api.wire import HealthOut
from agent_operator.status.budgets import BudgetsView, view_budgets
from agent_operator.status.causes import (
    EFFECT_NONE_SERVE,
    Cause,
    find_cause,
    find_store_check,
    is_serving,
    store_cause,
    verdict_cause,
)
from agent_operator.status.models import MODEL_REASONS, Answering, ModelsView, is_built_in, view_models
from agent_operator.status.observed import Observation
from agent_operator.status.pods import PodView
from agent_operator.status.text import DOCS_PLACE, compose, find_since, instant
from agent_operator.status.tools import ToolsView, view_tools

Status = Literal["True", "False", "Unknown"]

_MODEL_WORDS: Final = MODEL_REASONS | {Reason.SERVING_ON_FALLBACK}
"""Reasons of Ready that speak of models."""


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
    serves; `reduced` what is wrong although somebody serves; `models` what the models of serving pods can do, and
    `tools` their tools. `held` says that the pods do not tell (any more) what they told of their models before.
    """

    serving: tuple[PodView, ...]
    current_serving: tuple[PodView, ...]
    rollout: Cause | None
    blocked: Cause | None
    reduced: Cause | None
    models: ModelsView
    held: bool
    tools: ToolsView
    budgets: BudgetsView

    @property
    def replying(self) -> bool:
        """Whether a message sent now gets a model's reply, as far as anybody knows."""
        able = self.models.answering >= Answering.UNKNOWN and self.budgets.exhausted is None
        return bool(self.serving) and able

    @property
    def rollout_failed(self) -> bool:
        """Whether the new revision is broken while an older one serves; an unreachable Postgres is not its fault."""
        broken = self.rollout is not None and not self.rollout.starting and self.rollout.store_reason is None
        return bool(broken and self.serving and not self.current_serving)


def assess(observation: Observation, previous: AgentStatus) -> Situation:
    """Return who serves and what stands in the way."""
    alive = tuple(pod for pod in observation.pods if not pod.deleting and not pod.finished)
    serving = tuple(pod for pod in alive if is_serving(pod, observation.now))
    wanted = tuple(pod for pod in alive if pod.revision == observation.revision)
    refused = None if observation.verdict.accepted else verdict_cause(observation.verdict)
    rollout = find_cause(observation, wanted)
    whole = find_cause(observation, alive)
    broken = whole if whole is not None and not whole.starting else None
    models = view_models(observation)
    told_before = any(pod.revision == previous.revision.ready for pod in serving)
    if models.answering is Answering.CHECKING and told_before and _has_told(previous):
        # The pods said it a moment ago, to an operator that has been restarted since, for example.
        models = ModelsView(Answering.UNKNOWN)
    return Situation(
        serving=serving,
        current_serving=tuple(pod for pod in serving if pod.revision == observation.revision),
        rollout=rollout,
        blocked=refused or (rollout if rollout is not None and not rollout.starting else None) or broken or rollout,
        reduced=refused or broken,
        models=models,
        held=models.answering is Answering.UNKNOWN and told_before,
        tools=view_tools(observation),
        budgets=view_budgets(observation),
    )


def _has_told(status: AgentStatus) -> bool:
    """Whether Ready is about what models can do: it is True, or False because of a model."""
    ready = next((condition for condition in status.conditions if condition.type == ConditionType.READY), None)
    return ready is not None and (ready.status == "True" or ready.reason in MODEL_REASONS)


def build_conditions(observation: Observation, previous: AgentStatus) -> list[Condition]:
    """Return the conditions in their documented order."""
    known = {condition.type: condition for condition in previous.conditions}
    situation = assess(observation, previous)
    findings: Iterable[Finding | None] = (
        _ready(observation, situation, known),
        _accepted(observation),
        _progressing(observation, situation, previous),
        _degraded(observation, situation, known),
        _state_store_ready(observation, known),
        _model_reachable(observation, situation, known),
        _tools_ready(observation, situation, known),
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
        message=finding.message.replace("{since}", instant(since)).replace(DOCS_PLACE, observation.docs),
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


def _ready(observation: Observation, situation: Situation, known: Mapping[str, Condition]) -> Finding:
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
    if situation.serving and (spent := situation.budgets.exhausted) is not None:
        return _from_cause(type_, "False", spent, effect=spent.effect)
    if situation.serving and situation.models.answering is Answering.CHECKING:
        what = "The pod is ready since {since}; whether its model can be called is being checked."
        return Finding(type_, "False", Reason.STARTING, compose(Reason.STARTING, what), situation.serving[0].ready_at)
    if situation.serving and situation.models.answering is Answering.NOBODY and situation.models.cause is not None:
        return _from_cause(type_, "False", situation.models.cause, effect=situation.models.cause.effect)
    if situation.held and (before := known.get(type_)) and before.reason in _MODEL_WORDS:
        return _last_known(type_, known)
    if situation.serving:
        return _ready_true(observation, situation, known)
    if situation.blocked is not None and not situation.blocked.starting:
        return _from_cause(type_, "False", situation.blocked, effect=situation.blocked.effect or EFFECT_NONE_SERVE)
    what, since = "The pod is being started since {since}.", None
    if situation.blocked is not None:
        what, since = situation.blocked.what, situation.blocked.since
    message = compose(Reason.STARTING, what, "Messages are taken once it is ready.")
    return Finding(type_, "False", Reason.STARTING, message, since)


def _ready_true(observation: Observation, situation: Situation, known: Mapping[str, Condition]) -> Finding:
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
        lead, effect = _tell_reduced(observation, situation)
        return _from_cause(type_, "True", situation.reduced, lead=lead, effect=effect)
    if situation.models.answering is Answering.FALLBACK and situation.models.cause is not None:
        return _on_fallback(type_, Reason.SERVING_ON_FALLBACK, situation.models)
    if situation.models.cause is not None:
        lead, effect = _tell_affected(situation)
        return _from_cause(type_, "True", situation.models.cause, lead=lead, effect=effect)
    if (cause := situation.tools.cause) is not None:
        return _from_cause(type_, "True", cause, lead=situation.tools.lead, effect=cause.effect)
    if (cause := situation.budgets.unpriced) is not None:
        return _from_cause(type_, "True", cause, effect=cause.effect)
    untold = situation.models.answering is Answering.UNKNOWN
    doubt = ""
    if untold and _model_reachable(observation, situation, known).status == "Unknown":
        doubt = " The pod does not say whether the model can be called."
    return Finding(type_, "True", Reason.SERVING, f"Serving with {observation.configured_model}.{doubt}")


def _on_fallback(type_: ConditionType, reason: Reason, models: ModelsView) -> Finding:
    """Say that a fallback model replies, and what is wrong with the primary one."""
    assert models.cause is not None  # noqa: S101 - a fallback model replies only in place of another
    message = compose(reason, f"Served by {models.fallback}; {models.cause.what}", models.cause.remedy)
    return Finding(type_, "True", reason, message, models.cause.since)


def _tell_reduced(observation: Observation, situation: Situation) -> tuple[str, str]:
    """Return what to say before and after a cause that leaves the agent serving: how many pods, what users notice."""
    if situation.models.answering is Answering.FALLBACK:
        effect = f"Users get replies from {situation.models.fallback}."
    else:
        effect = f"Users notice nothing: revision {situation.serving[0].revision} keeps serving."
    if situation.rollout_failed:
        return f"Revision {observation.revision}:", effect
    missing = observation.desired - len(situation.current_serving)
    if not observation.verdict.accepted or missing <= 0 or not situation.current_serving:
        return "", effect
    whose = "its" if missing == 1 else "their"
    return f"{missing} of {observation.desired} pods:", f"The others serve; {whose} sessions were taken over."


def _tell_affected(situation: Situation) -> tuple[str, str]:
    lead = f"{situation.models.affected} of {len(situation.serving)} pods:"
    return lead, "Users of these pods may get the fallback message; the others reply."


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
    if situation.serving and len(situation.serving) == len(situation.current_serving):
        # No other revision serves: pods are added or replaced, nothing is rolled out.
        up, desired = len(situation.current_serving), observation.desired
        message = f"Revision {observation.revision} serves: {up} of {desired} pods since {{since}}; more are started."
        return Finding(type_, "True", Reason.STARTING, compose(Reason.STARTING, message))
    if situation.serving:
        message = f"Revision {observation.revision} is being rolled out since {{since}}; the last good one serves."
        return Finding(type_, "True", Reason.ROLLING_OUT, compose(Reason.ROLLING_OUT, message))
    message = f"Revision {observation.revision} is being started since {{since}}."
    return Finding(type_, "True", Reason.STARTING, compose(Reason.STARTING, message))


def _degraded(observation: Observation, situation: Situation, known: Mapping[str, Condition]) -> Finding:
    type_ = ConditionType.DEGRADED
    if situation.held and (ready := known.get(ConditionType.READY)) and ready.reason in _MODEL_WORDS:
        return _last_known(type_, known)
    if _is_off(observation) or not situation.replying:
        return Finding(type_, "False", Reason.NOT_SERVING, "Not applicable while the agent does not serve; see Ready.")
    models = situation.models
    if situation.reduced is not None:
        lead, effect = _tell_reduced(observation, situation)
        return _from_cause(type_, "True", situation.reduced, effect=effect, lead=lead)
    if models.answering is Answering.FALLBACK and models.cause is not None:
        return _from_cause(type_, "True", models.cause, effect=f"Users get replies from {models.fallback}.")
    if models.cause is not None:
        lead, effect = _tell_affected(situation)
        return _from_cause(type_, "True", models.cause, effect=effect, lead=lead)
    if (cause := situation.tools.cause) is not None:
        return _from_cause(type_, "True", cause, effect=cause.effect, lead=situation.tools.lead)
    if (cause := situation.budgets.unpriced) is not None:
        return _from_cause(type_, "True", cause, effect=cause.effect)
    return Finding(type_, "False", Reason.ALL_WELL, "Nothing is broken.")


def _state_store_ready(observation: Observation, known: Mapping[str, Condition]) -> Finding:
    type_ = ConditionType.STATE_STORE_READY
    if any(pod.serving for pod in observation.pods):
        return Finding(type_, "True", Reason.CONNECTED, "The runtime reaches Postgres.")
    for pod in observation.pods:
        probe = observation.probes.get(pod.uid)
        check = find_store_check(probe) if isinstance(probe, HealthOut) and not pod.deleting else None
        if check is not None and check.ok:
            return Finding(type_, "True", Reason.CONNECTED, "The runtime reaches Postgres.")
        if check is not None and check.reason != Reason.STARTING:
            cause = store_cause(pod, check, observation.store)
            reason = cause.store_reason or cause.reason
            return Finding(type_, "False", reason, compose(reason, cause.what, cause.effect, cause.remedy), cause.since)
    return _last_known(type_, known)


def _model_reachable(observation: Observation, situation: Situation, known: Mapping[str, Condition]) -> Finding:
    type_ = ConditionType.MODEL_REACHABLE
    models = situation.models
    match models.answering:
        case Answering.PRIMARY if situation.serving or not is_built_in(observation.configured_model):
            built_in = is_built_in(observation.configured_model)
            tail = "is built in: no network needed." if built_in else "can be called."
            return Finding(type_, "True", Reason.REACHABLE, f"{observation.configured_model} {tail}")
        case Answering.FALLBACK if models.cause is not None:
            return _on_fallback(type_, Reason.FALLBACK_ONLY, models)
        case Answering.NOBODY if models.cause is not None:
            return _from_cause(type_, "False", models.cause, effect=models.cause.effect)
        case Answering.CHECKING if situation.serving:
            return Finding(type_, "Unknown", Reason.UNKNOWN, "Not known yet: it is being checked.")
        case Answering.UNKNOWN if situation.serving and not situation.held:
            return Finding(type_, "Unknown", Reason.UNKNOWN, "Not known: the pod does not say it.")
        case _:
            return _last_known(type_, known)


def _tools_ready(observation: Observation, situation: Situation, known: Mapping[str, Condition]) -> Finding | None:
    """Say whether all tools can be called; nothing for an agent that has none."""
    type_, tools = ConditionType.TOOLS_READY, situation.tools
    if not observation.tools:
        unreadable = not observation.configured_model and type_ in known
        return _last_known(type_, known) if unreadable else None
    if tools.cause is not None:
        return _from_cause(type_, "False", tools.cause, effect=tools.cause.effect, lead=tools.lead)
    if tools.known and situation.serving:
        count = sum(len(tool.status.tools) for tool in tools.tools)
        return Finding(type_, "True", Reason.CONNECTED, f"All tools can be called: {count} from {len(tools.tools)}.")
    if situation.serving and type_ not in known:
        return Finding(type_, "Unknown", Reason.UNKNOWN, "Not known yet: it is being looked for.")
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
