"""Encrypted content comes back where it was written, and nowhere else."""

import base64
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from agent_store import codec_aes
from agent_store.codec_aes import OVERHEAD, AesGcmCodec, UndecryptableError, bind, new_key, unwrap_key, wrap_key
from agent_store.codec_keys import (
    KeysUnusable,
    age_order,
    derive_key,
    derive_wrapping_key,
    format_key,
    read_wrapping_keys,
)

PARTS = st.text(st.characters(codec=None), max_size=8) | st.integers(-(2**63), 2**63 - 1) | st.uuids()
PLACES = st.lists(PARTS, max_size=4).map(tuple)
KEYS: Mapping[str, bytes] = {"a": bytes(range(32)), "b": bytes(range(1, 33))}
CODEC = AesGcmCodec(KEYS, "b")
OTHER = AesGcmCodec({"b": new_key()}, "b")


@given(st.binary(max_size=5000), PLACES)
def test_what_was_encoded_comes_back_at_its_place(plain: bytes, place: tuple[object, ...]) -> None:
    stored = CODEC.encode(plain, *place)
    assert len(stored) == len(plain) + OVERHEAD
    assert plain not in stored or len(plain) < 4
    assert CODEC.decode(stored, "b", *place) == plain
    assert AesGcmCodec(KEYS, "a").decode(stored, "b", *place) == plain


@given(st.binary(max_size=200), PLACES, PLACES)
def test_a_value_moved_elsewhere_does_not_decrypt(
    plain: bytes, place: tuple[object, ...], elsewhere: tuple[object, ...]
) -> None:
    stored = CODEC.encode(plain, *place)
    if bind(place) == bind(elsewhere):
        assert place == elsewhere or tuple(map(str, place)) == tuple(map(str, elsewhere))
        return
    with pytest.raises(UndecryptableError):
        CODEC.decode(stored, "b", *elsewhere)


@given(PLACES, PLACES)
def test_different_places_are_bound_differently(place: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert (bind(place) == bind(other)) == (place == other)


def test_parts_cannot_flow_into_each_other() -> None:
    assert len({bind(("ab", "c")), bind(("a", "bc")), bind(("abc",)), bind(("abc", ""))}) == 4
    assert bind((1,)) != bind(("1",))
    with pytest.raises(TypeError, match="not float"):
        bind((1.5,))


@given(st.binary(max_size=100), st.data())
def test_any_changed_bit_is_noticed(plain: bytes, data: st.DataObject) -> None:
    stored = CODEC.encode(plain, "t", 1)
    bit = data.draw(st.integers(0, len(stored) * 8 - 1))
    changed = bytearray(stored)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(UndecryptableError):
        CODEC.decode(bytes(changed), "b", "t", 1)


@given(st.binary(max_size=60), st.sampled_from(["a", "b", "c"]))
def test_bytes_of_any_length_are_refused_without_a_crash(stored: bytes, key_id: str) -> None:
    with pytest.raises(UndecryptableError, match="messages"):
        CODEC.decode(stored, key_id, "messages", 1)


def test_another_key_does_not_decrypt_and_an_unknown_one_is_named() -> None:
    stored = CODEC.encode(b"x", "t", 1)
    with pytest.raises(UndecryptableError):
        OTHER.decode(stored, "b", "t", 1)
    with pytest.raises(UndecryptableError, match="key 'c', which is not among"):
        OTHER.decode(stored, "c", "t", 1)
    with pytest.raises(ValueError, match="no key 'c'"):
        AesGcmCodec(KEYS, "c")


def test_plain_content_is_read_as_it_is_and_encryption_can_be_off_while_old_values_are_read() -> None:
    assert CODEC.decode(b"plain", None, "t", 1) == b"plain"
    off = AesGcmCodec(KEYS, None)
    assert (off.key_id, off.encode(b"x", "t", 1)) == (None, b"x")
    assert off.decode(CODEC.encode(b"x", "t", 1), "b", "t", 1) == b"x"


def test_a_row_may_hold_values_of_two_keys() -> None:
    """A step is begun before a rotation and finished after it: its row has the newer key id."""
    before = AesGcmCodec({"a": KEYS["a"]}, "a").encode(b"request", "steps", 1)
    assert CODEC.decode(before, "b", "steps", 1) == b"request"


def test_equal_contents_are_stored_differently_and_no_nonce_comes_twice() -> None:
    stored = {CODEC.encode(b"same", "t", 1) for _ in range(1000)}
    assert len({value[:20] for value in stored}) == 1000
    assert len({value[:8] for value in stored}) == 1


def test_a_salt_serves_a_bounded_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_aes, "VALUES_PER_SALT", 10)
    codec = AesGcmCodec(KEYS, "a")
    stored = [codec.encode(b"x", "t", n) for n in range(25)]
    assert [len({value[:8] for value in stored[at : at + 10]}) for at in (0, 10, 20)] == [1, 1, 1]
    assert len({value[:8] for value in stored}) == 3
    assert all(codec.decode(value, "a", "t", n) == b"x" for n, value in enumerate(stored))


