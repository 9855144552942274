"""What the models of an agent's pods can do, as the pods last said.

A pod tells it twice: in heartbeats, and in /readyz when it is asked; the newer word on each model counts. A broken
model leaves a pod ready, so that users get the fallback text; whether the agent serves is decided here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

from agent_api.conditions import Reason
from agent_api.v1alpha1 import BUILT_IN_PROVIDERS, ModelSpec
from agent_api.wire import HealthOut, ModelCheck
from agent_operator.status.causes import Cause, is_serving
from agent_operator.status.observed import Observation
from agent_operator.status.pods import PodView
from agent_operator.status.text import scrub

MODEL_GRACE_SECONDS: Final = 15.0
"""So long after a pod became ready its first word on its models is waited for before anybody calls it serving."""
MODEL_REASONS: Final = frozenset(
    (
        Reason.MODEL_AUTH_FAILED,
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_RATE_LIMITED,
        Reason.MODEL_UNREACHABLE,
        Reason.MODEL_REFUSED,
        Reason.UNKNOWN_PARAMETER,
    )
)
EFFECT_FALLBACK_TEXT: Final = "Users get the fallback message."
EFFECT_ALL_FAIL: Final = "No fallback model can be used either: users get the fallback message."

_URL_REASONS: Final = frozenset((Reason.MODEL_UNREACHABLE, Reason.MODEL_NOT_FOUND, Reason.MODEL_REFUSED))


class Answering(IntEnum):
    """Which model of a pod gives replies; of several pods the highest one counts."""

    CHECKING = 0
    """Not known yet, and soon to be known."""
    NOBODY = 1
    UNKNOWN = 2
    """The pod does not say."""
    FALLBACK = 3
    PRIMARY = 4


@dataclass(frozen=True, slots=True)
class ModelsView:
    """What the models of some pods can do.

    `cause` says why the primary model of the agent, or of `affected` of its pods, cannot be called; `fallback` names
    the model that replies instead.
    """

    answering: Answering
    cause: Cause | None = None
    fallback: str = ""
    affected: int = 0


def find_checks(observation: Observation, pod: PodView) -> tuple[ModelCheck, ...]:
    """Return the newest word on each model of the pod's present process, the primary first; empty if there is none."""
    probe = observation.probes.get(pod.uid)
    asked = tuple(probe.models) if isinstance(probe, HealthOut) else ()
    beats = tuple(
        check
        for check in (observation.facts.models_by_pod or {}).get(pod.name, ())
        # The heartbeat of an earlier process of the pod stays until the first one of the next.
        if check.checked_at is None or pod.started is None or check.checked_at >= pod.started
    )
    newest = {check.name: check for check in asked}
    for check in beats:
        known = newest.get(check.name)
        if known is None or _age(check) >= _age(known):
            newest[check.name] = check
    order = [check.name for check in (asked if len(asked) >= len(beats) else beats)]
    return tuple(newest[name] for name in dict.fromkeys(order))


def _age(check: ModelCheck) -> float:
    return check.checked_at.timestamp() if check.checked_at is not None else float("-inf")


def view_models(observation: Observation) -> ModelsView:
    """Return what the serving pods' models can do; of pods that cannot serve, what they say of them."""
    alive = [pod for pod in observation.pods if not pod.deleting and not pod.finished]
    serving = [pod for pod in alive if is_serving(pod, observation.now)]
    views = [_view_pod(observation, pod) for pod in sorted(serving or alive, key=lambda pod: pod.name)]
    best = max(views, key=lambda view: view.answering, default=ModelsView(Answering.UNKNOWN))
    if best.answering is not Answering.PRIMARY:
        return best
    worse = [view for view in views if view.cause is not None]
    return ModelsView(best.answering, worse[0].cause if worse else None, affected=len(worse))


