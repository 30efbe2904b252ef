"""Networks of a test's own: namespaces of the kernel, with wires, routers and NATs between them.

Everything happens inside namespaces that are made here and removed afterwards; nothing of the
machine's own network is touched, and no packet leaves it. Needs root, `ip` and `iptables`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.nodes import Node

_numbers = itertools.count(1)


def why_not() -> str | None:
    """Why no namespaces can be made here."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "iptables"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    name = f"p2pstore-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if tried.returncode:
        return "network namespaces cannot be made here"
    nat = ["ip", "netns", "exec", name, "iptables", "-t", "nat", "-L", "-n"]
    listed = subprocess.run(nat, capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return "the kernel has no NAT here" if listed.returncode else None


class Space:
    """One namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        self.do("ip", "link", "set", "lo", "up")

    def do(self, *args: str) -> str:
        return run("ip", "netns", "exec", self.name, *args)

    def start(self, *args: str | Path) -> subprocess.Popen[bytes]:
        """Begin a program that says a line when it is ready."""
        started = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *args], stdout=subprocess.PIPE
        )
        assert started.stdout is not None
        assert started.stdout.readline()
        started.stdout.close()
        return started


class Spaces:
    def __init__(self) -> None:
        self._made: list[Space] = []

    def make(self, label: str) -> Space:
        self._made.append(Space(f"p2p{os.getpid()}-{label}{next(_numbers)}"))
        return self._made[-1]

    def wire(self, one: Space, address: str, other: Space, other_address: str) -> None:
        """A cable; addresses as 10.0.0.1/24."""
        number = next(_numbers)
        ends = (f"v{number}a", f"v{number}b")
        run("ip", "link", "add", ends[0], "netns", one.name, "type", "veth",
            "peer", "name", ends[1], "netns", other.name)  # fmt: skip
        for space, end, at in ((one, ends[0], address), (other, ends[1], other_address)):
            space.do("ip", "address", "add", at, "dev", end)
            space.do("ip", "link", "set", end, "up")

    def behind_nat(
        self, home: Space, internet: Space, public: str, far: str, private: str
    ) -> Space:
        """The router of a home, through which nobody outside can dial.

        `public` is the router's own address on a cable to `internet`, which has `far` on it;
        `private` is the first three numbers of the home's network.
        """
        router = self.make("nat")
        self.wire(router, f"{public}/30", internet, f"{far}/30")
        self.wire(home, f"{private}.2/24", router, f"{private}.1/24")
        home.do("ip", "route", "add", "default", "via", f"{private}.1")
        router.do("ip", "route", "add", "default", "via", far)
        router.do("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        router.do("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", f"{private}.0/24",
                  "!", "-d", f"{private}.0/24", "-j", "MASQUERADE")  # fmt: skip
        return router

    def close(self) -> None:
        for space in self._made:
            subprocess.run(["ip", "netns", "del", space.name], check=False)


def run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{args}: {done.stderr}"
    return done.stdout


class SpaceNode(Node):
    """A node that runs in a namespace, once it was moved there; `script` replaces the program."""

    space: Space | None = None
    script: Path | None = None

    def command(self, *args: str | bytes | Path) -> list[str | bytes | Path]:
        command = super().command(*args)
        if self.script is not None and "run" in args:
            at = command.index("-m")
            command[at : at + 2] = [self.script]
        if self.space is not None:
            command = ["ip", "netns", "exec", self.space.name, *command]
        return command

    def move(self, space: Space) -> None:
        """From its next start on."""
        self.space = space
        self.listen = "0.0.0.0:8080"


@contextmanager
def spaces() -> Iterator[Spaces]:
    """Namespaces for one test, or a skip that says why not."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"network namespaces: {reason}")
    made = Spaces()
    try:
        yield made
    finally:
        made.close()
