"""What the tools of an agent's pods can do, as the pods last said in heartbeats and in /readyz.

A tool that is down leaves the agent serving: models are told, and answer without it. So it degrades, and never more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agent_api.conditions import Reason
from agent_api.v1alpha1 import ToolEntry, ToolStatus
from agent_api.wire import HealthOut, ToolCheck
from agent_operator.status.causes import Cause, is_serving
from agent_operator.status.observed import Observation
from agent_operator.status.pods import PodView
from agent_operator.status.text import scrub

SHOWN_TOOLS: Final = 128
_DENIED: Final = ("answers 401", "answers 403", "has no value for header", "has no usable value")


@dataclass(frozen=True, slots=True)
class ToolView:
    """One entry of spec.tools. `ok` is None while no pod knows; `down` of `pods` pods cannot use it."""

    status: ToolStatus
    ok: bool | None
    since: datetime | None
    down: int
    pods: int


@dataclass(frozen=True, slots=True)
class ToolsView:
    """All entries in their order, and why the first broken one is; `lead` says in how many pods, where not in all."""

    tools: tuple[ToolView, ...] = ()
    cause: Cause | None = None
    lead: str = ""

    @property
    def known(self) -> bool:
        """Whether every entry is known to some pod."""
        return all(tool.ok is not None for tool in self.tools)


def find_tool_checks(observation: Observation, pod: PodView) -> dict[str, ToolCheck]:
    """Return the newest word on each entry of the pod's present process."""
    probe = observation.probes.get(pod.uid)
    asked = probe.tools if isinstance(probe, HealthOut) else ()
    beats = (observation.facts.tools_by_pod or {}).get(pod.name, ())
    newest: dict[str, ToolCheck] = {}
    for check in (*asked, *beats):
        if check.since is not None and pod.started is not None and check.since < pod.started:
            continue  # said by an earlier process of the pod
        known = newest.get(check.name)
        if known is None or _age(check) >= _age(known):
            newest[check.name] = check
    return newest


def _age(check: ToolCheck) -> float:
    return check.since.timestamp() if check.since is not None else float("-inf")


def view_tools(observation: Observation) -> ToolsView:
    """Return what the serving pods' tools can do; of pods that cannot serve, what they say of them."""
    if not observation.tools:
        return ToolsView()
    alive = [pod for pod in observation.pods if not pod.deleting and not pod.finished]
    pods = [pod for pod in alive if is_serving(pod, observation.now)] or alive
    told = [find_tool_checks(observation, pod) for pod in sorted(pods, key=lambda pod: pod.name)]
    tools = tuple(_view(entry, [one[entry.name] for one in told if entry.name in one]) for entry in observation.tools)
    broken = [index for index, tool in enumerate(tools) if tool.ok is False]
    if not broken:
        return ToolsView(tools)
    first = tools[broken[0]]
    lead = f"{first.down} of {len(pods)} pods:" if first.down < len(pods) else ""
    return ToolsView(tools, _explain(observation, tools, broken), lead)


def _view(entry: ToolEntry, checks: Iterable[ToolCheck]) -> ToolView:
    of_kind = [check for check in checks if check.type == entry.type]
    down = [check for check in of_kind if check.ok is False]
    up = [check for check in of_kind if check.ok]
    shown = (down or up or of_kind or [ToolCheck(name=entry.name, type=entry.type)])[0]
    names = max((check.tools for check in of_kind), key=len, default=[])
    status = ToolStatus(
        name=entry.name,
        type=entry.type,
        ready=shown.ok is True,
        message=scrub(shown.message) if shown.ok is False else "",
        tools=[scrub(name, limit=64) for name in names[:SHOWN_TOOLS]],
    )
    return ToolView(status, shown.ok, shown.since, len(down), len(of_kind))


def _explain(observation: Observation, tools: tuple[ToolView, ...], broken: list[int]) -> Cause:
    index = broken[0]
    entry, view = observation.tools[index], tools[index]
    phrase = view.status.message.rstrip(".") or "cannot be used"
    more = f" ({len(broken) - 1} more are down)" if len(broken) > 1 else ""
    return Cause(
        Reason.TOOL_DOWN,
        f"Tool {entry.name}{_place(entry)} {phrase} since {{since}}{more}.",
        "Users get replies without it.",
        _remedy(observation, entry, f"spec.tools[{index}]", phrase),
        view.since,
    )


def _place(entry: ToolEntry) -> str:
    found = entry.mcp or entry.http
    return f" ({scrub(found.url)})" if found is not None else ""


def _remedy(observation: Observation, entry: ToolEntry, field: str, phrase: str) -> str:
    if phrase.startswith(_DENIED):
        if not entry.headers_from:
            return f"Name a Secret with what the server wants in {field}.{entry.type.lower()}.headersFrom."
        ref = entry.headers_from[0].secret_key_ref
        return (
            f"Put a valid value into Secret {observation.namespace}/{ref.name}, key {ref.key}; it is read within 60 s."
        )
    if entry.builtin is not None:
        return f"Correct the spec, or remove {field}."
    return (
        f"Check the server and {field}.{entry.type.lower()}.url, and that pods may reach it; it is tried again by "
        "itself within 15 s."
    )
