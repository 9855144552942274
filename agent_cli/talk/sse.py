"""Server-sent events, as a client reads them.

Lines end with LF, CRLF or CR and nothing else: `str.splitlines` also cuts at U+2028 and friends, which may stand inside
a reply. Source: HTML Living Standard, section 9.2.6 "Interpreting an event stream".
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One dispatched event; `id` is the last id the stream named, "" if none."""

    event: str
    data: str
    id: str = ""


class SseParser:
    """Turns the bytes of one stream into events; an event cut off by the end of the stream is dropped."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
        self._rest = ""
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events they complete."""
        events = (self._take_line(line) for line in self._lines(self._decode(chunk)))
        return [event for event in events if event is not None]

    def _lines(self, text: str) -> list[str]:
        text = self._rest + text
        # A CR at the end may be the first half of a CRLF: it waits for the next chunk.
        held = "\r" if text.endswith("\r") else ""
        *lines, last = text.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = last + held
        return lines

    def _take_line(self, line: str) -> SseEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> SseEvent | None:
        event, data = self._event, self._data
        self._event, self._data = "", []
        if not data:
            return None
        return SseEvent(event=event or "message", data="\n".join(data), id=self._id)


def parse_sse(chunks: Iterable[bytes]) -> Iterator[SseEvent]:
    """Yield the events of a stream as they complete."""
    parser = SseParser()
    for chunk in chunks:
        yield from parser.feed(chunk)
