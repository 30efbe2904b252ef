"""The service under a live systemd: installed, watched, killed, sandboxed, removed."""

from __future__ import annotations

import pwd
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.nodes import CHECKOUT, names, until
from tests.service.machine import SHARED, USER_BUS, CannotBoot, Machine, booted, why_not

pytestmark = pytest.mark.slow

CONFIG = """listen = "127.0.0.1:0"
ui = "off"
mdns = false
settle = "300ms"
keep_free = "10MB"
allow_volatile_store = true
"""
UNIT = "p2pstore.service"
INSTANCE = "p2pstore@root.service"
STOP_S = 10.0
ROOT_HOME = Path(pwd.getpwuid(0).pw_dir)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"a live systemd: {reason}")
    try:
        with booted(tmp_path_factory.mktemp("machine")) as made:
            yield made
    except CannotBoot as exc:
        pytest.skip(f"a live systemd cannot be booted here: {exc}")


class Owner:
    """Somebody at that machine, with a HOME of p2pstore and a folder; `files`: seen from here."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        outside = machine.shared / name
        (outside / "home").mkdir(parents=True, mode=0o700)
        (outside / "home" / "config.toml").write_text(CONFIG)
        self.files = outside / "Vault"
        self.files.mkdir()
        self.home, self.vault = SHARED / name / "home", SHARED / name / "Vault"
        self.env = (
            USER_BUS,
            f"HOME={ROOT_HOME}",  # that of the manager, not that of the tests
            f"PYTHONPATH={CHECKOUT}",
            f"P2PSTORE_HOME={self.home}",
        )

    def type(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.machine.run(sys.executable, "-m", "p2pstore", *words, env=self.env)

    def ok(self, *words: str | Path) -> str:
        done = self.type(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def ctl(self, *words: str) -> str:
        return self.machine.ok("systemctl", *words, env=self.env)

    def pid(self, unit: str, *scope: str) -> int:
        return int(self.ctl(*scope, "show", unit, "--property=MainPID", "--value"))


def with_program(unit_drop_in: Path, machine: Machine) -> None:
    """The checkout is not installed: its program needs to be told where it lies, and the sandbox
    to show it, which has a /tmp and /var/tmp of its own."""
    settings = (
        "[Service]",
        f"Environment=PYTHONPATH={CHECKOUT}",
        f"BindReadOnlyPaths={CHECKOUT}",
        "RestartSec=100ms",
    )
    lines = "\\n".join(settings) + "\\n"
    machine.ok("mkdir", "-p", unit_drop_in)
    machine.ok("sh", "-c", f"printf '{lines}' > '{unit_drop_in}/test.conf'")


def test_the_users_service(machine: Machine) -> None:
    me = Owner(machine, "user")
    with_program(ROOT_HOME / ".config/systemd/user" / f"{UNIT}.d", machine)
    said = me.ok("service", "install")
    assert "The node runs." in said

    (me.files / "a.txt").write_text("alpha")
    me.ok("add-folder", me.vault, "--yes", "--wait")
    assert names(me.files) == ["a.txt.f"]

    # systemd hears the watchdog's beat, and starts a node that was killed anew.
    first = me.pid(UNIT, "--user")
    watched = me.ctl("--user", "show", UNIT, "--property=WatchdogTimestampMonotonic", "--value")
    assert int(watched) > 0
    machine.ok("kill", "-9", str(first))
    until(lambda: me.type("status").returncode == 0, "the node is back")
    assert me.pid(UNIT, "--user") not in (0, first)
    (me.files / "a.txt.f").read_bytes()
    until(lambda: names(me.files) == ["a.txt"], "the original is back")

    log = machine.ok("journalctl", "--user-unit", UNIT, "-o", "cat", "--no-pager", env=me.env)
    assert re.search(r"^Listening for other nodes at 127\.0\.0\.1:\d+", log, re.MULTILINE)
    assert not re.search(r"^\d\d:\d\d:\d\d", log, re.MULTILINE), "the journal has the time itself"

    began = time.monotonic()
    assert "is removed" in me.ok("service", "uninstall")
    assert time.monotonic() - began < STOP_S
    assert me.type("status").returncode == 6


def test_the_systems_service_writes_only_where_it_may(machine: Machine) -> None:
    me = Owner(machine, "system")
    with_program(Path("/etc/systemd/system") / f"{INSTANCE}.d", machine)
    assert "its own store only" in me.ok("service", "install", "--system")

    (me.files / "a.txt").write_text("alpha")
    refused = me.type("add-folder", me.vault, "--yes")
    assert refused.returncode == 2
    assert "Read-only file system" in refused.stderr
    remedy = re.search(r"sudo .* (service allow \S+ --system)$", refused.stderr.strip())
    assert remedy, refused.stderr
    assert names(me.files) == ["a.txt"]

    me.ok(*remedy[1].split())
    me.ok("add-folder", me.vault, "--yes", "--wait")
    assert names(me.files) == ["a.txt.f"]
    copied = me.type("restore", me.vault / "a.txt", "--to", me.vault.parent / "copy")
    assert copied.returncode == 2
    assert "service allow" in copied.stderr

    began = time.monotonic()
    me.ctl("stop", INSTANCE)
    assert time.monotonic() - began < STOP_S
    result = me.ctl("show", INSTANCE, "--property=Result", "--value")
    assert result.strip() == "success"

    me.ok("service", "uninstall", "--system")
