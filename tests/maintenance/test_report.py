"""REPORT: what is said is so, and cannot be changed afterwards."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import PublicKey
from p2pstore.ingest import Author
from p2pstore.keys import Role, encode_chain, issue, public_key_of
from p2pstore.maintenance import Reporter, verify_report
from p2pstore.store import files
from p2pstore.wire import verify_receipt

from .nodes import DAY_MS, Device, Group

ROOT, KEY = SigningKey(b"r" * 32), SigningKey(b"k" * 32)
GROUP = public_key_of(ROOT)


def author() -> Author:
    admin = SigningKey(b"a" * 32)
    upper = issue(
        ROOT, group=GROUP, subject=public_key_of(admin), role=Role.ADMIN, name="here", now_ms=0
    )
    lower = issue(
        admin, group=GROUP, subject=public_key_of(KEY), role=Role.DEVICE, name="here", now_ms=0
    )
    return Author(key=KEY, chain=encode_chain([upper, lower]), group=GROUP)


def made(device: Device, *paths: bytes) -> bytes:
    reporter = Reporter(device.catalog, device.ledger, {})
    rows = [device.catalog.view(lambda db, p=p: files.get(db, device.folder, p)) for p in paths]
    asked = [("/f/" + row.path.decode(), row) for row in rows if row is not None]
    return reporter.make(device.look(), author(), "here", [{"path": "/f"}], asked)


async def test_it_says_who_proved_what_and_when(group: Group) -> None:
    a, b, c = await group.devices(3)
    filed = a.protect("one")
    await a.copy_to(b)
    report, certificate = verify_report(made(a, b"one"))
    now = int(group.clock.wall() * 1000)
    assert certificate.name == "here"
    assert report["made"] == now
    (holder,) = report["holders"]
    assert (holder["id"], holder["bundles"]) == (b.node_id.hex(), 3)
    assert holder["next_audit"] == now + DAY_MS
    (file,) = report["files"]
    assert (file["path"], file["copies"]) == ("/f/one", 1)
    data = next(x for x in file["bundles"] if x["id"] == filed.data.bundle_id.hex())
    assert (data["here"], data["copies"], len(data["holders"])) == (True, 1, 1)
    assert c.node_id.hex() not in json.dumps(report)


async def test_a_receipt_in_it_is_the_holders_own_word(group: Group) -> None:
    a, b = await group.devices(2)
    filed = a.protect("one")
    await a.copy_to(b)
    report, _ = verify_report(made(a, b"one"))
    bundles = report["files"][0]["bundles"]
    data = next(x for x in bundles if x["id"] == filed.data.bundle_id.hex())
    raw = base64.b64decode(data["holders"][0]["receipt"])
    assert verify_receipt(raw, PublicKey(b.public)).bundle == filed.data.bundle_id


async def test_it_goes_through_json_unchanged(group: Group) -> None:
    (a,) = await group.devices(1)
    raw = made(a)
    pretty = json.dumps(json.loads(raw), indent=2, sort_keys=False).encode()
    assert verify_report(pretty) == verify_report(raw)


def changed(raw: bytes, **changes: Any) -> bytes:
    document = json.loads(raw)
    document["report"].update(changes)
    return json.dumps(document).encode()


async def test_a_change_is_noticed(group: Group) -> None:
    (a,) = await group.devices(1)
    raw = made(a)
    with pytest.raises(IntegrityError, match="changed"):
        verify_report(changed(raw, made=1))
    with pytest.raises(IntegrityError, match="changed"):
        verify_report(changed(raw, group_key=bytes(32).hex()))


async def test_a_signer_without_certificate_is_refused(group: Group) -> None:
    (a,) = await group.devices(1)
    document = json.loads(made(a))
    document["chain"] = ""
    with pytest.raises((IntegrityError, FormatError)):
        verify_report(json.dumps(document).encode())


@pytest.mark.parametrize("junk", [b"", b"[]", b"{}", b"[" * 5000, b'{"report": {}}', b"\xff"])
def test_junk_is_no_report(junk: bytes) -> None:
    with pytest.raises(FormatError):
        verify_report(junk)
