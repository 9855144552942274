"""The lease on this process's own clock."""

from agent_runtime.clock import ManualClock
from agent_runtime.lease import SAFETY, Lease
from agent_store.ports import Owner

FIRST, SECOND = Owner("pod", 1), Owner("pod", 2)


def made(ttl: float = 8.0) -> tuple[Lease, ManualClock, list[str]]:
    clock, lost = ManualClock(), []  # type: ignore[var-annotated]
    return Lease(clock, ttl, lost.append), clock, lost


async def test_the_deadline_counts_from_before_the_renewal_was_sent() -> None:
    lease, clock, lost = made()
    await clock.advance(3)  # the answer took three seconds
    lease.granted(FIRST, sent_at=0)
    assert lease.owner == FIRST
    assert lease.remaining() == 5 - SAFETY
    await clock.advance(5)
    assert lease.owner is None, "nothing may be committed any more, whether or not anybody noticed"
    assert lease.expire()
    assert len(lost) == 1
    assert lease.expire()
    assert len(lost) == 1, "lost once"


async def test_a_renewal_moves_the_deadline() -> None:
    lease, clock, lost = made()
    lease.granted(FIRST, 0)
    await clock.advance(6)
    lease.granted(FIRST, 6)
    await clock.advance(6)
    assert not lease.expire()
    assert lease.owner == FIRST
    assert lost == []


async def test_an_answer_for_an_older_epoch_does_not_bring_it_back() -> None:
    lease, _, _ = made()
    lease.granted(SECOND, 0)
    lease.granted(FIRST, 0)
    assert lease.owner == SECOND


async def test_losing_it_is_told_once_and_a_new_epoch_goes_on() -> None:
    lease, _, lost = made()
    lease.granted(FIRST, 0)
    lease.lose("a newer process took it")
    lease.lose("again")
    assert lease.owner is None
    assert lost == ["a newer process took it"]
    lease.granted(SECOND, 0)
    assert lease.owner == SECOND


async def test_a_lease_granted_too_late_is_not_held() -> None:
    lease, clock, _ = made()
    await clock.advance(9)
    lease.granted(FIRST, 0)
    assert lease.owner is None
    assert lease.remaining() == 0
