"""A machine with a systemd of its own: this system's files, under a layer that vanishes.

systemd runs as PID 1 of a container (systemd-nspawn) whose root is this one's, below an overlay in
memory; nothing that happens there reaches the real files, but for one directory that both share.
Needs root and systemd-container.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.nodes import until

SYSTEMD = Path("/lib/systemd/systemd")
BOOT_S = 20.0
USER_BUS = "XDG_RUNTIME_DIR=/run/user/0"
SHARED = Path(
    "/srv/p2pstore-shared"
)  # in there; not below /tmp, which services have for themselves


def why_not() -> str | None:
    """Why none can be had here."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("systemd-nspawn", "unshare", "nsenter", "loginctl"):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian: systemd-container)"
    return None if SYSTEMD.exists() else "there is no systemd"


class CannotBoot(Exception):
    """The container did not come up; the console says why."""


class Machine:
    def __init__(self, leader: int, shared: Path) -> None:
        self._leader = leader  # PID 1 in there
        self.shared = shared  # what is SHARED in there, as it is called out here

    def run(
        self, *words: str | Path, env: tuple[str, ...] = (), timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """One command as root of that machine."""
        inside = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C"]
        command = [*inside, "env", *env, *map(os.fspath, words)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def ok(self, *words: str | Path, env: tuple[str, ...] = ()) -> str:
        done = self.run(*words, env=env)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@contextlib.contextmanager
def booted(shared: Path) -> Iterator[Machine]:
    """A machine that is up, with a service manager for root; CannotBoot when it is not."""
    with tempfile.TemporaryDirectory(prefix="p2pstore-root-", dir="/var/tmp") as root:
        nspawn = (
            f"mount --bind / {root} && exec systemd-nspawn --quiet --directory={root}"
            f" --volatile=overlay --machine=p2pstore-{os.getpid()} --register=no --keep-unit"
            f" --resolv-conf=off --bind={shared}:{SHARED} --boot systemd.unit=basic.target"
        )
        # Newer systemds want a word before they start where the host has cgroups of version 1.
        env = {**os.environ, "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE": "1"}
        console = shared / "console.log"
        with open(console, "wb") as out:
            outer = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", nspawn],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        try:
            machine = Machine(_leader(outer), shared)
            _wait_until_up(machine)
        except (AssertionError, subprocess.SubprocessError) as exc:
            _end(outer)
            tail = console.read_text(errors="replace").strip().splitlines()[-1:]
            raise CannotBoot(f"{' '.join(tail)} ({exc})") from exc
        try:
            yield machine
        finally:
            machine.run("systemctl", "poweroff")
            _end(outer)


def _leader(outer: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")

    def found() -> int:
        if outer.poll() is not None:
            raise AssertionError("it ended at once")
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return 0

    return until(found, "a PID 1", BOOT_S)


def _wait_until_up(machine: Machine) -> None:
    def is_up() -> bool:
        said = machine.run("systemctl", "is-system-running").stdout.strip()
        return said in ("running", "degraded")

    until(is_up, "systemd", BOOT_S)
    started = machine.run("systemctl", "start", "dbus", "systemd-logind", "user@0")
    assert started.returncode == 0, started.stderr


def _end(outer: subprocess.Popen[bytes]) -> None:
    try:
        outer.wait(10)
    except subprocess.TimeoutExpired:
        outer.send_signal(signal.SIGKILL)
        outer.wait()
