"""What a runtime must do, one function each: the docstring is the law, and what the report shows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

from agent_cli.conformance.subject import (
    FINAL,
    STATUSES,
    Check,
    NonconformityError,
    Subject,
    body_of,
    expect,
    problem_of,
)
from agent_cli.talk.sse import SseEvent

LONGEST_CONTENT: Final = 100_000
HEALTH: Final = ("/livez", "/readyz", "/health")


def health(subject: Subject) -> None:
    """/livez, /readyz and /health answer 200 with each check named, without a key."""
    for path in HEALTH:
        found = body_of(subject.http.get(path), 200)
        expect(found.get("ok") is True, f"{path} says ok: true", found)
        checks = found.get("checks")
        named = isinstance(checks, list) and checks and all(one.get("name") and "ok" in one for one in checks)
        expect(bool(named), f"{path} names its checks", found)


def metrics(subject: Subject) -> None:
    """/metrics is Prometheus text; metrics start with abide_ and name the agent, without a label `namespace`."""
    answer = subject.http.get("/metrics")
    expect(answer.status_code == 200, "/metrics answers 200", answer.status_code)
    own = [line for line in answer.text.splitlines() if line.startswith("abide_")]
    expect(bool(own), "there are metrics that start with abide_", answer.text[:200])
    labelled = [line for line in own if f'agent="{subject.name}"' in line]
    expect(bool(labelled), f'metrics of the agent have the label agent="{subject.name}"')
    expect(not any("{namespace=" in line or ",namespace=" in line for line in own), "no label is called `namespace`")


def documents(subject: Subject) -> None:
    """/openapi.json describes the canonical paths, /docs is a page for people."""
    found = body_of(subject.http.get("/openapi.json"), 200)
    expect(str(found.get("openapi", "")).startswith("3."), "the document is OpenAPI 3", found.get("openapi"))
    paths = found.get("paths", {})
    wanted = "/v1/agents/{namespace}/{name}/sessions/{session}/messages"
    expect(wanted in paths, f"it describes {wanted}", sorted(paths))
    page = subject.http.get("/docs")
    media = page.headers.get("content-type", "")
    expect(page.status_code == 200 and media.startswith("text/html"), "/docs is HTML", f"{page.status_code} {media}")


def keys(subject: Subject) -> None:
    """Without a key, and with a wrong one, paths below /v1 answer 401 and say how to send one."""
    if not subject.key:
        return
    for key in ("", f"{subject.key}x"):
        answer = subject.request("GET", f"{subject.path}/sessions", key=key)
        problem_of(answer, 401)
        expect("WWW-Authenticate" in answer.headers, "401 carries WWW-Authenticate")


def messages(subject: Subject) -> None:
    """A message is answered by 200 with {turn: {id, status, model, error}, reply: {content}}."""
    found = subject.say("conformance: one")
    turn = found["turn"]
    for name in ("id", "status", "model", "error"):
        expect(name in turn, f"the turn has {name}", turn)
    expect(_is_uuid(turn["id"]), "a turn's id is a UUID", turn["id"])
    expect(turn["status"] in ("completed", "fallback", "failed"), "the outcome is one of the known ones", turn)
    reply = found.get("reply")
    expect(isinstance(reply, dict) and bool(reply.get("content")), "there is a text for users to read", found)
    if turn["status"] != "completed":
        expect(bool(turn["error"] and turn["error"].get("type")), "a turn that failed tells why", turn)


def same_key(subject: Subject) -> None:
    """The same Idempotency-Key and body is the same turn; another body is 409."""
    headers = {"Idempotency-Key": f"conformance-{uuid4()}"}
    first = subject.say("conformance: two", headers=headers)
    again = subject.say("conformance: two", headers=headers)
    expect(again["turn"]["id"] == first["turn"]["id"], "the same key and body is the same turn", again["turn"])
    expect(again["reply"] == first["reply"], "and has the same reply", again["reply"])
    problem_of(subject.send("conformance: another", headers=headers), 409, "idempotency-mismatch")
    elsewhere = subject.say("conformance: two", headers=headers, session=f"{subject.session}.key")
    expect(elsewhere["turn"]["id"] != first["turn"]["id"], "in another session the key is another one")


def asynchronous(subject: Subject) -> None:
    """`Prefer: respond-async` answers 202 with the turn's Location, which is asked until it has its outcome."""
    answer = subject.send("conformance: three", headers={"Prefer": "respond-async"})
    found = body_of(answer, 202)
    location = answer.headers.get("Location", "")
    wanted = f"{subject.path}/turns/{found['turn']['id']}"
    expect(location.endswith(wanted), f"Location is {wanted}", location)
    expect(found["turn"]["status"] in STATUSES, "the turn has a known status", found["turn"])
    outcome = subject.outcome(location)
    expect(outcome["turn"]["id"] == found["turn"]["id"], "it is the same turn", outcome["turn"])


