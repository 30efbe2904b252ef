"""A host of pictures as a carrier: pieces are uploaded as PNGs, keys are the pictures' addresses.

An upload is one POST of multipart/form-data: the fields of `form`, then the picture. What comes
back is searched for the address by the rule of the set-up (`address`), which may be relative.

A host promises nothing: it may have re-encoded the picture that it took with a smile. So `put` is
not exact, and whoever calls reads the piece back; `get` notices all that hosts do to pictures.

Addresses come from strangers: from hosts, and in keys that others made. A download never carries
the headers of the set-up (they hold the user's password), follows few redirects, reads no more than
a picture, and goes to public addresses of the internet only: nobody makes us knock at the router or
at a program of this machine. The host of the upload itself may stand anywhere.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from ipaddress import ip_address
from typing import Final
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from p2pstore.carriers.address import MAX_ANSWER, address_in
from p2pstore.carriers.carrier import NotThere, Promises
from p2pstore.carriers.config import PictureHostConfig, check_url, is_harmless
from p2pstore.content import MAX_PICTURE, capacity, decode_picture, encode_picture
from p2pstore.errors import FormatError, IntegrityError, NoRoom, Unavailable, UsageError
from p2pstore.threads import in_thread

REDIRECTS: Final = 5  # of one download
CONNECT_S: Final = 10.0
SILENT_S: Final = 60.0  # a host may think so long about a picture that it took
WHOLE_S: Final = 900.0  # the largest picture over a line of 250 kbit/s
THREADS: Final = 2  # pictures are made and read at hundreds of MB/s each
READ: Final = 256 * 1024

_REFUSALS: Final = {
    400: "does not understand the upload: mend field or form",
    401: "wants other headers: it does not know us",
    403: "wants other headers: it does not let us upload",
    404: "takes no uploads at this url",
    405: "takes no uploads at this url",
    410: "takes no uploads at this url any more",
    413: "does not take pictures of that size: choose a smaller width and height",
    415: "does not take PNG pictures, or wants another field",
    422: "does not understand the upload: mend field or form",
}
_NO_ROOM: Final = 507
_GONE: Final = frozenset({404, 410})


class PictureHost:
    def __init__(self, name: str, config: PictureHostConfig) -> None:
        piece = capacity(config.width, config.height)
        self.promises = Promises(piece, is_exact=False, keeps_names=False, deletes=False)
        self._config = config
        self._own = urlsplit(config.url).hostname or ""
        self._who = f"The carrier {name} ({self._own})"
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pictures")
        self._session: aiohttp.ClientSession | None = None

    def key_of(self, name: str) -> str | None:
        return None

    async def put(self, name: str, content: bytes) -> str:
        if not is_harmless(name):
            raise UsageError(f"{self._who} stores nothing under such a name: {name[:80]!r}.")
        if len(content) > self.promises.piece:
            raise UsageError(f"{self._who} takes at most {self.promises.piece:,} bytes at once.")
        width, height = self._config.width, self._config.height
        picture = await in_thread(self._pool, encode_picture, content, width, height)
        form = aiohttp.FormData(self._config.form)
        field = self._config.field
        form.add_field(field, BytesIO(picture), filename=f"{name}.png", content_type="image/png")
        with self._telling():
            async with self._connected().post(
                self._config.url, data=form, headers=self._config.headers, allow_redirects=False
            ) as answer:
                self._check_taken(answer.status)
                body = await _read(answer, MAX_ANSWER)
                found = address_in(self._config.address, answer.headers, body)
        key = urljoin(self._config.url, found)
        try:
            check_url(key, "the address")
        except UsageError as exc:
            raise Unavailable(f"{self._who} answered something that is no address.") from exc
        return key

    async def get(self, key: str) -> bytes:
        check_url(key, f"{self._who}, a key")
        with self._telling():
            picture = await self._download(key)
        try:
            return await in_thread(self._pool, decode_picture, picture)
        except FormatError as exc:  # a page that says "come back later", with status 200
            raise Unavailable(f"{self._who}: {exc}") from exc
        except IntegrityError as exc:
            raise IntegrityError(f"{self._who}: {exc}") from exc

    async def delete(self, key: str) -> None:
        raise UsageError(f"{self._who} has no way to delete pictures.")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._pool.shutdown(wait=False)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=_Resolver(self._may_reach)),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "p2pstore", "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(
                    total=WHOLE_S, sock_connect=CONNECT_S, sock_read=SILENT_S
                ),
                auto_decompress=False,  # nobody asked for it, and it can be a bomb
            )
        return self._session

    def _may_reach(self, host: str, address: str) -> bool:
        return host == self._own or ip_address(address.partition("%")[0]).is_global

    async def _download(self, url: str) -> bytes:
        for _ in range(1 + REDIRECTS):
            self._check_literal(url)
            async with self._connected().get(
                URL(url, encoded=True), allow_redirects=False
            ) as answer:
                if answer.status in _GONE:
                    raise NotThere("does not have that picture any more")
                if 300 <= answer.status < 400 and "Location" in answer.headers:
                    url = urljoin(url, answer.headers["Location"])
                    check_url(url, "a redirect")
                    continue
                if answer.status != 200:
                    raise Unavailable(f"does not give the picture: {answer.status}")
                return await _read(answer, MAX_PICTURE)
        raise Unavailable("sends us on without end")

    def _check_literal(self, url: str) -> None:
        """An address in numbers is not resolved: it is judged here."""
        host = urlsplit(url).hostname or ""
        try:
            is_allowed = self._may_reach(host, host)
        except ValueError:
            return  # a name: its addresses are judged when it is resolved
        if not is_allowed:
            raise UsageError("names an address that is not public")

    def _check_taken(self, status: int) -> None:
        """An error unless a host with this status took what it was sent."""
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            if self._config.address.lower() == "header:location":
                return
            raise UsageError("takes uploads at another url: it sends us on")
        if status in _REFUSALS:
            raise UsageError(f"{_REFUSALS[status]} ({status})")
        if status == _NO_ROOM:
            raise NoRoom("is full")
        raise Unavailable(f"takes no pictures now ({status})")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong, as ours, and with whom."""
        try:
            yield
        except (Unavailable, UsageError, IntegrityError) as exc:
            raise type(exc)(f"{self._who}: {exc}.") from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise Unavailable(f"{self._who} cannot be reached: {_reason(exc)}.") from exc


def _reason(exc: Exception) -> str:
    """For people: what a library says of a connection shows its inside."""
    match exc:
        case TimeoutError():
            return "it is silent"
        case aiohttp.ClientConnectorCertificateError():
            return "its certificate cannot be trusted"
        case aiohttp.ClientSSLError():
            return "it does not speak TLS, as https wants"
        case aiohttp.ClientConnectorDNSError(strerror=str(why)):
            return why
        case OSError(errno=int(number)) if number:
            return os.strerror(number)
    return str(exc) or repr(exc)


class _Resolver(AbstractResolver):
    """Finds only those addresses of a host that may be reached."""

    def __init__(self, may_reach: Callable[[str, str], bool]) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._may_reach = may_reach

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        allowed = [each for each in found if self._may_reach(host, each["host"])]
        if not allowed:
            raise OSError(errno.EHOSTUNREACH, "it has no public address")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body, if it has at most so many bytes."""
    parts, left = [], most
    if (answer.content_length or 0) > most:
        raise IntegrityError(f"sends more than {most:,} bytes")
    async for part in answer.content.iter_chunked(READ):
        left -= len(part)
        if left < 0:
            raise IntegrityError(f"sends more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)
