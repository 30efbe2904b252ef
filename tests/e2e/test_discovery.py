"""Two nodes on one cable find each other by mDNS alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.nodes import join
from tests.e2e.spaces import SpaceNode, Spaces, spaces

FOUND_S = 5.0
BUSY_S = 10.0  # more, when the machine runs other tests at the same time


@pytest.fixture
def net() -> Iterator[Spaces]:
    with spaces() as made:
        yield made


def node(base: Path, name: str) -> SpaceNode:
    made = SpaceNode(base, name)
    made.mdns = True
    return made


def test_devices_of_a_group_find_each_other_without_an_address(net: Spaces, tmp_path: Path) -> None:
    laptop, nas = node(tmp_path, "laptop"), node(tmp_path, "nas")
    try:
        laptop.init()
        laptop.start()
        join(laptop, nas)
        for one in (laptop, nas):
            one.stop()
            # As after a move to another house: who they are is known, where they are is not.
            for known in ("peers.json", "dht.state"):
                (one.home / known).unlink(missing_ok=True)
        here, there = net.make("here"), net.make("there")
        net.wire(here, "10.7.0.1/24", there, "10.7.0.2/24")
        laptop.move(here)
        nas.move(there)
        laptop.start()
        nas.start()
        laptop.wait_connected(nas, timeout_s=FOUND_S + BUSY_S)
        (line,) = laptop.call("peers")["peers"]
        assert line["address"].startswith("10.7.0.2:")
    finally:
        laptop.close()
        nas.close()
