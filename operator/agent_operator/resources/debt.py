"""A debt: rows of a deleted agent that could not be erased yet, kept as a ConfigMap in the operator's own namespace.

One object per deleted agent, named after its uid: recording it twice is the same debt, and nobody edits what another
one writes.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

from agent_api import labels
from agent_operator.kube.port import Object

DEBT_ERASE: Final = "erase"
DEBTS: Final = f"{labels.LABEL_DEBT}={DEBT_ERASE}"
"""Label selector of all debts."""


@dataclass(frozen=True, slots=True)
class Debt:
    """Whose rows are to be erased. `adopted_id` names those it took over from an earlier agent, "" for none.

    `recorded_at` is when it was recorded, as Kubernetes writes instants.
    """

    uid: str
    adopted_id: str
    namespace: str
    name: str
    recorded_at: str


def debt_name(uid: str) -> str:
    """Return the name of the ConfigMap of an agent's debt."""
    return f"abide-erase-{uid}"


def build_debt(debt: Debt, namespace: str) -> dict[str, Any]:
    """Build the ConfigMap of a debt, in the operator's `namespace`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": debt_name(debt.uid),
            "namespace": namespace,
            "labels": {labels.LABEL_MANAGED_BY: labels.MANAGED_BY, labels.LABEL_DEBT: DEBT_ERASE},
        },
        "data": asdict(debt),
    }


def parse_debt(body: Object) -> Debt | None:
    """Return the debt of a ConfigMap, None where somebody else changed it so that it cannot be read."""
    data = body.get("data") or {}
    try:
        adopted = data.get("adopted_id", "")
        return Debt(
            uid=str(UUID(data["uid"])),
            adopted_id=str(UUID(adopted)) if adopted else "",
            namespace=data["namespace"],
            name=data["name"],
            recorded_at=data.get("recorded_at", ""),
        )
    except (KeyError, ValueError):
        return None
