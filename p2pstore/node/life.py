"""A node's life: founded, run until it is told to stop, or borrowed for one command.

`run` is the service: it locks HOME, builds the parts, serves the frontends, tells systemd, and ends
safely on SIGTERM or Ctrl-C. `offline` lends the same parts to a command while no node runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from p2pstore import config as settings
from p2pstore import sdnotify
from p2pstore.config import Config
from p2pstore.errors import Busy, P2PStoreError, Unavailable, UsageError
from p2pstore.home import Home
from p2pstore.leases import LeaseKeeper
from p2pstore.maintenance import Rebuilt
from p2pstore.members import (
    confirm,
    default_name,
    found,
    is_begun,
    is_cut_short,
)
from p2pstore.node import recovering
from p2pstore.node.build import Node, Progress
from p2pstore.node.control import NodeControl
from p2pstore.node.recovering import Wishes
from p2pstore.syscalls import keep_freed_memory, raise_descriptor_limit

T = TypeVar("T")

log = logging.getLogger(__name__)

MIN_DESCRIPTORS = 640  # 512 for peers, store and watches, the rest for leased files
STOP_S = 10.0  # SIGTERM ends safely within this
FIRST_LOOK_S = 5.0  # some hundred thousand files; what waits for this node waits no longer
RESTART_S = 0.3  # the answer to the command that caused it goes out first
SWITCH_S = 0.001  # a lease must be given up within 50 ms, whatever Python threads are busy
# A batch makes tens of thousands of objects and no cycles; by default each would be walked over and
# over, a tenth of all CPU time. What cycles there are (exceptions, tasks) waits a little longer.
GARBAGE = (50_000, 20, 50)
KEPT_BYTES = 32 << 20  # of freed memory, for the next window: fresh pages cost more than the cipher
ARENAS = 2  # more of them would each keep as much; allocating is hardly ever done at the same time


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
        home.refuse_when_left()
        if not is_begun(home) and (home.exists or home.was_used):
            raise UsageError(f"{path} already has an identity; p2pstore leave ends it.")
        return found(home, name or default_name(), now=now, random=os.urandom(32))


def confirm_words(path: Path, words: str) -> None:
    """Accept the owner's 24 words; UsageError unless they are those of this HOME's group."""
    confirm(Home(path), words)


def tune() -> None:
    """What a process that runs a node sets for itself, before its first other thread."""
    LeaseKeeper.block_signals()
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory(KEPT_BYTES, ARENAS)
    gc.set_threshold(*GARBAGE)
    gc.freeze()  # what was imported stays
    limit = raise_descriptor_limit()
    if limit < MIN_DESCRIPTORS:
        raise UsageError(
            f"Only {limit} files may be open at once, {MIN_DESCRIPTORS} are needed. "
            "Raise the limit: ulimit -n 4096"
        )


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`; on uvloop where that is installed, which has less work with TLS."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def run(config: Config, path: Path, frontend: MakeFrontend) -> int:
    """Run the node until SIGTERM or SIGINT; returns the exit code."""
    tune()
    home = Home(path)
    with home.locked():
        home.refuse_when_left()
        if is_cut_short(home):
            raise UsageError(f"A recovery into {path} was cut short. Go on: p2pstore recover")
        if not home.exists or is_begun(home):
            if home.was_used and not is_begun(home):
                raise UsageError(
                    f"{path} once had an identity and its keys are missing. Bring device.key and "
                    "group.state back from a copy; a new identity could not read the old files."
                )
            found(home, config.name or default_name(), now=time.time(), random=os.urandom(32))
            log.warning(
                "A new group. Its 24 words are in %s: write them on paper (p2pstore words show),"
                " then: p2pstore words confirm",
                home.path / "words.txt",
            )
        try:
            run_loop(_Running(config, home, frontend).serve())
        except P2PStoreError:
            raise
        except Exception:
            log.exception("The node ended unexpectedly.")
            raise
        return 0


def recover(
    config: Config, path: Path, ask_words: Callable[[], str], wishes: Wishes, progress: Progress
) -> dict[str, Any]:
    """Everything back from the 24 words, into a new HOME; see `recovering.recover`."""
    tune()
    return run_loop(recovering.recover(config, path, ask_words, wishes, progress))


class _Running:
    """The node in the foreground: one life after another, behind the same frontends."""

    def __init__(self, config: Config, home: Home, make: MakeFrontend) -> None:
        self._config = config
        self._home = home
        self._control = NodeControl(self, home, config)
        self._frontend = make(self._control, home.path)
        self._turn = asyncio.Event()  # this life ends
        self._ends = False  # and no other one follows
        self._is_served = False
        self._is_announced = False
        self._rebuild: tuple[Progress, asyncio.Future[Rebuilt]] | None = None

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            while not self._ends:
                self._turn.clear()
                await self._live(await self._make())
        finally:
            await self._frontend.close()

    async def _make(self) -> Node:
        wanted, self._rebuild = self._rebuild, None
        if wanted is None:
            return await asyncio.to_thread(Node, self._home, self._config)
        progress, outcome = wanted
        try:
            node = await asyncio.to_thread(Node, self._home, self._config, rebuild=progress)
        except BaseException as exc:
            outcome.set_exception(exc)
            raise
        if node.rebuilt is not None:
            outcome.set_result(node.rebuilt)
        return node

    async def _live(self, node: Node) -> None:
        async with node.running(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(node.laying.run())]
            try:
                self._control.node = node
                await self._serve_frontends(node)
                tasks.append(group.create_task(self._say_ready(node)))
                await _until(self._turn)
            finally:
                self._control.node = None
                for task in tasks:
                    task.cancel()
                if self._ends:
                    log.info("Stopping.")
                    sdnotify.notify("STOPPING=1")
                    _quit_late()
                    await self._frontend.close()

    async def _serve_frontends(self, node: Node) -> None:
        if not self._is_served:
            self._is_served = True
            ui = self._config.ui
            await self._frontend.start(None if ui is None else (ui.host, ui.port))
        node.ui = self._frontend.ui

    async def _say_ready(self, node: Node) -> None:
        """When whoever opens a placeholder is heard; commands are answered before that."""
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                await node.folders.looked_at()
        except TimeoutError:
            log.info("Large folders are being looked at; until then not every open is noticed.")
        log.info("Listening for other nodes at %s, TCP and UDP.", node.listening)
        if node.ui is not None and not self._is_announced:
            self._is_announced = True
            print(f"Access at: {node.ui}", flush=True)
        sdnotify.notify("READY=1")

    # -- asked by signals and by the control interface --------------------------------------------

    def _signalled(self) -> None:
        if self._ends:
            os._exit(1)  # a second signal quits at once: everything is safe at any instant
        self.stop()

    def stop(self) -> None:
        self._ends = True
        self._turn.set()

    def restart(self) -> None:
        saved = settings.load(self._home.path, os.environ, {})
        self._config = msgspec.structs.replace(
            self._config, offer=saved.offer, offer_friends=saved.offer_friends
        )
        asyncio.get_running_loop().call_later(RESTART_S, self._turn.set)

    async def rebuild(self, progress: Progress) -> Rebuilt:
        if self._rebuild is not None:
            raise Busy("The catalog is being rebuilt already.")
        outcome: asyncio.Future[Rebuilt] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        self._rebuild = (lambda said: _from_thread(loop, progress, said), outcome)
        self._turn.set()
        return await outcome


class _Borrowed:
    """A stopped node's parts, lent to one command: no peers are served, no folder is watched."""

    def __init__(self, config: Config, home: Home) -> None:
        self._config = config
        self._home = home
        self.control = NodeControl(self, home, config)

    async def open(self, rebuild: Progress | None = None) -> Node:
        node = await asyncio.to_thread(Node, self._home, self._config, rebuild=rebuild)
        node.keeper.start()
        node.folders.start(None)
        self.control.node = node
        return node

    async def close(self) -> None:
        node, self.control.node = self.control.node, None
        if node is not None:
            await node.network.connections.close()
            await node.network.transport.close()
            await asyncio.to_thread(node.close)

    def stop(self) -> None:
        """It ends with the command anyway."""

    def restart(self) -> None:
        """The next command begins anew anyway."""

    async def rebuild(self, progress: Progress) -> Rebuilt:
        await self.close()
        loop = asyncio.get_running_loop()
        node = await self.open(lambda said: _from_thread(loop, progress, said))
        if node.rebuilt is None:
            raise Unavailable("The catalog was not rebuilt.")
        return node.rebuilt


def _from_thread(loop: asyncio.AbstractEventLoop, progress: Progress, said: dict[str, Any]) -> None:
    loop.call_soon_threadsafe(progress, said)


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
    LeaseKeeper.block_signals()
    home = Home(path)
    with home.locked():
        lent = _Borrowed(settings.load(path, os.environ, {}), home)
        if home.exists and not is_begun(home):
            await lent.open()
        # Otherwise joining makes the identity; nothing else works without one.
        try:
            yield lent.control
        finally:
            await lent.close()
