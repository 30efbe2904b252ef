from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from p2pstore.sdnotify import notify, watchdog_s


def test_systemd_gets_the_message(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(100) == b"READY=1"


def test_an_abstract_address_is_understood() -> None:
    name = f"p2pstore-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        systemd.settimeout(5)
        assert notify("STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert systemd.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "vsock:2:3"])
def test_nobody_listening_is_no_error(address: str) -> None:
    assert not notify("READY=1", {"NOTIFY_SOCKET": address})
    assert not notify("READY=1", {})


def test_the_watchdogs_patience_is_read() -> None:
    assert watchdog_s({"WATCHDOG_USEC": "120000000"}) == 120.0
    assert watchdog_s({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}) == 120.0


@pytest.mark.parametrize("text", ["", "0", "soon", "-1"])
def test_no_watchdog(text: str) -> None:
    assert watchdog_s({"WATCHDOG_USEC": text}) is None
    assert watchdog_s({}) is None
    assert watchdog_s({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}) is None
