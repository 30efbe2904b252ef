"""What an evict needs, what it refuses, and what is left when it is interrupted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from p2pstore.config import FolderSettings
from p2pstore.content import Kind
from p2pstore.errors import P2PStoreError
from p2pstore.ids import FolderId
from p2pstore.maintenance import recover
from p2pstore.maintenance.index import HeadOrder
from p2pstore.net import Request
from p2pstore.store import BundleState, IntentKind, State, blocks, copies, journal
from p2pstore.wire import Challenge, Lock, Locked, Proof, Stale, Unlock

from .nodes import DAY_MS, STATE, Device, Group


async def ready(group: Group, number: int = 3) -> tuple[Device, Any, list[Device]]:
    """One device with a file that all others hold, as safe as can be."""
    a, *others = await group.devices(number)
    filed = a.protect("one")
    await a.copy_to(*others)
    return a, filed, others


def open_evicts(device: Device) -> int:
    return len(device.catalog.view(lambda db: journal.all_open(db, IntentKind.EVICT)))


async def test_a_bundle_that_two_others_proved_goes(group: Group) -> None:
    a, filed, others = await ready(group)

    assert await a.evict(filed.data) == {}

    assert not a.is_here(filed.data)
    assert a.row(filed.data).state == BundleState.EVICTED
    assert a.bundles.trash() == []
    assert open_evicts(a) == 0
    assert a.gone == [filed.data.bundle_id]
    assert group.copies_of(filed.data.bundle_id) == 2
    assert [other.held.locked_for(filed.data.bundle_id) for other in others] == [0.0, 0.0]
    assert not a.promises.removals
    assert all(set(other.served) >= {"Lock", "Challenge", "Unlock"} for other in others)


async def test_a_meta_bundle_stays(group: Group) -> None:
    a, filed, _ = await ready(group)
    assert await a.evict(filed.meta) == {"names and lists stay here": (1, filed.meta.bytes)}
    assert a.is_here(filed.meta)


REFUSALS = {
    "words": (
        lambda a, f, o: setattr(
            a, "facts", replace(a.facts, words_confirmed=False, second_device=False)
        ),
        "recovery words not confirmed: p2pstore words confirm",
    ),
    "rebuilding": (
        lambda a, f, o: setattr(a, "facts", replace(a.facts, rebuilding=True)),
        "the catalog is being rebuilt",
    ),
    "data copies": (
        lambda a, f, o: a.catalog.write(
            lambda db: copies.drop(db, f.data.id, o[0].node_id)
        ).result(),
        "needs 2 copies on other nodes, has 1",
    ),
    "lease at its end": (
        lambda a, f, o: a.note_copy(f.data, o[0], lease_until=1),
        "needs 2 copies on other nodes, has 1",
    ),
    "another live map": (
        lambda a, f, o: a.note_copy(f.data, o[0], seq=1),
        "needs 2 copies on other nodes, has 1",
    ),
    "suspect": (
        lambda a, f, o: a.note_copy(f.data, o[0], state=copies.CopyState.SUSPECT),
        "needs 2 copies on other nodes, has 1",
    ),
    "meta copies": (
        lambda a, f, o: a.catalog.write(
            lambda db: copies.drop(db, f.meta.id, o[0].node_id)
        ).result(),
        "its list of blocks is on 1 of 2 other nodes",
    ),
    "index copies": (
        lambda a, f, o: a.catalog.write(
            lambda db: copies.drop(db, a.root_bundle.id, o[0].node_id)
        ).result(),
        "its list of blocks is on 1 of 2 other nodes",
    ),
    "no index": (
        lambda a, f, o: a.set_index(a.folder_id, []),
        "its list of blocks is not stored yet",
    ),
    "an older head": (
        lambda a, f, o: setattr(
            a,
            "facts",
            replace(a.facts, heads={a.folder_id: HeadOrder(1, 8)}, clean=frozenset((a.folder_id,))),
        ),
        "0 of 2 holders have the newest folder index",
    ),
    "an older incarnation": (
        lambda a, f, o: setattr(
            a,
            "facts",
            replace(a.facts, heads={a.folder_id: HeadOrder(2, 1)}, clean=frozenset((a.folder_id,))),
        ),
        "0 of 2 holders have the newest folder index",
    ),
    "an older group state": (
        lambda a, f, o: setattr(a, "facts", replace(a.facts, state=(STATE[0], STATE[1] + 1))),
        "0 of 2 holders have the newest folder index",
    ),
    "a head behind the files": (
        lambda a, f, o: setattr(
            a, "facts", replace(a.facts, heads={a.folder_id: HeadOrder(1, 7)}, clean=frozenset())
        ),
        "0 of 2 holders have the newest folder index",
    ),
    "a file that is brought back": (
        lambda a, f, o: a.refer(b"two", [f.data, f.meta], state=State.HYDRATING),
        "1 file being brought back",
    ),
    "a file that no index has": (
        lambda a, f, o: a.refer(b"two", [f.data, f.meta], listed=False),
        "1 file in no index",
    ),
    "three in another folder": (
        lambda a, f, o: a.refer(
            b"x",
            [f.data, f.meta],
            folder=a.add_folder(FolderId(b"3" * 16), FolderSettings(min_copies=3)),
        ),
        "needs 3 copies on other nodes, has 2",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_it_is_refused_while_something_is_missing(group: Group, name: str) -> None:
    a, filed, others = await ready(group)
    change, reason = REFUSALS[name]
    change(a, filed, others)
    for other in others:
        other.served.clear()

    waiting = await a.evict(filed.data)

    assert list(waiting) == [reason]
    assert a.is_here(filed.data)
    assert a.row(filed.data).state == BundleState.SEALED
    assert not any("Lock" in other.served for other in others), "nobody is bothered for nothing"


async def test_the_strictest_folder_decides(group: Group) -> None:
    a, filed, _others = await ready(group)
    other_id = FolderId(b"3" * 16)
    folder = a.add_folder(other_id, FolderSettings(min_copies=3))
    a.set_index(other_id, [a.root_bundle])
    a.refer(b"x", [filed.data, filed.meta], folder=folder)

    reasons = a.evictor.why([a.row(filed.data)])[0]

    assert "needs 3 copies on other nodes, has 2" in reasons


# -- liars -----------------------------------------------------------------------------------------


def lie(device: Device, kind: type[Any], answer: Any) -> None:
    """This device answers requests of one kind in its own way."""
    honest = device.server.serve

    async def serve(request: Request) -> None:
        device.served.append(type(request.message).__name__)
        if isinstance(request.message, kind):
            await answer(request)
        else:
            await honest(request)

    device.transport.handler = serve


async def test_a_wrong_proof_counts_no_more_and_nothing_goes(group: Group) -> None:
    a, filed, (b, _) = await ready(group)

    async def wrong(request: Request) -> None:
        await request.reply(Proof(b"x" * 32))

    lie(b, Challenge, wrong)

    assert list(await a.evict(filed.data)) == ["needs 2 copies on other nodes, has 1"]
    assert a.is_here(filed.data)
    assert a.copies(filed.data)[b.node_id].state == copies.CopyState.LOST


async def test_stale_is_no_proof(group: Group) -> None:
    a, filed, (b, _) = await ready(group)

    async def stale(request: Request) -> None:
        await request.reply(Stale(3))

    lie(b, Challenge, stale)

    assert await a.evict(filed.data)
    assert a.is_here(filed.data)
    assert a.copies(filed.data)[b.node_id].state == copies.CopyState.SUSPECT


async def test_a_relayed_proof_is_wrong(group: Group) -> None:
    a, filed, (b, c) = await ready(group)
    b.held.release(filed.data.bundle_id)

    async def relay(request: Request) -> None:
        link = await b.connections.connect(c.node_id)
        answer, _ = await link.request(request.message)
        await request.reply(answer)

    lie(b, Challenge, relay)
    honest = b.transport.handler

    async def promises_too(request: Request) -> None:
        if isinstance(request.message, Lock):
            link = await b.connections.connect(c.node_id)
            answer, _ = await link.request(request.message)
            await request.reply(answer)
        else:
            await honest(request)

    b.transport.handler = promises_too

    assert await a.evict(filed.data)
    assert a.is_here(filed.data)
    assert a.copies(filed.data)[b.node_id].state == copies.CopyState.LOST


async def test_who_dropped_it_after_the_receipt_counts_no_more(group: Group) -> None:
    a, filed, (b, _) = await ready(group)
    b.held.release(filed.data.bundle_id)

    assert list(await a.evict(filed.data)) == ["needs 2 copies on other nodes, has 1"]

    assert a.copies(filed.data)[b.node_id].state == copies.CopyState.LOST
    assert a.is_here(filed.data)
    group.clock.advance(60)
    assert await a.replicator.serve(b.node_id), "it is sent again"
    assert b.held.has(filed.data.bundle_id)
    assert await a.evict(filed.data) == {}


async def test_who_says_that_its_copy_is_damaged_counts_no_more(group: Group) -> None:
    a, filed, (b, _) = await ready(group)
    path = b.held._files.path(filed.data.bundle_id)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)

    assert await a.evict(filed.data)

    assert a.is_here(filed.data)
    assert a.copies(filed.data)[b.node_id].state == copies.CopyState.LOST
    group.clock.advance(60)
    assert await a.replicator.serve(b.node_id), "the damage is repaired"
    assert await a.evict(filed.data) == {}


async def test_our_own_damage_is_blamed_on_nobody(group: Group) -> None:
    a, filed, others = await ready(group)
    path = a.bundles.path(filed.data.bundle_id)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    a.bundles.forget(filed.data.bundle_id)

    (reason,) = await a.evict(filed.data)

    assert "is not what its id says" in reason or "damaged" in reason
    assert {c.state for c in a.copies(filed.data).values()} == {copies.CopyState.PROVED}
    assert a.row(filed.data).state == BundleState.SEALED
    assert open_evicts(a) == 0
    assert all(other.held.locked_for(filed.data.bundle_id) == 0 for other in others)


async def test_a_promise_of_years_is_cut_to_what_was_asked(group: Group) -> None:
    """A liar that grants a lock for ever does not move the margin."""
    a, filed, (b, _) = await ready(group)

    async def generous(request: Request) -> None:
        await request.reply(Locked(2**31, 2**50))

    lie(b, Lock, generous)
    to_trash = a.bundles.to_trash

    def slowly(bundle_id: Any) -> None:
        to_trash(bundle_id)
        group.clock.advance(545)  # less than 60 s are left of the ten minutes

    a.bundles.to_trash = slowly  # type: ignore[method-assign]

    (reason,) = await a.evict(filed.data)

    assert "proved their copy just now" in reason
    assert a.is_here(filed.data)


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "goes"), [(530.0, True), (545.0, False), (700.0, False)])
async def test_the_margin_of_the_locks(group: Group, seconds: float, goes: bool) -> None:
    a, filed, _ = await ready(group)
    to_trash = a.bundles.to_trash

    def slowly(bundle_id: Any) -> None:
        to_trash(bundle_id)
        group.clock.advance(seconds)

    a.bundles.to_trash = slowly  # type: ignore[method-assign]

    waiting = await a.evict(filed.data)

    assert (waiting == {}) is goes
    assert a.is_here(filed.data) is not goes
    assert a.bundles.trash() == []
    assert a.row(filed.data).state == (BundleState.EVICTED if goes else BundleState.SEALED)


async def test_the_unlink_waits_for_no_commit(group: Group) -> None:
    """The catalog took long: the locks may have ended meanwhile, so nothing is unlinked."""
    a, filed, _ = await ready(group)
    purge, awrite = a.bundles.purge, a.catalog.awrite
    purged = []
    a.bundles.purge = lambda b: (purged.append(b), purge(b))  # type: ignore[method-assign,assignment,func-returns-value]

    async def slow(change: Any) -> Any:
        done = await awrite(change)
        if a.bundles.trash():
            group.clock.advance(560)
        return done

    a.catalog.awrite = slow  # type: ignore[method-assign]

    assert await a.evict(filed.data)
    assert not purged
    assert a.is_here(filed.data)
    assert a.row(filed.data).state == BundleState.SEALED


async def test_a_machine_that_slept_has_no_locks_any_more(group: Group) -> None:
    """Its monotonic clock stood still; those of the holders did not."""
    a, filed, (_b, _c) = await ready(group)
    to_trash = a.bundles.to_trash

    def lid_closed(bundle_id: Any) -> None:
        to_trash(bundle_id)
        group.clock.sleep_of_the_machine(1200)

    a.bundles.to_trash = lid_closed  # type: ignore[method-assign]

    assert await a.evict(filed.data)
    assert a.is_here(filed.data)


@pytest.mark.parametrize("years", [10, -10])
async def test_a_wall_clock_that_jumps_loses_nothing(group: Group, years: int) -> None:
    a, filed, (_b, _c) = await ready(group)
    group.clock.jump(years * 365 * 86_400.0)

    waiting = await a.evict(filed.data)

    # Ahead: the leases have ended as far as this device can tell. Back: all is as it was.
    assert a.is_here(filed.data) is (years > 0)
    assert bool(waiting) is (years > 0)
    assert group.copies_of(filed.data.bundle_id) >= 2


@pytest.mark.parametrize("years", [10, -10])
async def test_a_wall_clock_that_jumps_under_the_locks(group: Group, years: int) -> None:
    a, filed, (_b, _c) = await ready(group)
    to_trash = a.bundles.to_trash

    def jump(bundle_id: Any) -> None:
        to_trash(bundle_id)
        group.clock.jump(years * 365 * 86_400.0)

    a.bundles.to_trash = jump  # type: ignore[method-assign]
    await a.evict(filed.data)
    assert a.is_here(filed.data) is (years > 0)
    assert group.copies_of(filed.data.bundle_id) >= 2


async def test_a_lock_outlives_a_restart_of_its_holder(group: Group) -> None:
    a, filed, (b, _) = await ready(group)
    await a.pusher.lock(filed.data.bundle_id, b.node_id, seq=0)
    from p2pstore.errors import Busy
    from p2pstore.store import HeldStore

    again = HeldStore(b.held.root, group.clock, boot_id="another boot")
    assert again.locked_for(filed.data.bundle_id) == 600.0
    with pytest.raises(Busy):
        again.release(filed.data.bundle_id)
    again.close()


# -- holders that go away --------------------------------------------------------------------------


async def test_a_holder_that_is_away_confirms_nothing(group: Group) -> None:
    a, filed, (b, _) = await ready(group)
    group.network.unreachable.add(group.addresses[b.node_id])
    for link in b.transport.links():
        link.abort()
    await asyncio.sleep(0)

    (reason,) = await a.evict(filed.data)

    assert reason == "1 of 2 holders proved their copy just now"
    assert a.is_here(filed.data)
    assert a.copies(filed.data)[b.node_id].state == copies.CopyState.PROVED, "it is only away"


@pytest.mark.parametrize("when", [Lock, Challenge, Unlock])
async def test_a_holder_that_goes_in_the_middle(group: Group, when: type[Any]) -> None:
    a, filed, (b, _) = await ready(group)

    async def vanish(request: Request) -> None:
        group.network.unreachable.add(group.addresses[b.node_id])
        request.link.abort()
        await asyncio.sleep(0)

    lie(b, when, vanish)

    waiting = await a.evict(filed.data)

    if when is Unlock:  # its lock ends by itself
        assert waiting == {}
        assert b.held.locked_for(filed.data.bundle_id) > 0
    else:
        assert list(waiting) == ["1 of 2 holders proved their copy just now"]
        assert a.is_here(filed.data)
    assert group.copies_of(filed.data.bundle_id) >= 2
    assert open_evicts(a) == 0


async def test_a_lock_is_not_relied_on_while_its_last_unlock_may_still_come(group: Group) -> None:
    a, filed, (b, c) = await ready(group)
    honest = b.server.serve
    late: list[Request] = []
    lost = asyncio.Event()

    async def serve(request: Request) -> None:
        if isinstance(request.message, Unlock):
            late.append(request)
            request.link.abort()  # the answer never comes
            lost.set()
        else:
            await honest(request)

    b.transport.handler = serve

    async def wrong(request: Request) -> None:
        await request.reply(Stale(9))

    lie(c, Challenge, wrong)
    assert await a.evict(filed.data)  # locked b, and could not take that back for sure
    await lost.wait()
    c.transport.handler = c.serve
    b.transport.handler = b.serve
    a.note_copy(filed.data, c)
    b.served.clear()

    assert list(await a.evict(filed.data)) == ["1 of 2 holders proved their copy just now"]
    assert "Lock" not in b.served
    group.clock.advance(700)
    assert await a.evict(filed.data) == {}


# -- kill between any two steps --------------------------------------------------------------------

STEPS = (
    "begin_removal",
    "begun",
    "lock",
    "challenge",
    "proved",
    "to_trash before",
    "to_trash after",
    "finish before",
    "finish after",
    "purge before",
    "purge after",
)


class Killed(BaseException):
    """The process ends here: nothing of it runs any more, not even `finally`."""


def kill_at(device: Device, step: str, death: BaseException) -> None:
    """Raise at one step, and let nothing of what would clean up do anything."""

    def die() -> None:
        dead = death

        def refuse(*_: Any, **__: Any) -> Any:
            raise dead

        if isinstance(dead, Killed):
            device.bundles.from_trash = refuse  # type: ignore[method-assign]
            device.bundles.trash = refuse  # type: ignore[method-assign]
            device.catalog.write = refuse  # type: ignore[method-assign]
        raise dead

    store, catalog, pusher = device.bundles, device.catalog, device.pusher
    awrite, purge, to_trash = catalog.awrite, store.purge, store.to_trash
    lock, challenge = pusher.lock, pusher.challenge

    if step == "begin_removal":
        begin = device.promises.begin_removal
        device.promises.begin_removal = lambda b: (begin(b), die())  # type: ignore[method-assign,assignment,func-returns-value]

    async def writing(change: Any) -> Any:
        name = getattr(getattr(change, "func", change), "__name__", "")
        if step == "finish before" and name == "_finish":
            die()
        done = await awrite(change)
        if (step == "begun" and name == "_begin") or (step == "finish after" and name == "_finish"):
            die()
        if step == "proved" and name == "<lambda>":
            die()
        return done

    async def locking(*args: Any, **options: Any) -> Any:
        done = await lock(*args, **options)
        if step == "lock":
            die()
        return done

    async def challenging(*args: Any, **options: Any) -> Any:
        done = await challenge(*args, **options)
        if step == "challenge":
            die()
        return done

    def trashing(bundle_id: Any) -> None:
        if step == "to_trash before":
            die()
        to_trash(bundle_id)
        if step == "to_trash after":
            die()

    def purging(bundle_id: Any) -> None:
        if step == "purge before":
            die()
        purge(bundle_id)
        if step == "purge after":
            die()

    catalog.awrite = writing  # type: ignore[method-assign]
    pusher.lock, pusher.challenge = locking, challenging  # type: ignore[method-assign]
    store.to_trash, store.purge = trashing, purging  # type: ignore[method-assign]


@pytest.mark.parametrize("step", STEPS)
async def test_killed_between_two_steps(group: Group, step: str) -> None:
    """Recovery finds the bundle back and SEALED, the journal closed; or it was gone for good."""
    a, filed, _ = await ready(group)
    kill_at(a, step, Killed())
    with pytest.raises(BaseException) as error:
        await a.evict(filed.data)
    assert "Killed" in repr(error.value)
    assert group.copies_of(filed.data.bundle_id) >= 2
    for name in ("from_trash", "trash", "to_trash", "purge"):
        a.bundles.__dict__.pop(name, None)
    for name in ("write", "awrite"):
        a.catalog.__dict__.pop(name, None)

    recover(a.catalog, a.bundles)

    was_purged = step == "purge after"
    assert a.is_here(filed.data) is not was_purged
    assert a.row(filed.data).state == (BundleState.EVICTED if was_purged else BundleState.SEALED)
    assert a.bundles.trash() == []
    assert open_evicts(a) == 0
    assert recover(a.catalog, a.bundles) == 0


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("death", [P2PStoreError("the disk"), OSError(5, "Input/output error")])
async def test_failed_at_any_step(group: Group, step: str, death: BaseException) -> None:
    """The same steps, when they fail and the process goes on."""
    a, filed, others = await ready(group)
    kill_at(a, step, death)
    try:
        assert await a.evict(filed.data)
    except (OSError, ExceptionGroup):
        assert isinstance(death, OSError)
    was_purged = step == "purge after"
    assert a.is_here(filed.data) is not was_purged
    assert a.row(filed.data).state == (BundleState.EVICTED if was_purged else BundleState.SEALED)
    assert a.bundles.trash() == []
    assert open_evicts(a) == 0
    assert not a.promises.removals
    if step != "lock":  # the answer was lost: that lock ends by itself
        assert all(other.held.locked_for(filed.data.bundle_id) == 0 for other in others)


@pytest.mark.parametrize("step", [s for s in STEPS if s not in ("lock", "challenge", "proved")])
async def test_cancelled_at_any_step(group: Group, step: str) -> None:
    a, filed, _ = await ready(group)
    kill_at(a, step, asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await a.evictor._evict(a.row(filed.data), False)
    was_purged = step == "purge after"
    assert a.is_here(filed.data) is not was_purged
    assert a.row(filed.data).state == (BundleState.EVICTED if was_purged else BundleState.SEALED)
    assert a.bundles.trash() == []
    assert open_evicts(a) == 0
    assert not a.promises.removals


async def test_cancelled_at_a_random_moment(group: Group) -> None:
    a, filed, _ = await ready(group)
    for turns in range(0, 120, 3):
        task = asyncio.create_task(a.evictor.evict([a.row(filed.data)], lambda _: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        state = a.row(filed.data).state
        assert a.is_here(filed.data) is (state == BundleState.SEALED)
        assert a.bundles.trash() == []
        assert open_evicts(a) == 0
        assert not a.promises.removals
        assert not a.evictor._running
        if state == BundleState.EVICTED:
            break
    assert group.copies_of(filed.data.bundle_id) >= 2


async def test_recovery_that_is_killed_begins_again(group: Group) -> None:
    a, filed, _ = await ready(group)
    bundle_id = filed.data.bundle_id
    for state in (BundleState.EVICTING, BundleState.EVICTED):
        a.bundles.to_trash(bundle_id)
        a.catalog.write(
            lambda db, state=state: blocks.move(
                db, filed.data.id, state, only_from=[BundleState.SEALED]
            )
        ).result()
        back = a.bundles.from_trash

        def die(_: Any) -> None:
            raise Killed

        a.bundles.from_trash = die  # type: ignore[method-assign]
        with pytest.raises(Killed):
            recover(a.catalog, a.bundles)
        a.bundles.from_trash = back  # type: ignore[method-assign]
        recover(a.catalog, a.bundles)
        assert a.is_here(filed.data)
        assert a.row(filed.data).state == BundleState.SEALED


# -- ingest, and two at once -----------------------------------------------------------------------


async def test_a_bundle_that_ingest_has_claimed_stays(group: Group) -> None:
    a, filed, others = await ready(group)
    kept = a.catalog.write(lambda db: blocks.claim(db, "journal:5", [filed.data.id])).result()
    assert kept == {filed.data.id}

    assert list(await a.evict(filed.data)) == ["is being used by a file that is protected just now"]
    assert a.is_here(filed.data)
    assert not any("Lock" in other.served for other in others)


async def test_ingest_does_not_get_a_bundle_that_is_going(group: Group) -> None:
    a, filed, (b, _) = await ready(group)
    claims: list[set[int]] = []
    honest = b.server.serve

    async def serve(request: Request) -> None:
        if isinstance(request.message, Challenge):
            claims.append(
                await a.catalog.awrite(lambda db: blocks.claim(db, "journal:5", [filed.data.id]))
            )
        await honest(request)

    b.transport.handler = serve

    assert await a.evict(filed.data) == {}
    assert claims == [set()]


async def test_dedup_knows_no_chunk_of_a_bundle_that_is_going(group: Group) -> None:
    from p2pstore.ids import BlockId
    from p2pstore.store import DedupRow

    a, filed, (b, _) = await ready(group)
    row = DedupRow(b"k" * 16, filed.data.id, 0, BlockId(bytes(32)), bytes(32), 0, 10)
    a.catalog.write(lambda db: blocks.insert_dedup(db, [row])).result()
    hits: list[int] = []
    honest = b.server.serve

    async def serve(request: Request) -> None:
        if isinstance(request.message, Challenge):
            known = a.catalog.view(lambda db: blocks.lookup_many(db, [b"k" * 16]))
            hits.append(len(known))
        await honest(request)

    b.transport.handler = serve
    assert len(a.catalog.view(lambda db: blocks.lookup_many(db, [b"k" * 16]))) == 1
    assert await a.evict(filed.data) == {}
    assert hits == [0]


async def test_a_file_that_comes_under_the_locks_stops_it(group: Group) -> None:
    """Its folder wants three copies: policy is asked again when the bundle lies in the trash."""
    a, filed, _ = await ready(group)
    to_trash = a.bundles.to_trash

    def meanwhile(bundle_id: Any) -> None:
        to_trash(bundle_id)
        folder = a.add_folder(FolderId(b"3" * 16), FolderSettings(min_copies=3))
        a.refer(b"x", [filed.data, filed.meta], folder=folder)

    a.bundles.to_trash = meanwhile  # type: ignore[method-assign]
    assert await a.evict(filed.data)
    assert a.is_here(filed.data)


async def test_the_same_bundle_asked_for_twice_at_once(group: Group) -> None:
    """The second neither removes the first one's mark nor anything else."""
    a, filed, (b, _) = await ready(group)
    marks: list[bool] = []
    honest = b.server.serve

    async def serve(request: Request) -> None:
        if isinstance(request.message, Challenge):
            for _ in range(50):
                await asyncio.sleep(0)
            marks.append(filed.data.bundle_id in a.promises.removals)
        await honest(request)

    b.transport.handler = serve

    one, two = await asyncio.gather(a.evict(filed.data), a.evict(filed.data))

    assert sorted((len(one), len(two))) == [0, 1]
    assert {*one, *two} == {"is being evicted already"}
    assert marks == [True]


