"""Which claims were handed to the caller of this store.

If the answer to a claim gets lost on the way, Postgres says that this live process runs the turn while nobody does; no lease
would ever run out. What Postgres says we run but we do not hold is therefore taken over by the sweep like an orphan.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID


class HeldClaims:
    """The turns the caller was given, and the sessions where one is just being started."""

    def __init__(self) -> None:
        self._turns: dict[UUID, bool] = {}
        self._starting: Counter[UUID] = Counter()

    @property
    def turns(self) -> list[UUID]:
        """Turns that are held or may be given at this moment."""
        return list(self._turns)

    @property
    def sessions(self) -> list[UUID]:
        """Sessions in which a turn is just being started."""
        return list(self._starting)

    def keep(self, turn_id: UUID, *, by_sweep: bool = False) -> None:
        """Note that the turn is held; `by_sweep`: it was found by claim_orphans."""
        self._turns[turn_id] = by_sweep

    def is_from_sweep(self, turn_id: UUID) -> bool:
        """Whether the sweep gave the turn to the caller, who runs it already."""
        return self._turns.get(turn_id, False)

    def drop(self, turn_id: UUID) -> None:
        """Forget a turn that is finished, lost or was never given."""
        self._turns.pop(turn_id, None)

    def clear(self) -> None:
        """Forget all: a new epoch orphans what the one before held."""
        self._turns.clear()

    @contextmanager
    def starting(self, session_id: UUID) -> Iterator[None]:
        """Keep the sweep off the session while a turn of it is being started."""
        self._starting[session_id] += 1
        try:
            yield
        finally:
            self._starting[session_id] -= 1
            if not self._starting[session_id]:
                del self._starting[session_id]
