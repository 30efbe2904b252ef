"""A small host of pictures, for the demo and for tests: a process of its own, with bad manners too.

    python -m p2pstore.cli.picturehost --listen 127.0.0.1:0 --dir DIR

The first line that it prints is its address. `POST /upload` takes multipart/form-data and keeps its
first file, which must be a PNG; the answer tells its address, which is ADDRESS/p/NAME:

    --answer json     {"data": {"url": ADDRESS}}
    --answer header   201 with Location, and no body
    --answer text     the address
    --answer page     HTML with the address in a link

`--reencode` does what hosts do to pictures: makes them JPEG, gives them a palette or an alpha
channel, scales them, or compresses them anew and changes no pixel (lossless). It needs Pillow.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

if TYPE_CHECKING:
    from aiohttp import web

MAX_UPLOAD: Final = 32 << 20  # bytes, as at common hosts
MAX_FIELDS: Final = 32  # before the file
MAX_FIELD: Final = 64 * 1024  # bytes of one of them
CHUNK: Final = 64 * 1024

_NAME = re.compile(r"[0-9a-f]{16}\.(png|jpg)")
_SORRY = "<!DOCTYPE html><title>Sorry</title><p>We are over capacity. Come back later."


class Manners(NamedTuple):
    """How the host behaves."""

    answer: str = "json"
    reencode: str | None = None
    fail_every: int = 0  # each so many-th request is answered 503; 0: none
    throttle: int = 0  # bytes a second and request; 0: no limit
    error_page: bool = False  # everything is answered 200, with a page


@click.command()
@click.option("--listen", default="127.0.0.1:0", metavar="HOST:PORT", show_default=True)
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--answer", type=click.Choice(["json", "header", "text", "page"]), default="json")
@click.option(
    "--reencode", type=click.Choice(["jpeg", "palette", "rgba", "scale", "lossless"]), default=None
)
@click.option("--fail-every", type=click.IntRange(0), default=0, metavar="N")
@click.option("--throttle", type=click.IntRange(0), default=0, metavar="BYTES_PER_S")
@click.option("--error-page", is_flag=True)
def main(listen: str, directory: Path, **manners: Any) -> None:
    """Take pictures and serve them, until Ctrl-C."""
    from p2pstore.config import parse_address
    from p2pstore.errors import P2PStoreError

    try:
        address = parse_address(listen)
        directory.mkdir(parents=True, exist_ok=True)
        asyncio.run(_run(address.host, address.port, directory, Manners(**manners)))
    except (P2PStoreError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


async def _run(host: str, port: int, directory: Path, manners: Manners) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serving(host, port, directory, manners) as address:
        print(address, flush=True)
        await ended.wait()


@contextlib.asynccontextmanager
async def serving(host: str, port: int, directory: Path, manners: Manners) -> AsyncIterator[str]:
    """The host at work, in this process; its address."""
    from aiohttp import web

    place = _Host(directory, manners)

    @web.middleware
    async def behaving(request: web.Request, handler: Any) -> web.StreamResponse:
        return await place.behave(request, handler)

    app = web.Application(middlewares=[behaving])
    app.add_routes([web.post("/upload", place.upload), web.get("/p/{name}", place.show)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        real = runner.addresses[0]
        shown = f"[{real[0]}]" if ":" in real[0] else real[0]
        yield f"http://{shown}:{real[1]}"
    finally:
        await runner.cleanup()


class _Host:
    def __init__(self, directory: Path, manners: Manners) -> None:
        self._directory = directory
        self._manners = manners
        self._requests = 0

    async def behave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """The bad manners that have nothing to do with what is asked."""
        from aiohttp import web

        self._requests += 1
        if self._manners.fail_every and self._requests % self._manners.fail_every == 0:
            raise web.HTTPServiceUnavailable(text="not now")
        if self._manners.error_page:
            return web.Response(text=_SORRY, content_type="text/html")
        response: web.StreamResponse = await handler(request)
        return response

    async def upload(self, request: web.Request) -> web.Response:
        picture = await self._received(request)
        suffix = "png"
        if self._manners.reencode:
            picture = await asyncio.to_thread(_reencoded, picture, self._manners.reencode)
            suffix = "jpg" if self._manners.reencode == "jpeg" else "png"
        name = f"{secrets.token_hex(8)}.{suffix}"
        await asyncio.to_thread(self._keep, name, picture)
        return self._answer(f"{request.url.origin()}/p/{name}")

    async def show(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        name = request.match_info["name"]
        path = self._directory / name
        if not _NAME.fullmatch(name) or not path.is_file():
            raise web.HTTPNotFound
        if not self._manners.throttle:
            return web.FileResponse(path)
        picture = await asyncio.to_thread(path.read_bytes)
        response = web.StreamResponse()
        response.content_type = "image/jpeg" if name.endswith("jpg") else "image/png"
        response.content_length = len(picture)
        await response.prepare(request)
        for at in range(0, len(picture), CHUNK):
            chunk = picture[at : at + CHUNK]
            await self._slowly(len(chunk))
            await response.write(chunk)
        return response

    async def _received(self, request: web.Request) -> bytes:
        """The first file of the form."""
        from aiohttp import BodyPartReader, web

        if not request.content_type.startswith("multipart/"):
            raise web.HTTPUnsupportedMediaType
        parts = await request.multipart()
        for _ in range(MAX_FIELDS + 1):
            part = await parts.next()
            if not isinstance(part, BodyPartReader):
                break
            picture = bytearray()
            most = MAX_UPLOAD if part.filename else MAX_FIELD
            while chunk := await part.read_chunk(CHUNK):
                picture += chunk
                if len(picture) > most:
                    raise web.HTTPRequestEntityTooLarge(most, len(picture))
                await self._slowly(len(chunk))
            if part.filename:
                if not picture.startswith(b"\x89PNG"):
                    raise web.HTTPUnsupportedMediaType
                return bytes(picture)
        raise web.HTTPBadRequest(text="there is no file in the form")

    def _keep(self, name: str, picture: bytes) -> None:
        """Under its name when it is whole."""
        temporary = self._directory / f".{name}"
        temporary.write_bytes(picture)
        temporary.rename(self._directory / name)

    def _answer(self, address: str) -> web.Response:
        from aiohttp import web

        match self._manners.answer:
            case "header":
                return web.Response(status=201, headers={"Location": address})
            case "text":
                return web.Response(text=address + "\n")
            case "page":
                page = f'<!DOCTYPE html><p>Thanks. <a href="{address}">Your picture</a>'
                return web.Response(text=page, content_type="text/html")
        return web.json_response({"data": {"url": address}})

    async def _slowly(self, size: int) -> None:
        if self._manners.throttle:
            await asyncio.sleep(size / self._manners.throttle)


def _reencoded(picture: bytes, how: str) -> bytes:
    from PIL import Image

    out = BytesIO()
    with Image.open(BytesIO(picture), formats=("PNG",)) as seen:
        match how:
            case "jpeg":
                seen.save(out, "JPEG", quality=90)
            case "palette":
                seen.quantize(256).save(out, "PNG")
            case "rgba":
                seen.convert("RGBA").save(out, "PNG")
            case "scale":
                seen.resize((max(2, seen.width // 2), max(1, seen.height // 2))).save(out, "PNG")
            case "lossless":
                seen.save(out, "PNG", compress_level=6)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
