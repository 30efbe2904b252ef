"""Invitations, both sides, between whole HOMEs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pstore.config import FolderSettings
from p2pstore.content import Head, encode_head, sign_head
from p2pstore.errors import (
    IntegrityError,
    PeerUnreachable,
    Unavailable,
    UsageError,
)
from p2pstore.home import WatchedFolder
from p2pstore.ids import FolderId, base32, node_id_of
from p2pstore.keys import Role, fingerprint, public_key_of
from p2pstore.members import Group, confirm, found, identity, join, newcomer
from p2pstore.net import Request
from p2pstore.wire import Joining, Welcome

from .conftest import Member, World


def spoilt(link: str) -> str:
    return link.partition("#")[0] + "#" + base32(b"wrong" + bytes(11))


@pytest.mark.parametrize("kind", ["memory", "tls"])
async def test_a_new_device_joins_with_a_link(
    make_world: Callable[[str], World], kind: str
) -> None:
    world = make_world(kind)
    laptop = await world.founder()
    shown: list[str] = []
    joined = await world.join("nas", laptop.invitations.create().link, tell=shown.append)
    nas = Group(world.home("nas"))
    assert joined.group_id == nas.group_id == laptop.group.group_id
    assert (joined.name, joined.role, joined.inviter_name) == ("nas", "device", "laptop")
    assert nas.ring().dedup == laptop.group.ring().dedup
    assert fingerprint(nas.public) in shown[0]
    assert laptop.group.others() == [nas.node_id]
    assert nas.others() == [laptop.group.node_id]
    assert laptop.home.state().raw == nas.state.raw
    assert laptop.changes == 1
    assert joined.link.role == "device"
    assert [link.role for link in laptop.transport.links()] == ["device"]


async def test_a_joined_device_has_no_words_and_confirms_those_of_the_group(world: World) -> None:
    laptop = await world.founder()
    words = laptop.home.words()
    assert words is not None
    await world.device(laptop, "nas")
    home = world.home("nas")
    assert home.words() is None
    assert home.admin() is None
    assert not home.words_confirmed
    confirm(home, words)
    assert home.words_confirmed


async def test_a_link_is_used_once(world: World) -> None:
    laptop = await world.founder()
    link = laptop.invitations.create().link
    await world.join("nas", link)
    with pytest.raises(UsageError, match="used already"):
        await world.join("thief", link)
    assert not world.home("thief").exists
    assert {c.name for c in laptop.group.state.devices()} == {"laptop", "nas"}


async def test_a_late_link_is_refused(world: World) -> None:
    laptop = await world.founder()
    link = laptop.invitations.create().link
    world.clock.advance(599)
    spare = laptop.invitations.create().link
    world.clock.advance(1)
    with pytest.raises(UsageError, match="secret"):
        await world.join("nas", link)  # another one is open, to which its secret does not fit
    await world.join("nas", spare)
    world.clock.advance(600)
    with pytest.raises(UsageError, match="used already"):
        await world.join("phone", link)


async def test_an_expired_link_says_so(world: World) -> None:
    laptop = await world.founder()
    link = laptop.invitations.create().link
    world.clock.advance(600)
    with pytest.raises(UsageError, match="expired"):
        await world.join("nas", link)


async def test_three_wrong_secrets_end_a_link(world: World) -> None:
    laptop = await world.founder()
    link = laptop.invitations.create().link
    for _ in range(3):
        with pytest.raises(UsageError, match="secret of the invitation is wrong"):
            await world.join("thief", spoilt(link))
    with pytest.raises(UsageError, match="too many wrong secrets"):
        await world.join("nas", link)
    assert not world.home("nas").exists


async def test_two_wrong_secrets_do_not(world: World) -> None:
    laptop = await world.founder()
    link = laptop.invitations.create().link
    for _ in range(2):
        with pytest.raises(UsageError):
            await world.join("thief", spoilt(link))
    assert (await world.join("nas", link)).name == "nas"


async def test_several_links_are_open_at_once(world: World) -> None:
    laptop = await world.founder()
    links = [laptop.invitations.create().link for _ in range(5)]
    for number, link in enumerate(reversed(links)):  # the others lose no try by it
        await world.join(f"node{number}", link)
    assert len(laptop.group.state.devices()) == 6


async def test_what_is_pushed_beside_the_answer_is_no_offence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = await world.founder()
    author = laptop.group.author()
    for number in range(20):
        head = Head(FolderId(bytes([number]) * 16), laptop.group.node_id, 1, 1, bytes(4000))
        await laptop.exchange.publish(encode_head(sign_head(head, author.key, author.chain)))
    real = Request.reply

    async def push_first(
        self: Request, message: Any, payload: bytes = b"", final: bool = True
    ) -> None:
        if isinstance(message, Welcome):
            await laptop.exchange.push(laptop.transport.links())
        await real(self, message, payload, final)

    monkeypatch.setattr(Request, "reply", push_first)
    assert (await world.join("nas", laptop.invitations.create().link)).name == "nas"


async def test_a_link_for_a_friend_makes_no_device(world: World) -> None:
    laptop = await world.founder()
    invited = laptop.invitations.create("friend")
    with pytest.raises(UsageError, match="for a friend"):
        await world.join("nas", invited.link.replace("&r=friend", ""))
    laptop.invitations.withdraw(invited.id)
    link = laptop.invitations.create().link
    with pytest.raises(UsageError, match="for a device"):
        await world.join("nas", link.replace("#", "&r=friend#"))
    with pytest.raises(UsageError, match="admin"):
        laptop.invitations.create("admin")


async def test_a_device_cannot_become_a_friend_of_its_own_group(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    with pytest.raises(UsageError, match="a device of the group already"):
        await join(
            nas.home,
            laptop.invitations.create("friend").link,
            device=nas.group.device,
            name="nas",
            network="main",
            dial=nas.dial_to,
            group=nas.group,
            kept=nas.exchange.kept,
        )
    assert laptop.group.state.role_of(nas.group.public) is Role.DEVICE
    assert nas.exchange.kept.groups() == []


async def test_a_friend_keeps_the_own_group_and_reads_nothing(world: World) -> None:
    laptop, anna = await world.founder(), await world.founder("anna")
    joined = await join(
        anna.home,
        laptop.invitations.create("friend").link,
        device=anna.group.device,
        name="anna",
        network="main",
        dial=anna.dial_to,
        group=anna.group,
        kept=anna.exchange.kept,
    )
    assert joined.group_id == laptop.group.group_id != anna.group.group_id
    assert laptop.group.state.role_of(anna.group.public) is Role.FRIEND
    assert anna.exchange.kept.groups() == [laptop.group.group_id]
    with pytest.raises(IntegrityError):
        laptop.group.state.open(anna.group.device)
    again = Member(world, anna.home)
    assert again.exchange.kept.friend_chains() == anna.exchange.kept.friend_chains() != ()
    assert laptop.exchange.role_of(again.exchange.hello("main")) == "friend"
    assert again.exchange.role_of(laptop.exchange.hello("main")) == "friend"
    assert laptop.group.state.recovery_tag in again.exchange.recovery_tags()


async def test_another_network_is_named(world: World) -> None:
    laptop = await world.founder()
    with pytest.raises(UsageError, match=r"network = \"[a-z]+\" in its config"):
        await world.join("nas", laptop.invitations.create().link, network="other")


async def test_a_node_that_moved_to_another_network_refuses(world: World) -> None:
    home = world.home("laptop")
    found(home, "laptop", now=world.clock.wall(), random=bytes(32))
    laptop = await Member(world, home, network="other").start()
    link = laptop.invitations.create().link.replace("n=other", "n=main")
    with pytest.raises(PeerUnreachable, match="other"):
        await world.join("nas", link)


async def test_every_address_is_tried(world: World) -> None:
    laptop = await world.founder()
    laptop.more_addresses = [("10.0.0.1", 1), ("10.0.0.2", 2)]
    assert (await world.join("nas", laptop.invitations.create().link)).name == "nas"


async def test_nobody_at_any_address(world: World) -> None:
    laptop = await world.founder()
    laptop.more_addresses = [("10.0.0.1", 1)]
    link = laptop.invitations.create().link
    await laptop.transport.close()
    with pytest.raises(PeerUnreachable, match=r"cannot be reached.*10\.0\.0\.1:1"):
        await world.join("nas", link)
    assert not world.home("nas").exists


async def test_another_node_at_the_address_is_not_trusted(world: World) -> None:
    laptop, thief = await world.founder(), await world.founder("thief")
    link = laptop.invitations.create().link
    laptop.address, there = thief.address, laptop.address
    moved = link.replace(f":{there[1]}", f":{thief.address[1]}")
    with pytest.raises(PeerUnreachable, match="not"):
        await world.join("nas", moved)


async def test_an_inviter_that_cannot_prove_the_secret_is_not_believed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = await world.founder()

    real = Request.reply

    async def lie(self: Request, message: Any, payload: bytes = b"", final: bool = True) -> None:
        if isinstance(message, Welcome):
            message = Welcome(bytes(32), message.chain, message.group, message.state)
        await real(self, message, payload, final)

    monkeypatch.setattr(Request, "reply", lie)
    with pytest.raises(IntegrityError, match="does not know"):
        await world.join("nas", laptop.invitations.create().link)
    assert not world.home("nas").exists


async def test_who_has_no_admin_key_names_who_has(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    with pytest.raises(UsageError, match="laptop") as caught:
        nas.invitations.create()
    assert caught.value.exit_code == 2


async def test_two_members_of_one_name_are_told_apart(world: World) -> None:
    laptop = await world.founder()
    first = await world.join("nas", laptop.invitations.create().link)
    await first.link.close()
    other = world.home("other")
    device = identity(other)
    transport = world.transport(device, hello=lambda: newcomer(device, "main", "nas"))
    joined = await join(
        other,
        laptop.invitations.create().link,
        device=device,
        name="nas\n",
        network="main",
        dial=lambda address, expect: transport.dial(*address, expect=expect),
    )
    assert joined.name == "nas-2"


# -- confirmation ---------------------------------------------------------------------------------


async def test_the_owner_compares_the_words(world: World) -> None:
    laptop = await world.founder()
    invited = laptop.invitations.create(confirm=True)
    joining = asyncio.ensure_future(world.join("nas", invited.link))
    knock = await laptop.invitations.knock(invited.id)
    assert knock.name == "nas"
    assert knock.fingerprint == fingerprint(public_key_of(world.home("nas").device()))
    assert len(laptop.group.state.devices()) == 1
    admitted = await laptop.invitations.confirm(invited.id, True)
    assert admitted is not None
    assert admitted.node_id == node_id_of(public_key_of(world.home("nas").device()))
    assert (await joining).name == admitted.name == "nas"


async def test_the_owner_refuses(world: World) -> None:
    laptop = await world.founder()
    invited = laptop.invitations.create(confirm=True)
    joining = asyncio.ensure_future(world.join("nas", invited.link))
    await laptop.invitations.knock(invited.id)
    assert await laptop.invitations.confirm(invited.id, False) is None
    with pytest.raises(UsageError, match="refused"):
        await joining
    assert len(laptop.group.state.devices()) == 1
    assert not world.home("nas").exists
    with pytest.raises(UsageError, match="used already"):
        await world.join("nas", invited.link)


async def test_a_joiner_that_goes_away_is_not_let_in(world: World) -> None:
    laptop = await world.founder()
    invited = laptop.invitations.create(confirm=True)
    joining = asyncio.ensure_future(world.join("nas", invited.link))
    await laptop.invitations.knock(invited.id)
    joining.cancel()
    await asyncio.wait([joining])
    await world.made[-1].close()
    with pytest.raises(Unavailable, match="went away"):
        await laptop.invitations.confirm(invited.id, True)
    assert len(laptop.group.state.devices()) == 1


async def test_a_joiner_does_not_wait_for_an_owner_who_never_asks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that made the invitation was killed before it waited."""
    monkeypatch.setattr("p2pstore.members.invite.UNWATCHED_S", 0.05)
    laptop = await world.founder()
    invited = laptop.invitations.create(confirm=True)
    async with asyncio.timeout(10):
        with pytest.raises(UsageError, match="refused: nobody confirmed"):
            await world.join("nas", invited.link)
    assert len(laptop.group.state.devices()) == 1


