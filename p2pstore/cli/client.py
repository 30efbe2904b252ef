"""The running node over its Unix socket, and the stopped one in this process: one interface.

Only the standard library: the command line must start quickly.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from p2pstore import errors
from p2pstore.api import MAX_LINE, connected, error_from, not_running

if TYPE_CHECKING:
    import asyncio
    import http.client

Progress = Callable[[dict[str, Any]], None]
T = TypeVar("T")

PIECE = 1 << 20


class Node(Protocol):
    """What a command needs of a node, running or not."""

    def call(self, method: str, progress: Progress | None = None, **args: object) -> Any:
        """Return the method's result; P2PStoreError of the fitting class on failure."""

    def cat(
        self, path: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> Iterator[bytes]:
        """Yield the content from `start` up to `end` (exclusive)."""


# -- the running node ------------------------------------------------------------------------


class RunningNode:
    """Calls the node through its socket; one connection a call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(self, method: str, progress: Progress | None = None, **args: object) -> Any:
        with self._request("POST", f"/api/v1/{method}", json.dumps(args).encode()) as response:
            if response.status != 200:
                raise _http_error(response)
            while line := self._line(response):
                news = json.loads(line)
                if "result" in news:
                    return news["result"]
                if "error" in news:
                    raise error_from(news["error"])
                if progress is not None:
                    progress(news.get("progress", {}))
        raise errors.NotRunning("The node stopped before it answered; start it: p2pstore run")

    def cat(
        self, path: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> Iterator[bytes]:
        from http.client import IncompleteRead
        from urllib.parse import quote_from_bytes

        last = "" if end is None else str(end - 1)
        query = f"path={quote_from_bytes(os.fsencode(path))}&range={start}-{last}"
        if password:
            query += f"&password={quote_from_bytes(password.encode())}"
        request_id = os.urandom(8).hex()
        url = f"/api/v1/cat?{query}"
        with self._request("GET", url, headers={"X-Request-Id": request_id}) as response:
            if response.status != 200:
                raise _http_error(response)
            try:
                while piece := response.read1(PIECE):
                    yield piece
            except (IncompleteRead, OSError) as exc:
                raise self._why_cut(request_id) from exc

    def _why_cut(self, request_id: str) -> errors.P2PStoreError:
        """Return the error that ended a body early; it came too late for the HTTP status."""
        try:
            with self._request("GET", f"/api/v1/cat/failure?id={request_id}") as response:
                error = json.loads(response.read(MAX_LINE)).get("error")
        except (errors.P2PStoreError, ValueError):
            error = None
        if error is None:
            return errors.Unavailable("The node stopped in the middle of the file; try again.")
        return error_from(error)

    @contextlib.contextmanager
    def _request(
        self, verb: str, url: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Iterator[http.client.HTTPResponse]:
        import http.client

        with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
            try:
                connection.sock = connected(self._path)
                connection.request(verb, url, body, dict(headers))
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as exc:
                raise not_running() from exc
            with response:
                yield response

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        from http.client import HTTPException

        try:
            return response.readline(MAX_LINE)
        except (OSError, HTTPException):
            return b""


def _http_error(response: http.client.HTTPResponse) -> errors.P2PStoreError:
    try:
        return error_from(json.loads(response.read(MAX_LINE))["error"])
    except (ValueError, KeyError, TypeError):
        return errors.P2PStoreError(f"The node answered HTTP {response.status}; its log says why.")


# -- the stopped node ------------------------------------------------------------------------


class OfflineControl(Protocol):
    """What `p2pstore.node.offline` yields: the same Control that a running node serves."""

    def dispatch(
        self, method: str, args: Mapping[str, Any], progress: Progress
    ) -> Awaitable[Any]: ...

    def cat(
        self, path: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> AsyncIterator[bytes]: ...


class StoppedNode:
    """Works on HOME in this process, under its lock; a context manager."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StoppedNode:
        import asyncio

        from p2pstore import node

        self._runner: asyncio.Runner = self._stack.enter_context(asyncio.Runner())
        context = node.offline(self._home)
        self._control = cast(OfflineControl, self._run(context.__aenter__()))
        self._context = context
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            self._run(self._context.__aexit__(kind, exc, trace))

    def _run(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        coroutine: Coroutine[Any, Any, T] = wait()
        return self._runner.run(coroutine)

    def call(self, method: str, progress: Progress | None = None, **args: object) -> Any:
        tell = progress if progress is not None else (lambda news: None)
        return self._run(self._control.dispatch(method, args, tell))

    def cat(
        self, path: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> Iterator[bytes]:
        content = self._control.cat(path, start, end, password=password)
        while piece := self._run(anext(content, b"")):
            yield piece
