"""The loops: what wakes them, what they survive, what they leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from p2pstore.clock import SystemClock
from p2pstore.content import Head, decode_head, encode_head, head_order, sign_head, verify_head
from p2pstore.errors import NoRoom, Unavailable
from p2pstore.home import RECOVERING
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance import Maintenance, Swarm, loops
from p2pstore.maintenance import service as module
from p2pstore.maintenance.index import HeadOrder
from p2pstore.maintenance.rebuild import State, save_state
from p2pstore.policy import Candidate, Holder
from p2pstore.store import BundleState, copies, folders

from .nodes import NO_SETTINGS, STATE, Device, Group


class FakeIndex:
    """Says that a new index was written whenever it is asked; signs nothing but a number."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.written: list[FolderId] = []
        self.trouble: dict[FolderId, Exception] = {}
        self.meanwhile: Callable[[], None] = lambda: None

    def write(self, folder: folders.FolderRow, last: HeadOrder | None) -> bytes | None:
        assert threading.current_thread() is not threading.main_thread()
        self.meanwhile()
        if folder.folder_id in self.trouble:
            raise self.trouble[folder.folder_id]
        self.written.append(folder.folder_id)
        seq = 1 if last is None else last.seq + 1
        head = Head(folder.folder_id, self.device.node_id, 1, seq, b"m")
        return encode_head(sign_head(head, self.device.key, b""))


class FakeAuditor:
    async def confirm(self, holder: NodeId) -> int:
        return 0


