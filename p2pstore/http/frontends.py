"""Start and stop the servers of this package: the control socket and the UI port."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from p2pstore.clock import Clock, SystemClock
from p2pstore.errors import PortInUse, UsageError
from p2pstore.http import ui
from p2pstore.http.api import ControlApi
from p2pstore.http.control import Control
from p2pstore.http.place import announce, bind_socket, socket_path, withdraw

log = logging.getLogger(__name__)

UI_TRIES = 50  # ports to try upwards when the wanted one is busy
SHUTDOWN_S = 2.0  # for answers in flight; SIGTERM has 10 s for everything


class Frontends:
    """The running servers. `start` and `close` once each, in the node's loop."""

    def __init__(self, control: Control, home: Path, clock: Clock | None = None) -> None:
        self._control = control
        self._home = home
        self._clock = clock or SystemClock()
        self._runners: list[web.AppRunner] = []
        self._listeners: list[socket.socket] = []
        self.socket: Path | None = None
        self.ui: str | None = None
        """http://HOST:PORT of the UI, None when it is off."""

    async def start(
        self, ui_address: tuple[str, int] | None, env: Mapping[str, str] | None = None
    ) -> None:
        """Serve; `ui_address` None: no UI port. PortInUse, HomeLocked, UsageError."""
        try:
            await self._start_control(os.environ if env is None else env)
            if ui_address is not None:
                await self._start_ui(*ui_address)
        except BaseException:
            await self.close()
            raise

    async def _start_control(self, env: Mapping[str, str]) -> None:
        path = socket_path(self._home, env)
        listener = bind_socket(path)
        self.socket = path
        runner = web.AppRunner(
            ControlApi(self._control).application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_S,
        )
        await self._serve(runner, listener)
        announce(self._home, path)

    async def _start_ui(self, host: str, port: int) -> None:
        listener = bind_next_free(host, port)
        app = ui.application(self._control, self._clock, host)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
        )
        await self._serve(runner, listener)
        bound = listener.getsockname()[1]
        self.ui = f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"
        if port and bound != port:
            log.info("port %d is in use, the status page is at %s", port, self.ui)

    async def _serve(self, runner: web.AppRunner, listener: socket.socket) -> None:
        self._runners.append(runner)
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            self._listeners.append(listener)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Stop serving; calls in flight are cancelled. Harmless when called twice."""
        if self.socket is not None:
            withdraw(self._home, self.socket)
            self.socket = None
        runners, self._runners = self._runners, []
        # asyncio forgets, and leaves open, a connection that it has just accepted when its server
        # closes: so accept no more first, close some turns later, and let transports end.
        for listener in self._listeners:
            if listener.fileno() >= 0:  # else it is closed already
                asyncio.get_running_loop().remove_reader(listener)
        self._listeners.clear()
        await _turns()
        for runner in runners:
            await runner.cleanup()
        await _turns()


async def _turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def bind_next_free(host: str, port: int) -> socket.socket:
    """Return a listening socket on the first free port from `port` upwards (0: any)."""
    try:
        family, _, _, _, _ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        raise UsageError(f"No such address for the status page: {host}.") from exc
    last = port if port == 0 else min(port + UI_TRIES, 65_535)
    for candidate in range(port, last + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, candidate))
            listener.listen(128)
            listener.setblocking(False)
        except OSError as exc:
            listener.close()
            if exc.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise UsageError(f"Cannot listen on {host}:{candidate}: {exc.strerror}.") from exc
        else:
            return listener
    raise PortInUse(f"Ports {port} to {last} are all in use; choose another: --ui {host}:PORT")
