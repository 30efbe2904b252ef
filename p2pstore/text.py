"""Words for people."""

from __future__ import annotations


def plural(count: int, one: str, many: str = "") -> str:
    """`1 file`, `2,000 files`; `many` where it is not `one` with an s."""
    return f"1 {one}" if count == 1 else f"{count:,} {many or one + 's'}"
