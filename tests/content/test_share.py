"""The key of a share: how it reads, and what it says when it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.content import (
    MAX_KEY_TEXT,
    ShareKey,
    decode_share_key,
    encode_share_key,
    looks_like_share_key,
    share_access,
)
from p2pstore.errors import FormatError, P2PStoreError, UsageError
from p2pstore.ids import BlockId

KEY = ShareKey(b"s" * 32, b"r" * 16, hints=(("192.168.1.5", 8080), ("2001:db8::1", 8081)))
TEXT = encode_share_key(KEY)

ports = st.integers(0, 65535)
hints = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), ports), st.tuples(st.ip_addresses(v=6).map(str), ports)
)


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
    st.booleans(),
    st.lists(hints, max_size=2),
)
def test_keys_round_trip(
    secret: bytes, root: bytes, password: bool, named: list[tuple[str, int]]
) -> None:
    key = ShareKey(secret, root, password, tuple(named))
    text = encode_share_key(key)
    assert decode_share_key(text) == key
    assert looks_like_share_key(text)
    assert len(text) <= 104 + 31 * len(named), "it is read out and typed"


def test_a_key_survives_how_people_pass_it_on() -> None:
    assert decode_share_key(f"  {TEXT.upper()}\n") == KEY
    assert looks_like_share_key(f"  {TEXT.upper()}\n")
    assert decode_share_key(" ".join(TEXT[at : at + 8] for at in range(0, len(TEXT), 8))) == KEY


def test_every_mistyped_letter_is_noticed() -> None:
    for place in range(4, len(TEXT)):
        wrong = "a" if TEXT[place] != "a" else "b"
        with pytest.raises(FormatError):
            decode_share_key(TEXT[:place] + wrong + TEXT[place + 1 :])


def test_a_key_that_was_cut_is_no_key() -> None:
    for length in range(4, len(TEXT)):
        with pytest.raises(FormatError):
            decode_share_key(TEXT[:length])
    with pytest.raises(FormatError):
        decode_share_key(TEXT + TEXT[4:])


@pytest.mark.parametrize("text", ["", "p2ps://x", "hello", "/home/me/p2p:file", "P2"])
def test_what_is_no_key_at_all_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        decode_share_key(text)


@given(st.text(max_size=2 * MAX_KEY_TEXT))
def test_any_text_is_a_key_or_an_error_that_does_not_repeat_it(text: str) -> None:
    for attempt in (text, f"p2p:{text}"):
        try:
            decode_share_key(attempt)
        except P2PStoreError as exc:
            said = str(exc)
        else:
            continue
        assert len(text) < 5 or text not in said


def test_another_version_is_told_apart_from_a_typing_error(
    vectors: Callable[[str], list[dict[str, Any]]],
) -> None:
    (later,) = (one for one in vectors("share_keys") if one["what"] == "later version")
    with pytest.raises(FormatError, match="later version"):
        decode_share_key(later["text"])


def test_golden_keys(vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("share_keys"):
        if "secret" not in vector:
            continue
        key = decode_share_key(vector["text"])
        assert (key.secret.hex(), key.root.hex()) == (vector["secret"], vector["root"])
        assert key.needs_password == vector["password"]
        assert [list(hint) for hint in key.hints] == vector["hints"]
        assert encode_share_key(key) == vector["text"]
        assert share_access(key.secret, vector["words"]).hex() == vector["access"]


def test_only_the_root_fits_the_key() -> None:
    assert KEY.is_root(BlockId(b"r" * 16 + b"?" * 16))
    assert not KEY.is_root(BlockId(b"r" * 15 + b"?" * 17))


def test_the_secret_is_not_shown() -> None:
    assert "s" * 8 not in repr(KEY)


def test_a_password_is_part_of_what_opens_a_share() -> None:
    assert share_access(KEY.secret, "") == KEY.secret
    one, other = share_access(KEY.secret, "one"), share_access(KEY.secret, "other")
    assert len({one, other, KEY.secret, share_access(b"t" * 32, "one")}) == 4
