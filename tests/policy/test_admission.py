from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import admit_put, offer_to_friend, room_for_batch
from p2pstore.policy.admission import margin

BYTES = st.integers(0, 1 << 50)


@given(BYTES, BYTES, BYTES, BYTES, BYTES)
def test_what_is_admitted_fits_offer_and_disk(
    size: int, offer: int, used: int, free: int, keep_free: int
) -> None:
    admitted = admit_put(size, offer, used, free, keep_free) is None
    kept = keep_free + (margin(keep_free) if size else 0)
    assert admitted == (offer > 0 and used + size <= offer and free - size >= kept)


@given(BYTES, BYTES, BYTES, BYTES)
def test_a_disk_that_swings_around_keep_free_takes_nothing_that_must_soon_go_again(
    size: int, free: int, keep_free: int, swing: int
) -> None:
    """A holder asks to be rid of bundles below keep_free; what came free then is not filled with
    the same ones, which would wander there and back for as long as it swings."""
    swing = min(swing, margin(keep_free))
    if size and admit_put(size, size, 0, free, keep_free) is None:
        assert free - size - swing >= keep_free
    assert size == 0 or admit_put(size, size, 0, keep_free + swing, keep_free) is not None


@given(BYTES)
def test_the_margin_is_small(keep_free: int) -> None:
    assert 0 <= margin(keep_free) <= min(keep_free // 8, 256 << 20)


def test_what_is_here_already_needs_no_margin() -> None:
    assert admit_put(0, 100, 90, 20, 20) is None
    assert admit_put(0, 100, 90, 19, 20) == "the disk is nearly full"


def test_the_last_byte_of_offer_and_room_may_be_used() -> None:
    assert admit_put(10, 100, 90, 32, 20) is None
    assert admit_put(11, 100, 90, 99, 20) == "beyond the offer"
    assert admit_put(10, 100, 90, 31, 20) == "the disk is nearly full"
    assert admit_put(0, 0, 0, 99, 0) == "no room is offered to this group"
    assert admit_put(-1, 100, 0, 99, 0) is not None


def test_a_batch_needs_twice_its_size() -> None:
    assert room_for_batch(10, 70, 50)
    assert not room_for_batch(10, 69, 50)


def test_who_holds_for_us_may_store_with_us() -> None:
    assert offer_to_friend(granted=0, proved_bytes=0, their_offer=50) == 0
    assert offer_to_friend(granted=0, proved_bytes=30, their_offer=50) == 30
    assert offer_to_friend(granted=0, proved_bytes=80, their_offer=50) == 50
    assert offer_to_friend(granted=100, proved_bytes=30, their_offer=50) == 100


@given(BYTES, BYTES, BYTES)
def test_a_friend_is_never_lent_less_than_was_granted(granted: int, held: int, offer: int) -> None:
    lent = offer_to_friend(granted=granted, proved_bytes=held, their_offer=offer)
    assert granted <= lent <= max(granted, held, 0)
