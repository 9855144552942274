"""Identifiers made by the store."""

import os
import time
from uuid import UUID


def new_id() -> UUID:
    """Return a fresh UUID, version 7 (RFC 9562, section 5.7): later ones sort later, so that indexes stay dense."""
    value = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)