class Keeper:
    """Maintenance of one device whose heads everybody acknowledges at once."""

    def __init__(self, device: Device, others: Sequence[Device]) -> None:
        self.device = device
        self.others = list(others)
        self.heads: dict[FolderId, Head] = {}
        self.index = FakeIndex(device)
        self.tells = 0
        self.deaf: set[NodeId] = set()
        self.maintenance = Maintenance(
            catalog=device.catalog,
            held=device.held,
            ledger=device.ledger,
            index=self.index,  # type: ignore[arg-type]
            replicator=device.replicator,
            auditor=FakeAuditor(),  # type: ignore[arg-type]
            swarm=Swarm(
                links=device.transport.links,
                candidates=self.candidates,
                state=lambda: STATE,
                tell=self.tell,
                heads=lambda: list(self.heads.values()),
                publish=self.publish,
                second_device=lambda: True,
                words_confirmed=lambda: True,
            ),
            clock=SystemClock(),
            pool=device.world.pool,
            history_s=30 * 86_400.0,
            vetting_s=86_400.0,
        )
        self.maintenance.evictor = device.evictor
        device.replicator._world = device.evictor._world = self.maintenance.world
        self.task: asyncio.Task[None] | None = None

    def candidates(self) -> list[Candidate]:
        now = SystemClock().wall()
        return [Candidate(Holder(o.node_id, "device"), 1, now) for o in self.others]

    async def tell(self) -> list[copies.HeadAck]:
        self.tells += 1
        return [
            copies.HeadAck(o.node_id, h.folder, h.incarnation, h.seq, *STATE)
            for o in self.others
            for h in self.heads.values()
            if o.node_id not in self.deaf
        ]

    async def publish(self, raw: bytes) -> bool:
        head = verify_head(decode_head(raw))
        self.heads[head.folder] = head
        return True

    async def __aenter__(self) -> Keeper:
        self.task = asyncio.create_task(self.maintenance.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    monkeypatch.setattr(module, "GATHER_S", 0.0)
    monkeypatch.setattr(loops, "FIRST_REST_S", 0.01)
    monkeypatch.setattr(loops, "LONGEST_REST_S", 0.02)
    monkeypatch.setattr(module, "SETTLE_LOOK_S", 0.01)
    monkeypatch.setattr(module, "PASS_S", 0.02)


async def keeper(group: Group, number: int = 3) -> Keeper:
    # Real time: the world's clock stands still, and loops wait on it.
    group.clock = SystemClock()  # type: ignore[assignment]
    a, *others = await group.devices(number)
    for other in others:
        await a.meet(other)
    return Keeper(a, others)


def order(keeper: Keeper) -> list[tuple[int, int]]:
    return [head_order(head) for head in keeper.heads.values()]


async def test_what_was_protected_before_the_start_gets_its_head(group: Group) -> None:
    k = await keeper(group)
    async with k:
        await k.until(lambda: bool(k.heads) and k.tells > 0)
    assert k.index.written == [k.device.folder_id]


async def test_a_catalog_that_is_being_completed_says_nothing_by_itself(group: Group) -> None:
    k = await keeper(group)
    k.maintenance.rebuilding = True
    async with k:
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert not k.index.written
        k.maintenance.changed()
        await k.until(lambda: bool(k.index.written))


async def test_an_index_that_failed_is_written_without_another_change(group: Group) -> None:
    k = await keeper(group)
    k.index.trouble[k.device.folder_id] = NoRoom("full")
    async with k:
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert k.device.folder_id not in k.maintenance.world().clean
        k.index.trouble.clear()
        await k.until(lambda: bool(k.heads))
        await k.until(lambda: k.device.folder_id in k.maintenance.world().clean)


@pytest.mark.parametrize("error", [NoRoom("full"), OSError(5, "Input/output error")])
async def test_one_folder_that_fails_does_not_stop_the_others(
    group: Group, error: Exception
) -> None:
    k = await keeper(group)
    later = FolderId(b"z" * 16)
    k.device.add_folder(later, NO_SETTINGS)
    k.index.trouble[k.device.folder_id] = error
    with pytest.raises(type(error)):
        await k.maintenance.write_heads()
    assert list(k.heads) == [later]
    assert k.maintenance.world().clean == {later}


async def test_a_folder_that_is_being_recovered_gets_no_new_head(group: Group) -> None:
    """The head that was taken over leads to files of which this catalog has not heard yet."""
    k = await keeper(group)
    (row,) = k.device.catalog.view(folders.every)
    k.device.catalog.write(lambda db: folders.set_paused(db, row.id, RECOVERING)).result()
    await k.maintenance.write_heads()
    assert not k.index.written
    k.device.catalog.write(lambda db: folders.set_paused(db, row.id, "")).result()
    await k.maintenance.write_heads()
    assert k.index.written == [row.folder_id]


def left_unread(k: Keeper, folders_left: tuple[bytes, ...], *, age_s: float = 0.0) -> None:
    at_ms = int((SystemClock().wall() - age_s) * 1000)
    left = State(at_ms, False, 1, folders=folders_left)
    k.device.catalog.write(lambda db: save_state(db, left)).result()


async def test_no_shorter_index_supersedes_one_that_a_rebuild_could_not_read(group: Group) -> None:
    k = await keeper(group)
    left_unread(k, (k.device.folder_id,))
    async with k:
        await k.until(lambda: k.tells > 0)
        assert not k.index.written
        assert k.device.folder_id not in k.maintenance.world().clean
        left_unread(k, ())  # who has the rest has come
        await k.until(lambda: bool(k.index.written))
        await k.until(lambda: k.device.folder_id in k.maintenance.world().clean)


async def test_what_nobody_brings_is_not_waited_for_longer_than_a_day(group: Group) -> None:
    k = await keeper(group)
    left_unread(k, (k.device.folder_id,), age_s=86_500)
    async with k:
        await k.until(lambda: bool(k.index.written))


async def test_a_bug_in_one_loop_ends_none(group: Group) -> None:
    k = await keeper(group)
    k.index.trouble[k.device.folder_id] = RuntimeError("a bug")
    row = k.device.protect("one").data
    async with k:
        await k.until(lambda: all(o.held.has(row.bundle_id) for o in k.others))
        k.index.trouble.clear()
        await k.until(lambda: bool(k.heads))
        assert k.task is not None
        assert not k.task.done()


async def test_a_change_during_the_writing_is_not_covered(group: Group) -> None:
    k = await keeper(group)
    loop = asyncio.get_running_loop()

    def change() -> None:
        done = threading.Event()
        loop.call_soon_threadsafe(lambda: (k.maintenance.changed(), done.set()))
        done.wait(5)
        k.index.meanwhile = lambda: None

    k.index.meanwhile = change
    await k.maintenance.write_heads()
    assert not k.maintenance.world().clean
    await k.maintenance.write_heads()
    assert k.maintenance.world().clean == {k.device.folder_id}
    assert order(k) == [(1, 2)]


async def test_an_index_is_not_written_back_to_back(group: Group) -> None:
    """While files keep coming, the minute counts from the last index on."""
    k = await keeper(group)
    module.QUIET_S = 1000.0
    try:
        async with k:
            await k.until(lambda: bool(k.heads) or k.maintenance._last_change > 0)
            k.maintenance._first_change -= 61
            k.maintenance.changed()
            k.maintenance._indexing.wake()
            await k.until(lambda: bool(k.index.written))
            written = len(k.index.written)
            for _ in range(30):
                k.maintenance.changed()
                await asyncio.sleep(0.002)
            assert len(k.index.written) == written
    finally:
        module.QUIET_S = 0.0


async def test_who_was_not_told_is_told_at_the_next_pass(group: Group) -> None:
    k = await keeper(group)
    k.deaf = {k.others[0].node_id}
    async with k:
        await k.until(lambda: bool(k.heads) and k.tells > 0)
        k.deaf.clear()
        k.maintenance.linked(k.others[0].node_id)
        told = k.device.ledger.untold
        await k.until(lambda: not told(k.maintenance.world(), [o.node_id for o in k.others]))


async def test_evict_settles_first_and_then_frees(group: Group) -> None:
    k = await keeper(group)
    filed = k.device.protect("one")
    async with k:
        progress: list[dict[str, Any]] = []
        result = await k.maintenance.evict([], progress.append)
    assert result["freed_bytes"] == filed.data.bytes, result
    assert result["waiting"] == []
    assert k.device.row(filed.data).state == BundleState.EVICTED
    assert {p["stage"] for p in progress} == {"push", "evict"}
    assert group.copies_of(filed.data.bundle_id) == 2


async def test_what_waits_to_be_collected_was_not_asked_for(group: Group) -> None:
    k = await keeper(group)
    filed = k.device.protect("one")
    leftover = k.device.bundle("of an ingest that ended without naming it")
    async with k:
        result = await k.maintenance.evict([], lambda _: None)
        (line,) = k.maintenance.why([])["bundles"]
    assert result["freed_bytes"] == filed.data.bytes, result
    assert result["waiting"] == []
    assert result["leftover_bytes"] == leftover.bytes
    assert line["bundle"] == leftover.bundle_id.hex()
    assert line["missing"] == ["no file needs it any more: it goes by itself"]


async def test_evict_does_not_wait_for_a_slow_holder(group: Group) -> None:
    k = await keeper(group, 4)
    filed = k.device.protect("one")
    stuck = asyncio.Event()
    slow = k.others[0]
    honest = slow.server.serve

    async def serve(request: Any) -> None:
        if type(request.message).__name__ == "Put":
            await stuck.wait()
        await honest(request)

    slow.transport.handler = serve
    async with k:
        async with asyncio.timeout(20):
            result = await k.maintenance.evict([], lambda _: None)
        assert result["freed_bytes"] == filed.data.bytes, result
        assert not slow.held.has(filed.data.bundle_id)
        stuck.set()


async def test_settle_sends_what_came_while_a_lane_was_at_its_end(group: Group) -> None:
    k = await keeper(group)
    b = k.others[0]
    late: list[Any] = []
    serve = k.device.replicator.serve

    async def serving(holder: NodeId) -> bool:
        done = await serve(holder)
        if not late:
            late.append(k.device.protect("late").data)
        return done

    k.device.replicator.serve = serving  # type: ignore[method-assign]
    async with k:
        await k.maintenance.settle(lambda _: None)
        assert b.held.has(late[0].bundle_id)


async def test_settle_ends_when_nobody_takes_anything(group: Group) -> None:
    k = await keeper(group)
    for other in k.others:
        other.refusal = "full"
    k.device.protect("one")
    async with k, asyncio.timeout(20):
        await k.maintenance.settle(lambda _: None)


async def test_nothing_of_it_is_left_at_the_end(group: Group) -> None:
    before = asyncio.all_tasks()
    k = await keeper(group)
    stuck = asyncio.Event()

    async def never(request: Any) -> None:
        await stuck.wait()

    k.others[0].transport.handler = never
    k.device.protect("one")
    linked = asyncio.all_tasks()
    async with k:
        await k.until(lambda: bool(k.device.replicator.sending))
    left = {t for t in asyncio.all_tasks() - before - linked if "maintenance" in repr(t)}
    assert not left


async def test_the_world_may_be_looked_at_in_any_thread(group: Group) -> None:
    """While the loop adds folders to what is indexed."""
    k = await keeper(group)
    await k.maintenance.write_heads()
    errors: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        try:
            while not stop.is_set():
                k.maintenance.world()
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=look)
    thread.start()
    for i in range(3000):
        k.maintenance._indexed[FolderId(i.to_bytes(16, "big"))] = (i, None)
    stop.set()
    thread.join()
    assert not errors


