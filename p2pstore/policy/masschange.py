"""Too much at once: a wrong command, ransomware or half a disk, and hardly ever what was meant."""

from __future__ import annotations

MORE_THAN_FILES = 20
MORE_THAN_PERCENT = 10


def is_mass_change(gone_or_changed: int, total: int) -> bool:
    """Whether to pause and ask. `total` is how many files there were before."""
    return gone_or_changed > MORE_THAN_FILES and gone_or_changed * 100 > total * MORE_THAN_PERCENT
