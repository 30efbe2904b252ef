"""Group state and heads between devices, holders and strangers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nacl.signing import SigningKey

from p2pstore.content import Head, decode_head, encode_head, sign_head, verify_head
from p2pstore.errors import IntegrityError, NoRoom, NotAllowed, UsageError
from p2pstore.ids import FolderId
from p2pstore.keys import (
    GroupState,
    Role,
    encode_chain,
    group_signing_key,
    issue,
    public_key_of,
    root_of,
)
from p2pstore.members import Group, KeptGroups, join
from p2pstore.members import shelf as shelf_module
from p2pstore.members.shelf import HeadShelf, open_head
from p2pstore.net import Link, Request
from p2pstore.wire import VERSIONS, GetHeads, Heads, HeadsKept, Hello, PutHeads

from .conftest import FOLDER, Member, World


def revoke(laptop: Member, other: Group) -> None:
    admin = laptop.home.admin()
    assert admin is not None
    laptop.group.revoke(other.public, signer=admin, now=laptop.world.clock.wall())


async def put(link: Link, group: Group, *heads: bytes, state: bytes | None = None) -> HeadsKept:
    reply, _ = await link.request(PutHeads(group.group_id, state, heads))
    assert isinstance(reply, HeadsKept)
    return reply


# -- between devices ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "tls"])
async def test_a_push_reaches_the_other_device_and_is_acknowledged(
    make_world: Callable[[str], World], kind: str
) -> None:
    laptop = await make_world(kind).founder()
    nas = await laptop.world.device(laptop, "nas")
    await laptop.exchange.publish(laptop.head(1))
    (told,) = await laptop.exchange.push([await laptop.dial(nas)])
    assert told.holder == nas.group.node_id
    assert (told.generation, told.state_seq) == laptop.group.state.order
    (row,) = told.rows(laptop.group.node_id)
    assert (row.folder, row.incarnation, row.seq) == (FOLDER, 1, 1)
    assert nas.orders() == {laptop.group.node_id: (1, 1)}
    assert [head.seq for head in nas.news] == [1]


async def test_what_was_acknowledged_is_on_disk(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    await laptop.exchange.publish(laptop.head(1))
    await laptop.exchange.push([await laptop.dial(nas)])
    assert Member(world, nas.home).orders() == {laptop.group.node_id: (1, 1)}
    assert Member(world, laptop.home).orders() == {laptop.group.node_id: (1, 1)}


async def test_a_pull_brings_the_newest_and_only_that(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    phone = await world.device(laptop, "phone")
    await laptop.exchange.publish(laptop.head(4))
    assert nas.group.name_of(phone.group.node_id) is None
    pulled = await nas.exchange.pull(await nas.dial(laptop))
    assert pulled.state_changed
    assert [head.seq for head in pulled.heads] == [4]
    assert nas.group.name_of(phone.group.node_id) == "phone"
    again = await nas.exchange.pull(await nas.dial(laptop))
    assert (again.state_changed, again.heads) == (False, ())
    assert nas.changes == 1


async def test_heads_of_others_travel_through_a_device(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    phone = await world.device(laptop, "phone")
    await phone.exchange.publish(phone.head(1))
    await phone.exchange.push([await phone.dial(nas)])
    await laptop.exchange.pull(await laptop.dial(nas))
    assert laptop.orders() == {phone.group.node_id: (1, 1)}


async def test_a_device_that_is_not_known_yet_shows_its_certificate(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    phone = await world.device(laptop, "phone")
    link = await phone.dial(nas)
    assert link.role == "device"
    assert [other.role for other in nas.transport.links()] == ["device"]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ((1, 5), (1, 6), (1, 6)),
        ((1, 5), (1, 4), (1, 5)),
        ((1, 5), (2, 1), (2, 1)),
        ((2, 1), (1, 99), (2, 1)),
    ],
)
async def test_heads_are_ordered_by_incarnation_and_seq(
    world: World, first: tuple[int, int], second: tuple[int, int], kept: tuple[int, int]
) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    link = await laptop.dial(nas)
    for incarnation, seq in (first, second):
        reply = await put(link, laptop.group, laptop.head(seq, incarnation))
    assert reply.heads == ((FOLDER, laptop.group.node_id, *kept),)
    assert nas.orders() == {laptop.group.node_id: kept}
    assert Member(world, nas.home).orders() == {laptop.group.node_id: kept}


async def test_two_heads_of_one_number_are_not_taken_for_one(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    link = await laptop.dial(nas)
    await put(link, laptop.group, laptop.head(1, content=b"one"))
    with pytest.raises(IntegrityError, match="one number"):
        await put(link, laptop.group, laptop.head(1, content=b"two"))


async def test_an_older_head_of_ours_is_not_acknowledged_as_the_newest(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    link = await laptop.dial(nas)
    await put(link, laptop.group, laptop.head(9))
    await laptop.exchange.publish(laptop.head(2))
    (told,) = await laptop.exchange.push([link])
    assert told.heads == ()
    assert "restored from a copy" in caplog.text
    await laptop.exchange.pull(link)
    assert laptop.exchange.greatest_incarnation() == 1
    assert laptop.orders()[laptop.group.node_id] == (1, 9)


async def test_a_holder_that_keeps_an_older_state_acknowledges_that_one(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")

    async def keep_nothing(request: Request) -> None:
        message = request.message
        assert isinstance(message, PutHeads)
        here = decode_head(message.heads[0])
        head = verify_head(here)
        await request.reply(HeadsKept(1, 1, ((head.folder, head.device, 1, 3),)))

    nas.transport.handler = keep_nothing
    await laptop.exchange.publish(laptop.head(3))
    (row,) = await laptop.exchange.tell([await laptop.dial(nas)])
    assert (row.incarnation, row.seq, row.generation, row.state_seq) == (1, 3, 1, 1)
    assert laptop.group.state.order == (1, 2)


async def test_many_heads_take_several_messages(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    author = laptop.group.author()
    monkeypatch.setattr("p2pstore.members.exchange.PUSH_BYTES", 20_000)
    for number in range(12):
        head = Head(FolderId(bytes([number]) * 16), laptop.group.node_id, 1, 1, bytes(4000))
        await laptop.exchange.publish(encode_head(sign_head(head, author.key, author.chain)))
    (told,) = await laptop.exchange.push([await laptop.dial(nas)])
    assert len(told.heads) == len(nas.exchange.known_heads()) == 12


async def test_a_friend_brings_back_what_it_keeps(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    anna = await befriended(world, laptop)
    await nas.exchange.pull(await nas.dial(laptop))
    reply = await put(await anna.dial(nas), laptop.group, laptop.head(2))
    assert reply.heads == ((FOLDER, laptop.group.node_id, 1, 2),)


async def test_two_admins_who_worked_apart_are_brought_together(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    phone = await world.device(laptop, "phone")
    admin = laptop.home.admin()
    assert admin is not None
    apart = laptop.group.state  # another device of the admin's, say: it revokes the phone
    secrets = apart.open(laptop.group.device)
    other = apart.with_revocation(
        phone.group.public, signer=admin, secrets=secrets, now_ms=1, random=lambda n: b"r" * n
    )
    revoke(laptop, nas.group)
    link = await nas.dial(laptop)
    assert laptop.group.state.revoked == {nas.group.public}
    assert not laptop.group.state.wants_new_epoch
    tablet = await world.device(laptop, "tablet")
    await put(await tablet.dial(laptop), laptop.group, state=other.raw)
    assert laptop.group.state.revoked == {nas.group.public, phone.group.public}
    assert not laptop.group.state.wants_new_epoch
    assert len(laptop.group.state.parts) == 1
    assert link.role == "device"  # what nas believes; laptop does not


# -- who may not ----------------------------------------------------------------------------------


async def test_a_foreign_signers_head_is_refused(world: World) -> None:
    laptop, thief = await world.founder(), await world.founder("thief")
    nas = await world.device(laptop, "nas")
    link = await laptop.dial(nas)
    with pytest.raises(NotAllowed, match="nobody of the group"):
        await put(link, laptop.group, laptop.head(1), thief.head(1))
    forged = decode_head(laptop.head(7))
    broken = type(forged)(forged.payload, forged.signer, forged.chain, bytes(64))
    with pytest.raises(IntegrityError):
        await put(link, laptop.group, encode_head(broken))
    assert thief.group.node_id not in nas.orders()
    assert (1, 7) not in nas.orders().values()


async def test_a_stranger_gets_and_puts_nothing(world: World) -> None:
    laptop, thief = await world.founder(), await world.founder("thief")
    link = await thief.dial(laptop)
    assert link.role == "stranger"
    with pytest.raises(NotAllowed):
        await link.request(GetHeads(laptop.group.group_id))
    with pytest.raises(NotAllowed):
        await put(link, laptop.group)
    with pytest.raises(NotAllowed):
        await link.request(GetHeads(thief.group.group_id))
    assert await laptop.exchange.push(laptop.transport.links()) == []


async def test_the_state_of_another_group_is_refused(world: World) -> None:
    laptop, thief = await world.founder(), await world.founder("thief")
    nas = await world.device(laptop, "nas")
    before = nas.group.state.raw
    with pytest.raises(IntegrityError, match="another group"):
        await put(await laptop.dial(nas), laptop.group, state=thief.group.state.raw)
    assert nas.group.state.raw == before


async def test_a_state_that_would_lose_keys_is_refused(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    admin = laptop.home.admin()
    assert admin is not None
    secrets = laptop.group.state.open(laptop.group.device)
    other = type(secrets)(secrets.epochs, bytes(32))
    forged = laptop.group.state.with_member(
        laptop.group.chain(), signer=admin, secrets=other, now_ms=1, random=lambda n: bytes(n)
    )
    before = nas.home.state().raw
    with pytest.raises(IntegrityError, match="would be lost"):
        nas.group.adopt(forged)
    assert nas.home.state().raw == nas.group.state.raw == before


# -- revocation -----------------------------------------------------------------------------------


async def test_a_revoked_device_learns_it_and_stops(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    link = await laptop.dial(nas)
    ring = nas.group.ring()
    revoke(laptop, nas.group)
    laptop.exchange.judge_links([link])
    assert link.role == "stranger"
    assert await laptop.exchange.push([link]) == []
    assert nas.group.is_expelled
    assert nas.changes == 1
    assert nas.group.ring() is ring  # it still reads what it has
    assert await nas.exchange.push(nas.transport.links()) == []
    assert nas.exchange.role_of(laptop.exchange.hello("main")) == "stranger"
    again = Group(nas.home)
    assert again.is_expelled
    assert again.ring().dedup == ring.dedup


async def test_a_revoked_device_is_never_revived_by_an_old_state(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    phone = await world.device(laptop, "phone")
    await nas.exchange.pull(await nas.dial(laptop))
    old = nas.group.state.raw
    revoke(laptop, nas.group)
    link = await laptop.dial(phone)
    await laptop.exchange.push([link])
    assert phone.group.state.role_of(nas.group.public) is Role.STRANGER
    newest = phone.group.state.raw
    await put(link, laptop.group, state=old)
    assert phone.group.state.raw == phone.home.state().raw == newest
    assert phone.group.role_of_hello(nas.exchange.hello("main")) == "stranger"
    for member in (laptop, phone):
        with pytest.raises(NotAllowed):
            await (await nas.dial(member)).request(GetHeads(laptop.group.group_id))
    link_text = laptop.invitations.create().link
    with pytest.raises(UsageError, match="revoked"):
        await join(
            world.home("other"),
            link_text,
            device=nas.group.device,
            name="nas",
            network="main",
            dial=nas.dial_to,
        )
    assert (await world.join("tablet", link_text)).name == "tablet"  # it was not used up


async def test_heads_of_a_revoked_device_stay_and_do_not_grow(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    phone = await world.device(laptop, "phone")
    link = await laptop.dial(phone)
    await put(link, laptop.group, nas.head(3))
    revoke(laptop, nas.group)
    await laptop.exchange.push([link])
    reply = await put(link, laptop.group, nas.head(4), laptop.head(1))
    assert phone.orders() == {nas.group.node_id: (1, 3), laptop.group.node_id: (1, 1)}
    assert (FOLDER, nas.group.node_id, 1, 3) in reply.heads
    heads, _ = await link.request(GetHeads(laptop.group.group_id))
    assert isinstance(heads, Heads)
    assert len(heads.heads) == 2


async def test_a_certificate_of_a_later_generation_brings_a_device_back(world: World) -> None:
    laptop = await world.founder()
    words = laptop.home.words()
    assert words is not None
    nas = await world.device(laptop, "nas")
    root = root_of(words)
    device, admin = SigningKey.generate(), SigningKey.generate()
    recovered = laptop.group.state.recovered(
        root,
        device=device,
        admin=admin,
        name="new",
        now_ms=5,
        random=lambda n: bytes(range(n)),
        revoke=[c.subject for c in laptop.group.state.admins()],
    )
    nas.group.adopt(recovered)
    assert nas.group.is_expelled  # its certificate came from the admin that was revoked
    group_key = group_signing_key(root)
    chain = encode_chain(
        [
            issue(
                group_key,
                group=nas.group.state.group_public,
                subject=nas.group.public,
                role="device",
                name="nas",
                now_ms=6,
            )
        ]
    )
    back = recovered.with_member(
        chain,
        signer=group_key,
        secrets=recovered.open(device),
        now_ms=7,
        random=lambda n: bytes(range(1, n + 1)),
    )
    nas.group.adopt(back)
    assert not nas.group.is_expelled
    assert Group(nas.home).state.raw == back.raw
    assert not Group(nas.home).is_expelled


# -- for other groups -----------------------------------------------------------------------------


async def joins_as_friend(friend: Member, inviter: Member) -> None:
    await join(
        friend.home,
        inviter.invitations.create("friend").link,
        device=friend.group.device,
        name=friend.group.name,
        network="main",
        dial=friend.dial_to,
        group=friend.group,
        kept=friend.exchange.kept,
    )


async def befriended(world: World, laptop: Member, name: str = "anna") -> Member:
    anna = await world.founder(name)
    await joins_as_friend(anna, laptop)
    return anna


async def test_a_friend_keeps_state_and_heads_and_gives_them_back(world: World) -> None:
    laptop = await world.founder()
    anna = await befriended(world, laptop)
    await laptop.exchange.publish(laptop.head(1))
    link = await laptop.dial(anna)
    (told,) = await laptop.exchange.push([link])
    assert [row.seq for row in await laptop.exchange.tell([link])] == [1]
    assert [head.seq for head in told.heads] == [1]
    assert (told.generation, told.state_seq) == laptop.group.state.order
    assert anna.orders() == {}
    kept = KeptGroups(anna.home.path / "groups")  # as after a restart
    reply = kept.heads(laptop.group.group_id, laptop.exchange.hello("main"))
    assert reply.heads == (laptop.head(1),)
    assert [GroupState.decode(raw).raw for raw in reply.states] == [laptop.group.state.raw]
    nas = await world.device(laptop, "nas")
    await nas.exchange.pull(await nas.dial(anna))
    assert nas.orders() == {laptop.group.node_id: (1, 1)}


async def test_who_recovers_with_the_words_is_a_device_to_a_friend(world: World) -> None:
    laptop = await world.founder()
    anna = await befriended(world, laptop)
    words = laptop.home.words()
    assert words is not None
    group_key, new = group_signing_key(root_of(words)), SigningKey.generate()
    group, public = public_key_of(group_key), public_key_of(new)
    chain = encode_chain(
        [issue(group_key, group=group, subject=public, role="admin", name="new", now_ms=9)]
    )
    hello = Hello("main", VERSIONS, public, chain=chain, group=group)
    assert anna.exchange.role_of(hello) == "friend"
    reply = anna.exchange.kept.heads(laptop.group.group_id, hello)
    assert len(reply.states) == 1


async def test_a_friend_never_takes_a_step_back(world: World) -> None:
    laptop = await world.founder()
    nas = await world.device(laptop, "nas")
    anna = await befriended(world, laptop)
    old = laptop.group.state.raw
    revoke(laptop, nas.group)
    link = await laptop.dial(anna)
    await laptop.exchange.push([link])
    newest = laptop.group.state.raw
    await put(link, laptop.group, laptop.head(5), state=old)
    reply = await put(link, laptop.group, laptop.head(4))
    assert reply.heads == ((FOLDER, laptop.group.node_id, 1, 5),)
    assert (reply.generation, reply.seq) == laptop.group.state.order
    heads = anna.exchange.kept.heads(laptop.group.group_id, laptop.exchange.hello("main"))
    assert heads.states == (newest,)
    nas_link = await nas.dial(anna)
    assert anna.exchange.role_of(nas.exchange.hello("main")) == "stranger"
    with pytest.raises(NotAllowed):
        await nas_link.request(GetHeads(laptop.group.group_id))
    with pytest.raises(NotAllowed, match="nobody"):
        await put(link, laptop.group, anna.head(1))
    skipped = await put(link, laptop.group, nas.head(1))
    assert skipped.heads == ()
    group = laptop.group.state.group_public
    assert anna.exchange.kept.related() == [group]
    assert anna.exchange.revoked(group) == laptop.exchange.revoked(group) == {nas.group.public}
    assert anna.exchange.revoked(anna.group.state.group_public) == frozenset()


async def test_groups_see_nothing_of_each_other(world: World) -> None:
    laptop, other = await world.founder(), await world.founder("other")
    anna = await befriended(world, laptop)
    link = await other.dial(anna)
    for group in (laptop.group.group_id, anna.group.group_id, other.group.group_id):
        with pytest.raises(NotAllowed):
            await link.request(GetHeads(group))
    await joins_as_friend(anna, other)
    for asker, group in ((laptop, other.group), (other, laptop.group)):
        with pytest.raises(NotAllowed):
            await (await asker.dial(anna)).request(GetHeads(group.group_id))
        with pytest.raises(NotAllowed):
            await put(await asker.dial(anna), group)
    # Her friend's device sees what she keeps for it, and nothing of her own.
    with pytest.raises(NotAllowed):
        await (await laptop.dial(anna)).request(GetHeads(anna.group.group_id))


async def test_the_relation_ends(world: World) -> None:
    laptop = await world.founder()
    anna = await befriended(world, laptop)
    anna.exchange.kept.forget(laptop.group.group_id)
    assert anna.exchange.kept.groups() == []
    assert KeptGroups(anna.home.path / "groups").groups() == []
    assert anna.exchange.role_of(laptop.exchange.hello("main")) == "stranger"


async def test_each_generation_is_kept_and_eight_at_most(world: World) -> None:
    laptop = await world.founder()
    anna = await befriended(world, laptop)
    words = laptop.home.words()
    assert words is not None
    state, hello = laptop.group.state, laptop.exchange.hello("main")
    for number in range(10):
        state = state.recovered(
            root_of(words),
            device=laptop.group.device,
            admin=SigningKey.generate(),
            name="laptop",
            now_ms=number,
            random=lambda n: bytes(n),
        )
        anna.exchange.kept.put(PutHeads(state.group_id, state.raw, ()), hello)
    kept = anna.exchange.kept.heads(state.group_id, hello)
    generations = [GroupState.decode(raw).generation for raw in kept.states]
    assert generations == list(range(11, 3, -1))
    assert anna.exchange.kept.put(PutHeads(state.group_id, None, ()), hello).generation == 11


# -- the shelf ------------------------------------------------------------------------------------


async def test_a_damaged_head_is_left_alone_and_told_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    laptop = await world.founder()
    await laptop.exchange.publish(laptop.head(1))
    (path,) = (laptop.home.path / "heads").iterdir()
    path.write_bytes(b"damage")
    again = Member(world, laptop.home)
    assert again.orders() == {}
    assert "left alone" in caplog.text
    assert path.read_bytes() == b"damage"
    assert await again.exchange.publish(laptop.head(2))
    assert Member(world, laptop.home).orders() == {laptop.group.node_id: (1, 2)}


async def test_a_shelf_has_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = await world.founder()
    shelf = HeadShelf(laptop.home.path / "heads")
    with pytest.raises(NoRoom):
        shelf.put(open_head(laptop.head(1, content=bytes(8 * 1024))))
    monkeypatch.setattr(shelf_module, "MAX_HEADS", 1)
    assert shelf.put(open_head(laptop.head(1)))
    assert shelf.put(open_head(laptop.head(2)))
    author = laptop.group.author()
    other = Head(FolderId(b"o" * 16), laptop.group.node_id, 1, 1, b"")
    with pytest.raises(NoRoom):
        shelf.put(open_head(encode_head(sign_head(other, author.key, author.chain))))
