"""Identifiers made here."""

import os
from datetime import datetime
from uuid import NAMESPACE_URL, UUID, uuid5


def new_turn_id(now: datetime) -> UUID:
    """Return a fresh UUID, version 7 (RFC 9562, section 5.7): ids made later sort later, so indexes stay dense."""
    milliseconds = int(now.timestamp() * 1000)
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


def accepted_at(turn_id: UUID) -> float:
    """Return the moment in the id of new_turn_id(), in seconds since 1970."""
    return (turn_id.int >> 80) / 1000


def default_agent_id(namespace: str, name: str) -> UUID:
    """Return the id of an agent that was not given one: the same for the same name, everywhere."""
    return uuid5(NAMESPACE_URL, f"abide.dev/{namespace}/{name}")