async def test_a_locked_bundle_is_neither_released_nor_changed(group: Group) -> None:
    from p2pstore.errors import Busy

    a, filed, (b, _c) = await ready(group)
    refused: list[str] = []
    honest = b.server.serve

    async def serve(request: Request) -> None:
        if isinstance(request.message, Challenge):
            try:
                await a.pusher.release(filed.data.bundle_id, b.node_id)
            except Busy as exc:
                refused.append(str(exc))
        await honest(request)

    b.transport.handler = serve

    assert await a.evict(filed.data) == {}
    assert len(refused) == 1
    assert b.held.has(filed.data.bundle_id)


async def test_a_release_before_the_lock_stops_the_evict(group: Group) -> None:
    a, filed, (b, _c) = await ready(group)
    honest = b.server.serve

    async def serve(request: Request) -> None:
        if isinstance(request.message, Lock):
            await asyncio.to_thread(b.held.release, filed.data.bundle_id)
        await honest(request)

    b.transport.handler = serve
    assert await a.evict(filed.data)
    assert a.is_here(filed.data)
    assert group.copies_of(filed.data.bundle_id) == 2  # here, and at c


async def test_a_lock_makes_a_short_lease_longer(group: Group) -> None:
    a, filed, (b, _) = await ready(group)
    group.clock.advance(175 * 86_400)
    assert await a.evict(filed.data) == {}
    left = b.held.side(filed.data.bundle_id).lease_until_ms - group.clock.wall() * 1000
    assert left >= 60 * DAY_MS


