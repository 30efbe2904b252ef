"""`leave` brings everything back and takes nothing from others."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nacl.signing import SigningKey

from p2pstore.carriers import FolderConfig
from p2pstore.config import load
from p2pstore.content import signed_list
from p2pstore.errors import Busy, PeerUnreachable, Unavailable, UsageError
from p2pstore.ids import BundleId, NodeId, PublicKey, Tag
from p2pstore.keys import Role
from p2pstore.maintenance import Kept, carrier_id
from p2pstore.node import init_home
from p2pstore.node.build import Node
from p2pstore.node.inviting import join_group
from p2pstore.node.leaving import Leaving, handover, leave
from p2pstore.store import DiskBundles, State, copies, files
from p2pstore.wire import Holding, Unknown
from tests.node.conftest import CONTENTS, Place
from tests.store.making import sealed

HOLDER = NodeId(b"h" * 20)


@pytest.fixture(autouse=True)
def asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "ASK_S", 0.01)


def silent(_: dict[str, Any]) -> None:
    return None


class Linked(NamedTuple):
    """A link, as far as it is asked whose it is."""

    node_id: NodeId


def admit(node: Node, name: str) -> None:
    admin = node.home.admin()
    assert admin is not None
    public = PublicKey(bytes(SigningKey.generate().verify_key))
    node.group.admit(public, Role.DEVICE, name, signer=admin, now=node.clock.wall())


def hold(node: Node, base: Path) -> None:
    """Something of another device is kept here."""
    elsewhere = DiskBundles(base / "elsewhere")
    index, made = sealed(elsewhere)
    lease = int(node.clock.wall() * 1000) + 10**9
    upload = node.held.begin_put(signed_list(index), b"t" * 20, b"", lease)
    for i, block in enumerate(made):
        upload.write(i, block.block)
    upload.finish()
    elsewhere.close()


async def test_everything_comes_back_and_is_watched_no_more(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        assert set(place.contents()) == {f"{name}.f" for name in CONTENTS}
        said: list[dict[str, Any]] = []
        done = await leave(node, None, said.append)
        assert done == {
            "left": True,
            "reasons": [],
            "home": os.fspath(place.home.path),
            "exported": None,
            "files": len(CONTENTS),
            "bytes": sum(map(len, CONTENTS.values())),
        }
        assert place.contents() == CONTENTS
        assert node.folders.all() == []
        assert any(one.get("stage") == "hydrate" for one in said)


async def test_everything_is_written_into_a_directory_instead(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        (place.folder / "link").symlink_to("a.txt")
        node.folders.at(os.fspath(place.folder)).ask_rescan("a link")
        await node.folders.wait(os.fspath(place.folder), silent)
        target = place.base / "out"
        said: list[dict[str, Any]] = []
        done = await leave(node, os.fspath(target), said.append)
        assert done["left"], done
        assert done["exported"] == os.fspath(target)
        out = target / "folder"
        assert os.readlink(out / "link") == "a.txt"
        (out / "link").unlink()
        assert place.contents(out) == CONTENTS
        assert said[-1]["stage"] == "export"


async def test_export_goes_on_where_it_was_stopped_and_overwrites_nothing(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        out = place.base / "out" / "folder"
        out.mkdir(parents=True)
        (out / "a.txt").write_bytes(b"alpha")
        (out / "empty").write_bytes(b"not so empty")
        done = await leave(node, os.fspath(place.base / "out"), silent)
        assert not done["left"]
        (reason,) = done["reasons"]
        assert "is another file" in reason
        assert (out / "empty").read_bytes() == b"not so empty"
        (out / "empty").unlink()
        assert (await leave(node, os.fspath(place.base / "out"), silent))["left"]
        assert place.contents(out) == CONTENTS


async def test_directory_that_would_be_lost_is_refused(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        for target in (place.folder / "out", place.home.path / "out"):
            with pytest.raises(UsageError):
                await leave(node, os.fspath(target), silent)


async def test_too_little_room_is_said_before_anything_moves(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running() as node:
        await place.filled(node)
        monkeypatch.setattr(node.room, "free", lambda _: 1000)
        done = await leave(node, None, silent)
        assert not done["left"]
        assert "are needed on the disk" in done["reasons"][0]
        assert set(place.contents()) == {f"{name}.f" for name in CONTENTS}
        assert len(node.folders.all()) == 1


async def test_it_stays_while_others_have_a_copy_here(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PATIENCE_S", 0.0)
    async with place.running() as node:
        hold(node, place.base)
        done = await leave(node, None, silent)
        assert not done["left"]
        assert "would lose it" in done["reasons"][0]


async def test_it_names_whose_files_would_lose_a_copy(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running() as node:
        admit(node, "nas")
        node.home.confirm_words()
        other = node.group.others()[0]
        monkeypatch.setattr(handover, "PATIENCE_S", 0.0)
        monkeypatch.setattr(node.upkeep.handing, "kept", lambda: {other: Kept(1, 5)})
        done = await leave(node, None, silent)
        assert "the files of nas" in done["reasons"][0]


async def test_what_could_not_be_moved_lets_the_node_stay_a_holder(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PATIENCE_S", 0.0)
    async with place.running() as node:
        hold(node, place.base)
        assert not (await leave(node, None, silent))["left"]
        assert not node.upkeep.handing.is_leaving
        assert node.upkeep.handing.refusal() is None


async def test_it_goes_on_as_soon_as_nothing_of_others_is_here(place: Place) -> None:
    async with place.running() as node:
        hold(node, place.base)
        said: list[dict[str, Any]] = []

        def moved(news: dict[str, Any]) -> None:
            said.append(news)
            if news["stage"] == "move":
                for one in node.held.oldest():
                    node.held.release(one.bundle_id)

        assert (await leave(node, None, moved))["left"]
        assert (said[0]["bundles"], said[0]["bundles_total"]) == (0, 1)


async def test_who_types_it_again_goes_along_and_who_cancels_ends_both(place: Place) -> None:
    async with place.running() as node:
        hold(node, place.base)
        leaving = Leaving()
        both = asyncio.Event()
        seen: list[str] = []

        def first(_: dict[str, Any]) -> None:
            seen.append("first")

        def second(_: dict[str, Any]) -> None:
            seen.append("second")
            both.set()

        async with asyncio.timeout(20):
            one = asyncio.ensure_future(leaving.leave(node, None, first))
            other = asyncio.ensure_future(leaving.leave(node, None, second))
            await both.wait()
            with pytest.raises(Busy):
                await leaving.leave(node, os.fspath(place.base / "out"), silent)
            assert node.upkeep.handing.is_leaving
            assert await leaving.cancel(node)
            for call in (one, other):
                with pytest.raises(Unavailable, match="this node stays"):
                    await call
        assert seen.count("first") >= 1
        assert not node.upkeep.handing.is_leaving
        assert not await leaving.cancel(node)


async def test_a_client_that_goes_away_changes_nothing(place: Place) -> None:
    async with place.running() as node:
        hold(node, place.base)
        leaving = Leaving()
        began = asyncio.Event()
        lead = asyncio.ensure_future(leaving.leave(node, None, lambda _: began.set()))
        async with asyncio.timeout(20):
            await began.wait()
            other = asyncio.ensure_future(leaving.leave(node, None, silent))
            await asyncio.sleep(0)
            other.cancel()
            await asyncio.wait([other])
            assert node.upkeep.handing.is_leaving
            for one in node.held.oldest():
                node.held.release(one.bundle_id)
            assert (await lead)["left"]


async def test_the_end_of_the_node_does_not_withdraw_it(place: Place) -> None:
    async with place.running() as node:
        hold(node, place.base)
        began = asyncio.Event()
        lead = asyncio.ensure_future(Leaving().leave(node, None, lambda _: began.set()))
        async with asyncio.timeout(20):
            await began.wait()
            lead.cancel()
            await asyncio.wait([lead])
        assert (place.home.path / "leaving").exists()
    async with place.running() as node:
        assert node.upkeep.handing.is_leaving


async def test_unconfirmed_words_on_this_disk_keep_it(place: Place) -> None:
    async with place.running() as node:
        admit(node, "nas")
        done = await leave(node, None, silent)
        assert done["reasons"] == [
            "The recovery words are only on this disk. Write them on paper, then: "
            "p2pstore words confirm"
        ]
        node.home.confirm_words()
        assert (await leave(node, None, silent))["left"]


async def test_only_other_key_holder_stays_until_words_are_confirmed(place: Place) -> None:
    async with place.running() as node:
        admit(node, "nas")
        (place.home.path / "words.txt").unlink()  # as on a device that joined
        done = await leave(node, None, silent)
        assert "Beside nas only this device" in done["reasons"][0]
        admit(node, "phone")
        assert (await leave(node, None, silent))["left"]


async def test_who_joined_a_moment_ago_is_asked_for_before_it_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device that let the third one in knows of it; its word may still be on its way here."""
    async with place.running() as node:
        admit(node, "nas")
        (place.home.path / "words.txt").unlink()
        (nas,) = node.group.others()
        links = [Linked(nas), Linked(HOLDER)]
        monkeypatch.setattr(node.network, "devices", lambda: links)

        async def pull(other: NodeId) -> None:
            if other == HOLDER:
                raise PeerUnreachable("it is asleep")
            admit(node, "phone")

        monkeypatch.setattr(node.network, "pull", pull)
        assert (await leave(node, None, silent))["left"]


