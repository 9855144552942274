"""Keys, listings, and when a turn may try a key that was refused."""

from pathlib import Path

import pytest

from agent_api.v1alpha1 import KeyRef, ModelSpec
from agent_runtime.clock import ManualClock
from agent_runtime.llm.access import Access, Entry
from agent_runtime.llm.catalog import ModelPool
from agent_runtime.llm.dialects import DIALECTS, Answer, read_ids
from agent_runtime.llm.keys import KeyFile
from agent_runtime.llm.port import FailureKind, ModelError, NotAsked

REF = KeyRef(name="llm", key="openai")
REFUSED = ModelError.from_status(401)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "sk-one")
    return tmp_path


def write(folder: Path, text: str) -> None:
    (folder / "llm").mkdir(exist_ok=True)
    new = folder / "llm" / ".new"
    new.write_text(text)
    new.rename(folder / "llm" / "openai")


def test_a_key_is_read_without_its_line_break_and_again_when_it_changed(folder: Path) -> None:
    write(folder, "sk-one\n")
    key = KeyFile(folder, REF)
    assert (key.value, key.problem) == ("sk-one", "")
    assert not key.reload()
    write(folder, "sk-two\n")
    assert key.reload()
    assert key.value == "sk-two"
    write(folder, "sk-two")
    assert not key.reload(), "another file with the same key is no news"


@pytest.mark.parametrize("content", ["", "\n", "two words", "bröken", "a\nb", "x" * 70_000])
def test_what_is_no_key_is_named_without_its_content(folder: Path, content: str) -> None:
    write(folder, content)
    key = KeyFile(folder, REF)
    assert key.value == ""
    assert 'key "openai" of Secret "llm"' in key.problem
    assert not content.strip() or content.strip() not in key.problem


def test_a_key_that_goes_and_comes_back_is_noticed(folder: Path) -> None:
    key = KeyFile(folder, REF)
    (folder / "llm" / "openai").unlink()
    assert key.reload()
    assert key.problem
    assert not key.reload()
    write(folder, "sk-one")
    assert key.reload()
    assert key.value == "sk-one"


@pytest.mark.parametrize(
    ("status", "provider", "kind"),
    [
        (200, "openai", None),
        (401, "openai", FailureKind.AUTH_FAILED),
        (403, "openai-compatible", FailureKind.AUTH_FAILED),
        (404, "openai", FailureKind.NOT_FOUND),
        (404, "openai-compatible", None),
        (405, "openai-compatible", None),
        (501, "openai-compatible", None),
        (501, "openai", FailureKind.UNREACHABLE),
        (400, "openai-compatible", None),
        (429, "openai", FailureKind.RATE_LIMITED),
        (503, "openai-compatible", FailureKind.UNREACHABLE),
        (200, "anthropic", None),
        (200, "google", None),
        (400, "google", None),
        (401, "anthropic", FailureKind.AUTH_FAILED),
        (403, "google", FailureKind.AUTH_FAILED),
        (404, "anthropic", None),
        (404, "google", None),
        (429, "google", FailureKind.RATE_LIMITED),
        (529, "anthropic", FailureKind.UNREACHABLE),
    ],
)
def test_statuses_of_a_check_mean(status: int, provider: str, kind: FailureKind | None) -> None:
    error = DIALECTS[provider].judge(Answer(status), "m")
    assert (error.kind if error else None) is kind


@pytest.mark.parametrize(
    ("provider", "status", "body", "kind"),
    [
        ("openai", 200, b'{"data": [{"id": "other"}]}', FailureKind.NOT_FOUND),
        ("openai", 200, b'{"data": [{"id": "m"}]}', None),
        ("openai-compatible", 200, b'{"data": [{"id": "other"}]}', None),
        ("anthropic", 404, b'{"type": "error", "error": {"type": "not_found_error"}}', FailureKind.NOT_FOUND),
        ("anthropic", 404, b'{"detail": "Not Found"}', None),
        ("google", 404, b'{"error": {"code": 404, "status": "NOT_FOUND"}}', FailureKind.NOT_FOUND),
        ("google", 404, b"<html>", None),
        ("google", 400, b'{"error": {"details": [{"reason": "API_KEY_INVALID"}]}}', FailureKind.AUTH_FAILED),
        ("google", 400, b'{"error": {"details": [{"reason": "OTHER"}]}}', None),
        ("anthropic", 200, b"<html>", None),
    ],
)
def test_only_a_provider_that_speaks_of_the_model_knows_it_not(
    provider: str, status: int, body: bytes, kind: FailureKind | None
) -> None:
    error = DIALECTS[provider].judge(Answer(status, body), "m")
    assert (error.kind if error else None) is kind


