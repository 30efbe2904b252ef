"""The harness can fail: each of these mistakes, planted into the program, is caught by it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from p2pstore.content import BundleIndex
from p2pstore.errors import P2PStoreError
from p2pstore.placement import Claim
from p2pstore.store import DiskBundles
from tests.faults.killing import Killing, Server
from tests.faults.loop import why_not
from tests.faults.mutants import MUTANTS
from tests.faults.test_kill import SCENARIOS, SEED
from tests.faults.test_power import PowerCut
from tests.faults.world import Oracle, World
from tests.maintenance.nodes import Group

pytestmark = pytest.mark.slow
DEADLINE_S = 10.0

KILLED = {
    "name before content": "hydrate",
    "placeholder unlinked first": "hydrate",
    "recovery ignores commit": "replace",
    "recovery unlinks unknown": "replace",
}
CUT = {
    "no sync of the folder": ("replace", "folder"),
    "no fsync of bundles": ("replace", "home"),
    "catalog not synchronous": ("replace", "home"),
}


def shuffled(calls: int) -> list[int]:
    """Every point once; few are needed, since each mistake shows at several."""
    points = list(range(1, calls + 1))
    random.Random(SEED).shuffle(points)
    return points


def any_fails(attempt: Callable[[int], None], points: Iterable[int]) -> bool:
    """Whether some point shows that an invariant does not hold."""
    for point in points:
        try:
            attempt(point)
        except (AssertionError, P2PStoreError, OSError):
            return True
    return False


@pytest.mark.parametrize("mutant", KILLED)
def test_killing_catches(mutant: str, server: Server, tmp_path: Path) -> None:
    killing = Killing(server, tmp_path, SCENARIOS[KILLED[mutant]])
    points = shuffled(killing.calls())
    assert any_fails(lambda point: killing.kill(point, mutant=mutant), points)


@pytest.mark.root
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("mutant", CUT)
def test_power_cuts_catch(mutant: str, server: Server, tmp_path: Path) -> None:
    name, part = CUT[mutant]
    power = PowerCut(server, tmp_path, SCENARIOS[name], part)
    try:
        points = shuffled(power.calls())
        assert any_fails(lambda point: power.cut(point, flush=True, mutant=mutant), points)
    finally:
        power.close()


# -- mistakes that show by somebody else's act instead of a crash ----------------------------------


def _bundles_go_away(made: World, _: pytest.MonkeyPatch) -> bytes:
    content = os.urandom(50_000)
    made.write("file", content)
    made.replace("file")
    for bundle_id in made.disk.list():
        made.disk.to_trash(bundle_id)
    made.empty_trash()
    for bundle_id in made.disk.trash():
        made.disk.purge(bundle_id)
    return content


def _writer_waits(made: World, patch: pytest.MonkeyPatch) -> bytes:
    path = made.write("file", b"content")
    writing = threading.Thread(target=path.write_bytes, args=(b"CONTENT",))
    moving = Claim.move

    def move(self: Claim, rename: Callable[[], None], undo: Callable[[], None]) -> bool:
        def renamed() -> None:
            writing.start()
            ended = threading.Event()
            limit = threading.Timer(DEADLINE_S, ended.set)
            limit.start()
            while made.keeper.held(self.fd) and not ended.wait(0.002):
                pass
            limit.cancel()
            rename()

        return moving(self, renamed, undo)

    patch.setattr(Claim, "move", move)
    made.replace("file")
    writing.join(DEADLINE_S)
    assert path.read_bytes() == b"CONTENT"
    return b"CONTENT"


def _memory_is_bad(made: World, patch: pytest.MonkeyPatch) -> bytes:
    content = os.urandom(50_000)
    made.write("file", content)
    adopting = DiskBundles.adopt

    def adopt(self: DiskBundles, path: Path, index: BundleIndex) -> None:
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        adopting(self, path, index)

    patch.setattr(DiskBundles, "adopt", adopt)
    try:
        made.replace("file")
    except P2PStoreError:
        assert made.at("file").read_bytes() == content
    made.empty_trash()
    return content


def _written_in_trash(made: World, _: pytest.MonkeyPatch) -> bytes:
    made.write("file", b"content")
    made.replace("file")
    (lying,) = made.path.glob(".p2pstore/trash/*/file")
    lying.write_bytes(b"CONTENT")
    made.empty_trash()
    return b"CONTENT"


ACTS = {
    "trash without durability": _bundles_go_away,
    "no lease check after rename": _writer_waits,
    "no read back": _memory_is_bad,
    "trash not hashed again": _written_in_trash,
}


@pytest.mark.parametrize("mutant", ACTS)
@pytest.mark.parametrize("planted", [False, True])
def test_acts_of_others_catch(
    mutant: str, planted: bool, made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if planted:
        MUTANTS[mutant](monkeypatch.setattr)
    oracle = Oracle(made.base)
    caught = False
    try:
        oracle.assert_nothing_lost([ACTS[mutant](made, monkeypatch)])
    except (AssertionError, FileNotFoundError):
        caught = True
    oracle.close()
    assert caught == planted


RELEASED = "evict without proofs"


@pytest.mark.parametrize("planted", [False, True])
async def test_holders_that_let_go_catch(
    planted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if planted:
        MUTANTS[RELEASED](monkeypatch.setattr)
    group = Group(tmp_path)
    try:
        owner, *holders = await group.devices(3)
        filed = owner.protect("one")
        await owner.copy_to(*holders)
        for holder in holders:
            holder.held.release(filed.data.bundle_id)
        await owner.evict(filed.data)
        caught = group.copies_of(filed.data.bundle_id) == 0
    finally:
        await group.close()
    assert caught == planted


def test_every_mutant_is_tried() -> None:
    assert KILLED.keys() | CUT.keys() | ACTS.keys() | {RELEASED} == MUTANTS.keys()
