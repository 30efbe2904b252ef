"""The control API as an aiohttp application; control.py is its spec.

Hides how requests become calls of `Control`: bodies are bounded, progress is thinned to what a
slow reader can take (the newest object wins), and work outlives the caller that asked for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from p2pstore.errors import P2PStoreError, UsageError
from p2pstore.http.control import METHODS, WAITS, Control

log = logging.getLogger(__name__)

MAX_BODY = 8 << 20  # some thousand paths; more is no command line
MAX_FAILURES = 64  # answers to "why did my cat end early" that are kept
PROGRESS_EVERY_S = 0.1  # a terminal needs no more

_STATUS_OF = {2: 400, 3: 422, 4: 422, 5: 503, 6: 503}


class ControlApi:
    """Owns the calls in flight: they end with the application, not with their caller."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._calls: set[asyncio.Task[Any]] = set()
        self._failures: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/api/v1/{method}", self._call)
        app.router.add_get("/api/v1/cat", self._cat)
        app.router.add_get("/api/v1/cat/failure", self._failure)
        app.on_shutdown.append(self._stop)
        return app

    async def _stop(self, _app: web.Application) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _call(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        if method not in METHODS:
            return _refused(UsageError(f"This node knows no method {method!r}."), status=404)
        try:
            args = _arguments(await request.read())
        except UsageError as exc:
            return _refused(exc)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
        except ConnectionError:
            return response  # the caller is gone before anything was begun for it
        latest = _Latest()
        call = asyncio.create_task(self._dispatch(method, args, latest))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            async for news in latest:
                await response.write(_line(news))
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError) as gone:
            if method in WAITS:
                call.cancel()
            if isinstance(gone, asyncio.CancelledError):
                raise
        return response

    async def _dispatch(self, method: str, args: Mapping[str, Any], latest: _Latest) -> None:
        try:
            answer = {"result": await self._control.dispatch(method, args, latest.progress)}
        except P2PStoreError as exc:
            log.debug("%s failed: %s", method, exc, exc_info=True)
            answer = {"error": error_of(exc)}
        except asyncio.CancelledError:
            latest.finish({"error": {"code": 5, "message": "The node is stopping; try again."}})
            raise
        except Exception as exc:
            log.exception("%s failed", method)
            answer = {"error": error_of(exc)}
        latest.finish(answer)

    async def _cat(self, request: web.Request) -> web.StreamResponse:
        try:
            query = _query(request)
            start, end = parse_range(query.get("range", "0-"))
            if "path" not in query:
                raise UsageError("cat needs a path.")
            content = self._control.cat(
                query["path"], start, end, password=query.get("password", "")
            )
            # The first piece decides between an answer and an error, so it comes before the head.
            first = await anext(content, b"")
        except Exception as exc:
            if not isinstance(exc, P2PStoreError):
                log.exception("cat failed")
            return _refused(exc)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        try:
            await response.write(first)
            async for piece in content:
                await response.write(piece)
            await response.write_eof()
        except ConnectionError:
            log.debug("a reader of cat went away")
        except Exception as exc:
            log.warning("cat ended early: %s", exc)
            self._remember(request.headers.get("X-Request-Id", ""), error_of(exc))
            # Without the last chunk the reader knows that the body is cut short.
            if request.transport is not None:
                request.transport.abort()
        finally:
            await _close(content)
        return response

    def _remember(self, request_id: str, error: dict[str, Any]) -> None:
        self._failures[request_id[:64]] = error
        while len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    async def _failure(self, request: web.Request) -> web.Response:
        error = self._failures.pop(_query(request).get("id", ""), None)
        return web.Response(text=_dumps({"error": error}), content_type="application/json")


class _Latest:
    """The newest progress object and the end of a call; a slow reader skips what is outdated."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._texts: list[dict[str, Any]] = []
        self._newest: dict[str, Any] | None = None
        self._answer: dict[str, Any] | None = None

    def progress(self, news: dict[str, Any]) -> None:
        if "text" in news:
            # Lines are shown once each, so none may be skipped; a bound all the same.
            self._texts = [*self._texts[-99:], news]
        else:
            self._newest = news
        self._changed.set()

    def finish(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self._ended.set()
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            texts, self._texts = self._texts, []
            newest, self._newest = self._newest, None
            for news in [*texts, *([newest] if newest is not None else [])]:
                yield {"progress": news}
            if self._answer is not None:
                yield self._answer
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), PROGRESS_EVERY_S)


def error_of(exc: BaseException) -> dict[str, Any]:
    """Return the error object of the contract for any exception."""
    if isinstance(exc, P2PStoreError):
        return {"code": exc.exit_code, "message": str(exc) or type(exc).__name__}
    return {
        "code": 1,
        "message": f"Unexpected error in the node ({type(exc).__name__}: {exc}); its log has more.",
    }


def parse_range(text: str) -> tuple[int, int | None]:
    """Return (start, end exclusive or None) of inclusive "A-B" or "A-"; UsageError otherwise."""
    first, dash, last = text.partition("-")
    ok = dash and first.isascii() and first.isdigit()
    if not ok or (last and not (last.isascii() and last.isdigit() and int(last) >= int(first))):
        raise UsageError(f"A range is A-B, two byte offsets, both inclusive; not {text[:40]!r}.")
    return int(first), int(last) + 1 if last else None


def _arguments(body: bytes) -> dict[str, Any]:
    try:
        args = json.loads(body or b"{}")
    except (ValueError, RecursionError) as exc:
        raise UsageError("The request's body is no JSON.") from exc
    if not isinstance(args, dict):
        raise UsageError("The request's body must be a JSON object.")
    return args


def _query(request: web.Request) -> dict[str, str]:
    # aiohttp decodes queries as UTF-8 with replacement; names are bytes and must survive.
    raw = request.raw_path.partition("?")[2]
    pairs = parse_qs(raw, keep_blank_values=True, errors="surrogateescape", max_num_fields=16)
    return {key: values[-1] for key, values in pairs.items()}


def _dumps(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def _line(document: object) -> bytes:
    return _dumps(document).encode() + b"\n"


def _refused(exc: BaseException, status: int | None = None) -> web.Response:
    error = error_of(exc)
    return web.Response(
        text=_dumps({"error": error}),
        status=status or _STATUS_OF.get(error["code"], 500),
        content_type="application/json",
    )


async def _close(content: AsyncIterator[bytes]) -> None:
    close = getattr(content, "aclose", None)
    if close is not None:
        await close()