def patience(subject: Subject) -> None:
    """`waitSeconds=0` does not wait: 202 unless the outcome is there already."""
    answer = subject.send("conformance: four", params={"waitSeconds": "0"})
    expect(answer.status_code in (200, 202), "it answers 200 or 202", answer.status_code)
    turn = body_of(answer, answer.status_code)["turn"]
    expect((turn["status"] in FINAL) == (answer.status_code == 200), "200 means that there is an outcome", turn)
    subject.outcome(f"{subject.path}/turns/{turn['id']}")
    for wrong in ("-1", "soon"):
        problem_of(subject.send("conformance", params={"waitSeconds": wrong}), 422)


def streaming(subject: Subject) -> None:
    """`Accept: text/event-stream` streams accepted, delta and the outcome; deltas make up the reply."""
    events = subject.events("POST", subject.messages, json={"content": "conformance: five"})
    expect(events[0].event == "accepted", "the first event is accepted", events[0].event)
    turn_id = json.loads(events[0].data)["turn"]["id"]
    _check_ids(events, turn_id)
    outcome = json.loads(events[-1].data)
    text = _text(events)
    expect(text == outcome["reply"]["content"], "the deltas after the last reset are the reply", text)
    again = subject.events("GET", f"{subject.path}/turns/{turn_id}/events")
    expect(_text(again) == text, "the turn's events can be had again", _text(again))
    middle = next((one for one in again if one.event == "delta"), again[0])
    rest = subject.events("GET", f"{subject.path}/turns/{turn_id}/events", headers={"Last-Event-ID": middle.id})
    expect(
        middle.id not in [one.id for one in rest], "Last-Event-ID goes on behind that event", [one.id for one in rest]
    )


def history(subject: Subject) -> None:
    """A session's messages come oldest first, in pages, with user message and reply of each turn."""
    session = f"{subject.session}.history"
    said = [subject.say(f"conformance: {word}", session=session) for word in ("first", "second")]
    path = f"{subject.path}/sessions/{session}/messages"
    items = body_of(subject.request("GET", path), 200)["items"]
    users = [(one["content"], one["turnId"]) for one in items if one["role"] == "user"]
    wanted = [
        (f"conformance: {word}", found["turn"]["id"]) for word, found in zip(("first", "second"), said, strict=True)
    ]
    expect(users == wanted, "user messages are there in order, with their turns", users)
    replies = {one["turnId"]: one["content"] for one in items if one["role"] == "assistant"}
    for found in said:
        reply = found["reply"]["content"]
        expect(replies.get(found["turn"]["id"]) == reply, "the reply that was given is the one that is kept", replies)
    order = [one["seq"] for one in items]
    expect(order == sorted(set(order)), "seq rises", order)
    expect(_paged(subject, path) == items, "pages of one make up the whole")
    empty = body_of(subject.request("GET", f"{subject.path}/sessions/{subject.session}.never/messages"), 200)
    expect(empty["items"] == [], "an unknown session is 200 and empty", empty)


