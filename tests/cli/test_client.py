from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from p2pstore.api import error_from, find_socket
from p2pstore.cli.client import RunningNode
from p2pstore.errors import (
    FormatError,
    IntegrityError,
    NotRunning,
    P2PStoreError,
    Unavailable,
    UsageError,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, P2PStoreError),
        (2, UsageError),
        (3, FormatError),
        (4, IntegrityError),
        (5, Unavailable),
        (6, NotRunning),
        (77, P2PStoreError),
        (None, P2PStoreError),
        ("4", P2PStoreError),
    ],
)
def test_code_becomes_its_exception(code, kind):
    error = error_from({"code": code, "message": "why"})
    assert type(error) is kind
    assert str(error) == "why"


def test_socket_named_in_home_is_found(served, home):
    found = find_socket(home, try_system=False)
    assert found is not None
    assert RunningNode(found).call("pause", dir="/x") == {}


def test_no_home_and_no_socket(tmp_path):
    assert find_socket(tmp_path / "none", try_system=False) is None


def test_system_service_is_tried_only_when_home_was_not_chosen(served, home, monkeypatch, tmp_path):
    system = Path((home / "control").read_text().strip())
    monkeypatch.setattr("p2pstore.api.reaching.SYSTEM_SOCKET", system)
    assert find_socket(tmp_path / "other", try_system=False) is None
    assert find_socket(tmp_path / "other", try_system=True) == system


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a socket away")
def test_socket_of_somebody_else_is_not_talked_to(served, home):
    path = Path((home / "control").read_text().strip())
    os.chown(path, 12345, 12345)
    assert find_socket(home, try_system=False) is None


def answering(path: Path, *answers: bytes) -> threading.Thread:
    """A server that gives one raw answer a connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener:
            for answer in answers:
                client, _ = listener.accept()
                with client:
                    client.recv(65_536)
                    client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


@pytest.mark.parametrize(
    "answer",
    [b"", HEAD, HEAD + chunk(b'{"progress":{}}\n'), HEAD + chunk(b'{"progress":{}}\n') + b"5\r\n{"],
    ids=["nothing", "head", "progress", "half a line"],
)
def test_node_that_dies_meanwhile_is_exit_6(tmp_path, answer):
    thread = answering(tmp_path / "s", answer)
    with pytest.raises(NotRunning):
        RunningNode(tmp_path / "s").call("pause")
    thread.join(10)


def test_body_that_ends_early_without_a_reason_is_exit_5(tmp_path):
    thread = answering(tmp_path / "s", HEAD + chunk(b"some bytes"), b"")
    pieces = RunningNode(tmp_path / "s").cat("/v/a")
    assert next(pieces) == b"some bytes"
    with pytest.raises(Unavailable, match="middle of the file"):
        next(pieces)
    thread.join(10)


def test_progress_is_handed_on(served, home):
    def work(args, progress):
        progress({"stage": "scan", "files": 1})
        return "done"

    served.answers["hydrate"] = work
    seen: list[dict] = []
    found = find_socket(home, try_system=False)
    assert found is not None
    assert RunningNode(found).call("hydrate", seen.append, paths=[]) == "done"
    assert seen == [{"stage": "scan", "files": 1}]
