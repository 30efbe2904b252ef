from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.content import Relation, compare_versions, merge_versions, next_version
from p2pstore.ids import NodeId

DEVICES = [NodeId(bytes([i]) * 20) for i in range(4)]
VERSIONS = st.dictionaries(st.sampled_from(DEVICES), st.integers(1, 3))
OPPOSITE = {
    Relation.EQUAL: Relation.EQUAL,
    Relation.NEWER: Relation.OLDER,
    Relation.OLDER: Relation.NEWER,
    Relation.CONFLICT: Relation.CONFLICT,
}


@given(VERSIONS, VERSIONS)
def test_comparing_is_symmetric_and_merging_ends_conflicts(
    a: dict[NodeId, int], b: dict[NodeId, int]
) -> None:
    assert compare_versions(a, b) is OPPOSITE[compare_versions(b, a)]
    assert (compare_versions(a, b) is Relation.EQUAL) == (a == b)
    merged = merge_versions(a, b)
    assert merged == merge_versions(b, a)
    for each in (a, b):
        assert compare_versions(merged, each) in (Relation.EQUAL, Relation.NEWER)
    for device in DEVICES:
        assert compare_versions(next_version(merged, device), a) is Relation.NEWER


def test_two_writers_who_did_not_know_of_each_other_conflict() -> None:
    base = {DEVICES[0]: 1}
    one, two = next_version(base, DEVICES[1]), next_version(base, DEVICES[2])
    assert compare_versions(one, two) is Relation.CONFLICT