def _view_pod(observation: Observation, pod: PodView) -> ModelsView:
    checks = find_checks(observation, pod)
    if not checks:
        built_in = bool(observation.models) and observation.models[0].is_built_in
        return ModelsView(Answering.PRIMARY if built_in else _unknown(observation, pod))
    primary, others = checks[0], checks[1:]
    if _works(primary):
        return ModelsView(Answering.PRIMARY)
    if primary.ok is None:
        return ModelsView(_unknown(observation, pod))
    fallback = next((check for check in others if _works(check)), None)
    cause = explain_check(observation, primary, alone=not others)
    if fallback is not None:
        return ModelsView(Answering.FALLBACK, cause, fallback.model)
    if any(check.ok is None for check in others) and _is_new(observation, pod):
        return ModelsView(Answering.CHECKING)
    return ModelsView(Answering.NOBODY, cause)


def is_built_in(model: str) -> bool:
    """Whether `provider/model` is part of the runtime: such a model is never out of reach, whatever its script says."""
    return model.partition("/")[0] in BUILT_IN_PROVIDERS


def _works(check: ModelCheck) -> bool:
    return check.ok is True or is_built_in(check.model)


def _unknown(observation: Observation, pod: PodView) -> Answering:
    return Answering.CHECKING if _is_new(observation, pod) else Answering.UNKNOWN


def _is_new(observation: Observation, pod: PodView) -> bool:
    return find_grace_end(pod) > observation.now


def find_grace_end(pod: PodView) -> datetime:
    """Return until when the pod's first word on its models is waited for."""
    since = max((at for at in (pod.started, pod.ready_at) if at is not None), default=pod.created_at)
    return since + timedelta(seconds=MODEL_GRACE_SECONDS)


def explain_check(observation: Observation, check: ModelCheck, *, alone: bool) -> Cause:
    """Return why a model cannot be called, with the field or Secret to change. `alone`: there is no other model."""
    reason = Reason(check.reason) if check.reason in MODEL_REASONS else Reason.MODEL_UNREACHABLE
    index, spec = _find_spec(observation.models, check)
    what = scrub(check.message).rstrip(".") or "cannot be called"
    return Cause(
        reason,
        f"{check.model} {what} since {{since}}{_place(observation, reason, spec)}.",
        EFFECT_FALLBACK_TEXT if alone else EFFECT_ALL_FAIL,
        _remedy(reason, f"spec.models[{index}]", spec),
        check.since,
    )


def _find_spec(models: Iterable[ModelSpec], check: ModelCheck) -> tuple[int, ModelSpec | None]:
    """Return the entry a check is about; None if the pod runs another spec than the present one."""
    for index, model in enumerate(models):
        if (model.effective_name, model.display) == (check.name, check.model):
            return index, model
    return 0, None


def _place(observation: Observation, reason: Reason, spec: ModelSpec | None) -> str:
    """Return where to look, in brackets: the Secret of a refused key, the address of a service that is not there."""
    if spec is None:
        return ""
    if reason is Reason.MODEL_AUTH_FAILED and (ref := spec.api_key_secret_ref):
        return f" (Secret {observation.namespace}/{ref.name}, key {ref.key})"
    return f" ({scrub(spec.base_url)})" if reason in _URL_REASONS and spec.base_url else ""


def _remedy(reason: Reason, field: str, spec: ModelSpec | None) -> str:
    """Return what to do. `field` is the entry of the spec."""
    match reason:
        case Reason.MODEL_AUTH_FAILED if spec is not None and spec.api_key_secret_ref is None:
            return f"Name a Secret with a valid key in {field}.apiKeySecretRef."
        case Reason.MODEL_AUTH_FAILED:
            return "Put a valid key there; it is read within 60 s."
        case Reason.MODEL_NOT_FOUND:
            return f"Correct {field}.model or {field}.baseURL, or ask the provider for access to the model."
        case Reason.MODEL_RATE_LIMITED:
            return "It is tried again by itself; if it lasts, raise the provider's limit or add a fallback model."
        case Reason.UNKNOWN_PARAMETER:
            return f"Correct or remove it in {field}.parameters."
        case Reason.MODEL_REFUSED:
            return f"Correct {field}; the recorded errors of the agent quote the provider."
        case _:
            return f"Check the provider and {field}.baseURL, and that pods may reach it; it is tried again by itself."
