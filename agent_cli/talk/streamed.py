"""What a terminal shows of a reply that arrives in pieces: a pure machine over the stream's events.

A stream may break and be opened again; it then tells the whole attempt once more. Whatever was shown is not shown
twice, and what an attempt that was given up said is taken back.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from agent_api.wire import TurnResponse
from agent_cli.talk.sse import SseEvent


@dataclass(frozen=True, slots=True)
class Text:
    """More text of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What was shown of this reply does not hold any more; the reply starts again."""


@dataclass(frozen=True, slots=True)
class Final:
    """The turn has its outcome, and all of its text was given before."""

    response: TurnResponse


Output = Text | TakenBack | Final


@dataclass(slots=True)
class StreamedReply:
    """State of one reply: what was shown, of which attempt, up to which delta; `turn_id` once it is accepted."""

    shown: str = ""
    attempt: int = 0
    last_index: int = -1
    turn_id: str | None = None
    done: bool = field(default=False)

    def on_event(self, event: SseEvent) -> list[Output]:
        """Take one event and return what to show, in order. Unknown events are ignored."""
        data = _decode(event.data)
        if self.done or data is None:
            return []
        match event.event:
            case "accepted":
                self.turn_id = _turn_id(data) or self.turn_id
                return []
            case "delta":
                return self._on_delta(data)
            case "reset":
                return self._start_attempt(int(data.get("attempt", self.attempt + 1)))
            case "completed" | "failed":
                return self._on_final(data)
        return []

    def _on_delta(self, data: dict[str, Any]) -> list[Output]:
        attempt, index, text = int(data.get("attempt", 0)), int(data.get("index", 0)), str(data.get("text", ""))
        outputs: list[Output] = []
        if attempt < self.attempt:
            return outputs
        if attempt > self.attempt:
            outputs += self._start_attempt(attempt)
        if index <= self.last_index or not text:
            return outputs
        self.last_index = index
        self.shown += text
        return [*outputs, Text(text)]

    def _start_attempt(self, attempt: int) -> list[Output]:
        had_text = bool(self.shown)
        self.attempt, self.last_index, self.shown = attempt, -1, ""
        return [TakenBack()] if had_text else []

    def _on_final(self, data: dict[str, Any]) -> list[Output]:
        try:
            response = TurnResponse.model_validate(data)
        except ValidationError:
            return []
        self.turn_id = str(response.turn.id)
        return self.finish(response)

    def finish(self, response: TurnResponse) -> list[Output]:
        """Take the outcome, however it was learned, and return what is still to be shown."""
        if self.done:
            return []
        self.done = True
        content = response.reply.content if response.reply else ""
        if content.startswith(self.shown):
            rest = content[len(self.shown) :]
            outputs: list[Output] = [Text(rest)] if rest else []
        else:
            outputs = [TakenBack(), Text(content)] if content else [TakenBack()]
        self.shown = content
        return [*outputs, Final(response)]


def _decode(data: str) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _turn_id(data: dict[str, Any]) -> str | None:
    turn = data.get("turn")
    found = turn.get("id") if isinstance(turn, dict) else data.get("turnId")
    return str(found) if found else None
