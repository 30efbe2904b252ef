from __future__ import annotations

import os
import socket

import pytest

from p2pstore.errors import PortInUse, UsageError
from p2pstore.http.frontends import UI_TRIES, bind_next_free
from p2pstore.http.page import render
from p2pstore.http.ui import is_own_host

NOW = 1_700_000_000.0
EVIL = '<script>alert("x")</script>'


def full(name: str) -> dict:
    """A status with `name` wherever a string from outside can stand."""
    part = {"files": 3, "bytes": 4_000_000, "note": name}
    return {
        "node": {
            "name": name,
            "version": "0.1.0",
            "listen": "0.0.0.0:8080",
            "group": "00" * 32,
            "started": NOW - 3 * 86_400,
            "reachable": "outside",
        },
        "peers": [
            {"id": name, "name": name, "role": name, "connected": True, "proved": NOW - 720},
            {"id": "b" * 40, "name": "", "role": "device", "last_seen": NOW - 90_000},
        ],
        "folders": [
            {
                "path": name,
                "files": 9,
                "bytes": 12e6,
                "paused": True,
                "pending": 2,
                "skipped": 1,
                "skips": {name: 1},
                "safe": part,
                "one": part,
                "here": part,
                "left": {"files": 2, "bytes": 1, "reasons": {name: 2}},
            },
            {"path": name, "missing_since": NOW - 600},
        ],
        "space": {"bundles_bytes": 9_100_000_000},
        "warnings": [{"text": name, "command": name, "owner": True}],
    }


def test_page_escapes_names_everywhere():
    page = render(full(EVIL), NOW)
    assert EVIL not in page
    assert page.count("<script") == 1  # our own
    assert page.count("&lt;script&gt;") >= 12


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "‮gpj", os.fsdecode(b"\xff"), "'\"&<>", "\0"])
def test_page_shows_any_name_and_can_be_encoded(name):
    page = render(full(name), NOW)
    page.encode()
    assert name == "'\"&<>" or name not in page
    assert "'\"&<>" not in page


def test_page_needs_no_field():
    assert "No folder yet" in render({}, NOW)
    assert "No other node yet" in render({"node": {}, "folders": [{}]}, NOW)


def test_page_has_nothing_inline():
    page = render(full("x"), NOW)
    assert " style=" not in page
    assert " onclick" not in page
    assert "http://" not in page
    assert "https://" not in page


async def test_page_is_served_with_a_strict_policy(ui, control):
    control.said = full(EVIL)
    async with ui.get("/") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "Access-Control-Allow-Origin" not in response.headers
        assert EVIL not in await response.text()


@pytest.mark.parametrize("path", ["/style.css", "/refresh.js"])
async def test_style_and_script_come_from_here(ui, path):
    async with ui.get(path) as response:
        assert response.status == 200
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_trouble_in_status_is_a_page_too(ui, control, caplog):
    control.said = RuntimeError("oh")
    async with ui.get("/") as response:
        assert response.status == 500
        assert "see its log" in await response.text()


async def test_metrics(ui):
    async with ui.get("/metrics") as response:
        assert await response.read() == b"p2pstore_files 3\n"


async def test_healthz_tells_trouble(ui, control):
    async with ui.get("/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok\n")
    control.trouble = "an fsync failed; restart and check"
    async with ui.get("/healthz") as response:
        assert response.status == 503
        assert "fsync" in await response.text()


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_but_reading(ui, verb):
    async with ui.request(verb, "/") as response:
        assert response.status == 405


@pytest.mark.parametrize("path", ["/api/v1/status", "/nope", "/../etc/passwd", "/static/"])
async def test_nothing_else_is_here(ui, path):
    async with ui.get(path) as response:
        assert response.status == 404
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8081", "localhost.evil", ""])
async def test_rebound_name_is_refused(ui, host):
    for path in ("/", "/metrics", "/healthz", "/nope"):
        async with ui.get(path, headers={"Host": host}) as response:
            assert response.status == 421
            assert "p2pstore_files" not in await response.text()


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("127.0.0.1:8081", True),
        ("127.0.0.1", True),
        ("localhost:1", True),
        ("LOCALHOST", True),
        ("[::1]:8081", True),
        ("[::1]", True),
        ("192.168.1.5:8081", True),
        ("nas.lan:8081", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::1].evil.example", False),
        ("[::1", False),
        (":80", False),
        ("", False),
    ],
)
def test_own_hosts(host, good):
    assert is_own_host(host, "nas.lan") is good


def test_empty_chosen_host_allows_no_empty_name():
    assert not is_own_host("", "")


def test_next_free_port_is_taken_when_busy():
    with bind_next_free("127.0.0.1", 0) as busy:
        wanted = busy.getsockname()[1]
        with bind_next_free("127.0.0.1", wanted) as other:
            assert wanted < other.getsockname()[1] <= wanted + UI_TRIES


def test_no_free_port_is_an_error(monkeypatch):
    monkeypatch.setattr("p2pstore.http.frontends.UI_TRIES", 0)
    with bind_next_free("127.0.0.1", 0) as busy, pytest.raises(PortInUse, match="--ui"):
        bind_next_free("127.0.0.1", busy.getsockname()[1])


@pytest.mark.parametrize("host", ["999.1.1.1", "203.0.113.77"])
def test_address_that_is_not_ours_is_a_usage_error(host, monkeypatch):
    if not host.startswith("203"):
        # No real name service in tests.
        def no_such_name(*args: object, **kwargs: object) -> None:
            raise socket.gaierror

        monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with pytest.raises(UsageError):
        bind_next_free(host, 0)