async def test_nobody_knocks(world: World) -> None:
    laptop = await world.founder()
    invited = laptop.invitations.create(confirm=True)
    with pytest.raises(UsageError, match="Nobody has used"):
        await laptop.invitations.confirm(invited.id, True)
    world.clock.advance(600)
    with pytest.raises(Unavailable, match="Nobody used"):
        await laptop.invitations.knock(invited.id)
    with pytest.raises(UsageError, match="no such invitation"):
        await laptop.invitations.knock("00")


async def test_a_link_that_was_taken_back(world: World) -> None:
    laptop = await world.founder()
    invited = laptop.invitations.create()
    laptop.invitations.withdraw(invited.id)
    with pytest.raises(UsageError, match=r"refused: .*it was taken back"):
        await world.join("nas", invited.link)


async def test_taking_a_link_back_refuses_who_waits_at_the_door(world: World) -> None:
    laptop = await world.founder()
    invited = laptop.invitations.create(confirm=True)
    joining = asyncio.ensure_future(world.join("nas", invited.link))
    await laptop.invitations.knock(invited.id)
    laptop.invitations.withdraw(invited.id)
    with pytest.raises(UsageError, match="refused"):
        await joining
    assert len(laptop.group.state.devices()) == 1


# -- from which HOME ------------------------------------------------------------------------------