@pytest.mark.parametrize(
    ("provider", "base_url", "address"),
    [
        ("openai", None, "https://api.openai.com/v1"),
        ("openai", "https://x/y/", "https://x/y"),
        ("openai-compatible", "http://x/v1", "http://x/v1"),
        ("anthropic", None, "https://api.anthropic.com/v1"),
        ("anthropic", "https://x", "https://x/v1"),
        ("anthropic", "https://x/anthropic/v1/", "https://x/anthropic/v1"),
        ("google", None, "https://generativelanguage.googleapis.com/v1beta"),
        ("google", "https://x", "https://x/v1beta"),
        ("google", "https://x/v1", "https://x/v1"),
    ],
)
def test_an_address_ends_with_its_version(provider: str, base_url: str | None, address: str) -> None:
    assert DIALECTS[provider].address(base_url) == address


def test_a_model_is_asked_for_by_its_name_whatever_stands_in_it() -> None:
    assert DIALECTS["openai"].check_path("m") == "/models"
    assert DIALECTS["anthropic"].check_path("claude-haiku-5-5") == "/models/claude-haiku-5-5"
    assert DIALECTS["google"].check_path("../v1/x?key=1") == "/models/..%2Fv1%2Fx%3Fkey%3D1"


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"data": [{"id": "a"}, {"id": "b"}]}', {"a", "b"}),
        (b'{"data": []}', set()),
        (b'{"data": [{"id": "a"}], "has_more": true}', None),
        (b'{"data": [{"name": "a"}]}', None),
        (b'{"data": null}', None),
        (b'["a"]', None),
        (b"<html>", None),
        (b"\xff", None),
    ],
)
def test_a_list_is_read_or_left(body: bytes, ids: set[str] | None) -> None:
    found = read_ids(Answer(200, body))
    assert (None if found is None else set(found)) == ids


