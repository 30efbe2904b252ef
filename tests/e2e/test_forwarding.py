"""Blocks that come over other nodes: nobody on the way has them, and one of the peers lies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import ended
from tests.e2e.nodes import join, some_bytes, until, write
from tests.e2e.spaces import SpaceNode, Spaces, spaces

FILES = {"film.bin": some_bytes(3_000_000, 72), "letter.txt": b"Dear reader, " * 3000}


class Street(NamedTuple):
    """laptop - first - second - holder, and laptop - liar; no other two can reach each other."""

    laptop: SpaceNode
    first: SpaceNode
    second: SpaceNode
    holder: SpaceNode
    liar: SpaceNode
    folder: Path


def share(nodes: list[SpaceNode], folder: Path) -> None:
    """On one network: all hold a copy of what the laptop then frees. Then only the holder does."""
    laptop, *others = nodes
    laptop.init()
    laptop.start()
    for node in others:
        join(laptop, node)
    write(folder, FILES.items())
    laptop.add(folder, "--min-copies", str(len(others)))
    until(
        lambda: laptop.type("free-up", folder).code == 0,
        "free-up",
        60.0,
        tell=lambda: laptop.type("evict", "--why", folder).out,
    )
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(SpaceNode.stop, nodes))
    for node in others:
        if node.name != "holder":
            shutil.rmtree(node.home / "held")
    shutil.rmtree(laptop.home / "cache", ignore_errors=True)


def part(made: Spaces, street: Street) -> None:
    """Each pair of neighbours has a cable of its own, and there is nothing else."""
    places = {node.name: made.make(node.name) for node in street[:5]}
    cables = [("laptop", "first"), ("first", "second"), ("second", "holder"), ("laptop", "liar")]
    ways: dict[str, list[str]] = {name: [] for name in places}
    for number, (one, other) in enumerate(cables):
        made.wire(places[one], f"10.7.{number}.1/24", places[other], f"10.7.{number}.2/24")
        ways[one] += ["--bootstrap", f"10.7.{number}.2:8080"]
        ways[other] += ["--bootstrap", f"10.7.{number}.1:8080"]
    for node in street[:5]:
        node.move(places[node.name])
    street.liar.script = Path(__file__).parent / "liar.py"
    with ThreadPoolExecutor(5) as pool:  # of two neighbours the later one finds the earlier
        for started in [pool.submit(node.start, *ways[node.name]) for node in street[:5]]:
            started.result()


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    names = ("laptop", "first", "second", "holder", "liar")
    nodes = [SpaceNode(tmp_path, name) for name in names]
    folder = tmp_path / "Vault"
    with spaces() as made:
        try:
            share(nodes, folder)
            made_street = Street(*nodes, folder)
            part(made, made_street)
            yield made_street
        finally:
            ended(nodes)


@pytest.mark.timeout(300)  # ten starts of a node
def test_a_file_comes_over_two_nodes_that_have_none_of_it(street: Street) -> None:
    street.laptop.wait_connected(street.first, street.liar)
    street.second.wait_connected(street.holder, street.first)
    peers = {peer["name"]: peer for peer in street.laptop.call("peers")["peers"]}
    assert not peers["holder"]["connected"]
    assert street.first.status()["space"]["held_for_others_bytes"] == 0

    street.laptop.ok("hydrate", street.folder)
    assert {name: (street.folder / name).read_bytes() for name in FILES} == FILES
    assert "Not asking liar" in street.laptop.log
    peers = {peer["name"]: peer for peer in street.laptop.call("peers")["peers"]}
    assert not peers["holder"]["connected"]
