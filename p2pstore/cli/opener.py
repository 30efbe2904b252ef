"""`open`: hydrate, then hand the original to the desktop.

A double click has no terminal: progress and errors become notifications, a stopped node is started
or worked on in this process, and what is no manifest (a Fortran source, say) goes to the program
that would have opened it without us.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from p2pstore.cli import client, show
from p2pstore.cli.shell import Shell
from p2pstore.errors import FormatError, P2PStoreError

SERVICE = "p2pstore.service"
START_S = 10.0  # until a started service answers
SLOW_S = 2.0  # after that a double click is told that something happens
OUR_HANDLER = "p2pstore"  # desktop ids that begin so are ours
KINDS = ("text/x-fortran", "text/plain")  # what a `.f` is when it is not ours


def open_original(shell: Shell, file: str, *, only_print: bool) -> int:
    """Hydrate `file` and open the original; return the exit code."""
    silent = not only_print and not sys.stderr.isatty()
    try:
        with _node(shell) as node, shell.waiting(_GOES_ON) as meter:
            tell = _Notifier(file, shell.env) if silent else meter
            original = str(node.call("open", tell, path=file)["path"])
    except FormatError:
        if silent and _open_with_next(file, shell.env):
            return 0
        raise
    except P2PStoreError as exc:
        if silent:
            notify("p2pstore", str(exc), shell.env)
        raise
    if only_print:
        _print_path(original)
        return 0
    return _launch(shell, original)


_GOES_ON = "The node goes on hydrating; to undo it: p2pstore dehydrate PATH"


@contextmanager
def _node(shell: Shell) -> Iterator[client.Node]:
    if shell.running() is None and not shell.home_is_chosen:
        # The user's service runs on the default HOME; for another one we work in-process.
        _start_service(shell)
    with shell.any_node() as node:
        yield node


def _start_service(shell: Shell) -> None:
    if shutil.which("systemctl") is None:
        return
    try:
        enabled = _quietly("systemctl", "--user", "is-enabled", SERVICE)
        if not enabled or not _quietly("systemctl", "--user", "start", SERVICE):
            return
    except subprocess.TimeoutExpired:
        return
    deadline = time.monotonic() + START_S
    while shell.running() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def _quietly(*command: str) -> bool:
    done = subprocess.run(command, capture_output=True, timeout=START_S, check=False)
    return done.returncode == 0


def _print_path(path: str) -> None:
    """Print the path for a script byte by byte, for a terminal harmlessly."""
    if sys.stdout.isatty():
        print(show.name(path))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.buffer.flush()


def _launch(shell: Shell, path: str) -> int:
    program = "open" if sys.platform == "darwin" else "xdg-open"
    if not _has_desktop(shell.env) or shutil.which(program) is None:
        shell.result(show.name(path))
        shell.say("The original is there; no desktop is here to open it with.")
        return 0
    _detached(program, path)
    shell.say(f"Opening {show.path(path)}")
    return 0


def _has_desktop(env: Mapping[str, str]) -> bool:
    return sys.platform == "darwin" or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def _detached(*command: str) -> None:
    null = subprocess.DEVNULL
    # The program outlives us; its exit is nobody's concern.
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


def _open_with_next(file: str, env: Mapping[str, str]) -> bool:
    """Open what is no manifest with the handler after ours; False when there is none."""
    if not _has_desktop(env) or shutil.which("gio") is None or shutil.which("gtk-launch") is None:
        return False
    for kind in KINDS:
        listed = subprocess.run(
            ("gio", "mime", kind), capture_output=True, timeout=START_S, check=False, text=True
        ).stdout
        for handler in _handlers(listed):
            _detached("gtk-launch", handler, file)
            return True
    return False


def _handlers(listed: str) -> list[str]:
    """Return the desktop ids that `gio mime` lists, the default first, without ours."""
    words = [word.strip("‘’'\".,:") for word in listed.split()]
    ids = [word for word in words if word.endswith(".desktop")]
    return [one for one in dict.fromkeys(ids) if not one.startswith(OUR_HANDLER)]


class _Notifier:
    """Progress for somebody without a terminal: one notification once it takes long."""

    def __init__(self, file: str, env: Mapping[str, str]) -> None:
        self._file = file
        self._env = env
        self._began = time.monotonic()
        self._told = False

    def __call__(self, news: dict[str, Any]) -> None:
        if self._told or time.monotonic() - self._began < SLOW_S:
            return
        self._told = True
        total = news.get("bytes_total")
        size = f" ({show.size(total)})" if total else ""
        notify("Bringing the original back", f"{os.path.basename(self._file)}{size}", self._env)


def notify(title: str, text: str, env: Mapping[str, str]) -> None:
    """Show a desktop notification when there is a desktop; never fails."""
    if not _has_desktop(env) or shutil.which("notify-send") is None:
        return
    # The body is markup for some servers; names come from outside.
    body = show.name(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    _detached("notify-send", "--app-name=p2pstore", "--", title, body)
