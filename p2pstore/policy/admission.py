"""Room: what we take from others, and when we start to write for ourselves.

Checked before a byte is taken and again where bytes are written. A reason is short words for the
peer or for `status`; None means yes.

Who holds for me may store with me. A friend may use what the owner of this node grants to friends,
and beyond it as much as that friend has proved to hold for us, up to what that friend offers. If it
lets our bundles go, it can put nothing new here; what it has here already stays: its lease was
promised.

Below keep_free a holder asks owners to place elsewhere what it keeps for them (`relief`). So a new
bundle must leave some room above that: otherwise a disk that swings around keep_free would be given
back what it has just got rid of, again and again.
"""

from __future__ import annotations

# Of keep_free, which says how much this owner thinks comes and goes on this disk.
MARGIN_PART = 8
MARGIN_MOST = 256 << 20  # sixteen whole bundles; that of the smallest default of keep_free


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
    if free - size < keep_free + (margin(keep_free) if size else 0):
        return "the disk is nearly full"
    return None


def margin(keep_free: int) -> int:
    """Bytes above `keep_free` that a new bundle leaves free."""
    return min(keep_free // MARGIN_PART, MARGIN_MOST)


def offer_to_friend(*, granted: int, proved_bytes: int, their_offer: int) -> int:
    """Bytes that a friend's group may use here.

    `granted`: the setting `offer_friends`. `proved_bytes`: of our bundles, live copies at nodes of
    that group. `their_offer`: what that group says it lends to us; a holder that took more than it
    offered is not owed more.
    """
    return max(granted, min(proved_bytes, their_offer), 0)


def room_for_batch(batch: int, free: int, keep_free: int) -> bool:
    """Whether ingest may start a batch: its blocks and its trash both take room for a while."""
    return batch >= 0 and free >= keep_free + 2 * batch
