from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pstore.content import CHUNK_MAX, CHUNK_MIN, Chunker

KIB = 1024


def cut_in_pieces(data: bytes, sizes: list[int]) -> list[int]:
    """As a reader with buffers of those sizes, used in turn, would."""
    chunker, lengths, left, at, turn = Chunker(), [], b"", 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        left += data[at : at + size]
        at, turn = at + size, turn + 1
        found = chunker.cut(left, final=at >= len(data))
        left = left[sum(found) :]
        lengths += found
    assert not left
    return lengths


def test_golden_cuts(
    vectors: Callable[[str], list[dict[str, Any]]], stream: Callable[[str, int], bytes]
) -> None:
    for vector in vectors("cuts"):
        data = stream(vector["seed"], vector["size"]) if vector["seed"] else bytes(vector["size"])
        assert Chunker().cut(data, final=True) == vector["cuts"], vector


@settings(max_examples=15)
@given(
    size=st.integers(1, 3_000 * KIB),
    sizes=st.lists(st.integers(1, 900 * KIB), min_size=1, max_size=3).filter(lambda s: max(s) > 99),
)
def test_cuts_do_not_depend_on_how_the_file_is_handed_over(
    stream: Callable[[str, int], bytes], size: int, sizes: list[int]
) -> None:
    data = stream("pieces", size)
    sizes = [max(each, 100 * KIB) for each in sizes]
    assert cut_in_pieces(data, sizes) == Chunker().cut(data, final=True)


@pytest.mark.parametrize("size", [1, CHUNK_MIN - 1, CHUNK_MIN, CHUNK_MIN + 1])
def test_small_data_is_decided_only_at_the_end(size: int) -> None:
    data = memoryview(bytearray(size))
    assert Chunker().cut(data, final=False) == []
    assert Chunker().cut(data, final=True) == [size]


def test_nothing_is_cut_from_nothing() -> None:
    assert Chunker().cut(b"", final=True) == []


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_data_without_cuts_is_cut_at_the_maximum(beyond: int) -> None:
    lengths = Chunker().cut(bytes(CHUNK_MAX + beyond), final=True)
    assert sum(lengths) == CHUNK_MAX + beyond
    assert max(lengths) <= CHUNK_MAX
    assert Chunker().cut(bytes(CHUNK_MAX), final=False) == [CHUNK_MAX]


def test_an_insertion_moves_few_cuts(stream: Callable[[str, int], bytes]) -> None:
    data = stream("insertion", 8 * 1024 * KIB)
    edited = data[:3_000_000] + b"x" + data[3_000_000:]

    def pieces(content: bytes) -> set[bytes]:
        at, found = 0, set()
        for length in Chunker().cut(content, final=True):
            found.add(content[at : at + length])
            at += length
        return found

    assert len(pieces(edited) - pieces(data)) <= 3
