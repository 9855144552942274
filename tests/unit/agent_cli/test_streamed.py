"""What a terminal shows of a reply, over breaks of the stream and given-up attempts."""

import json
from uuid import UUID

from agent_api.wire import Reply, TurnOut, TurnResponse, TurnStatus
from agent_cli.talk.sse import SseEvent
from agent_cli.talk.streamed import Final, Output, StreamedReply, TakenBack, Text

TURN = UUID(int=7)


def delta(attempt: int, index: int, text: str) -> SseEvent:
    return SseEvent("delta", json.dumps({"attempt": attempt, "index": index, "text": text}))


def response(text: str | None, status: TurnStatus = TurnStatus.COMPLETED) -> TurnResponse:
    return TurnResponse(turn=TurnOut(id=TURN, status=status), reply=Reply(content=text) if text is not None else None)


def final(text: str | None, status: TurnStatus = TurnStatus.COMPLETED, name: str = "completed") -> SseEvent:
    return SseEvent(name, response(text, status).model_dump_json(by_alias=True))


def play(*events: SseEvent) -> list[Output]:
    reply = StreamedReply()
    return [output for event in events for output in reply.on_event(event)]


def screen(outputs: list[Output]) -> str:
    """Return the text that stands after all outputs."""
    text = ""
    for output in outputs:
        match output:
            case Text(more):
                text += more
            case TakenBack():
                text = ""
            case Final():
                text += "."
    return text


def test_deltas_are_shown_once_and_the_final_text_adds_only_what_is_missing() -> None:
    outputs = play(delta(1, 0, "he"), delta(1, 1, "llo"), final("hello [1]"))
    assert outputs == [Text("he"), Text("llo"), Text(" [1]"), Final(response("hello [1]"))]


def test_a_reply_without_deltas_is_shown_whole() -> None:
    assert play(final("hello")) == [Text("hello"), Final(response("hello"))]


def test_a_stream_told_again_after_a_break_repeats_nothing() -> None:
    outputs = play(delta(1, 0, "he"), delta(1, 1, "llo"), delta(1, 0, "he"), delta(1, 1, "llo"), delta(1, 2, "!"))
    assert screen(outputs) == "hello!"


def test_a_reset_takes_back_what_the_attempt_said() -> None:
    reset = SseEvent("reset", json.dumps({"attempt": 2}))
    outputs = play(delta(1, 0, "wrong"), reset, delta(1, 1, " late"), delta(2, 0, "right"), final("right"))
    assert outputs == [Text("wrong"), TakenBack(), Text("right"), Final(response("right"))]


def test_a_new_attempt_takes_back_the_old_one_even_if_the_reset_was_lost() -> None:
    assert screen(play(delta(1, 0, "wrong"), delta(2, 0, "right"))) == "right"


def test_a_reset_before_anything_was_shown_is_silent() -> None:
    assert play(SseEvent("reset", json.dumps({"attempt": 2}))) == []


def test_a_final_text_that_differs_replaces_what_was_shown() -> None:
    outputs = play(delta(1, 0, "half of"), final("Sorry.", TurnStatus.FALLBACK, "failed"))
    assert screen(outputs) == "Sorry.."
    assert TakenBack() in outputs


def test_a_failed_turn_without_a_reply_is_final() -> None:
    assert play(final(None, TurnStatus.FAILED, "failed")) == [Final(response(None, TurnStatus.FAILED))]


def test_nothing_follows_the_outcome() -> None:
    assert play(final("a"), final("a"), delta(1, 0, "b")) == [Text("a"), Final(response("a"))]


def test_broken_and_unknown_events_are_ignored() -> None:
    assert (
        play(SseEvent("delta", "{"), SseEvent("delta", "[]"), SseEvent("news", "{}"), SseEvent("completed", "{}")) == []
    )


def test_the_turn_is_known_once_accepted() -> None:
    reply = StreamedReply()
    reply.on_event(SseEvent("accepted", json.dumps({"turn": {"id": str(TURN), "status": "running"}})))
    assert reply.turn_id == str(TURN)
