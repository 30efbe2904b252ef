"""A recovered folder is in use, and a holder comes that knows more of it than was known then."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
from nacl.signing import SigningKey

from p2pstore.content import (
    Head,
    decode_head,
    encode_head,
    head_order,
    open_manifest,
    seal_manifest,
    sign_head,
    verify_head,
)
from p2pstore.folders import Folders
from p2pstore.home import RECOVERING, Followed, Home
from p2pstore.ids import NodeId, PublicKey, node_id_of
from p2pstore.ingest import Author
from p2pstore.keys import Role
from p2pstore.maintenance import Holding, service
from p2pstore.maintenance.filing.rows import Rows
from p2pstore.maintenance.index import HeadOrder
from p2pstore.members import is_recovering
from p2pstore.node import laying, rebuilding
from p2pstore.node.build import Node
from p2pstore.placement import Root
from p2pstore.store import State, folders
from tests.faults.world import copied
from tests.node.conftest import CONTENTS, Place

EARLY, LATE = NodeId(b"e" * 20), NodeId(b"l" * 20)
LATER = {"a.txt": b"alpha, edited", "sub/new.bin": b"new", "odd \n name.txt": b"theirs"}

pytestmark = pytest.mark.slow


class Lost(NamedTuple):
    device: NodeId
    known: bytes  # the head that the recovery began with
    newer: bytes


class Holders:
    """What each of them has of heads; the bundles are here."""

    def __init__(self, heads: dict[NodeId, bytes]) -> None:
        self._heads = heads

    async def get_heads(self, holder: NodeId) -> Any:
        return SimpleNamespace(heads=(self._heads[holder],))

    async def holdings(self, holder: NodeId) -> AsyncIterator[Holding]:
        for holding in ():
            yield holding


@pytest.fixture
async def lost(place: Place) -> Lost:
    """HOME is what `recover` made of the first head of a device that is lost."""
    device = SigningKey.generate()
    public = PublicKey(bytes(device.verify_key))
    async with place.running() as node:
        admin = node.home.admin()
        assert admin is not None
        node.group.admit(public, Role.DEVICE, "laptop", signer=admin, now=node.clock.wall())
        chain = node.group.state.chain_of(public)
        assert chain is not None
        author = Author(key=device, chain=chain, group=node.group.state.group_public)
        index = node.maintenance._index
        node.ingest._author = index._author = lambda: author

        async def nothing() -> None: ...

        node.maintenance.write_heads = nothing  # type: ignore[method-assign]
        await place.filled(node)

        def write(last: HeadOrder | None) -> bytes:
            (row,) = node.catalog.view(folders.watched)
            raw = index.write(row, last)
            assert raw is not None
            return raw

        known = write(None)
        place.write(LATER)
        await settled(node, place)
        newer = write(HeadOrder(*head_order(verify_head(decode_head(known)))))
        group = node.group
    shutil.rmtree(place.folder)
    shutil.rmtree(place.home.path / "heads")
    for path in place.home.path.glob("catalog.sqlite*"):
        path.unlink()
    place.folder.mkdir()
    place.home.make_directory()
    (entry,) = place.home.folders()
    Root.mark(place.folder, entry.folder_id)  # type: ignore[arg-type]
    head = verify_head(decode_head(known))
    manifest = open_manifest(head.manifest, group.ring()).manifest
    raw = seal_manifest(manifest, group.ring().current, group.device, group.chain(), bytes(24))
    own = sign_head(Head(head.folder, group.node_id, 1, 1, raw), group.device, group.chain())
    place.home.write_head(head.folder, group.node_id, encode_head(own))
    follows = (Followed(head.device, *head_order(head)),)
    recovered = msgspec.structs.replace(
        entry, paused=RECOVERING, follows=follows, as_of_ns=manifest.meta.mtime_ns
    )
    place.home.write_folders([recovered])
    (place.home.path / "recovering").write_bytes(b"")
    return Lost(node_id_of(public), known, newer)


@asynccontextmanager
async def running(place: Place, lost: Lost, *connected: NodeId) -> AsyncIterator[Node]:
    """As `run` does it, with these holders."""
    async with place.running() as node:
        node.pusher = Holders({EARLY: lost.known, LATE: lost.newer})  # type: ignore[assignment]
        come(node, *connected)
        task = asyncio.create_task(node.laying.run())
        try:
            yield node
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def come(node: Node, *connected: NodeId) -> None:
    links = [SimpleNamespace(node_id=one) for one in connected]
    node.network.holders = lambda: links  # type: ignore[method-assign, assignment, return-value]
    for one in connected:
        node._linked(one)


async def settled(node: Node, place: Place) -> None:
    (folder,) = node.folders.all()
    folder.ask_rescan("the test asks")
    await node.folders.wait(os.fspath(place.folder), lambda _: None)


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)


def visible(place: Place) -> set[str]:
    """What there is; nothing is opened, which would bring it back."""
    return {
        os.path.relpath(path, place.folder)
        for path in place.folder.rglob("*")
        if path.is_file() and ".p2pstore" not in path.parts
    }


def followed(place: Place) -> Followed:
    (entry,) = place.home.folders()
    (one,) = entry.follows
    return one


async def in_use(node: Node, place: Place) -> None:
    """The first recovery is over, and its owner has been at work since."""
    await until(lambda: not is_recovering(place.home))
    assert visible(place) == {f"{name}.f" for name in CONTENTS}
    await node.folders.hydrate([os.fspath(place.folder / "odd \n name.txt")], lambda _: None)
    (place.folder / "odd \n name.txt").write_bytes(b"mine")
    (place.folder / "empty.f").unlink()
    await until(lambda: row_state(node, "empty") == State.DELETED)
    await settled(node, place)
    await node.maintenance.write_heads()


def row_state(node: Node, name: str) -> str:
    query = "SELECT state FROM files WHERE path=?"
    return str(node.catalog.read(query, (os.fsencode(name),))[0][0])


AFTER = {
    "a.txt": LATER["a.txt"],
    "odd \n name.txt": b"mine",
    "odd \n name.conflict.txt": LATER["odd \n name.txt"],
    "sub/b.bin": CONTENTS["sub/b.bin"],
    "sub/new.bin": LATER["sub/new.bin"],
}


async def is_all_there(node: Node, place: Place, lost: Lost) -> None:
    await until(lambda: followed(place).seq == 2 and not is_recovering(place.home))
    (folder,) = node.folders.all()
    assert not folder.is_paused
    await settled(node, place)
    assert {name.removesuffix(".f") for name in visible(place)} == set(AFTER)
    brought = await node.folders.hydrate([os.fspath(place.folder)], lambda _: None)
    assert [one.error for one in brought if one.error] == []
    assert place.contents() == AFTER


async def test_the_later_files_come_when_who_knows_them_comes(
    place: Place,
    lost: Lost,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    monkeypatch.setattr(service, "QUIET_S", 0.0)
    caplog.set_level("INFO")
    async with running(place, lost, EARLY) as node:
        await in_use(node, place)
        come(node, EARLY, LATE)
        await until(lambda: followed(place).seq == 2)
        (folder,) = node.folders.all()
        await until(lambda: folder.folder_id in node.maintenance.world().clean)
        await is_all_there(node, place, lost)
        assert "3 files came from a later list of laptop." in caplog.messages
    # What the own list says now is enough, also without the late holder's.
    for path in place.home.path.glob("catalog.sqlite*"):
        path.unlink()
    async with running(place, lost) as node:
        known = {os.fsdecode(path) for (path,) in node.catalog.read("SELECT path FROM files")}
        assert known >= set(AFTER)


async def test_when_it_is_known_at_once_there_is_one_recovery(
    place: Place, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    async with running(place, lost, EARLY, LATE):
        await until(lambda: not is_recovering(place.home))
        assert visible(place) == {f"{name}.f" for name in {*CONTENTS, *LATER}}
        assert followed(place).seq == 2


async def test_a_head_that_another_brought_is_followed(
    place: Place, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has it was asked before he had it."""
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    async with running(place, lost, EARLY) as node:
        await in_use(node, place)
        head = verify_head(decode_head(lost.newer))
        node.home.write_head(head.folder, head.device, lost.newer)
        come(node, EARLY)
        await is_all_there(node, place, lost)


