from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.content import (
    MAX_HOLES,
    MAX_PAYLOAD,
    MAX_XATTR_BYTES,
    Manifest,
    data_segments,
    encode_extra,
    largest_holes,
    needs_extra,
    safe_name,
    safe_path,
    sorted_xattrs,
    with_extra,
)
from p2pstore.content.filemeta import check_holes
from p2pstore.errors import FormatError, UsageError

Make = Callable[..., Manifest]


@pytest.mark.parametrize(
    "name", [b"a", b"x" * 255, b"\xff\xfe", b"new\nline", b"...", b"..a", b"back\\slash", b"a.f"]
)
def test_odd_names_are_names(name: bytes) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"../x", b"a\0b", b"x" * 256])
def test_names_that_leave_their_directory_are_refused(name: bytes) -> None:
    with pytest.raises(FormatError):
        safe_name(name)


@pytest.mark.parametrize(
    "path", [b"", b"/a", b"a/", b"a//b", b"a/../b", b"./a", b"a/\0", b"a/" * 2048 + b"a"]
)
def test_paths_that_leave_their_folder_are_refused(path: bytes) -> None:
    assert safe_path(b"a/b c/\xff") == b"a/b c/\xff"
    with pytest.raises(FormatError):
        safe_path(path)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=20), st.integers(0, 50))
def test_segments_and_holes_cover_the_file(gaps: list[tuple[int, int]], tail: int) -> None:
    holes, position = [], 0
    for gap, length in gaps:
        holes.append((position + gap, length))
        position += gap + length
    size = position + tail
    check_holes(size, holes)
    covered = sorted([*data_segments(size, holes), *holes])
    assert sum(length for _, length in covered) == size
    end = 0
    for offset, length in covered:
        assert offset == end
        assert length > 0
        end = offset + length


def test_a_file_that_begins_with_a_hole_or_is_one() -> None:
    assert data_segments(10, [(0, 4)]) == [(4, 6)]
    assert data_segments(10, [(0, 10)]) == []
    assert data_segments(0, []) == []
    check_holes(10, [(0, 10)])


@pytest.mark.parametrize(
    "holes",
    [
        [(0, 0)],
        [(-1, 2)],
        [(5, 6)],
        [(0, 3), (2, 3)],
        [(0, 3), (3, 3)],
        [(4, 1), (0, 1)],
        [(0, 1), (0, 1)],
    ],
)
def test_holes_that_do_not_fit_are_refused(holes: list[tuple[int, int]]) -> None:
    with pytest.raises(FormatError):
        check_holes(10, holes)


def test_of_too_many_holes_the_largest_are_kept() -> None:
    holes = [(0, 5), (10, 1), (20, 9), (40, 5)]
    assert largest_holes(holes, 2) == [(0, 5), (20, 9)]
    assert largest_holes(holes) == holes


def test_attributes_travel_in_a_block(manifest: Make) -> None:
    xattrs = sorted_xattrs([(b"user.b", b"2" * 2000), (b"user.a", b"\0")])
    meta = manifest(xattrs=xattrs, holes=((0, 4096),)).meta
    assert needs_extra(meta)
    bare = msgspec.structs.replace(meta, xattrs=(), holes=())
    assert not needs_extra(bare)
    assert with_extra(bare, encode_extra(meta)) == meta
    for bad in (b"", b"\x92\x90", encode_extra(meta)[:-1], b"\x92" + b"\x91" * 9000):
        with pytest.raises(FormatError):
            with_extra(bare, bad)


def test_the_largest_extra_fits_a_block(manifest: Make) -> None:
    holes = tuple((2**62 + 2 * i, 1) for i in range(MAX_HOLES))
    names = MAX_XATTR_BYTES // 256
    xattrs = sorted_xattrs((b"user.%0250d" % i, b"v") for i in range(names))
    meta = manifest(size=2**63 - 1, xattrs=xattrs, holes=holes).meta
    raw = encode_extra(meta)
    assert len(raw) <= MAX_PAYLOAD
    bare = msgspec.structs.replace(meta, xattrs=(), holes=())
    assert with_extra(bare, raw) == meta


def test_too_many_attributes_are_the_users_business() -> None:
    with pytest.raises(UsageError):
        sorted_xattrs([(b"user.a", bytes(MAX_XATTR_BYTES))])
    with pytest.raises(UsageError):
        sorted_xattrs([(b"user.a", b""), (b"user.a", b"twice")])


def test_attributes_in_two_places_are_refused(manifest: Make, blocks: Any) -> None:
    meta = manifest(xattrs=((b"user.a", b"1"),)).meta
    both = msgspec.structs.replace(meta, extra=blocks.store(b"x"))
    with pytest.raises(FormatError):
        with_extra(both, b"\x92\x90\x91\x92\x05\x00")


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [b"", b".", b"..", b"...", b".a", b"a\0", b"\n", b"x" * 255, b"x" * 256]
            ),
            st.binary(max_size=4),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_path_is_safe_when_each_of_its_names_is(parts: list[bytes]) -> None:
    path = b"/".join(parts)

    def is_safe(name: bytes) -> bool:
        try:
            return safe_name(name) == name
        except FormatError:
            return False

    if all(is_safe(part) for part in path.split(b"/")):
        assert safe_path(path) == path
    else:
        with pytest.raises(FormatError):
            safe_path(path)
