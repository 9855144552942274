"""An agent's revisions as the operator keeps them: immutable ConfigMaps, each with the spec as written and what ran.

`spec.json` is the spec as the user wrote it (it is what a rollback writes back), `agent.json` the resolved manifest
(defaults filled in, the prompt inline). Both are JSON documents.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from agent_api.labels import ANNOTATION_REVISION_NUMBER, LABEL_AGENT, LABEL_REVISION
from agent_api.v1alpha1 import UNVERSIONED_FIELDS
from agent_cli.cluster.agents import name_of
from agent_cli.cluster.kubectl import Cluster, list_objects
from agent_cli.cluster.targets import agent_label
from agent_cli.errors import CliError
from agent_cli.output import one_line, parse_instant

SPEC_FILE: Final = "spec.json"
AGENT_FILE: Final = "agent.json"
VALUE_LENGTH: Final = 40
CHANGES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Revision:
    """One kept revision. `spec` is None where the operator did not keep it."""

    number: int
    name: str
    created: datetime | None
    spec: dict[str, Any] | None
    ran: dict[str, Any]

    @property
    def prompt(self) -> str | None:
        """The system prompt that ran, wherever it came from."""
        found = self.ran.get("systemPrompt")
        return str(found) if found is not None else None

    @property
    def comparable(self) -> dict[str, Any]:
        """The spec as it compares: without what makes no revision, the prompt that ran beside where it came from."""
        return comparable(self.spec if self.spec is not None else self.ran, self.prompt)


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs; None stands for an absent value."""

    path: str
    before: Any
    after: Any


def comparable(spec: dict[str, Any], prompt: str | None) -> dict[str, Any]:
    """Return a spec without the fields that make no revision, with the prompt's text where it is known."""
    kept = carry_over(spec, {})
    if prompt is not None and "systemPromptFrom" in kept:
        kept["systemPrompt"] = prompt
    return kept


def carry_over(spec: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """Return a spec with what makes no revision taken from the present one, or left out where that has none."""
    result = copy.deepcopy(spec)
    for path in UNVERSIONED_FIELDS:
        *parents, name = path.split(".")
        before: Any = present
        target: Any = result
        for parent in parents:
            before = before.get(parent) or {}
            target = target.setdefault(parent, {})
        target.pop(name, None)
        if name in before:
            target[name] = before[name]
        if parents and not target:
            del result[parents[0]]
    return result


def read_revisions(cluster: Cluster, agent: dict[str, Any]) -> list[Revision]:
    """Return the kept revisions, newest first. Raises CliError."""
    found = list_objects(cluster, "configmaps", f"--selector={LABEL_AGENT}={name_of(agent)},{LABEL_REVISION}")
    return sorted(parse_revisions(found), key=lambda revision: revision.number, reverse=True)


def parse_revisions(config_maps: Sequence[dict[str, Any]]) -> Iterator[Revision]:
    """Yield the revisions that ConfigMaps hold; what is no revision is passed over.

    Where no number is noted, the order of creation counts.
    """
    by_age = sorted(config_maps, key=lambda one: str(one.get("metadata", {}).get("creationTimestamp", "")))
    revisions = [revision for one in by_age if (revision := _parse_revision(one)) is not None]
    for position, revision in enumerate(revisions, start=1):
        yield revision if revision.number else replace(revision, number=position)


def _parse_revision(config_map: dict[str, Any]) -> Revision | None:
    metadata, data = config_map.get("metadata", {}), config_map.get("data") or {}
    name = str((metadata.get("labels") or {}).get(LABEL_REVISION, ""))
    ran = _parse(data.get(AGENT_FILE))
    if not name or ran is None:
        return None
    number = str((metadata.get("annotations") or {}).get(ANNOTATION_REVISION_NUMBER, ""))
    return Revision(
        number=int(number) if number.isdecimal() else 0,
        name=name,
        created=parse_instant(metadata.get("creationTimestamp")),
        spec=_parse(data.get(SPEC_FILE)),
        ran=ran.get("spec") or {},
    )


def _parse(text: object) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def find_revision(revisions: Sequence[Revision], wanted: str, agent: dict[str, Any]) -> Revision:
    """Return the revision with this number or name, or the start of a name. Raises CliError."""
    number = wanted.removeprefix("#")
    found = [one for one in revisions if wanted == one.name or (number.isdecimal() and int(number) == one.number)]
    found = found or [one for one in revisions if len(wanted) >= 4 and one.name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    kept = ", ".join(f"{one.number} ({one.name})" for one in revisions) or "none"
    raise CliError(f"Agent {agent_label(agent)} has no single revision {wanted!r}; kept are: {kept}.")


def current_revision(revisions: Sequence[Revision], agent: dict[str, Any]) -> Revision | None:
    """Return the revision of the present spec as status says, else the newest one."""
    name = ((agent.get("status") or {}).get("revision") or {}).get("current")
    return next((one for one in revisions if one.name == name), revisions[0] if revisions else None)


def rollback_target(revisions: Sequence[Revision], agent: dict[str, Any]) -> Revision:
    """Return where a rollback without a wish goes: the one that serves if that is another one, else the one before.

    Raises CliError when there is none.
    """
    current = current_revision(revisions, agent)
    ready = ((agent.get("status") or {}).get("revision") or {}).get("ready")
    serving = next((one for one in revisions if one.name == ready and one != current), None)
    if serving is not None:
        return serving
    older = [one for one in revisions if current is not None and one.number < current.number]
    if older:
        return older[0]
    raise CliError(
        f"Agent {agent_label(agent)} has no older revision to go back to; spec.revisionHistoryLimit says how many "
        "are kept."
    )


def find_changes(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """Yield the fields that differ, in the order of their paths. Entries of lists are compared by position."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from find_changes(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif isinstance(before, list) and isinstance(after, list) and before and after:
        for index in range(max(len(before), len(after))):
            old, new = (items[index] if index < len(items) else None for items in (before, after))
            yield from find_changes(old, new, f"{path}[{index}]")
    elif before != after:
        yield Change(path, before, after)


def summarize(changes: Sequence[Change]) -> str:
    """Return changes in one line."""
    if not changes:
        return "the spec is the same: the image, or what it refers to, changed"
    told = [f"{change.path}: {_short(change.before)} → {_short(change.after)}" for change in changes[:CHANGES_SHOWN]]
    more = len(changes) - CHANGES_SHOWN
    return "; ".join([*told, *([f"{more} more"] if more > 0 else [])])


def _short(value: Any) -> str:
    if value is None:
        return "unset"
    text = one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 1]}…"
