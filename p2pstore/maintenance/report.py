"""REPORT: how durable everything is, signed by this device: who holds what, proved when.

A JSON document, one object:

    report      what follows; times are ms since the epoch, sizes bytes, ids hex
        format       1
        made         when
        group_key    the group's public key
        node         whose report it is: id and name
        folders      each with path, files, bytes, min_copies, wanted_copies, and copies: number
                     of copies on other nodes -> files that have just so many
        holders      each with id, name, role, bundles, bytes, last_proof and oldest_proof of its
                     copies, lease_until of the first that ends, next_audit by when every copy has
                     had its turn again
        files        asked for by path: each with path, hash (BLAKE3), size, copies, and bundles:
                     id, bytes, here, copies, and holders: id, proved, audited, next_audit,
                     lease_until, receipt (base64; what the holder signed, `wire.verify_receipt`)
    signed_by   the device's public key
    chain       its certificates, from the group's key down (base64, `keys.verify_chain`)
    signature   base64, Ed25519 over CONTEXT, a zero byte, and `report` as JSON with sorted keys and
                no blanks

Whoever has it can check that this device said so then; a receipt in it shows what a holder said.
"""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from p2pstore.content import Kind
from p2pstore.errors import FormatError, IntegrityError, P2PStoreError
from p2pstore.ids import NodeId, PublicKey
from p2pstore.ingest import Author
from p2pstore.keys import Certificate, verify_chain
from p2pstore.maintenance.facts import Ledger
from p2pstore.maintenance.world import World
from p2pstore.policy import AUDITS_A_DAY
from p2pstore.store import BundleRow, BundleState, Catalog, FileRow, blocks, copies

CONTEXT: Final = b"p2pstore 2026 durability report\0"
FORMAT: Final = 1
MAX_REPORT: Final = 64 << 20  # of a million files by path: more is asked for in parts
DAY_MS: Final = 86_400_000
# Half of the audits go to the copies audited the longest ago: see policy.auditing.
TURNS_A_DAY: Final = AUDITS_A_DAY // 2

Json = dict[str, Any]


class Signed(msgspec.Struct, frozen=True):
    report: Json
    signed_by: str
    chain: str
    signature: str


class Reporter:
    def __init__(self, catalog: Catalog, ledger: Ledger, name_of: Mapping[NodeId, str]) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._name_of = name_of

    def make(
        self,
        world: World,
        author: Author,
        name: str,
        folders: Sequence[Json],
        asked: Sequence[tuple[str, FileRow]],
    ) -> bytes:
        """The signed document. `asked`: absolute paths with their rows. Blocks on the catalog."""
        counted = self._ledger.counts(world)
        holders = self._catalog.view(lambda db: _holders(db, world, self._name_of))
        report = {
            "format": FORMAT,
            "made": int(world.now * 1000),
            "group_key": author.group.hex(),
            "node": {"id": author.node_id.hex(), "name": name},
            "folders": list(folders),
            "holders": list(holders.values()),
            "files": self._catalog.view(lambda db: _files(db, asked, counted, holders)),
        }
        return sign(report, author.key, author.chain)


def sign(report: Json, key: SigningKey, chain: bytes) -> bytes:
    signature = key.sign(CONTEXT + _canonical(report)).signature
    signed = Signed(
        report=report,
        signed_by=bytes(key.verify_key).hex(),
        chain=base64.b64encode(chain).decode(),
        signature=base64.b64encode(signature).decode(),
    )
    return msgspec.json.encode(signed)


def verify_report(raw: bytes) -> tuple[Json, Certificate]:
    """What was signed, and the certificate of the device that signed it: whether one knows its
    group is the reader's to say. FormatError, IntegrityError."""
    if len(raw) > MAX_REPORT:
        raise FormatError("That is too long for a durability report.")
    try:
        signed = msgspec.json.decode(raw, type=Signed)
        key = bytes.fromhex(signed.signed_by)
        chain = base64.b64decode(signed.chain, validate=True)
        signature = base64.b64decode(signed.signature, validate=True)
        VerifyKey(key).verify(CONTEXT + _canonical(signed.report), signature)
        group = _group_key(signed.report)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise FormatError("That is no durability report.") from exc
    except BadSignatureError as exc:
        raise IntegrityError("The report was changed after it was signed.") from exc
    try:
        certificate = verify_chain(chain, group, frozenset(), PublicKey(key))
    except P2PStoreError as exc:
        raise IntegrityError(f"Its signer's certificates are wrong: {exc}") from exc
    return signed.report, certificate


def _group_key(report: Json) -> PublicKey:
    if report.get("format") != FORMAT:
        raise FormatError("That is a durability report of another version.")
    return PublicKey(bytes.fromhex(str(report.get("group_key"))))


def _canonical(report: Json) -> bytes:
    return msgspec.json.encode(report, order="sorted")


# -- the catalog -----------------------------------------------------------------------------------


def _holders(
    db: sqlite3.Connection, world: World, name_of: Mapping[NodeId, str]
) -> dict[NodeId, Json]:
    query = (
        "SELECT c.holder, count(*), sum(b.bytes), max(c.proved_at), min(c.proved_at),"
        " min(max(c.proved_at, c.audited_at)), min(c.lease_until)"
        " FROM copies c JOIN bundles b ON b.id=c.bundle WHERE c.state='proved' GROUP BY c.holder"
    )
    found: dict[NodeId, Json] = {}
    for holder, number, size, last, oldest, least, lease in db.execute(query):
        node = NodeId(holder)
        known = world.holders.get(node)
        found[node] = {
            "id": node.hex(),
            "name": name_of.get(node, ""),
            "role": "" if known is None else known.role,
            "bundles": number,
            "bytes": size,
            "last_proof": last,
            "oldest_proof": oldest,
            "next_audit": least + _turn_ms(number),
            "lease_until": lease,
        }
    return found


def _turn_ms(copies_there: int) -> int:
    """How long it takes until each copy at a holder was asked for again."""
    return DAY_MS * max(1, -(-copies_there // TURNS_A_DAY))


def _files(
    db: sqlite3.Connection,
    asked: Sequence[tuple[str, FileRow]],
    counted: Mapping[int, int],
    holders: Mapping[NodeId, Json],
) -> list[Json]:
    return [
        {
            "path": path,
            "hash": bytes(row.hash).hex(),
            "size": row.file_size,
            "copies": copies.count_of_file(db, row.id, counted),
            "bundles": [
                _bundle(db, bundle, counted, holders)
                for bundle in blocks.bundles_of_file(db, row.id)
            ],
        }
        for path, row in asked
    ]


def _bundle(
    db: sqlite3.Connection,
    row: BundleRow,
    counted: Mapping[int, int],
    holders: Mapping[NodeId, Json],
) -> Json:
    return {
        "id": row.bundle_id.hex(),
        "kind": "meta" if row.kind == Kind.META else "data",
        "bytes": row.bytes,
        "here": row.state == BundleState.SEALED,
        "copies": counted.get(row.id, 0),
        "holders": [
            {
                "id": copy.holder.hex(),
                "proved": copy.proved_at,
                "audited": copy.audited_at,
                "next_audit": max(copy.proved_at, copy.audited_at)
                + _turn_ms(int(holders[copy.holder]["bundles"])),
                "lease_until": copy.lease_until,
                "receipt": base64.b64encode(copy.receipt).decode(),
            }
            for copy in copies.of_bundle(db, row.id)
            if copy.state == copies.CopyState.PROVED and copy.holder in holders
        ],
    }
