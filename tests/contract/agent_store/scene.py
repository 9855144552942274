"""Short ways to say what the contract tests say often."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from agent_api.wire import TurnStatus
from agent_store.ids import new_id
from agent_store.ports import Accepted, Claim, Completed, NewMessage, NewTurn, Outcome, Owner, SessionKey, Store

TTL = 30.0


def completed(*replies: str, steps: int = 1) -> Outcome:
    """Return the outcome of a turn that answered."""
    lines = [NewMessage("assistant", reply) for reply in replies]
    return Outcome(TurnStatus.COMPLETED, lines, "echo/echo", steps, input_tokens=3, output_tokens=5)


@dataclass
class Scene:
    """One agent in a store."""

    store: Store
    agent: UUID = field(default_factory=uuid4)

    async def start(self, instance: str = "pod-1", ttl: float = TTL) -> Owner:
        """Return the owner of a process that just started."""
        return await self.store.register(self.agent, "default", "assistant", instance, ttl=ttl)

    def key(self, session: str = "chat", user: str = "ann") -> SessionKey:
        return SessionKey(self.agent, user, session)

    def turn(
        self,
        content: str = "hello",
        *,
        session: str = "chat",
        user: str = "ann",
        idempotency_key: str | None = None,
        queue_limit: int = 20,
        turn_id: UUID | None = None,
    ) -> NewTurn:
        body = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
        key = self.key(session, user)
        return NewTurn(turn_id or new_id(), key, content, idempotency_key, body, queue_limit, "rev-1")

    async def say(self, owner: Owner, content: str = "hello", **more: object) -> Accepted:
        return await self.store.accept(self.turn(content, **more), owner)  # type: ignore[arg-type]

    async def claim(self, owner: Owner, content: str = "hello", **more: object) -> Claim:
        accepted = await self.say(owner, content, **more)
        assert accepted.claim is not None
        return accepted.claim

    async def finish(self, owner: Owner, claim: Claim, *replies: str) -> Completed:
        return await self.store.complete(claim, owner, completed(*(replies or ("ok",))))

    async def history(self, session: str = "chat", user: str = "ann") -> Sequence[tuple[int, str, str]]:
        messages = await self.store.list_messages(self.key(session, user), after_seq=0, limit=1000)
        return [(message.seq, message.role, message.content) for message in messages]
