"""Two whole nodes whose only cable is bad: what one gives away comes back, byte for byte."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.nodes import CHECKOUT, join, some_bytes, until, write
from tests.e2e.spaces import SpaceNode, Spaces, spaces

WEATHER = ("--cut-every", "6MB", "--corrupt-every", "20MB", "--loss", "0.3", "--delay", "1ms-3ms")


@pytest.fixture
def net() -> Iterator[Spaces]:
    with spaces() as made:
        yield made


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


@pytest.mark.slow
def test_files_survive_a_cable_that_cuts_and_corrupts(net: Spaces, tmp_path: Path) -> None:
    laptop, nas = SpaceNode(tmp_path, "laptop"), SpaceNode(tmp_path, "nas")
    vault = tmp_path / "Vault"
    write(vault, [(f"{i}.bin", some_bytes(3_000_000, i)) for i in range(5)])
    before = digests(vault)
    weather = None
    try:
        laptop.init()
        laptop.start()
        join(laptop, nas)
        for one in (laptop, nas):
            one.stop()
            for known in ("peers.json", "dht.state"):
                (one.home / known).unlink(missing_ok=True)
        # Each has a cable to the middle, where nothing is passed on but by the proxy.
        here, middle, there = (net.make(label) for label in ("here", "middle", "there"))
        net.wire(here, "10.1.0.2/24", middle, "10.1.0.1/24")
        net.wire(middle, "10.2.0.1/24", there, "10.2.0.2/24")
        laptop.move(here)
        nas.move(there)
        laptop.start()
        proxy = ("--listen", "10.2.0.1:8080", "--to", "10.1.0.2:8080", "--seed", "7")
        program = (sys.executable, "-m", "tests.chaos", *proxy, *WEATHER)
        weather = subprocess.Popen(
            ["ip", "netns", "exec", middle.name, *program],
            cwd=CHECKOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert weather.stdout is not None
        weather.stdout.readline()
        nas.start("--bootstrap", "10.2.0.1:8080")
        laptop.wait_connected(nas)
        laptop.add(vault, "--min-copies", "1")
        until(lambda: laptop.type("free-up", vault).code == 0, "freed", 60, tell=lambda: laptop.log)
        assert laptop.status()["space"]["bundles_bytes"] < 1_000_000, "only names and lists stay"
        until(lambda: laptop.type("hydrate", vault).code == 0, "back", 60, tell=lambda: laptop.log)
        assert digests(vault) == before
        weather.terminate()
        told = dict(line.split() for line in weather.stdout.read().splitlines())
        assert int(told["cuts"]) >= 2, told
        assert int(told["lost"]) >= 1, told
        for one in (laptop, nas):
            assert "Traceback" not in one.log, one.log
    finally:
        laptop.close()
        nas.close()
        if weather is not None:
            weather.kill()
            weather.communicate()
