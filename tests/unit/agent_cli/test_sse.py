"""The stream parser against the rules of the HTML standard."""

from hypothesis import given
from hypothesis import strategies as st

from agent_cli.talk.sse import SseEvent, SseParser, parse_sse


def test_an_event_has_its_name_data_and_id() -> None:
    assert list(parse_sse([b"id: t:1:0\nevent: delta\ndata: {}\n\n"])) == [SseEvent("delta", "{}", "t:1:0")]


def test_an_event_without_a_name_is_a_message() -> None:
    assert list(parse_sse([b"data: x\n\n"])) == [SseEvent("message", "x")]


def test_data_lines_are_joined_and_only_one_space_is_dropped() -> None:
    assert list(parse_sse([b"data:  a\ndata:b\ndata\n\n"])) == [SseEvent("message", " a\nb\n")]


def test_comments_unknown_fields_and_events_without_data_are_ignored() -> None:
    assert list(parse_sse([b": ping\n\nretry: 10\nevent: lonely\n\ndata: x\n\n"])) == [SseEvent("message", "x")]


def test_an_id_stays_until_the_next_one() -> None:
    events = list(parse_sse([b"id: 1\ndata: a\n\ndata: b\n\nid: 2\ndata: c\n\n"]))
    assert [event.id for event in events] == ["1", "1", "2"]


def test_an_event_cut_off_by_the_end_is_dropped() -> None:
    assert list(parse_sse([b"data: whole\n\nevent: delta\ndata: half"])) == [SseEvent("message", "whole")]


def test_unicode_line_separators_inside_data_do_not_end_a_line() -> None:
    text = "a\u2028b\u0085c\x0bd"
    assert list(parse_sse([f"data: {text}\n\n".encode()])) == [SseEvent("message", text)]


def test_a_byte_order_mark_at_the_start_is_skipped() -> None:
    assert list(parse_sse(["\ufeffdata: x\n\n".encode()])) == [SseEvent("message", "x")]


LINES = st.lists(
    st.tuples(
        st.sampled_from(["delta", "completed", ""]),
        st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"]), min_size=1),
    ),
    min_size=1,
    max_size=5,
)


@given(events=LINES, ending=st.sampled_from(["\n", "\r\n", "\r"]), data=st.data())
def test_cutting_a_stream_anywhere_changes_nothing(
    events: list[tuple[str, str]], ending: str, data: st.DataObject
) -> None:
    lines = [line for name, text in events for line in (*([f"event: {name}"] if name else []), f"data: {text}", "")]
    # One more line, since a CR at the very end may still become a CRLF.
    stream = (ending.join([*lines, ": end"]) + ending).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(parse_sse(chunks)) == [SseEvent(name or "message", text) for name, text in events]


def test_a_parser_gives_each_event_as_soon_as_it_is_complete() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\ndata: b\n\n") == [SseEvent("message", "a"), SseEvent("message", "b")]