async def joins(member: Member, inviter: Member, **options: Any) -> None:
    await join(
        member.home,
        inviter.invitations.create().link,
        device=member.group.device,
        name="nas",
        network="main",
        dial=member.dial_to,
        group=member.group,
        **options,
    )


async def test_a_running_node_without_anything_changes_its_group(world: World) -> None:
    laptop, nas = await world.founder(), await world.founder("nas")
    before, words = nas.group.node_id, nas.home.words()
    assert words is not None
    confirm(nas.home, words)
    ring = nas.group.ring
    await joins(nas, laptop)
    assert nas.group.group_id == laptop.group.group_id
    assert nas.group.node_id == before
    assert ring().dedup == laptop.group.ring().dedup
    assert nas.home.words() is None
    assert nas.home.admin() is None
    assert not nas.home.words_confirmed
    assert Group(nas.home).group_id == laptop.group.group_id
    assert nas.exchange.role_of(laptop.exchange.hello("main")) == "device"


async def test_a_home_that_has_something_keeps_its_group(world: World) -> None:
    laptop, nas = await world.founder(), await world.founder("nas")
    settings = FolderSettings()
    nas.home.write_folders(
        [WatchedFolder(folder_id=b"1" * 16, path="/x", name="x", settings=settings)]
    )
    before = nas.home.state().raw
    with pytest.raises(UsageError, match=r"watches folders already.*p2pstore leave"):
        await joins(nas, laptop)
    nas.home.write_folders([])
    held = nas.home.path / "held" / "sides" / "ab"
    held.mkdir(parents=True)
    (held / "abc.side").touch()
    with pytest.raises(UsageError, match="keeps data for others"):
        await joins(nas, laptop)
    (held / "abc.side").unlink()
    with pytest.raises(UsageError, match="stores things elsewhere"):
        await joins(nas, laptop, is_busy=lambda: "stores things elsewhere")
    assert nas.home.state().raw == before
    assert len(laptop.group.state.devices()) == 1


