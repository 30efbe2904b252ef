"""A node's life: founded, run until it is told to stop, or borrowed for one command.

`run` is the service: it locks HOME, builds the parts, serves the frontends, tells systemd, and ends
safely on SIGTERM or Ctrl-C. `offline` lends the same parts to a command while no node runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from p2pstore import config as settings
from p2pstore import sdnotify
from p2pstore.config import Config
from p2pstore.errors import UsageError
from p2pstore.home import Home
from p2pstore.leases import LeaseKeeper
from p2pstore.members import confirm, default_name, found, is_begun
from p2pstore.node.build import Node
from p2pstore.node.control import NodeControl
from p2pstore.syscalls import raise_descriptor_limit

log = logging.getLogger(__name__)

STOP_S = 10.0  # SIGTERM ends safely within this
RESTART_S = 0.3  # the answer to the command that caused it goes out first
SWITCH_S = 0.001  # a lease must be given up within 50 ms, whatever Python threads are busy


class Frontend(Protocol):
    """What serves a node to its users; `ui` is where a browser finds it."""

    ui: str | None

    async def start(self, ui_address: tuple[str, int] | None) -> None: ...

    async def close(self) -> None: ...


MakeFrontend = Callable[[NodeControl, Path], Frontend]


def init_home(path: Path, name: str | None, *, now: float) -> str:
    """Found a new identity and group in an empty HOME; returns the 24 words, unconfirmed."""
    home = Home(path)
    with home.locked():
        if not is_begun(home) and (home.exists or home.was_used):
            raise UsageError(f"{path} already has an identity; p2pstore leave ends it.")
        return found(home, name or default_name(), now=now, random=os.urandom(32))


def confirm_words(path: Path, words: str) -> None:
    """Accept the owner's 24 words; UsageError unless they are those of this HOME's group."""
    confirm(Home(path), words)


def run(config: Config, path: Path, frontend: MakeFrontend) -> int:
    """Run the node until SIGTERM or SIGINT; returns the exit code."""
    LeaseKeeper.block_signals()
    sys.setswitchinterval(SWITCH_S)
    raise_descriptor_limit()
    home = Home(path)
    with home.locked():
        if not home.exists or is_begun(home):
            if home.was_used and not is_begun(home):
                raise UsageError(
                    f"{path} once had an identity and its keys are missing. Bring device.key and "
                    "group.state back from a copy; a new identity could not read the old files."
                )
            found(home, config.name or default_name(), now=time.time(), random=os.urandom(32))
            log.warning("A new group. Its 24 words are in %s: write them on paper, then type", path)
            log.warning("    p2pstore words confirm")
        while asyncio.run(_serve(config, home, frontend)):
            log.info("Starting anew.")
            offer = settings.load(path, os.environ, {}).offer
            config = msgspec.structs.replace(config, offer=offer)
        return 0


async def _serve(config: Config, home: Home, make: MakeFrontend) -> bool:
    """One life of the node; True when it is to begin another one."""
    stop = asyncio.Event()
    again = False
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop)

    def restart() -> None:
        nonlocal again
        again = True
        loop.call_later(RESTART_S, stop.set)

    node = await asyncio.to_thread(Node, home, config)
    control = NodeControl(node, home, config, stop=stop.set, restart=restart)
    frontend = make(control, home.path)
    async with node.running():
        try:
            ui = config.ui
            await frontend.start(None if ui is None else (ui.host, ui.port))
            node.ui = frontend.ui
            if frontend.ui is not None:
                print(f"Access at: {frontend.ui}", flush=True)
            log.info("Peers reach this node at %s.", node.listening)
            sdnotify.notify("READY=1")
            await _until(stop)
        finally:
            log.info("Stopping.")
            if not again:
                sdnotify.notify("STOPPING=1")
                _quit_late()
            await frontend.close()
    return again


async def _until(stop: asyncio.Event) -> None:
    """Wait for the end; tell the watchdog meanwhile that the loop turns."""
    watchdog = sdnotify.watchdog_s()
    while True:
        try:
            async with asyncio.timeout(None if watchdog is None else watchdog / 2):
                await stop.wait()
                return
        except TimeoutError:
            sdnotify.notify("WATCHDOG=1")


def _stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)  # a second signal quits at once: everything is safe at any instant
    stop.set()


def _quit_late() -> None:
    """Every step is safe to interrupt, so an end that hangs is cut off rather than waited for."""

    def quit_now() -> None:
        log.warning("Did not end within %d s; the rest is recovered at the next start.", STOP_S)
        os._exit(0)

    timer = threading.Timer(STOP_S - 1.0, quit_now)
    timer.daemon = True
    timer.start()


@contextlib.asynccontextmanager
async def offline(path: Path) -> AsyncIterator[NodeControl]:
    """The parts of a stopped node for one command, under HOME's lock; no peers, no watching."""
    home = Home(path)
    with home.locked():
        config = settings.load(path, os.environ, {})
        if not home.exists or is_begun(home):
            # Joining makes the identity; nothing else works without one.
            yield NodeControl(None, home, config)
            return
        node = Node(home, config)
        async with node.borrowed():
            yield NodeControl(node, home, config)
