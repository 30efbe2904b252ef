"""The UI port: a read-only status page, /metrics and /healthz.

Any web page in the owner's browser can send requests to this port, and DNS rebinding lets such a
page read the answers under a name of its own. So a request is served only when its Host is an
address or `localhost` (names that nobody else can point here), nothing answers with CORS headers,
and nothing changes state.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from importlib import resources

from aiohttp import web

from p2pstore.clock import Clock
from p2pstore.http import page
from p2pstore.http.control import Control

log = logging.getLogger(__name__)

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(control: Control, clock: Clock, host: str) -> web.Application:
    """Return the application; `host` is the name or address that the owner chose for the UI."""

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        response: web.StreamResponse
        if not is_own_host(request.headers.get("Host", ""), host):
            response = web.Response(
                status=421,
                text="This page answers only to its own address (protection against DNS "
                "rebinding). Open it by the address that `p2pstore status` shows.\n",
            )
        else:
            try:
                response = await handler(request)
            except web.HTTPException as exc:
                response = web.Response(status=exc.status, text=f"{exc.reason}\n")
                response.headers.update({k: v for k, v in exc.headers.items() if k == "Allow"})
        response.headers.update(_HEADERS)
        return response

    async def show(_request: web.Request) -> web.Response:
        try:
            text, status = page.render(await control.status(), clock.wall()), 200
        except Exception:
            log.exception("the status page failed")
            text, status = page.render_trouble("The node cannot tell its status; see its log."), 500
        return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")

    async def metrics(_request: web.Request) -> web.Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return web.Response(body=control.metrics(), headers={"Content-Type": kind})

    async def healthz(_request: web.Request) -> web.Response:
        trouble = control.healthz()
        if trouble is None:
            return web.Response(text="ok\n")
        return web.Response(text=f"{trouble}\n", status=503)

    app = web.Application(middlewares=[guard], client_max_size=0)
    app.router.add_get("/", show)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/style.css", _static("style.css", "text/css"))
    app.router.add_get("/refresh.js", _static("refresh.js", "text/javascript"))
    return app


def _static(name: str, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    text = (resources.files("p2pstore.http") / "static" / name).read_text(encoding="utf-8")

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, charset="utf-8")

    return serve


def is_own_host(header: str, chosen: str) -> bool:
    """Say whether a Host header names an address, localhost or the name that the owner chose."""
    name = header.strip().lower()
    if name.startswith("["):
        name, bracket, rest = name[1:].partition("]")
        if not bracket or not (rest == "" or rest.startswith(":")):
            return False
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if name and name in ("localhost", chosen.lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