async def test_folder_that_is_not_there_keeps_it(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        aside = place.folder.rename(place.base / "unplugged")
        node.folders.all()[0].root = None
        done = await leave(node, None, silent)
        assert f"{len(CONTENTS)} of its files are placeholders" in done["reasons"][0]
        aside.rename(place.folder)


async def test_placeholders_in_a_removed_folder_keep_it(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        await node.folders.remove(os.fspath(place.folder), "leave", silent)
        done = await leave(node, None, silent)
        assert "when it was removed" in done["reasons"][0]
        await node.folders.add(os.fspath(place.folder), {}, force=False)
        await node.folders.wait(os.fspath(place.folder), silent)
        assert (await leave(node, None, silent))["left"]
        assert place.contents() == CONTENTS


async def test_file_that_cannot_come_back_keeps_it(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        row = node.catalog.view(lambda db: files.get(db, 1, b"sub/b.bin"))
        assert row is not None
        for bundle_id in node.store.list():
            if node.store.index(bundle_id).header.kind == 1:
                node.store.to_trash(bundle_id)
        done = await leave(node, None, silent)
        assert not done["left"]
        assert any("b.bin" in reason for reason in done["reasons"])
        assert len(node.folders.all()) == 1
        row = node.catalog.view(lambda db: files.get(db, 1, b"sub/b.bin"))
        assert row is not None
        assert row.state == State.PLACEHOLDER


class Holders:
    """What answers RELEASE."""

    def __init__(self, *errors: Exception | None, listed: Sequence[Holding] = ()) -> None:
        self.errors = list(errors)
        self.asked: list[tuple[BundleId, NodeId]] = []
        self.listed = listed

    async def holdings(self, holder: NodeId) -> AsyncIterator[Holding]:
        for holding in self.listed:
            yield holding

    async def release(self, bundle_id: BundleId, holder: NodeId) -> None:
        self.asked.append((bundle_id, holder))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


def give(node: Node) -> list[BundleId]:
    """HOLDER has proved every bundle."""
    numbers = node.catalog.read("SELECT id, bundle_id FROM bundles ORDER BY id")
    for number, _ in numbers:
        copy = copies.Copy(number, HOLDER, 0, 1, 2, b"receipt")
        node.catalog.write(lambda db, copy=copy: copies.put(db, copy)).result()
    return [BundleId(bundle_id) for _, bundle_id in numbers]


async def test_holders_are_asked_to_let_go(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        bundles = give(node)
        node.pusher = holders = Holders(None, Unknown("gone already"))  # type: ignore[assignment]
        said: list[dict[str, Any]] = []
        assert (await leave(node, None, said.append))["left"]
        assert set(holders.asked) >= {(bundle_id, HOLDER) for bundle_id in bundles}
        assert node.catalog.view(copies.holders) == {}
        assert not [one for one in said if "text" in one]


def listed(bundle: bytes, opener: PublicKey) -> Holding:
    return Holding(BundleId(bundle * 32), Tag(b"t" * 20), 1, opener, 0, 1000, 10**13)


async def test_holders_let_go_what_the_catalog_does_not_know(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        admit(node, "nas")
        node.home.confirm_words()
        others = PublicKey(b"o" * 32)
        lists = [listed(b"1", node.group.public), listed(b"2", others)]
        node.pusher = holders = Holders(listed=lists)  # type: ignore[assignment]
        done = await leave(node, None, silent)
        assert done["left"], done
        assert holders.asked == [(lists[0].bundle, node.group.others()[0])]


async def test_absent_holder_is_named_and_no_reason_to_stay(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        assert len(give(node)) > 1
        node.pusher = holders = Holders(PeerUnreachable("it is asleep"))  # type: ignore[assignment]
        said: list[dict[str, Any]] = []
        assert (await leave(node, None, said.append))["left"]
        assert len(holders.asked) == 1, "who is absent is asked once"
        assert next(one["text"] for one in said if "text" in one).endswith("it is asleep")


async def test_bundle_that_another_device_locked_stays_there(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        give(node)
        node.pusher = Holders(Busy("locked"))  # type: ignore[assignment]
        said: list[dict[str, Any]] = []
        assert (await leave(node, None, said.append))["left"]
        assert "keeps 1 bundle for now" in next(one["text"] for one in said if "text" in one)


async def test_export_to_where_nothing_can_be_written_is_said_once(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        (place.base / "file").write_bytes(b"no directory")
        with pytest.raises(UsageError, match=r"/file/out cannot be written \(Not a directory\)"):
            await leave(node, os.fspath(place.base / "file" / "out"), silent)


async def test_an_original_with_the_longest_name_is_exported(place: Place) -> None:
    async with place.running() as node:
        name = "ü" * 127 + "n"
        (place.folder / name).write_bytes(b"long")
        await place.filled(node)
        target = place.base / "out"
        assert (await leave(node, os.fspath(target), silent))["left"]
        assert (target / place.folder.name / name).read_bytes() == b"long"


async def test_who_has_left_is_not_taken_up_again(place: Place) -> None:
    async with place.running() as node:
        assert (await leave(node, None, silent))["left"]
    config = load(place.home.path, {}, {})
    with pytest.raises(UsageError, match="has left"):
        init_home(place.home.path, None, now=0)
    with pytest.raises(UsageError, match="has left"):
        await join_group(place.home, config, {"link": "p2ps://127.0.0.1:9/x#y"}, silent)


async def test_originals_are_exported_to_a_stick_without_hard_links(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    async with place.running() as node:
        await place.filled(node)
        await node.folders.pin([os.fspath(place.folder)], True, silent)
        monkeypatch.setattr(os, "link", no_links)
        target = place.base / "out"
        assert (await leave(node, os.fspath(target), silent))["left"]
        assert place.contents(target / place.folder.name) == CONTENTS


async def test_who_has_shared_something_does_not_leave_unseen(place: Place, tmp_path: Path) -> None:
    """Somebody may have put a file away under its key alone."""
    (tmp_path / "film").write_bytes(b"the only copy")
    async with place.running() as node:
        record = await node.shares.upload(str(tmp_path / "film"), progress=lambda *_: None)
        done = await leave(node, None, silent)
        assert not done["left"]
        assert "film" in done["reasons"][0]
        await node.shares.unshare(record.key)
        assert (await leave(node, None, silent))["left"]


async def test_a_carrier_is_asked_for_what_is_known_to_lie_there(place: Place) -> None:
    async with place.running() as node:
        disk = FolderConfig(path=str(place.base / "disk"))
        await node.network.places.add("usb", disk)
        await place.filled(node)
        await node.folders.add(str(place.folder), {"carriers": ("usb",)}, force=False)
        node.maintenance.copy_soon()
        assert await node.maintenance.replicator.serve(carrier_id("usb"))
        before = len(list((place.base / "disk").glob("*/*")))
        said: list[dict[str, Any]] = []
        assert (await leave(node, None, said.append))["left"]
        assert not [one for one in said if "was not asked" in one.get("text", "")]
        assert before > len(list((place.base / "disk").glob("*/*"))) <= 2, "letters may stay"
