"""Shares from their first byte to their end, whatever happens in between."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from p2pstore.errors import NoRoom, UsageError
from p2pstore.ingest import Ingest
from p2pstore.maintenance.verify import Verifier
from p2pstore.shares import ShareRecord
from p2pstore.store import SHARED, blocks, journal
from tests.maintenance.nodes import Group
from tests.shares.conftest import MakeSharing, Sharing

CONTENT = os.urandom(300_000)


async def test_nothing_is_copied_before_it_can_be_given_away(
    group: Group, sharing: MakeSharing, monkeypatch: Any
) -> None:
    """A holder that was given a bundle without its grant would never give it to a stranger."""
    a, b = await group.devices(2)
    mine = sharing(a)
    protect = Ingest.protect

    def watched(*args: Any, **kwargs: Any) -> Any:
        done = protect(*args, **kwargs)
        made = {row.bundle_id for row in a.ledger.lacking(a.look(), b.node_id, 1000)}
        assert made <= before, "sealed, but nobody may give it yet"
        return done

    before = {row.bundle_id for row in a.ledger.lacking(a.look(), b.node_id, 1000)}
    monkeypatch.setattr(Ingest, "protect", watched)
    record = await mine.upload(CONTENT)
    lacking = {row.bundle_id for row in a.ledger.lacking(a.look(), b.node_id, 1000)}
    for ref in record.bundles:
        assert ref.bundle_id in lacking
        assert mine.shares.grants(ref.bundle_id)


def damage(mine: Sharing, record: ShareRecord) -> None:
    path = mine.home.path / "shares" / f"{record.id}.share"
    path.write_bytes(path.read_bytes()[:-1])


def lose(mine: Sharing, record: ShareRecord) -> None:
    """As when the node was killed in the middle of taking it back."""
    (mine.home.path / "shares" / f"{record.id}.share").unlink()


@pytest.mark.parametrize("once", [False, True])
async def test_an_end_that_was_interrupted_is_finished_at_the_next_start(
    group: Group, sharing: MakeSharing, once: bool
) -> None:
    a, b = await group.devices(2)
    mine = sharing(a)
    record = await mine.upload(CONTENT, once=once)
    await a.replicator.serve(b.node_id)
    lose(mine, record)
    await mine.begin().turn()
    for ref in record.bundles:
        assert not a.bundles.has(ref.bundle_id)
        assert not b.held.has(ref.bundle_id), "a holder would give it to whoever has the key"
    await mine.shares.turn()


async def test_what_cannot_be_read_is_kept(group: Group, sharing: MakeSharing) -> None:
    (a,) = await group.devices(1)
    mine = sharing(a)
    record, other = await mine.upload(CONTENT), await mine.upload(b"other")
    damage(mine, record)
    (mine.home.path / "shares" / "odd.share").mkdir()
    await mine.begin().turn()
    assert mine.shares.all() == [other]
    assert all(a.bundles.has(ref.bundle_id) for ref in record.bundles)


async def test_records_that_cannot_be_listed_end_nothing(
    group: Group, sharing: MakeSharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = await group.devices(1)
    mine = sharing(a)
    record = await mine.upload(CONTENT)

    def fails(path: Any) -> list[str]:
        raise PermissionError(13, "no", os.fspath(path))

    monkeypatch.setattr(os, "listdir", fails)
    with pytest.raises(PermissionError):
        mine.begin()
    assert all(a.bundles.has(ref.bundle_id) for ref in record.bundles)


async def test_a_bundle_that_is_gone_does_not_keep_the_others(
    group: Group, sharing: MakeSharing
) -> None:
    a, b = await group.devices(2)
    mine = sharing(a)
    record = await mine.upload(CONTENT)
    await a.replicator.serve(b.node_id)
    a.bundles.path(record.bundles[1].bundle_id).unlink()
    await mine.shares.unshare(record.key)
    assert not b.held.has(record.bundles[0].bundle_id)
    assert not b.held.has(record.bundles[2].bundle_id)


async def test_a_placeholder_is_not_brought_back_where_there_is_no_room(
    group: Group, sharing: MakeSharing
) -> None:
    (a,) = await group.devices(1)
    mine = sharing(a)
    (mine.path / "film.f").touch()
    mine.placeholder, mine.free = bytes(1000), 1999
    with pytest.raises(NoRoom):
        await mine.shares.upload(os.fspath(mine.path / "film"), progress=lambda *_: None)
    assert mine.asked == [], "not one byte of it"
    mine.free = 2000
    record = await mine.shares.upload(os.fspath(mine.path / "film"), progress=lambda *_: None)
    assert (record.name, record.size) == (b"film", 1000)


async def test_a_share_that_cannot_be_noted_is_none(
    group: Group, sharing: MakeSharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = await group.devices(1)
    mine = sharing(a)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("p2pstore.shares.record.replace_file", full)
    with pytest.raises(NoRoom):
        await mine.upload(CONTENT)
    assert mine.shares.all() == []
    roots = a.catalog.view(lambda db: [*blocks.roots_with(db, SHARED), *journal.all_open(db)])
    assert roots == [], "it is collected"


async def test_what_is_shared_is_whole_when_all_of_it_is_read(
    group: Group, sharing: MakeSharing
) -> None:
    (a,) = await group.devices(1)
    record = await sharing(a).upload(CONTENT)
    verifier = Verifier(a.bundles, a.held, a.catalog, a.ring().dedup)
    for ref in record.bundles:
        looked = verifier.own(ref.bundle_id, read=True)
        assert (looked.blocks > 0, looked.problems) == (True, ())


async def test_what_a_file_repeats_is_stored_once(group: Group, sharing: MakeSharing) -> None:
    (a,) = await group.devices(1)
    mine = sharing(a)
    part = os.urandom(9 << 20)
    record = await mine.upload(part + part)
    assert sum(row.bytes for row in mine.rows(record)) < 11 << 20


async def test_what_cannot_be_shared_is_said_to_be_wrong_usage(
    group: Group, sharing: MakeSharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = await group.devices(1)
    mine = sharing(a)
    path = mine.path / "film"
    path.write_bytes(CONTENT)
    with pytest.raises(UsageError, match="expired already"):
        await mine.shares.upload(os.fspath(path), expires_s=0, progress=lambda *_: None)

    def fails(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(UsageError, match="cannot be read"):
        await mine.shares.upload(os.fspath(path), progress=lambda *_: None)
