"""HEADS of a folder that are believed, and the indexes that they name."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from p2pstore.content import (
    Head,
    Keyring,
    Manifest,
    decode_head,
    head_order,
    open_manifest,
    verify_head,
)
from p2pstore.errors import IntegrityError, P2PStoreError
from p2pstore.ids import FolderId
from p2pstore.maintenance.filing import Filer

log = logging.getLogger(__name__)


class KnownHead(NamedTuple):
    """A head that is believed, opened."""

    raw: bytes
    head: Head
    manifest: Manifest

    @property
    def order(self) -> tuple[int, int]:
        return head_order(self.head)


def believed(raw: bytes, filer: Filer, ring: Keyring) -> KnownHead | None:
    """The head, when a device of the group signed it and the index that it names."""
    try:
        signed = decode_head(raw)
        head = verify_head(signed)
        if not filer.trusts(signed.signer, signed.chain):
            raise IntegrityError("its device is not, or no longer, one of the group")
        opened = open_manifest(head.manifest, ring)
        if opened.signer != signed.signer or opened.manifest.kind != "index":
            raise IntegrityError("it does not name an index of its device")
    except P2PStoreError as exc:
        log.warning("A head is not believed: %s", exc)
        return None
    return KnownHead(raw, head, opened.manifest)


def newest_heads(
    raws: Iterable[bytes], filer: Filer, ring: Keyring
) -> dict[FolderId, list[KnownHead]]:
    """The newest believed head of each folder and device, this device's own first."""
    newest: dict[tuple[FolderId, bytes], KnownHead] = {}
    for raw in raws:
        one = believed(raw, filer, ring)
        if one is None:
            continue
        place = (one.head.folder, one.head.device)
        if place not in newest or newest[place].order < one.order:
            newest[place] = one
    found: dict[FolderId, list[KnownHead]] = {}
    for (folder, device), one in sorted(newest.items()):
        of_folder = found.setdefault(folder, [])
        of_folder.insert(0 if device == filer.node_id else len(of_folder), one)
    return found
