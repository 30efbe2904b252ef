"""Room: what we take from others, and when we start to write for ourselves.

Checked before a byte is taken and again where bytes are written. A reason is short words for the
peer or for `status`; None means yes.
"""

from __future__ import annotations


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
