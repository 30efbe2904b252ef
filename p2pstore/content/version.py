"""Version vectors: how often each device wrote a file, so that two versions can be compared.

    VersionVector = {NodeId (20): counter}, counters from 1 on, at most 32 devices, encoded with
                    ascending keys, so that equal vectors have equal bytes

A version is newer than another when no counter is smaller and one is greater. When each has
something that the other lacks, both were written without knowledge of the other: a conflict.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated

import msgspec

from p2pstore.content.codec import MAX_INT
from p2pstore.errors import FormatError
from p2pstore.ids import NodeId

MAX_DEVICES = 32  # with more the worst `.f` would not fit 4 KiB

Counter = Annotated[int, msgspec.Meta(gt=0, le=MAX_INT)]
VersionVector = Annotated[dict[NodeId, Counter], msgspec.Meta(max_length=MAX_DEVICES)]


class Relation(Enum):
    EQUAL = "equal"
    NEWER = "newer"
    OLDER = "older"
    CONFLICT = "conflict"


def compare_versions(mine: Mapping[NodeId, int], other: Mapping[NodeId, int]) -> Relation:
    """What `mine` is to `other`."""
    more = any(counter > other.get(device, 0) for device, counter in mine.items())
    less = any(counter > mine.get(device, 0) for device, counter in other.items())
    if more and less:
        return Relation.CONFLICT
    if more:
        return Relation.NEWER
    return Relation.OLDER if less else Relation.EQUAL


def merge_versions(a: Mapping[NodeId, int], b: Mapping[NodeId, int]) -> dict[NodeId, int]:
    """The smallest version that is not older than either."""
    return {device: max(a.get(device, 0), b.get(device, 0)) for device in sorted({*a, *b})}


def next_version(version: Mapping[NodeId, int], device: NodeId) -> dict[NodeId, int]:
    """`version` after one more write by `device`."""
    return sorted_version({**version, device: version.get(device, 0) + 1})


def sorted_version(version: Mapping[NodeId, int]) -> dict[NodeId, int]:
    return dict(sorted(version.items()))


def check_version(version: Mapping[NodeId, int]) -> None:
    """FormatError when a manifest or an index line cannot carry it."""
    if len(version) > MAX_DEVICES:
        raise FormatError("a version that names too many devices")
