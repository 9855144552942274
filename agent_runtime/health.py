"""What /livez, /readyz and /health say; pure functions over what the parts of the process know of themselves.

Live = the event loop and the supervisor's loops move; it never depends on Postgres. Ready = a turn can be accepted and
committed now, for every agent of the process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from agent_api.conditions import Reason
from agent_api.wire import CheckResult
from agent_runtime.loop.keeper import StoreContact


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """What one agent's engine knows of itself."""

    name: str
    contact: StoreContact
    lease_held: bool
    draining: bool


def check_loop(stuck: Sequence[str]) -> CheckResult:
    """Whether all loops of the supervisor move."""
    if not stuck:
        return CheckResult(name="loop", ok=True)
    message = f"These tasks do not move: {', '.join(sorted(stuck))}. The process must be restarted."
    return CheckResult(name="loop", ok=False, reason=Reason.PROBE_FAILING.value, message=message)


def check_store(agents: Sequence[AgentHealth]) -> CheckResult:
    """Whether Postgres can be used, with the reason if not."""
    bad = next((agent.contact for agent in agents if not agent.contact.ok), None)
    if bad is None:
        return CheckResult(name="store", ok=True)
    message = f"{bad.message.rstrip('.')} (since {bad.since:%Y-%m-%dT%H:%M:%SZ})."
    return CheckResult(name="store", ok=False, reason=bad.reason.value, message=message)


def check_lease(agents: Sequence[AgentHealth]) -> CheckResult:
    """Whether this process may commit turns. Without the store, the store's reason is the cause."""
    without = [agent for agent in agents if not agent.lease_held]
    if not without:
        return CheckResult(name="lease", ok=True)
    contact = without[0].contact
    reason = Reason.STARTING if contact.ok else contact.reason
    message = (
        f"The lease is not held for {', '.join(agent.name for agent in without)}; it is taken once Postgres answers."
    )
    return CheckResult(name="lease", ok=False, reason=reason.value, message=message)


def liveness(stuck: Sequence[str]) -> list[CheckResult]:
    """Return the checks of /livez."""
    return [check_loop(stuck)]


def readiness(stuck: Sequence[str], agents: Sequence[AgentHealth]) -> list[CheckResult]:
    """Return the checks of /readyz: loop, store, lease, and while the process is being stopped, intake."""
    checks = [check_loop(stuck), check_store(agents), check_lease(agents)]
    if any(agent.draining for agent in agents):
        checks.append(
            CheckResult(
                name="intake", ok=False, reason=Reason.NOT_SERVING.value, message="The process is being stopped."
            )
        )
    return checks


def is_ok(checks: Sequence[CheckResult]) -> bool:
    """Whether all checks passed."""
    return all(check.ok for check in checks)