async def test_a_folder_that_is_added_while_the_owner_confirms_is_seen(world: World) -> None:
    laptop, nas = await world.founder(), await world.founder("nas")
    answers = iter([None, "watches folders"])
    before = nas.home.state().raw
    with pytest.raises(UsageError, match="watches folders already"):
        await joins(nas, laptop, is_busy=lambda: next(answers))
    assert nas.home.state().raw == before


async def test_a_group_with_other_devices_is_not_left_behind(world: World) -> None:
    laptop, nas = await world.founder(), await world.founder("nas")
    await world.device(nas, "phone")
    with pytest.raises(UsageError, match="phone"):
        await joins(nas, laptop)


async def test_a_node_does_not_join_itself(world: World) -> None:
    laptop = await world.founder()
    with pytest.raises(UsageError, match="this very node"):
        await joins(laptop, laptop)


async def test_a_home_whose_keys_are_gone_gets_no_new_ones(world: World) -> None:
    laptop = await world.founder()
    home = world.home("nas")
    home.make_directory()
    home.write_incarnation(3)
    with pytest.raises(UsageError, match="keys are missing"):
        await world.join("nas", laptop.invitations.create().link)


# -- killed between steps -------------------------------------------------------------------------


class Killed(BaseException):
    pass


async def test_a_join_that_was_killed_before_the_proof_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = await world.founder()

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Joining, "second", die)
    with pytest.raises(Killed):
        await world.join("nas", laptop.invitations.create().link)
    assert not world.home("nas").exists


