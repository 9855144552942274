"""Which of the memories that were found fit best: places in several rankings become one score. Pure."""

from collections.abc import Sequence
from typing import Final

from agent_store.ports import MemoryCandidate, MemoryRecord

DAMPING: Final = 60.0
"""Of reciprocal rank fusion: how little the first places differ. Rankings need no common scale, only places."""
WEIGHT_SHARE: Final = 0.5
"""How much importance and recency count beside being found by words, or by meaning."""


def rank(candidates: Sequence[MemoryCandidate], limit: int) -> list[tuple[MemoryRecord, float]]:
    """Return the best `limit` with their scores, best first; equal ones in a fixed order."""
    by_weight = sorted(candidates, key=lambda one: (-one.weight, one.memory.id))
    scored = [
        (
            one.memory,
            _share(one.word_place) + _share(one.meaning_place) + WEIGHT_SHARE * _share(place),
        )
        for place, one in enumerate(by_weight, 1)
    ]
    scored.sort(key=lambda pair: -pair[1])
    return scored[:limit]


def _share(place: int | None) -> float:
    return 0.0 if place is None else 1.0 / (DAMPING + place)