async def test_tidy_goes_on_with_the_history_when_the_trash_fails(group: Group) -> None:
    k = await keeper(group)

    def fails() -> list[Any]:
        raise Unavailable("the disk")

    k.device.held.purge_trash = fails  # type: ignore[method-assign]
    ended: list[bool] = []
    k.maintenance._end_history = lambda: ended.append(True)  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await asyncio.to_thread(k.maintenance._tidy)
    assert ended


def foreign(k: Keeper, seq: int) -> Head:
    """A head of this very device that it does not know to have signed."""
    return Head(k.device.folder_id, k.device.node_id, 1, seq, b"from before HOME was restored")


async def test_a_head_of_ours_from_elsewhere_covers_nothing(group: Group) -> None:
    k = await keeper(group)
    await k.maintenance.write_heads()
    assert k.maintenance.world().clean
    k.heads[k.device.folder_id] = foreign(k, 50)
    assert not k.maintenance.world().clean
    await k.maintenance.write_heads()
    assert order(k) == [(1, 51)]
    assert k.maintenance.world().clean == {k.device.folder_id}


async def test_a_head_that_is_not_taken_covers_nothing(group: Group) -> None:
    k = await keeper(group)

    async def refuses(raw: bytes) -> bool:
        k.heads[k.device.folder_id] = foreign(k, 50)
        return False

    taken = k.maintenance._swarm.publish
    object.__setattr__(k.maintenance._swarm, "publish", refuses)
    with pytest.raises(Unavailable):
        await k.maintenance.write_heads()
    assert not k.maintenance.world().clean
    object.__setattr__(k.maintenance._swarm, "publish", taken)
    await k.maintenance.write_heads()
    assert order(k) == [(1, 51)]
    assert k.maintenance.world().clean