def order(subject: Subject) -> None:
    """Messages of one session are kept in the order in which they were accepted, and each has an outcome."""
    session = f"{subject.session}.order"
    turns: list[str] = []
    for number in range(3):
        answer = subject.send(f"conformance: {number}", session=session, headers={"Prefer": "respond-async"})
        if answer.status_code == 429:  # session.whenBusy: Reject
            expect("Retry-After" in answer.headers, "429 carries Retry-After")
            problem_of(answer, 429)
            break
        turns.append(body_of(answer, 202)["turn"]["id"])
    for turn in turns:
        subject.outcome(f"{subject.path}/turns/{turn}")
    items = body_of(subject.request("GET", f"{subject.path}/sessions/{session}/messages"), 200)["items"]
    seen = [one["turnId"] for one in items if one["role"] == "user"]
    expect(seen == turns, "the history has the turns in the order of acceptance", seen)


def users(subject: Subject) -> None:
    """Users never meet: neither sessions, messages nor turns of one are seen by another."""
    found = subject.say("conformance: mine", session=f"{subject.session}.users")
    other = f"{subject.user}.other"
    names = [one["name"] for one in body_of(subject.request("GET", f"{subject.path}/sessions"), 200)["items"]]
    expect(f"{subject.session}.users" in names, "a session is listed for its user", names)
    theirs = body_of(subject.request("GET", f"{subject.path}/sessions", user=other), 200)["items"]
    expect(theirs == [], "and for nobody else", theirs)
    path = f"{subject.path}/sessions/{subject.session}.users/messages"
    expect(body_of(subject.request("GET", path, user=other), 200)["items"] == [], "nor are its messages")
    problem_of(subject.request("GET", f"{subject.path}/turns/{found['turn']['id']}", user=other), 404)
    problem_of(subject.request("POST", f"{subject.path}/turns/{found['turn']['id']}/cancel", user=other), 404)


def bad_input(subject: Subject) -> None:
    """What is wrong is refused by 422 with the field, what is too long by 413, what does not exist by 404."""
    for content in ("", None, 5, ["x"]):
        fields = [one.get("field") for one in problem_of(subject.send(content), 422).get("errors", [])]
        expect("content" in fields, "422 names the field", fields)
    problem_of(subject.send("x" * (LONGEST_CONTENT + 1)), 413)
    problem_of(subject.request("POST", subject.messages, content=b"{"), 422)
    extra = subject.request("POST", subject.messages, json={"content": "x", "colour": "red"})
    problem_of(extra, 422)
    problem_of(subject.send("x", session="no%20blanks"), 422)
    problem_of(subject.send("x", session="x" * 129), 422)
    problem_of(subject.send("x", headers={"Idempotency-Key": "x" * 256}), 422)
    problem_of(subject.request("GET", subject.messages, params={"limit": "201"}), 422)
    problem_of(subject.request("GET", subject.messages, params={"cursor": "nonsense"}), 422)
    problem_of(subject.request("GET", f"/v1/agents/{subject.namespace}/no-such-agent-here/sessions"), 404)
    problem_of(subject.request("GET", f"{subject.path}/turns/{uuid4()}"), 404)
    problem_of(subject.request("PUT", subject.messages, json={}), 405)


def state(subject: Subject) -> None:
    """A session's state is written, read back the same, and deleted; a wrong one is refused by 422."""
    path = f"{subject.path}/sessions/{subject.session}.state/state"
    variables = {"language": "en", "nested": {"list": [1, 2.5, None, "ü"]}}
    body_of(subject.request("PUT", path, json={"variables": variables}), 200)
    found = body_of(subject.request("GET", path), 200)
    expect(found.get("variables") == variables, "what was written is read back", found)
    expect(isinstance(found.get("version"), int), "it has a version", found)
    written = body_of(subject.request("PUT", path, json=found), 200)
    expect(written["version"] > found["version"], "what was read can be written, and the version rises", written)
    problem_of(subject.request("PUT", path, json={"variables": []}), 422)
    gone = subject.request("DELETE", path)
    expect(gone.status_code == 204, "DELETE answers 204", gone.status_code)
    problem_of(subject.request("GET", path), 404)


