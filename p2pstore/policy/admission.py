"""Room: what we take from others, and when we start to write for ourselves.

Checked before a byte is taken and again where bytes are written. A reason is short words for the
peer or for `status`; None means yes.
"""

from __future__ import annotations

DAY_S = 86_400.0
GRACE_S = 30 * DAY_S  # after the end of a lease, before its holder may drop a bundle
LOCK_LEASE_S = 60 * DAY_S  # a lock is a promise: the lease must outlast it by far


def admit_put(size: int, offer: int, used_by_group: int, free: int, keep_free: int) -> str | None:
    """Why a bundle of `size` bytes is not taken from a group that uses `used_by_group` bytes here.

    `offer` is what this group may use in all, `free` the room on the file system of the store.
    """
    if size < 0:
        return "a negative size"
    if offer <= 0:
        return "no room is offered to this group"
    if used_by_group + size > offer:
        return "beyond the offer"
    if free - size < keep_free:
        return "the disk is nearly full"
    return None


def room_for_batch(batch: int, free: int, keep_free: int) -> bool:
    """Whether ingest may start a batch: its blocks and its trash both take room for a while."""
    return batch >= 0 and free >= keep_free + 2 * batch


def why_no_lock(
    *, is_sealed: bool, in_trash: bool, being_removed: bool, lease_left_s: float, renews: bool
) -> str | None:
    """Why a holder does not promise to keep a bundle for the next minutes."""
    if being_removed:
        return "busy"
    if not is_sealed:
        return "the bundle is not complete"
    if in_trash:
        return "the bundle is in the trash"
    if lease_left_s < LOCK_LEASE_S and not renews:
        return "the lease ends too soon"
    return None


def may_drop_held(*, lease_until: float, now: float, locked: bool, room_is_short: bool) -> bool:
    """Whether a holder may drop what it keeps for somebody: long after the lease (wall clock)."""
    return room_is_short and not locked and now > lease_until + GRACE_S
