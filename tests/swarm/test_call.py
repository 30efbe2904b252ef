"""Who is asked for what, without any peer."""

from __future__ import annotations

from typing import NamedTuple

from p2pstore.ids import BlockId, BundleId, NodeId, Tag
from p2pstore.swarm.call import LEAST_SHARE, Call
from p2pstore.swarm.getting import SPLIT

BUNDLE, OTHER = BundleId(b"1" * 32), BundleId(b"2" * 32)
ONE, TWO = NodeId(b"1" * 20), NodeId(b"2" * 20)


class Ref(NamedTuple):
    bundle_id: BundleId
    tag: Tag


class Wanted(NamedTuple):
    ref: Ref
    block_id: BlockId


def block(number: int) -> BlockId:
    return BlockId(number.to_bytes(32))


def call_for(count: int, *, shunned: tuple[NodeId, ...] = ()) -> Call:
    ref = Ref(BUNDLE, Tag(bytes(20)))
    return Call({block(i): Wanted(ref, block(i)) for i in range(count)}, shunned)


def taken(call: Call, node: NodeId, sharers: int = 1) -> list[BlockId]:
    part = call.take(node, [BUNDLE], sharers)
    return [] if part is None else part[1]


def test_no_block_is_asked_of_two_at_once() -> None:
    call = call_for(100)
    first, second = taken(call, ONE, 2), taken(call, TWO, 2)
    assert first
    assert second
    assert not set(first) & set(second)


def test_no_peer_is_asked_twice_for_a_block() -> None:
    call = call_for(10)
    part = taken(call, ONE)
    call.done(part)  # without an answer
    assert taken(call, ONE) == []
    assert taken(call, TWO) == part


def test_shares_are_neither_tiny_nor_larger_than_a_request() -> None:
    assert len(taken(call_for(40), ONE, 8)) == LEAST_SHARE
    assert len(taken(call_for(3 * SPLIT), ONE, 1)) == SPLIT


def test_what_came_is_not_missing() -> None:
    call = call_for(3)
    part = taken(call, ONE)
    call.got(BUNDLE, {block(0): b"zero", block(2): b"two"})
    call.done(part)
    assert call.missing == [block(1)]
    assert call.found == {block(0): b"zero", block(2): b"two"}
    assert set(call.bundles) == {BUNDLE}
    call.got(BUNDLE, {block(1): b"one"})
    assert not call.missing
    assert not call.bundles


def test_who_failed_is_asked_no_more() -> None:
    call = call_for(3)
    call.done(taken(call, ONE))
    call.refused.add(ONE)
    call.ask_anew()
    assert taken(call, ONE) == []


def test_who_failed_earlier_is_asked_when_nobody_is_left() -> None:
    call = call_for(3, shunned=(ONE,))
    assert taken(call, ONE) == []
    call.done(taken(call, TWO))
    call.ask_anew()
    assert len(taken(call, ONE)) == 3


def test_only_bundles_that_a_peer_has_are_asked_of_it() -> None:
    assert call_for(3).take(ONE, [OTHER], 1) is None