def cancelling(subject: Subject) -> None:
    """A turn that has its outcome keeps it when it is cancelled."""
    found = subject.say("conformance: late")
    after = body_of(subject.request("POST", f"{subject.path}/turns/{found['turn']['id']}/cancel"), 200)
    expect(after["turn"]["status"] == found["turn"]["status"], "the outcome stays", after["turn"])


def deleting(subject: Subject) -> None:
    """A deleted session is gone, with its messages and turns; deleting it again is 404."""
    session = f"{subject.session}.deleted"
    found = subject.say("conformance: forget me", session=session)
    path = f"{subject.path}/sessions/{session}"
    gone = subject.request("DELETE", path)
    expect(gone.status_code == 204, "DELETE answers 204", gone.status_code)
    expect(body_of(subject.request("GET", f"{path}/messages"), 200)["items"] == [], "its messages are gone")
    problem_of(subject.request("GET", f"{subject.path}/turns/{found['turn']['id']}"), 404)
    problem_of(subject.request("DELETE", path), 404)


def openai(subject: Subject) -> None:
    """/v1/models names the agent as namespace/name; /v1/chat/completions answers as it, also as a stream."""
    model = f"{subject.namespace}/{subject.name}"
    listed = [one["id"] for one in body_of(subject.request("GET", "/v1/models"), 200)["data"]]
    expect(model in listed, f"{model} is listed", listed)
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "conformance: hello"}]}
    found = body_of(subject.request("POST", "/v1/chat/completions", json=asked), 200)
    choice = found["choices"][0]
    expect(choice["message"]["role"] == "assistant" and choice["message"]["content"], "a choice has a message", choice)
    expect(choice["finish_reason"] == "stop", "it says why it ended", choice)
    with subject.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    expect(bool(lines) and lines[-1] == "data: [DONE]", "a stream ends with [DONE]", lines[-1:])
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    deltas = [one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"]]
    expect("".join(deltas) != "", "its chunks carry the text", lines[:2])


CHECKS: Final[Sequence[Check]] = (
    health,
    metrics,
    documents,
    keys,
    messages,
    same_key,
    asynchronous,
    patience,
    streaming,
    history,
    order,
    users,
    bad_input,
    state,
    cancelling,
    deleting,
    openai,
)


def _is_uuid(text: object) -> bool:
    try:
        UUID(str(text))
    except ValueError:
        return False
    return True


def _check_ids(events: Sequence[SseEvent], turn_id: str) -> None:
    places = []
    for event in events:
        turn, _, place = event.id.partition(":")
        attempt, _, index = place.partition(":")
        if turn != turn_id or not (attempt.isdigit() and index.isdigit()):
            raise NonconformityError(f"an event's id is turn:attempt:index; instead: {event.event} has {event.id!r}")
        places.append((int(attempt), int(index)))
    expect(places == sorted(places), "ids rise", places)


def _text(events: Sequence[SseEvent]) -> str:
    text = ""
    for event in events:
        if event.event == "reset":
            text = ""
        elif event.event == "delta":
            text += json.loads(event.data)["text"]
    return text


def _paged(subject: Subject, path: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    cursor: str | None = None
    for _ in range(1000):
        params = {"limit": "1", **({"cursor": cursor} if cursor else {})}
        page = body_of(subject.request("GET", path, params=params), 200)
        expect(len(page["items"]) <= 1, "a page has at most `limit` items", page)
        found += page["items"]
        cursor = page["nextCursor"]
        if cursor is None:
            return found
    raise NonconformityError("nextCursor is null on the last page; instead: there are pages without end")
