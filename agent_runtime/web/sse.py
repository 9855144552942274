"""Turn events as server-sent events (HTML Living Standard, section 9.2)."""

import json
from typing import Any, Final
from uuid import UUID

from agent_runtime.loop.watch import TurnEvent
from agent_runtime.web.render import turn_response

MEDIA_TYPE: Final = "text/event-stream"
HEARTBEAT: Final = b": alive\n\n"
PREAMBLE: Final = b"retry: 1000\n\n"
"""Clients that lose the line come back after a second."""


def encode_event(turn_id: UUID, event: TurnEvent) -> bytes:
    """Return one event as it goes over the wire; its id is `turn:attempt:index`."""
    data = json.dumps(_data(turn_id, event), ensure_ascii=False, separators=(",", ":"))
    return f"id: {turn_id}:{event.attempt}:{event.index}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _data(turn_id: UUID, event: TurnEvent) -> dict[str, Any]:
    if event.turn is not None:
        return turn_response(event.turn).model_dump(mode="json", by_alias=True)
    position = {"turnId": str(turn_id), "attempt": event.attempt}
    return position if event.kind == "reset" else {**position, "index": event.index, "text": event.text}


def parse_event_id(turn_id: UUID, text: str) -> tuple[int, int] | None:
    """Return (attempt, index) of a Last-Event-ID, or None if it says nothing about this turn."""
    parts = text.strip().split(":")
    if len(parts) != 3 or parts[0] != str(turn_id):
        return None
    attempt, index = parts[1:]
    if not (attempt.isascii() and attempt.isdigit() and index.isascii() and index.isdigit()):
        return None
    # Longer numbers than any stream has.
    return (int(attempt), int(index)) if max(len(attempt), len(index)) <= 18 else None
