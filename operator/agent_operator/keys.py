"""The name of an Agent, as queue, cache and logs use it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class AgentKey:
    """Names one Agent."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"
