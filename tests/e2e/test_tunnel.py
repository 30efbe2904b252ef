"""Two devices behind routers that nobody can dial through, and one that both can reach."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ended
from tests.e2e.nodes import join, some_bytes, until, write
from tests.e2e.spaces import SpaceNode, spaces

FILES = {"film.bin": some_bytes(3_000_000, 71), "letter.txt": b"Dear reader, " * 3000}


def links_through(node: SpaceNode) -> dict[str, str]:
    """name of the peer -> name of the peer between."""
    peers = node.call("peers")["peers"]
    return {peer["name"]: peer["through"] for peer in peers if peer.get("through")}


@pytest.fixture
def street(tmp_path: Path) -> Iterator[tuple[SpaceNode, SpaceNode, SpaceNode]]:
    nodes = [SpaceNode(tmp_path, name) for name in ("server", "laptop", "desk")]
    with spaces() as made:
        internet = made.make("net")
        internet.do("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        internet.do("ip", "address", "add", "20.9.9.9/32", "dev", "lo")
        server, laptop, desk = nodes
        server.move(internet)
        for number, node in ((1, laptop), (2, desk)):
            home = made.make("home")
            # Both homes use the same addresses, as homes do.
            made.behind_nat(home, internet, f"20.0.{number}.2", f"20.0.{number}.1", "192.168.1")
            node.move(home)
        try:
            yield server, laptop, desk
        finally:
            ended(nodes)


@pytest.mark.timeout(240)
def test_both_hold_copies_for_each_other_and_bring_files_back(
    street: tuple[SpaceNode, SpaceNode, SpaceNode], tmp_path: Path
) -> None:
    server, laptop, desk = street
    server.init()
    server.start()
    for node in (laptop, desk):
        join(server, node)
    laptop.wait_connected(desk)
    desk.wait_connected(laptop)
    assert links_through(laptop) == {"desk": "server"}
    assert links_through(desk) == {"laptop": "server"}

    # The one outside dials back: it finds itself reached by them, and none of them.
    for node, state in ((server, "outside"), (laptop, "no"), (desk, "no")):
        until(lambda node=node, state=state: node.status()["node"]["reachable"] == state,  # type: ignore[misc]
              f"{node.name} {state}", tell=lambda node=node: node.status()["node"])  # type: ignore[misc]  # fmt: skip
    assert "cannot be reached from outside" in laptop.ok("doctor").out

    folders = {}
    for node, other in ((laptop, desk), (desk, laptop)):
        folder = folders[node.name] = tmp_path / f"Vault of {node.name}"
        write(folder, FILES.items())
        node.add(folder)
        until(lambda node=node, folder=folder: node.type("free-up", folder).code == 0,  # type: ignore[misc]
              "free-up", 60.0, tell=lambda node=node: node.ok("evict", "--why").out)  # type: ignore[misc]  # fmt: skip
        assert other.status()["space"]["held_for_others_bytes"] > 3_000_000

    # The server loses what it held: what comes back now came through it, from the other home.
    server.stop()
    shutil.rmtree(server.home / "held")
    server.start()
    for node, other in ((laptop, desk), (desk, laptop)):
        node.wait_connected(server, other)
        folder = folders[node.name]
        node.ok("hydrate", folder)
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_a_router_that_can_be_asked_lets_others_through(tmp_path: Path) -> None:
    server, laptop = SpaceNode(tmp_path, "server"), SpaceNode(tmp_path, "laptop")
    with spaces() as made:
        internet, home = made.make("net"), made.make("home")
        router = made.behind_nat(home, internet, "20.0.1.2", "20.0.1.1", "192.168.1")
        server.move(internet)
        laptop.move(home)
        script = Path(__file__).parent / "router.py"
        speaking = router.start(sys.executable, script, "192.168.1.1", "20.0.1.2")
        try:
            server.init()
            server.start()
            join(server, laptop)
            until(
                lambda: laptop.status()["node"]["reachable"] == "outside",
                "outside",
                tell=lambda: (laptop.status()["node"], laptop.log),
            )
            assert "NAT-PMP" in laptop.log
            rules = router.do("iptables", "-t", "nat", "-S", "PREROUTING")
            assert rules.count("--to-destination 192.168.1.2:8080") == 2
            assert laptop.stop() == 0
            assert "8080" not in router.do("iptables", "-t", "nat", "-S", "PREROUTING")
        finally:
            speaking.kill()
            speaking.wait()
            ended([server, laptop])
