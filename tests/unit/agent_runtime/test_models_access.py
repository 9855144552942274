"""Keys, listings, and when a turn may try a key that was refused."""

from pathlib import Path

import pytest

from agent_api.v1alpha1 import KeyRef, ModelSpec
from agent_runtime.clock import ManualClock
from agent_runtime.llm.access import Access, Entry, Listing, judge, read_listing
from agent_runtime.llm.catalog import ModelPool
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
    ],
)
def test_statuses_of_the_list_mean(status: int, provider: str, kind: FailureKind | None) -> None:
    error = judge(Listing(status), provider, "m")
    assert (error.kind if error else None) is kind


def test_only_openai_itself_must_list_the_model() -> None:
    listing = Listing(200, frozenset({"other"}))
    error = judge(listing, "openai", "m")
    assert error is not None
    assert error.kind is FailureKind.NOT_FOUND
    assert judge(listing, "openai-compatible", "m") is None
    assert judge(Listing(200, frozenset({"m"})), "openai", "m") is None


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
    found = read_listing(200, body).ids
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
