from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.ids import NodeId, PublicKey, node_id_of
from p2pstore.keys import group_signing_key, public_key_of, recovery_chain
from p2pstore.net import PeerBook
from p2pstore.net import peers as module
from p2pstore.wire import VERSIONS, Hello, PeerRecord, sign_record

KEY = SigningKey(bytes(range(32)))
PUBLIC = PublicKey(bytes(KEY.verify_key))


def record(issued_ms: int, *hosts: str, network: str = "main") -> bytes:
    addresses = tuple((host, 8080) for host in hosts)
    return sign_record(PeerRecord(PUBLIC, network, addresses, issued_ms, "nas"), KEY)


def test_book_comes_back_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    book = PeerBook(path)
    known = book.note_record(record(5, "192.0.2.7"), "main")
    assert known is not None
    book.save()
    again = PeerBook.load(path)
    assert again.peers() == [known]
    assert again.get(known.node_id) == known
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["peers.json"]


def test_absent_book_is_empty(tmp_path: Path) -> None:
    assert PeerBook.load(tmp_path / "peers.json").peers() == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'{"version": 1, "peers": [{"node_id": "AA=="}]}', b"[" * 9999],
)
def test_damaged_book_is_put_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    assert PeerBook.load(path).peers() == []
    assert (tmp_path / "peers.json.damaged").read_bytes() == content


def test_unchanged_book_is_not_written(tmp_path: Path) -> None:
    PeerBook(tmp_path / "peers.json").save()
    assert os.listdir(tmp_path) == []


def test_newer_record_replaces_older_one() -> None:
    book = PeerBook()
    book.note_record(record(5, "192.0.2.7"), "main")
    known = book.note_record(record(6, "192.0.2.8"), "main")
    assert known is not None
    assert known.addresses[0] == ("192.0.2.8", 8080)
    assert book.note_record(record(5, "192.0.2.7"), "main") is None
    assert book.note_record(record(6, "192.0.2.9"), "main") is None


def test_record_of_another_network_or_forged_is_not_kept() -> None:
    book = PeerBook()
    assert book.note_record(record(5, "192.0.2.7", network="other"), "main") is None
    assert book.note_record(record(5, "192.0.2.7")[:-1] + b"x", "main") is None
    assert book.peers() == []


def test_newest_address_comes_first_and_few_are_kept() -> None:
    book = PeerBook()
    node = NodeId(bytes(20))
    for port in range(1, 20):
        book.note_address(node, ("192.0.2.7", port))
    assert [port for _, port in book.addresses(node)] == list(range(19, 11, -1))
    assert book.addresses(NodeId(b"x" * 20)) == ()


def test_strangers_do_not_fill_the_book(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", 10)
    book = PeerBook()
    for number in range(50):
        book.note_address(NodeId(bytes([number]) * 20), ("192.0.2.7", 1))
    assert len(book.peers()) == 10
    assert book.get(NodeId(bytes([49]) * 20)) is not None


def test_forgotten_peer_is_gone() -> None:
    book = PeerBook()
    known = book.note_record(record(5, "192.0.2.7"), "main")
    assert known is not None
    book.forget(known.node_id)
    assert book.get(known.node_id) is None


def test_only_a_group_that_is_proven_is_noted() -> None:
    """Who could claim another's group would be counted, and given room, as a node of that one."""
    root, book = bytes(32), PeerBook()
    group = public_key_of(group_signing_key(root))
    chain = recovery_chain(root, device=KEY, admin=SigningKey(b"a" * 32), name="nas", now_ms=1)

    def noted(group: PublicKey, chain: bytes) -> PublicKey | None:
        hello = Hello("main", VERSIONS, PUBLIC, chain=chain, group=group)
        link: Any = SimpleNamespace(
            node_id=node_id_of(PUBLIC), public_key=PUBLIC, hello=hello, is_dialled=False, role="x"
        )
        return book.note_link(link, 1).group

    assert noted(group, b"") is None
    assert noted(public_key_of(SigningKey(b"o" * 32)), chain) is None
    assert noted(group, chain) == group
    assert noted(public_key_of(SigningKey(b"o" * 32)), chain) == group, "what was proven stays"
