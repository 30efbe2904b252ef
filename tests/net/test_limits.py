from __future__ import annotations

import asyncio

import pytest

from p2pstore.net.endpoint import origin_of
from p2pstore.net.limits import Limits, Pace
from p2pstore.net.tasks import TaskOwner


def test_defaults_are_those_of_the_safety_page() -> None:
    limits = Limits()
    assert (limits.handshake_s, limits.first_frame_s) == (5, 5)
    assert (limits.min_rate, limits.rate_window_s) == (4096, 30)
    assert (limits.requests_in_flight, limits.peer_bytes >> 20, limits.total_bytes >> 20) == (
        64,
        16,
        64,
    )
    assert (limits.max_peers, limits.max_unidentified, limits.per_address) == (256, 64, 4)


@pytest.mark.parametrize(("moved", "slow"), [(0, True), (4096 * 30 - 1, True), (4096 * 30, False)])
def test_pace_is_judged_at_the_end_of_a_window(moved: int, slow: bool) -> None:
    pace = Pace(4096, 30.0)
    assert not pace.is_too_slow(0.0, 1000, busy=True)
    assert not pace.is_too_slow(29.9, 1000, busy=True)
    assert pace.is_too_slow(30.0, 1000 + moved, busy=True) is slow


def test_idle_time_does_not_count() -> None:
    pace = Pace(4096, 30.0)
    pace.is_too_slow(0.0, 0, busy=True)
    pace.is_too_slow(20.0, 0, busy=False)
    assert not pace.is_too_slow(40.0, 0, busy=True)
    assert not pace.is_too_slow(69.0, 0, busy=True)
    assert pace.is_too_slow(70.0, 0, busy=True)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("pipe", "pipe"),
    ],
)
def test_a_whole_ipv6_network_counts_as_one_address(host: str, origin: str) -> None:
    assert origin_of(host) == origin


async def test_owner_ends_its_tasks() -> None:
    owner = TaskOwner()
    task = owner.start(asyncio.Event().wait())
    await owner.close()
    assert task.cancelled()
    assert len(owner) == 0
    with pytest.raises(RuntimeError):
        owner.start(asyncio.sleep(0))


async def test_failure_of_a_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("boom")

    owner = TaskOwner()
    task = owner.start(fail())
    await asyncio.wait([task])
    await owner.close()
    assert "boom" in caplog.text