async def test_many_bundles_a_page_at_a_time(group: Group, monkeypatch: Any) -> None:
    monkeypatch.setattr("p2pstore.maintenance.evict.PAGE", 3)
    a, *others = await group.devices(3)
    filed = [a.protect(f"file {i}") for i in range(8)]
    await a.copy_to(*others)
    freed = await a.evictor.evict([a.row(f.data) for f in filed], lambda _: None)
    assert (freed.bundles, freed.bytes) == (8, sum(f.data.bytes for f in filed))
    assert all(group.copies_of(f.data.bundle_id) == 2 for f in filed)
    assert a.root_bundle.kind == Kind.META


async def test_the_word_of_who_is_revoked_meanwhile_does_not_count(group: Group) -> None:
    """Two confirm, one of them is revoked; a third has a copy and did not answer."""
    a, filed, others = await ready(group, 4)
    b, _, d = others
    group.network.unreachable.add(group.addresses[d.node_id])
    for link in d.transport.links():
        link.abort()
    to_trash, look = a.bundles.to_trash, a.look
    revoked: set[Any] = set()

    def fewer() -> Any:
        world = look()
        left = {node: h for node, h in world.holders.items() if node not in revoked}
        return replace(world, holders=left)

    a.evictor._world = fewer

    def meanwhile(bundle_id: Any) -> None:
        to_trash(bundle_id)
        revoked.add(b.node_id)

    a.bundles.to_trash = meanwhile  # type: ignore[method-assign]
    assert list(await a.evict(filed.data)) == ["1 of 2 holders proved their copy just now"]
    assert a.is_here(filed.data)
