"""From 24 words to a HOME: what holders keep, what is taken over, what is refused."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from mnemonic import Mnemonic

from p2pstore.config import FolderSettings
from p2pstore.content import (
    ChunkList,
    FileMeta,
    Head,
    Manifest,
    decode_head,
    encode_head,
    note_xattrs,
    open_manifest,
    seal_manifest,
    sign_head,
    verify_head,
)
from p2pstore.errors import P2PStoreError, Unavailable, UsageError
from p2pstore.home import RECOVERING, Followed, Home
from p2pstore.ids import FileId, FolderId
from p2pstore.keys import Role, public_key_of, root_of, words_of
from p2pstore.members import (
    Group,
    Recovery,
    found,
    is_cut_short,
    is_recovering,
    join,
    recovered,
)
from p2pstore.members.shelf import open_head
from p2pstore.net import Link

from .conftest import FOLDER, Member, World

OTHER = FolderId(b"o" * 16)


def words_of_home(member: Member) -> str:
    words = member.home.words()
    assert words is not None
    return words


def index_head(
    member: Member,
    folder: FolderId = FOLDER,
    *,
    seq: int = 1,
    written: int = 1,
    path: bytes = b"/nowhere/Vault",
) -> bytes:
    """A head whose manifest is that of an (empty) index, as its device writes it."""
    author, ring = member.group.author(), member.group.ring()
    settings = msgspec.msgpack.encode(FolderSettings(exclude=("*.iso",)))
    name = b"Vault" if folder == FOLDER else b"Other"
    meta = FileMeta(name, 0, 0o600, 0, 0, "", "", written, note_xattrs(path, settings))
    manifest = Manifest(
        FileId(b"i" * 16),
        {member.group.node_id: seq},
        b"",
        meta,
        bytes(32),
        ChunkList(0, (), (), ()),
        member.group.group_id,
        "index",
    )
    raw = seal_manifest(manifest, ring.current, author.key, author.chain, os.urandom(24))
    head = Head(folder, member.group.node_id, 1, seq, raw)
    return encode_head(sign_head(head, author.key, author.chain))


class Attempt:
    """A recovery in a new HOME, and the transport that it asks with."""

    def __init__(self, world: World, words: str, name: str = "new", *, device: str = "new") -> None:
        self.home = world.home(name)
        self.world = world
        self.recovery = Recovery(
            self.home, words, name=device, network="main", now=world.clock.wall()
        )
        self.transport = world.transport(
            self.recovery.device, hello=self.recovery.hello, role_of=self.recovery.role_of
        )

    async def ask(self, member: Member) -> bool:
        link: Link = await self.transport.dial(*member.address, expect=member.group.node_id)
        return await self.recovery.ask(link)

    def place(self, folder: FolderId, name: str, was: str) -> Path:
        return self.world.root / "back" / name

    def settle(self) -> Group:
        self.recovery.settle(self.place)
        return Group(self.home)


async def laptop_and_nas(world: World) -> tuple[Member, Member]:
    """What the laptop published lies with the nas, too."""
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    await laptop.exchange.publish(index_head(laptop))
    await laptop.exchange.push([await laptop.dial(nas)])
    return laptop, nas


async def test_words_and_a_holder_make_a_device_with_all_keys(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    attempt = Attempt(world, words_of_home(laptop))
    assert await attempt.ask(nas)
    group = attempt.settle()
    assert group.group_id == laptop.group.group_id
    assert group.ring().dedup == laptop.group.ring().dedup
    assert group.ring().epochs.keys() == laptop.group.ring().epochs.keys()
    assert group.state.generation == laptop.group.state.generation + 1
    assert attempt.home.words_confirmed
    assert attempt.home.words() is None
    admin = attempt.home.admin()
    assert admin is not None
    assert group.state.role_of(public_key_of(admin)) is Role.ADMIN
    assert nas.group.judge(group.public, group.chain()), "the holder believes it"


async def test_two_devices_do_not_get_one_name(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    attempt = Attempt(world, words_of_home(laptop), device="nas")
    await attempt.ask(nas)
    group = attempt.settle()
    assert group.name_of(group.node_id) == "nas-2"
    assert group.name_of(nas.group.node_id) == "nas"


async def test_the_others_stay_members_and_take_the_new_state(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(nas)
    group = attempt.settle()
    assert {laptop.group.node_id, nas.group.node_id} == set(group.others())
    assert nas.group.adopt(group.state)
    assert not nas.group.is_expelled
    assert nas.group.name_of(group.node_id) == "new"


async def test_a_folder_is_taken_over_with_its_settings_and_waits(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(nas)
    group = attempt.settle()
    (folder,) = attempt.home.folders()
    assert (folder.folder_id, folder.name, folder.paused) == (FOLDER, "Vault", RECOVERING)
    assert folder.settings.exclude == ("*.iso",)
    marker = Path(folder.path) / ".p2pstore" / "folder"
    assert marker.read_text().strip() == FOLDER.hex()
    (raw,) = attempt.home.heads()
    head = verify_head(decode_head(raw))
    assert (head.device, head.incarnation, head.seq) == (group.node_id, 1, 1)
    assert open_manifest(head.manifest, group.ring()).manifest.kind == "index"
    assert is_recovering(attempt.home)
    recovered(attempt.home)
    assert not is_recovering(attempt.home)


async def test_the_last_index_wins_whichever_device_wrote_it(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    old = await world.device(laptop, "old")
    await nas.exchange.push([await nas.dial(old)])
    await nas.exchange.pull(await nas.dial(laptop))
    await old.exchange.publish(index_head(old, written=9, path=b"/newest"))
    await old.exchange.push([await old.dial(nas)])
    attempt = Attempt(world, words_of_home(laptop))
    asked: list[str] = []
    await attempt.ask(nas)
    attempt.recovery.settle(lambda _, name, was: asked.append(was) or world.root / "b" / name)
    assert asked == ["/newest"]


async def test_all_heads_that_were_heard_of_a_folder_are_remembered(world: World) -> None:
    """What a late holder has beyond them is news."""
    laptop, nas = await laptop_and_nas(world)
    old = await world.device(laptop, "old")
    await old.exchange.publish(index_head(old, seq=3, written=9))
    await old.exchange.push([await old.dial(nas)])
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(nas)
    attempt.settle()
    (folder,) = attempt.home.folders()
    assert set(folder.follows) == {
        Followed(laptop.group.node_id, 1, 1),
        Followed(old.group.node_id, 1, 3),
    }
    assert folder.as_of_ns == 9, "of the head that was chosen"


def test_a_list_of_folders_without_anybody_to_follow_is_read(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "folders.json").write_text(
        '[{"folder_id": "ZmZmZmZmZmZmZmZmZmZmZg==", "path": "/v", "name": "v", "settings": {}}]'
    )
    (folder,) = home.folders()
    assert (folder.follows, folder.as_of_ns) == ((), 0)


async def test_of_one_device_its_own_count_decides_not_a_clock(world: World) -> None:
    """The clock was set back between the two indexes."""
    laptop, nas = await laptop_and_nas(world)
    old = await world.device(laptop, "old")
    await old.exchange.publish(index_head(old, seq=1, written=9, path=b"/older"))
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(old)
    await nas.exchange.pull(await nas.dial(laptop))
    await old.exchange.publish(index_head(old, seq=2, written=5, path=b"/newer"))
    await old.exchange.push([await old.dial(nas)])
    await attempt.ask(nas)
    attempt.recovery._answered.clear()
    asked: list[str] = []
    attempt.recovery.settle(lambda _, name, was: asked.append(was) or world.root / "b" / name)
    assert asked == ["/newer"]


async def test_what_brings_nothing_new_is_no_news(world: World) -> None:
    """Who seeks goes on after news: the same, told by ever more nodes, must not hold it up."""
    laptop, nas = await laptop_and_nas(world)
    attempt = Attempt(world, words_of_home(laptop))
    assert await attempt.ask(nas)
    told = attempt.recovery.news
    assert told > 0
    assert await attempt.ask(laptop)
    assert attempt.recovery.news == told


async def test_heads_of_outsiders_are_not_even_kept(world: World) -> None:
    """They cost whoever makes them nothing, and memory here."""
    laptop, _ = await laptop_and_nas(world)
    stranger = await world.founder("stranger")
    attempt = Attempt(world, words_of_home(laptop))
    with pytest.raises(P2PStoreError):
        attempt.recovery._keep(open_head(index_head(stranger)))
    assert not attempt.recovery._heads


async def test_a_folder_of_a_device_that_is_there_is_left_to_it(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    await nas.exchange.publish(index_head(nas, OTHER))
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(nas)
    done = attempt.recovery.settle(attempt.place)
    assert [folder.name for folder in done.folders] == ["Vault"]
    assert done.left == (("Other", "nas"),)
    assert done.as_of == (1e-9,)


async def test_an_older_state_does_not_hide_the_newer(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    thief = await world.device(laptop, "thief")
    admin = laptop.home.admin()
    assert admin is not None
    laptop.group.revoke(thief.group.public, signer=admin, now=world.clock.wall())
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(laptop)
    assert attempt.recovery.state is not None
    newest = attempt.recovery.state.order
    await attempt.ask(nas)
    assert attempt.recovery.state.order == newest
    group = attempt.settle()
    assert group.state.role_of(thief.group.public) is Role.STRANGER


async def test_heads_of_a_revoked_device_are_not_taken_over(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    thief = await world.device(laptop, "thief")
    await thief.exchange.publish(index_head(thief, OTHER))
    await laptop.exchange.pull(await laptop.dial(thief))
    admin = laptop.home.admin()
    assert admin is not None
    laptop.group.revoke(thief.group.public, signer=admin, now=world.clock.wall())
    await laptop.exchange.push([await laptop.dial(nas)])
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(nas)
    assert [f.folder_id for f in attempt.recovery.settle(attempt.place).folders] == [FOLDER]


async def test_a_friend_who_reads_nothing_is_enough(world: World) -> None:
    laptop = await world.founder()
    found(world.home("anna"), "anna", now=world.clock.wall(), random=b"a" * 32)
    anna = await Member(world, world.home("anna")).start()
    link = laptop.invitations.create("friend").link
    await join(
        anna.home,
        link,
        device=anna.group.device,
        name="anna",
        network="main",
        dial=anna.dial_to,
        group=anna.group,
        kept=anna.exchange.kept,
    )
    await laptop.exchange.publish(index_head(laptop))
    (told,) = await laptop.exchange.push([await laptop.dial(anna)])
    assert told.holder == anna.group.node_id
    attempt = Attempt(world, words_of_home(laptop))
    assert await attempt.ask(anna)
    assert attempt.settle().group_id == laptop.group.group_id
    assert [folder.name for folder in attempt.home.folders()] == ["Vault"]


# -- what cannot be ------------------------------------------------------------------------------


async def test_nobody_of_the_group_is_no_success(world: World) -> None:
    laptop = await world.founder()
    attempt = Attempt(world, words_of(bytes(32)))
    assert not await attempt.ask(laptop)
    with pytest.raises(Unavailable):
        attempt.recovery.settle(attempt.place)
    assert not attempt.home.exists


async def test_the_wrong_word_is_named_by_whom_was_met(world: World) -> None:
    laptop = await world.founder()
    words = words_of_home(laptop)
    wrong = another_first_word(words)
    attempt = Attempt(world, wrong)
    assert not await attempt.ask(laptop)
    said = attempt.recovery.why_nobody(wrong)
    assert said == f"Word 1, {wrong.split()[0]!r}, must be {words.split()[0]!r}."


def another_first_word(words: str) -> str:
    """24 words that belong together, and differ in the first."""
    first, rest = words.split(" ", 1)
    for other in Mnemonic("english").wordlist:
        trial = f"{other} {rest}"
        with suppress(UsageError):
            root_of(trial)
            if other != first:
                return trial
    raise AssertionError("one word in 256 has a good checksum")


async def test_a_home_with_an_identity_is_not_touched(world: World) -> None:
    laptop = await world.founder()
    with pytest.raises(UsageError, match="already has an identity"):
        Attempt(world, words_of_home(laptop), "laptop")


@pytest.mark.parametrize("left", ["folders.json", "catalog.sqlite", "incarnation"])
async def test_a_home_that_lost_its_keys_is_not_touched(world: World, left: str) -> None:
    """What is left of it may be all that says where files are."""
    laptop = await world.founder()
    damaged = world.home("damaged")
    damaged.make_directory()
    (damaged.path / left).write_bytes(b"x")
    with pytest.raises(UsageError, match="once had an identity"):
        Recovery(damaged, words_of_home(laptop), name="x", network="main", now=0)


async def test_what_was_cut_short_is_begun_anew(world: World) -> None:
    laptop, nas = await laptop_and_nas(world)
    attempt = Attempt(world, words_of_home(laptop))
    await attempt.ask(nas)
    attempt.settle()
    (attempt.home.path / "group.state").unlink()  # written last
    former = attempt.home.node_id()
    assert is_cut_short(attempt.home)
    again = Attempt(world, words_of_home(laptop))
    await again.ask(nas)
    group = again.settle()
    assert group.node_id != former
    assert len(again.home.heads()) == len(again.home.folders()) == 1
    assert not is_cut_short(again.home)


async def test_another_groups_state_is_refused(world: World, tmp_path: Path) -> None:
    laptop = await world.founder()
    found(Home(tmp_path / "x"), "x", now=0, random=b"x" * 32)
    attempt = Attempt(world, words_of_home(laptop))
    foreign = Home(tmp_path / "x").state().raw
    assert not attempt.recovery._take_states((foreign, b"junk"), "somebody")
    assert attempt.recovery.state is None
