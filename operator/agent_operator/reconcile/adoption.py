"""Whose rows in Postgres an agent uses: its own, or those it was told to take over from an earlier agent of its name.

Rows are kept by the Agent's uid, so that a namesake never gets them unasked. The annotation
`abide.dev/adopt-state: UID` asks for them; it must stay for as long as they are to be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from agent_api import labels
from agent_api.conditions import Reason
from agent_operator.keys import AgentKey
from agent_operator.kube.port import Object
from agent_operator.reconcile.cache import ClusterCache
from agent_operator.status.observed import Verdict
from agent_store.errors import StoreError
from agent_store.ports import AgentStore

FIELD: Final = f'metadata.annotations["{labels.ANNOTATION_ADOPT_STATE}"]'


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of the wish: `adopted_id` is granted ("": the agent uses its own rows), `refusal` says why not.

    `unknown` is set where it cannot be told now, because Postgres does not answer.
    """

    adopted_id: str = ""
    refusal: Verdict | None = None
    unknown: bool = False


OWN: Final = Adoption()


def wanted_adoption(metadata: Object) -> str:
    """Return the id the Agent asks for, as written; "" where it asks for none or for its own."""
    wanted = str((metadata.get("annotations") or {}).get(labels.ANNOTATION_ADOPT_STATE, "")).strip()
    return "" if wanted.lower() == metadata["uid"] else wanted


def wanted_state_id(metadata: Object) -> str:
    """Return the id the Agent asks for, "" where it asks for none or for something that is no id."""
    try:
        return str(UUID(wanted_adoption(metadata)))
    except ValueError:
        return ""


def find_running_id(deployment: Object | None) -> str:
    """Return under which id the pods of a live Deployment keep their rows, "" where that cannot be told."""
    if deployment is None:
        return ""
    containers = deployment["spec"]["template"]["spec"].get("containers") or ()
    variables = (one for container in containers for one in container.get("env") or ())
    return next((str(one.get("value", "")) for one in variables if one["name"] == "ABIDE_AGENT_ID"), "")


class StateIds:
    """Grants adoptions, and remembers which it granted."""

    def __init__(self, store: AgentStore, cache: ClusterCache) -> None:
        self._store = store
        self._cache = cache
        self._granted: dict[AgentKey, tuple[str, str]] = {}

    def state_id(self, key: AgentKey, uid: str) -> str:
        """Return the id of the agent's rows, as far as is known."""
        owner, adopted = self._granted.get(key, ("", ""))
        return adopted if owner == uid else uid

    def by_agent(self) -> Mapping[AgentKey, str]:
        """Return the id of the rows of every Agent."""
        return {key: self.state_id(key, uid) for key, uid in self._cache.agents().items()}

    async def resolve(self, key: AgentKey, metadata: Object, running_id: str) -> Adoption:
        """Decide on the Agent's wish. `running_id` is what its pods use: it was granted once.

        Never raises for Postgres: what was granted stays so, and what is not known yet is said to be unknown.
        """
        uid, wanted = metadata["uid"], wanted_adoption(metadata)
        if not wanted:
            self._granted.pop(key, None)
            return OWN
        try:
            target = UUID(wanted)
        except ValueError:
            return self._refuse(key, f'{FIELD}: "{wanted[:80]}" is no uid; write the uid of the deleted Agent.')
        if self._granted.get(key) == (uid, str(target)):
            return Adoption(str(target))
        if any(str(target) in (other, self.state_id(one, other)) for one, other in self._others(key)):
            return self._refuse(key, f"{FIELD}: a living Agent has the uid {target}, or has taken its state over.")
        try:
            found = await self._store.find_agent(target)
        except (StoreError, TimeoutError, OSError):
            if running_id == str(target):
                self._granted[key] = (uid, str(target))
                return Adoption(str(target))
            return Adoption(unknown=True)
        if found is None:
            return self._refuse(key, f"{FIELD}: no state is kept under the uid {target}; check it, or remove this.")
        if (found.namespace, found.name) != (key.namespace, key.name):
            # Not whose it is: that is nobody's business here.
            return self._refuse(key, f"{FIELD}: the state of {target} is that of an agent of another name.")
        self._granted[key] = (uid, str(target))
        return Adoption(str(target))

    def forget(self, key: AgentKey) -> None:
        """Drop what was remembered of an agent that is gone."""
        self._granted.pop(key, None)

    def _others(self, key: AgentKey) -> list[tuple[AgentKey, str]]:
        return [(one, uid) for one, uid in self._cache.agents().items() if one != key]

    def _refuse(self, key: AgentKey, message: str) -> Adoption:
        self._granted.pop(key, None)
        return Adoption(refusal=Verdict(Reason.STATE_ADOPTION_REFUSED, message))