@pytest.mark.parametrize("loses_catalog", [False, True])
async def test_an_end_at_any_moment_loses_nothing(
    place: Place, lost: Lost, monkeypatch: pytest.MonkeyPatch, loses_catalog: bool
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    moments: list[Path] = []

    def keep() -> None:
        """What a kill would leave at this moment."""
        moments.append(place.base.with_name(f"moment-{len(moments)}"))
        copied(place.base, moments[-1])

    def after(owner: Any, name: str) -> None:
        done = getattr(owner, name)

        def and_keep(*args: Any, **options: Any) -> Any:
            result = done(*args, **options)
            keep()
            return result

        monkeypatch.setattr(owner, name, and_keep)

    def after_async(owner: Any, name: str) -> None:
        done: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def and_keep(*args: Any, **options: Any) -> Any:
            result = await done(*args, **options)
            keep()
            return result

        monkeypatch.setattr(owner, name, and_keep)

    async with running(place, lost, EARLY) as node:
        await in_use(node, place)
        with monkeypatch.context() as monkeypatch:
            after(laying, "recovering_again")
            after(Home, "change_folder")
            after_async(Folders, "open_again")
            after(Rows, "write_as_judged")
            after_async(Folders, "lay_out")
            after_async(Folders, "recovered")
            after(laying, "recovered")
            come(node, EARLY, LATE)
            await is_all_there(node, place, lost)
    assert len(moments) == 8
    for moment in moments:
        shutil.rmtree(place.base)
        moment.rename(place.base)
        for path in place.home.path.glob("catalog.sqlite*") if loses_catalog else ():
            path.unlink()
        async with running(place, lost, EARLY, LATE) as node:
            await is_all_there(node, place, lost)


async def test_without_the_late_holder_what_was_filed_is_laid_out_all_the_same(
    place: Place, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between filing and laying out; who knows of it does not come again."""
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    moment = place.base.with_name("moment")
    write = Rows.write_as_judged

    def and_keep(*args: Any) -> Any:
        written = write(*args)
        copied(place.base, moment)
        return written

    async with running(place, lost, EARLY) as node:
        await in_use(node, place)
        monkeypatch.setattr(Rows, "write_as_judged", and_keep)
        come(node, EARLY, LATE)
        await until(moment.exists)
        await until(lambda: not is_recovering(place.home))
    shutil.rmtree(place.base)
    moment.rename(place.base)
    assert is_recovering(place.home)
    async with running(place, lost, EARLY) as node:
        await until(lambda: not is_recovering(place.home))
        assert {name.removesuffix(".f") for name in visible(place)} == set(AFTER)
        assert row_state(node, "sub/new.bin") == State.PLACEHOLDER
        await until(lambda: followed(place).seq == 2)  # HOME has the head, and reads it again


async def test_what_its_owner_has_paused_stays_so(
    place: Place, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    async with running(place, lost, EARLY) as node:
        await in_use(node, place)
        before = visible(place)
        folder = await node.folders.pause(os.fspath(place.folder))
        come(node, EARLY, LATE)
        asked = node.maintenance.loops.reports
        await until(lambda: any(r.name == "complete" and r.state == "waits" for r in asked()))
        assert (visible(place), folder.entry.paused) == (before, "paused by its owner")
        assert not await node.laying.open_again(folder.folder_id)
        async with node.laying.filing():
            pass
        await until(lambda: not is_recovering(place.home))
        assert folder.entry.paused == "paused by its owner"


async def test_what_is_being_filed_is_not_brought_back_meanwhile(
    place: Place, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    async with running(place, lost, EARLY) as node:
        await until(lambda: not is_recovering(place.home))
        (folder,) = node.folders.all()
        path = os.fspath(place.folder / "a.txt")
        assert node.folders.hold(folder, [b"a.txt"]) == {b"a.txt"}
        assert node.folders.hold(folder, [b"a.txt"]) == set()
        assert await node.folders.hydrate([path], lambda _: None) == []
        node.folders.let_go(folder, {b"a.txt"})
        (brought,) = await node.folders.hydrate([path], lambda _: None)
        assert brought.error is None
