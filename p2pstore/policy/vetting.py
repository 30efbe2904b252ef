"""When a holder of another person begins to count.

Own devices count from their first proof: who could fake one has the keys already. A friend, or a
stranger, has to show first that it keeps what it takes: for a while after its first receipt, and in
several audits. Whoever fails one starts again from there; so somebody who takes bundles, lets us
drop our own and then throws them away has to keep them for as long as it pays us to notice.
"""

from __future__ import annotations

from typing import NamedTuple

VETTING_S = 86_400.0  # the default of the setting `vetting`
VETTING_AUDITS = 3  # passed; one may be luck, and three cost next to nothing
OWN = frozenset({"device", "admin"})
VETTED = frozenset({"friend", "stranger"})


class Vetting(NamedTuple):
    """What is known of one holder over all its copies. Wall clock, seconds."""

    since: float | None = None  # its first receipt
    passed: int = 0  # audits since the later of the first receipt and the last failure
    failed_at: float | None = None  # the last audit it failed: a lie, or a bundle it has not


def is_vetted(role: str, record: Vetting, now: float, vetting_s: float = VETTING_S) -> bool:
    if role in OWN:
        return True
    start = vetting_begins(record)
    if role not in VETTED or start is None:
        return False
    if vetting_s <= 0:
        return True  # their owner trusts them from the first receipt on
    return now - start >= vetting_s and record.passed >= VETTING_AUDITS


def vetting_begins(record: Vetting) -> float | None:
    """From when on time and audits count; None before the first receipt."""
    if record.since is None:
        return None
    return record.since if record.failed_at is None else max(record.since, record.failed_at)


def audit_passed(record: Vetting) -> Vetting:
    return record._replace(passed=record.passed + 1)


def audit_failed(record: Vetting, now: float) -> Vetting:
    return record._replace(passed=0, failed_at=now)