@given(st.uuids(), st.text(max_size=8))
def test_data_keys_are_wrapped_for_one_agent_and_one_key_id(agent_id: uuid.UUID, key_id: str) -> None:
    wrapping, key = new_key(), new_key()
    wrapped = wrap_key(wrapping, key, agent_id, key_id)
    assert key not in wrapped
    assert unwrap_key(wrapping, wrapped, agent_id, key_id) == key
    for other in ((new_key(), agent_id, key_id), (wrapping, uuid.uuid4(), key_id), (wrapping, agent_id, key_id + "x")):
        with pytest.raises(UndecryptableError):
            unwrap_key(other[0], wrapped, other[1], other[2])
    with pytest.raises(UndecryptableError):
        unwrap_key(wrapping, wrapped[:5], agent_id, key_id)


@given(st.binary(min_size=32, max_size=32), st.text(max_size=50))
def test_derived_keys_are_those_of_hkdf(root: bytes, purpose: str) -> None:
    assert derive_key(root, purpose) == HKDF(SHA256(), 32, None, purpose.encode()).derive(root)


def test_each_agent_has_a_wrapping_key_of_its_own() -> None:
    root, one, two = new_key(), str(uuid.uuid4()), str(uuid.uuid4())
    derived = {derive_wrapping_key(root, one), derive_wrapping_key(root, two), derive_wrapping_key(new_key(), one)}
    assert len(derived) == 3
    assert derive_wrapping_key(root, one.upper()) == derive_wrapping_key(root, one)


def test_the_last_key_by_name_wraps_unless_current_names_another(tmp_path: Path) -> None:
    for name in ("k2", "k10", "k9"):
        (tmp_path / name).write_text(format_key(new_key()) + "\n")
    (tmp_path / "..data").mkdir()
    (tmp_path / ".hidden").write_text("no key")
    found = read_wrapping_keys(tmp_path)
    assert (found.current, set(found.keys)) == ("k10", {"k2", "k9", "k10"})
    (tmp_path / "current").write_text("k9\n")
    assert read_wrapping_keys(tmp_path).current == "k9"
    (tmp_path / "current").write_text("k3")
    with pytest.raises(KeysUnusable, match='Secret a/b has no key "k3"'):
        read_wrapping_keys(tmp_path, "Secret a/b")


def test_names_sort_by_their_numbers() -> None:
    names = ["2026-11", "1", "k10", "10", "k9", "2026-02", "2"]
    assert sorted(names, key=age_order) == ["k9", "k10", "1", "2", "10", "2026-02", "2026-11"]


@pytest.mark.parametrize("value", ["", "short", base64.b64encode(b"x" * 31).decode(), "ü" * 44, "!" * 44])
def test_what_is_no_key_is_said_without_showing_it(tmp_path: Path, value: str) -> None:
    (tmp_path / "1").write_text(value)
    with pytest.raises(KeysUnusable, match='key "1" of Secret a/b is not 32 bytes') as caught:
        read_wrapping_keys(tmp_path, "Secret a/b")
    assert not value or value not in str(caught.value)


def test_both_alphabets_of_base64_are_read(tmp_path: Path) -> None:
    key = bytes([255, 239] * 16)
    (tmp_path / "1").write_bytes(base64.urlsafe_b64encode(key))
    assert read_wrapping_keys(tmp_path).newest == key


def test_a_missing_or_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match="cannot be read: No such file"):
        read_wrapping_keys(tmp_path / "none")
    with pytest.raises(KeysUnusable, match="holds no encryption key"):
        read_wrapping_keys(tmp_path)
