"""From an Agent's `models` to the adapters that serve them."""

from collections.abc import Sequence

from agent_api.v1alpha1 import ModelSpec
from agent_runtime.clock import Clock
from agent_runtime.llm.echo import EchoModel
from agent_runtime.llm.port import Model
from agent_runtime.llm.scripted import ScriptedModel


def build_models(specs: Sequence[ModelSpec], clock: Clock) -> tuple[Model, ...]:
    """Return one adapter per entry, in the order of the fallback chain."""
    return tuple(_build(spec, clock) for spec in specs)


def _build(spec: ModelSpec, clock: Clock) -> Model:
    timeout = float(spec.timeout_seconds)
    match spec.provider:
        case "echo":
            return EchoModel(spec.display, timeout, clock, delay=spec.parameters.delay_seconds)
        case "scripted":
            replies = tuple(spec.parameters.replies)
            return ScriptedModel(spec.display, timeout, clock, replies, delay=spec.parameters.delay_seconds)