class Scene:
    """Two models of one provider with one key, and a clock that moves when told."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.changes = 0
        self.folder = folder
        self.access = Access("openai", "https://x/v1", KeyFile(folder, REF), self.clock, self.changed)
        self.one, self.two = self.access.entry("one"), self.access.entry("two")

    def changed(self) -> None:
        self.changes += 1

    def may_ask(self, entry: Entry) -> bool:
        try:
            entry.ask()
        except NotAsked:
            return False
        return True


async def test_a_refused_key_is_tried_once_a_minute(folder: Path) -> None:
    scene = Scene(folder)
    assert scene.may_ask(scene.one)
    scene.one.called(REFUSED)
    for _ in range(59):
        assert not scene.may_ask(scene.one)
        await scene.clock.advance(1)
    await scene.clock.advance(1)
    assert scene.may_ask(scene.one)
    assert not scene.may_ask(scene.one), "one turn tries, the others wait for what becomes of it"
    scene.one.called(None)
    assert scene.may_ask(scene.one)


async def test_another_key_is_tried_at_once(folder: Path) -> None:
    scene = Scene(folder)
    scene.one.called(REFUSED)
    assert not scene.may_ask(scene.one)
    write(folder, "sk-two")
    assert scene.may_ask(scene.one)
    scene.one.called(REFUSED)
    assert not scene.may_ask(scene.one)


async def test_models_share_what_is_known_of_their_key(folder: Path) -> None:
    scene = Scene(folder)
    scene.one.called(REFUSED)
    assert scene.two.standing.reason == "ModelAuthFailed"
    assert not scene.may_ask(scene.two)
    await scene.clock.advance(61)
    assert scene.may_ask(scene.one)
    assert not scene.may_ask(scene.two), "one key, one try"
    scene.one.called(None)
    assert scene.may_ask(scene.two), "the key works again"


async def test_a_model_that_is_forbidden_says_nothing_of_the_others(folder: Path) -> None:
    scene = Scene(folder)
    scene.two.called(None)
    scene.one.called(ModelError.from_status(403))
    assert scene.one.standing.is_denied
    assert scene.two.standing.ok


async def test_only_news_is_told(folder: Path) -> None:
    scene = Scene(folder)
    for error, told in ((None, 1), (None, 1), (REFUSED, 3), (REFUSED, 3)):  # the other model's news, too
        scene.one.called(error)
        assert scene.changes == told


async def test_without_a_key_nothing_is_asked(folder: Path) -> None:
    (folder / "llm" / "openai").unlink()
    scene = Scene(folder)
    with pytest.raises(NotAsked, match="has no API key") as raised:
        scene.one.ask()
    assert (raised.value.kind, raised.value.retryable) == (FailureKind.AUTH_FAILED, False)
    await scene.access.check()
    assert scene.one.standing.reason == "ModelAuthFailed"
    write(folder, "sk-one")
    scene.one.ask()


async def test_agents_with_one_address_and_key_share_one_access(folder: Path) -> None:
    pool = ModelPool(folder, ManualClock(), lambda: None)

    def spec(url: str, key: str, model: str = "m") -> ModelSpec:
        ref = {"name": "llm", "key": key}
        return ModelSpec.model_validate(
            {"provider": "openai-compatible", "model": model, "baseURL": url, "apiKeySecretRef": ref}
        )

    first = pool.agent([spec("http://a/v1", "openai"), spec("http://b/v1", "openai")])
    second = pool.agent([spec("http://a/v1/", "openai"), spec("http://a/v1", "openai", "n"), spec("http://a/v1", "k")])
    assert len(pool.accesses) == 3
    assert first.entries[0] is second.entries[0]
    assert second.entries[1].access is first.entries[0].access
    assert second.entries[1] is not first.entries[0]
    assert [check.model for check in second.checks()] == [
        "openai-compatible/m",
        "openai-compatible/n",
        "openai-compatible/m",
    ]


HANGS = ModelError(FailureKind.TIMEOUT, "gave no token within 30 s", state="does not answer within 30 s")


async def test_a_model_that_hangs_is_left_alone_and_probed_by_one_turn(folder: Path) -> None:
    scene = Scene(folder)
    for _ in range(2):
        scene.one.ask(60)
        await scene.clock.advance(30)
        scene.one.ended()
        scene.one.called(HANGS, seconds=30)
    assert scene.one.is_left_alone
    with pytest.raises(NotAsked, match=r"does not answer within 30 s, so it is left alone") as raised:
        scene.one.ask(60)
    assert (raised.value.kind, raised.value.retryable) == (FailureKind.TIMEOUT, False)
    assert scene.may_ask(scene.two), "what hangs is the model, not the provider"
    await scene.clock.advance(31)
    assert scene.may_ask(scene.one)
    assert not scene.may_ask(scene.one), "one turn probes, the others go on"
    scene.one.ended()
    assert scene.may_ask(scene.one), "the turn that probed was cancelled, so another one does"
    scene.one.called(None)
    assert scene.may_ask(scene.one)
    assert scene.may_ask(scene.one)


async def test_an_address_that_cannot_be_reached_is_so_for_all_its_models(folder: Path) -> None:
    scene = Scene(folder)
    for _ in range(4):
        scene.one.called(ModelError(FailureKind.UNREACHABLE, "refused the connection", retryable=True))
    assert not scene.may_ask(scene.one)
    assert not scene.may_ask(scene.two)
    await scene.clock.advance(1.1)
    assert scene.may_ask(scene.two), "what costs nothing is tried again soon"


async def test_a_pause_that_the_provider_wants_is_kept_by_all_turns(folder: Path) -> None:
    scene = Scene(folder)
    limited = ModelError(FailureKind.RATE_LIMITED, "answered 429", retryable=True, status=429, retry_after=7)
    scene.one.called(limited)
    with pytest.raises(NotAsked, match=r"wants no further call for 7.0 s") as raised:
        scene.one.ask()
    assert (raised.value.kind, raised.value.retryable) == (FailureKind.RATE_LIMITED, True)
    assert raised.value.retry_after == pytest.approx(7)
    assert scene.may_ask(scene.two)
    await scene.clock.advance(7.1)
    assert scene.may_ask(scene.one)
    assert scene.may_ask(scene.one), "the provider said when; nobody has to probe"


async def test_another_key_has_no_limits_yet(folder: Path) -> None:
    scene = Scene(folder)
    scene.one.called(ModelError(FailureKind.RATE_LIMITED, "answered 429", status=429, retry_after=50))
    assert not scene.may_ask(scene.one)
    write(folder, "sk-two")
    assert scene.may_ask(scene.one)