async def test_a_join_that_was_killed_is_done_again_with_the_same_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = await world.founder()

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Joining, "finish", die)
        with pytest.raises(Killed):
            await world.join("nas", laptop.invitations.create().link)
    home = world.home("nas")
    key = home.device()
    with pytest.raises(UsageError, match="p2pstore join"):
        Group(home)
    await world.made[-1].close()
    await world.join("nas", laptop.invitations.create().link)
    assert home.device() == key
    assert Group(home).others() == [laptop.group.node_id]
    assert len(laptop.group.state.devices()) == 2


@pytest.mark.parametrize("write", range(1, 12))
async def test_a_join_killed_at_any_write_leaves_one_group_or_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Every removal and replacement in HOME, in turn, is the first one that is not done."""
    laptop, nas = await world.founder(), await world.founder("nas")
    old, new = nas.group.group_id, laptop.group.group_id
    words = nas.home.words()
    (nas.home.path / "words.confirmed").touch()
    count = 0

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(path: Any, *args: Any, **options: Any) -> Any:
            nonlocal count
            if str(nas.home.path) in str(path):
                count += 1
                if count >= write:
                    raise Killed
            return real(path, *args, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", counting(Path.unlink))
        patch.setattr("pathlib.Path.rename", counting(Path.rename))
        with contextlib.suppress(Killed):
            await joins(nas, laptop)
    after = Group(nas.home)
    assert after.group_id in (old, new)
    if after.group_id == new:
        assert nas.home.words() is None
        assert nas.home.admin() is None
        assert not nas.home.words_confirmed
    else:
        assert nas.home.words() == words
        assert nas.home.admin() is not None


def test_a_founding_that_was_cut_short_is_begun_anew(world: World) -> None:
    home = world.home("laptop")
    found(home, "laptop", now=1.0, random=bytes(32))
    (home.path / "group.state").unlink()
    with pytest.raises(UsageError, match="p2pstore init"):
        Group(home)
    words = found(home, "laptop", now=1.0, random=b"2" * 32)
    confirm(home, words)
    assert Group(home).name == "laptop"


def test_a_home_that_stored_something_is_never_founded_again(world: World) -> None:
    home = world.home("laptop")
    words = found(home, "laptop", now=1.0, random=bytes(32))
    with pytest.raises(UsageError, match="already"):
        found(home, "laptop", now=1.0, random=b"2" * 32)
    (home.path / "group.state").unlink()
    (home.path / "bundles").mkdir()
    (home.path / "bundles" / "x").touch()
    with pytest.raises(UsageError, match="already"):
        found(home, "laptop", now=1.0, random=b"2" * 32)
    assert home.words() == words
