from __future__ import annotations

import pytest

from p2pstore import errors
from p2pstore.wire import Fail, Unknown, error_of, fail_of

PAIRS = [
    ("unavailable", errors.Unavailable),
    ("integrity", errors.IntegrityError),
    ("refused", errors.NotAllowed),
    ("busy", errors.Busy),
    ("unknown", Unknown),
    ("no-room", errors.NoRoom),
    ("protocol", errors.RemoteProtocolError),
]


@pytest.mark.parametrize(("code", "kind"), PAIRS)
def test_error_survives_the_way_through_fail(code: str, kind: type[errors.P2PStoreError]) -> None:
    fail = fail_of(kind("why"))
    assert (fail.code, fail.text) == (code, "why")
    assert type(error_of(fail)) is kind


def test_blocks_missing_is_unknown_to_the_asker() -> None:
    assert fail_of(errors.BlocksMissing("x")).code == "unknown"


@pytest.mark.parametrize(
    "error", [ValueError("/home/anna/secret"), errors.LocalProtocolError("/home/anna")]
)
def test_own_bugs_tell_nothing(error: Exception) -> None:
    assert "anna" not in fail_of(error).text


def test_words_of_a_peer_are_made_printable() -> None:
    assert str(error_of(Fail("busy", "a\x1b[31m\nb\u202e"))) == "a [31m b "


def test_long_words_are_cut() -> None:
    assert len(fail_of(errors.Busy("x" * 5000)).text) == 300
