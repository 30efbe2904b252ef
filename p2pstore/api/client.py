"""The running node, for asynchronous programs: its control API (http/control.py) as methods.

async with Client() as node:
    key = (await node.upload("photo.jpg")).key
    async with node.open(key) as file:
        first = await file.read(100)
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import quote_from_bytes

import aiohttp
from yarl import URL

from p2pstore.api.reaching import (
    CONNECT_S,
    MAX_LINE,
    error_from,
    find_socket,
    home_path,
    is_home_chosen,
    not_running,
)
from p2pstore.errors import NotRunning, P2PStoreError, Unavailable, UsageError

Told = Callable[[dict[str, Any]], object]
AnyPath = str | bytes | Path

CHUNK: Final = 1 << 20  # bytes that iteration over a file gives at a time, at most
_KEYS: Final = ("p2p:", "p2pc:")


class Upload(NamedTuple):
    key: str  # all that is needed to fetch it
    name: str
    size: int
    expires: float | None  # seconds since the epoch


class Download(NamedTuple):
    path: str
    size: int


class Client:
    """A connection to the node on HOME; `async with` opens it. Calls may run at once.

    Errors are those of p2pstore.errors; NotRunning when there is no node.
    """

    def __init__(self, home: str | Path | None = None) -> None:
        """`home`: else P2PSTORE_HOME, else the user's own node or the system's service."""
        self._home = home_path(home, os.environ)
        self._is_chosen = is_home_chosen(home, os.environ)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        socket = find_socket(self._home, try_system=not self._is_chosen)
        if socket is None:
            raise not_running()
        self._session = aiohttp.ClientSession(
            # Not kept open: the node may be another one by the time of the next call.
            connector=aiohttp.UnixConnector(path=os.fspath(socket), force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- the node's methods -----------------------------------------------------------------------

    async def call(self, method: str, *, progress: Told | None = None, **args: object) -> Any:
        """Any method of http/control.py, as it is said there; its result."""
        async with self._request("POST", method, data=json.dumps(args).encode()) as response:
            async for line in _lines(response):
                news = json.loads(line)
                if "result" in news:
                    return news["result"]
                if "error" in news:
                    raise error_from(news["error"])
                if progress is not None:
                    progress(news.get("progress", {}))
        raise NotRunning("The node stopped before it answered; start it: p2pstore run")

    async def add(
        self,
        folder: AnyPath,
        *,
        wait: bool = False,
        force: bool = False,
        progress: Told | None = None,
        **settings: object,
    ) -> dict[str, Any]:
        """Watch a folder; `settings` by the names of config.FolderSettings.

        With `wait` it returns when each present file is replaced or has a reason to stay, and says
        which.
        """
        path = _absolute(folder)
        done = await self.call("add_folder", dir=path, settings=settings, force=force)
        if wait:
            done = await self.call("wait_folder", progress=progress, dir=path)
        return dict(done)

    async def status(self, paths: Sequence[AnyPath] = ()) -> dict[str, Any]:
        """STATUS of http/control.py; with paths, of these files too."""
        asked = [_absolute(path) for path in paths]
        return dict(await self.call("status", paths=asked))

    async def upload(
        self,
        path: AnyPath,
        *,
        expires_s: float | None = None,
        once: bool = False,
        password: str | None = None,
        carrier: str | None = None,
        progress: Told | None = None,
    ) -> Upload:
        """Store one file in the swarm, or in a carrier by its name."""
        done = await self.call(
            "upload",
            progress=progress,
            path=_absolute(path),
            carrier=carrier,
            expires=expires_s,
            once=once,
            password=password,
        )
        return Upload(done["key"], done["name"], done["size"], done.get("expires"))

    async def download(
        self,
        key: str,
        to: AnyPath | None = None,
        *,
        force: bool = False,
        password: str | None = None,
        carrier: str | None = None,
        progress: Told | None = None,
    ) -> Download:
        """Fetch what lies under a key, into a file or a folder; None: the current one."""
        done = await self.call(
            "download",
            progress=progress,
            key=key,
            to=_absolute(os.getcwd() if to is None else to),
            force=force,
            carrier=carrier,
            password=password,
        )
        return Download(done["path"], done["size"])

    async def hydrate(self, *paths: AnyPath, progress: Told | None = None) -> list[str]:
        """Bring originals back; their paths. All are tried before the first error is raised."""
        asked = [_absolute(path) for path in paths]
        results = (await self.call("hydrate", progress=progress, paths=asked))["results"]
        for one in results:
            if one.get("error"):
                raise error_from(one["error"])
        return [str(one.get("to") or one["path"]) for one in results]

    def open(self, what: AnyPath, *, password: str = "") -> NodeFile:
        """A file by its path (with or without `.f`) or by its key, without bringing it back.

        Use it with `async with`, or await it. `password`: of a key that has one.
        """
        return NodeFile(self, _named(what), password)

    # -- transport --------------------------------------------------------------------------------

    async def _cat(
        self, name: str, start: int, request_id: str, password: str
    ) -> aiohttp.ClientResponse:
        """The open answer with the bytes from `start` on."""
        query = f"path={quote_from_bytes(os.fsencode(name))}&range={start}-"
        if password:
            query += f"&password={quote_from_bytes(password.encode())}"
        headers = {"X-Request-Id": request_id}
        return await self._answer("GET", f"cat?{query}", headers=headers)

    async def _why_cut(self, request_id: str) -> P2PStoreError:
        """The error that ended a body early; it came too late for the HTTP status."""
        try:
            async with self._request("GET", f"cat/failure?id={request_id}") as response:
                error = json.loads(await response.text()).get("error")
        except (P2PStoreError, ValueError):
            error = None
        if error is None:
            return Unavailable("The node stopped in the middle of the file; try again.")
        return error_from(error)

    @asynccontextmanager
    async def _request(
        self, verb: str, method: str, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        response = await self._answer(verb, method, **more)
        try:
            yield response
        except (aiohttp.ClientError, OSError) as exc:
            raise NotRunning("The node stopped before it answered; start it: p2pstore run") from exc
        finally:
            response.close()

    async def _answer(self, verb: str, method: str, **more: Any) -> aiohttp.ClientResponse:
        """The head of an answer that is no error."""
        if self._session is None:
            raise UsageError("The client is not open: use `async with Client() as node`.")
        url = URL(f"http://localhost/api/v1/{method}", encoded=True)
        try:
            response = await self._session.request(verb, url, **more)
        except (aiohttp.ClientError, OSError) as exc:
            raise not_running() from exc
        if response.status == 200:
            return response
        async with response:
            try:
                raise error_from((await response.json())["error"])
            except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as exc:
                raise P2PStoreError(
                    f"The node answered HTTP {response.status}; its log says why."
                ) from exc


class NodeFile:
    """A file to read in: of one task at a time. Positions and sizes are bytes."""

    def __init__(self, client: Client, name: str, password: str) -> None:
        self._client = client
        self._path = name
        self._password = password
        self._at = 0
        self._response: aiohttp.ClientResponse | None = None
        self._request_id = ""
        self._is_open = False
        self._is_closed = False
        self.name = ""
        self.size = 0

    def __await__(self) -> Generator[Any, None, NodeFile]:
        return self._opened().__await__()

    async def __aenter__(self) -> NodeFile:
        return await self._opened()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _opened(self) -> NodeFile:
        if not self._is_open:
            found = await self._client.call("stat", path=self._path, password=self._password)
            self.name, self.size = str(found["name"]), int(found["size"])
            self._is_open = True
        return self

    async def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer only at the end; negative: all that are left."""
        left = self._left() if size < 0 else min(size, self._left())
        parts = []
        while left:
            part = await self._some(left)
            left -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _left(self) -> int:
        if self._is_closed or not self._is_open:
            raise ValueError("The file is not open.")
        return max(0, self.size - self._at)

    async def _some(self, most: int) -> bytes:
        """At least one byte from here on; Unavailable, or what the node says."""
        if self._response is None:
            self._request_id = os.urandom(8).hex()
            self._response = await self._client._cat(
                self._path, self._at, self._request_id, self._password
            )
        try:
            part = await self._response.content.read(most)
        except (aiohttp.ClientError, OSError) as exc:
            self._hang_up()
            raise await self._client._why_cut(self._request_id) from exc
        if not part:
            self._hang_up()
            raise Unavailable("The file is shorter than the node said: it changed; open it again.")
        self._at += len(part)
        return part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks from here to the end, as they come."""
        while left := self._left():
            yield await self._some(min(left, CHUNK))

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file; going elsewhere costs a new request at the next `read`."""
        self._left()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("A position cannot be negative.")
        if base + offset != self._at:
            self._hang_up()
            self._at = base + offset
        return self._at

    async def tell(self) -> int:
        return self._at

    async def aclose(self) -> None:
        self._hang_up()
        self._is_closed = True

    def _hang_up(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines; a last one that was cut off is none."""
    parts: list[bytes] = []
    length = 0
    async for part in response.content.iter_any():
        *ended, rest = part.split(b"\n")
        for line in ended:
            yield b"".join((*parts, line))
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > MAX_LINE:
            raise P2PStoreError("The node's answer is longer than any that it gives.")


def _absolute(path: AnyPath) -> str:
    return os.path.abspath(os.path.expanduser(os.fsdecode(path)))


def _named(what: AnyPath) -> str:
    text = os.fsdecode(what)
    # Capitals and blanks are forgiven: keys travel through chats.
    is_key = isinstance(what, str) and (text.lstrip().lower().startswith(_KEYS) or "://" in text)
    return text if is_key else _absolute(what)
