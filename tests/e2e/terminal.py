"""A person at a terminal: a command on a pseudo-terminal of 80 columns, read and typed at."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType

from tests.e2e.nodes import COMMAND_S, Node

COLUMNS, LINES = 80, 24
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\r")


class Terminal:
    """One command of a node; `screen` is all that it has written, without control sequences."""

    def __init__(self, node: Node, *args: str | Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            node.command(*args),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**node.env, "TERM": "xterm-256color"},
            cwd=node.base,
            preexec_fn=take_terminal,
        )
        os.close(slave)
        self._raw = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def screen(self) -> str:
        return _CONTROL.sub("", self._raw.decode(errors="backslashreplace"))

    def until(self, text: str, timeout_s: float = COMMAND_S) -> str:
        """Read until `text` was written; returns the screen."""
        assert self.shows(text, timeout_s), f"{text!r} did not come:\n{self.screen}"
        return self.screen

    def shows(self, text: str, timeout_s: float) -> bool:
        """Read until `text` was written; False when it does not come, or the command ends."""
        deadline = time.monotonic() + timeout_s
        while text not in self.screen and time.monotonic() < deadline:
            if not self._read(0.5):
                break
        return text in self.screen

    def find(self, pattern: re.Pattern[str], timeout_s: float = COMMAND_S) -> re.Match[str]:
        """Read until this was written; what was found."""
        deadline = time.monotonic() + timeout_s
        while (found := pattern.search(self.screen)) is None:
            is_open = time.monotonic() < deadline and self._read(0.5)
            assert is_open or pattern.search(self.screen), f"it did not come:\n{self.screen}"
        return found

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self, until: str) -> None:
        """Ctrl-C, until the screen shows this.

        readline passes over one that comes in the instant before it waits for a key; a person
        presses again.
        """
        for _ in range(10):
            os.write(self._master, b"\x03")
            if self.shows(until, 3.0):
                return
        raise AssertionError(f"Ctrl-C had no effect:\n{self.screen}")

    def end(self, timeout_s: float = COMMAND_S) -> int:
        """Read to the end; returns the exit code, as a shell shows it."""
        deadline = time.monotonic() + timeout_s
        while self._read(0.5):
            assert time.monotonic() < deadline, f"it does not end:\n{self.screen}"
        code = self.process.wait(max(0.1, deadline - time.monotonic()))
        return code if code >= 0 else 128 - code

    def _read(self, timeout_s: float) -> bool:
        """Read what there is; False at the end."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return True
        try:
            piece = os.read(self._master, 65_536)
        except OSError:  # Linux says EIO when the last program has closed its side
            return False
        self._raw += piece
        return bool(piece)
