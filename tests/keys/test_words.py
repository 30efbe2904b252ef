from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pstore.errors import UsageError
from p2pstore.ids import PublicKey
from p2pstore.keys import WORD_COUNT, amend, fingerprint, new_root, root_of, words_of

ROOTS = st.binary(min_size=32, max_size=32)


@settings(max_examples=30)
@given(ROOTS)
def test_words_bring_the_root_back(root: bytes) -> None:
    words = words_of(root)
    assert len(words.split()) == WORD_COUNT
    assert root_of(words) == root


@settings(max_examples=30)
@given(ROOTS)
def test_a_note_may_be_typed_with_numbers_capitals_and_line_breaks(root: bytes) -> None:
    note = "\n".join(f"{n}. {word.upper()}," for n, word in enumerate(words_of(root).split(), 1))
    assert root_of(note) == root


def test_a_root_is_not_the_random_bytes_themselves_and_needs_32_of_them() -> None:
    assert new_root(bytes(32)) != bytes(32)
    assert new_root(bytes(32)) == new_root(bytes(32))
    with pytest.raises(ValueError):
        new_root(bytes(31))
    with pytest.raises(ValueError):
        words_of(bytes(33))


def test_a_misspelt_word_is_named_with_what_it_might_be() -> None:
    words = words_of(bytes(32)).split()
    words[6] = "abandom"
    with pytest.raises(UsageError, match=r"Word 7, 'abandom'.*Perhaps: abandon"):
        root_of(" ".join(words))


def test_a_word_like_no_other_gets_no_hint() -> None:
    with pytest.raises(UsageError) as caught:
        root_of("qqqq " + "abandon " * 23)
    assert "Perhaps" not in str(caught.value)


@pytest.mark.parametrize(("count", "said"), [(23, "only 23"), (25, "are 25"), (0, "only 0")])
def test_missing_and_surplus_words_are_counted(count: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        root_of("abandon " * count)


def test_swapped_words_are_noticed() -> None:
    words = words_of(new_root(bytes(32))).split()
    words[0], words[1] = words[1], words[0]
    with pytest.raises(UsageError, match="do not belong together"):
        root_of(" ".join(words))


@settings(max_examples=40)
@given(st.text(max_size=300))
def test_whatever_is_typed_the_answer_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        root_of(text)


def test_a_book_is_not_split_into_words() -> None:
    with pytest.raises(UsageError, match="too long"):
        root_of("abandon " * 10_000)


def test_a_fingerprint_is_five_words_of_one_key() -> None:
    one, other = fingerprint(PublicKey(bytes(32))), fingerprint(PublicKey(bytes(31) + b"\1"))
    assert len(one.split()) == 5
    assert one != other


# -- what is wrong with a note --------------------------------------------------------------------


def one_wrong(words: list[str]) -> str:
    words[6] = "zoo" if words[6] != "zoo" else "abandon"
    return "Word 7, 'zoo', must be"


def two_swapped(words: list[str]) -> str:
    words[3], words[19] = words[19], words[3]
    return "Words 4 and 20 are swapped."


def one_missing(words: list[str]) -> str:
    return f"Word 12 is missing: {words.pop(11)!r}."


@pytest.mark.parametrize("harm", [one_wrong, two_swapped, one_missing])
def test_a_single_mistake_is_named_when_the_group_is_known(
    harm: Callable[[list[str]], str],
) -> None:
    root = new_root(b"7" * 32)
    words = words_of(root).split()
    said = harm(words)
    assert (amend(" ".join(words), lambda trial: trial == root) or "").startswith(said)


def test_two_mistakes_cannot_be_named() -> None:
    root = new_root(b"7" * 32)
    words = words_of(root).split()
    words[0] = words[1] = "zoo"
    assert amend(" ".join(words), lambda trial: trial == root) is None
    assert amend("qqqq " + " ".join(words[1:]), lambda trial: True) is None
