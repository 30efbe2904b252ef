"""What every command is handed: HOME, the way to the node, and how to talk to the user."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pstore import errors
from p2pstore.api import find_socket, home_path, is_home_chosen, not_running
from p2pstore.cli import client, show
from p2pstore.cli.progress import Meter

if TYPE_CHECKING:
    from p2pstore.config import Config

RunNode = Callable[["Config", Path], int]

INTERRUPTED = 130  # what a shell shows for Ctrl-C

# The gravest first: wrong bytes, damaged ones, our bug, and last what may work in a minute.
_GRAVITY = (4, 3, 1, 2, 6, 5, 0)


def gravest(codes: Sequence[int]) -> int:
    """Return the exit code that stands for several."""
    rank = {code: place for place, code in enumerate(_GRAVITY)}
    return min(codes, key=lambda code: rank.get(code, 2), default=0)


@dataclass
class Shell:
    """One invocation of the command line."""

    home_option: str | None = None
    quiet: bool = False
    verbose: bool = False
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    run_node: RunNode | None = None

    # -- HOME and the node

    @cached_property
    def home(self) -> Path:
        return home_path(self.home_option, self.env)

    @property
    def home_is_chosen(self) -> bool:
        return is_home_chosen(self.home_option, self.env)

    def running(self) -> client.RunningNode | None:
        """Return the running node; None when there is none."""
        # Who names a HOME means that node and no other.
        path = find_socket(self.home, try_system=not self.home_is_chosen)
        return None if path is None else client.RunningNode(path)

    def node(self) -> client.RunningNode:
        """Return the running node; NotRunning when there is none."""
        node = self.running()
        if node is None:
            raise not_running()
        return node

    def need_home(self) -> None:
        """NotRunning when no node ever lived in HOME: nothing is to be made there by a look."""
        from p2pstore.home import Home

        home = Home(self.home)
        if not home.exists and not home.was_used:
            raise errors.NotRunning(
                f"There is no node in {show.path(self.home)}. Start one: p2pstore run"
            )

    @contextlib.contextmanager
    def any_node(self, *, may_be_new: bool = False) -> Iterator[client.Node]:
        """Yield the running node, or the stopped one worked on in this process."""
        node = self.running()
        if node is not None:
            yield node
            return
        if not may_be_new:
            self.need_home()
        with client.StoppedNode(self.home) as stopped:
            yield stopped

    # -- talking

    def result(self, text: str = "") -> None:
        """Print a result, on stdout."""
        print(text)

    def say(self, text: str) -> None:
        """Print a remark that is no result, on stderr; -q leaves it out."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def fail(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def json(self, document: object) -> None:
        print(show.as_json(document))

    def meter(self) -> Meter:
        return Meter(quiet=self.quiet)

    @property
    def asks(self) -> bool:
        """Whether somebody is there to answer questions."""
        return sys.stdin.isatty() and sys.stdout.isatty()

    @contextlib.contextmanager
    def waiting(self, goes_on: str) -> Iterator[Meter]:
        """Show progress; Ctrl-C ends the waiting only and says what goes on and how to undo it."""
        try:
            with self.meter() as meter:
                yield meter
        except KeyboardInterrupt:
            self.fail(f"\nNot waiting any longer. {goes_on}")
            raise click.exceptions.Exit(INTERRUPTED) from None

    def failures(self, results: Sequence[Mapping[str, Any]]) -> int:
        """List what failed among results of many; return the gravest code."""
        codes = [0]
        for one in results:
            error = one.get("error")
            if error:
                path, told = one.get("path", ""), str(error.get("message"))
                named = "" if told.startswith(path) else f"{show.path(path)}: "
                self.fail(named + show.name(told))
                codes.append(int(error.get("code", 1)))
        return gravest(codes)


pass_shell = click.make_pass_decorator(Shell)


def secret(text: str) -> str:
    """Return a secret argument; `-` reads it from standard input (arguments are public)."""
    if text != "-":
        return text
    given = sys.stdin.readline().strip()
    if not given:
        raise errors.UsageError("Nothing came on standard input, where - says it would.")
    return given


def example(*lines: str) -> str:
    """Return the epilog of a command's --help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
