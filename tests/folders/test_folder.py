"""A watched folder as its owner lives with it: nothing he does there loses anything."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from p2pstore.clock import SystemClock
from p2pstore.content import Relation, compare_versions
from p2pstore.errors import Unavailable
from p2pstore.folders import batching, folder, looking, losses, trash, undeleting
from p2pstore.folders.contents import _settled
from p2pstore.folders.taking import decode_version, encode_version
from p2pstore.folders.undeleting import deleted
from p2pstore.placement import UNWRITABLE, Root
from p2pstore.store import State, blocks, files
from p2pstore.watch import OpenWatcher, Seen
from tests.faults.world import Oracle, World
from tests.folders.conftest import Watched


async def test_files_are_replaced_and_their_trash_is_emptied(watched: Watched) -> None:
    made = watched.world
    for name in ("one", "below/two"):
        made.write(name, name.encode())
    await watched.until(lambda: made.names() == {b"one.f", b"below/two.f"})
    await watched.until(lambda: not made.waiting())


async def test_what_is_being_let_go_lies_in_trash_until_it_is_gone(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()
    empty = trash.empty

    def slow(*args: Any) -> Any:
        began.set()
        assert may_end.wait(20)
        return empty(*args)

    monkeypatch.setattr(trash, "empty", slow)
    watched.world.write("one", b"content")
    await watched.until(began.is_set)
    assert [batch.files for batch in watched.folder.trash()] == [1]
    may_end.set()
    await watched.until(lambda: not watched.folder.trash())
    assert not watched.world.waiting()


async def test_an_open_is_heard_while_the_first_look_goes_on(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a million files takes a while; what was seen at its begin works at once."""
    made.write("early/note", b"content")
    is_heard = threading.Event()
    look_at_all = looking.look_at_all

    def slow(*args: Any, **options: Any) -> Any:
        found = look_at_all(*args, **options)
        assert is_heard.wait(20), "nobody heard of it before the look had ended"
        return found

    monkeypatch.setattr(looking, "look_at_all", slow)
    async with OpenWatcher(SystemClock()) as opens:
        running = Watched(made, opens)
        await running.until(lambda: opens.directories == 2)
        made.at("early/note").read_bytes()
        opened = await anext(opens)
        is_heard.set()
        assert opened.path == b"early/note"
        await running.folder.looked_at()
        assert running.folder.is_scanned
        await running.stop()


async def test_moved_placeholder_takes_its_file_along(watched: Watched) -> None:
    made = watched.world
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    await watched.settled()
    made.at("below").mkdir()
    os.rename(made.at("one.f"), made.at("below/two.f"))
    await watched.until(lambda: watched.state(b"below/two") == State.PLACEHOLDER)
    await watched.until(lambda: watched.state(b"one") in ("", State.DELETED))
    (brought,) = await brought_back(watched, b"below/two.f")
    assert brought is None
    assert made.at("below/two").read_bytes() == b"content"


async def brought_back(watched: Watched, *names: bytes) -> list[object]:
    from p2pstore.folders import Placeholder

    made = watched.world
    placeholders = [Placeholder(n, made.file_row(n.removesuffix(b".f"))) for n in names]
    found = made.bringing.bring(made.root, placeholders, lambda _files, _size: None)
    return [brought.error async for brought in found]


async def test_copied_placeholder_keeps_all_its_bundles_alive(watched: Watched) -> None:
    """A long file's `.f` names only its list; what the list names must be kept for the copy too."""
    made = watched.world
    made.write("long", os.urandom(9 << 20))
    await watched.until(lambda: watched.state(b"long") == State.PLACEHOLDER)
    await watched.settled()
    shutil.copy(made.at("long.f"), made.at("copy.f"))
    await watched.until(lambda: watched.state(b"copy") == State.PLACEHOLDER)

    def needed(path: bytes) -> set[bytes]:
        row = made.file_row(path)
        assert row is not None
        found = made.catalog.view(lambda db: blocks.bundles_of_file(db, row.id))
        return {bundle.bundle_id for bundle in found}

    assert needed(b"copy") == needed(b"long")


async def test_placeholder_renamed_to_the_originals_name_is_known_for_what_it_is(
    watched: Watched,
) -> None:
    made = watched.world
    made.write("photo.jpg", b"content")
    await watched.until(lambda: watched.state(b"photo.jpg") == State.PLACEHOLDER)
    await watched.settled()
    os.rename(made.at("photo.jpg.f"), made.at("other.jpg"))
    await watched.until(lambda: watched.state(b"other.jpg") == State.CONFLICT)
    await watched.settled()
    row = made.file_row("other.jpg")
    assert row is not None
    assert made.catalog.view(lambda db: blocks.bundles_of_file(db, row.id))
    assert made.names() == {b"other.jpg"}
    assert await brought_back(watched, b"other.jpg") == [None]
    assert made.at("other.jpg").read_bytes() == b"content"
    # And it stays: it has just been asked for.
    await watched.settled()
    assert made.names() == {b"other.jpg"}


async def test_damaged_copy_of_a_placeholder_is_not_taken_as_content(watched: Watched) -> None:
    made = watched.world
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    raw = made.at("one.f").read_bytes()
    made.write("one.f.damaged-1", raw[:-1])
    await watched.until(lambda: watched.state(b"one.f.damaged-1") == State.SKIPPED)
    await watched.settled()
    assert made.names() == {b"one.f", b"one.f.damaged-1"}


def test_the_next_version_is_newer_than_the_row_whatever_its_manifest_says(made: World) -> None:
    """It came back from a deletion that others may have heard of."""
    made.write("one", b"content")
    made.replace("one")
    row = made.file_row("one")
    assert row is not None
    (device,) = decode_version(row.version)
    raised = encode_version({device: 7})
    made.catalog.write(lambda db: files.upsert_many(db, [row._replace(version=raised)])).result()
    made.write("one", b"edited")
    made.replace("one")
    row = made.file_row("one")
    assert row is not None
    assert decode_version(row.version) == {device: 8}


async def test_deleted_placeholder_is_kept_in_the_history(watched: Watched) -> None:
    made = watched.world
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    await watched.settled()
    raw = made.at("one.f").read_bytes()
    made.at("one.f").unlink()
    await watched.until(lambda: watched.state(b"one") == State.DELETED)
    (past,) = made.catalog.view(lambda db: files.history(db, made.row, b"one"))
    assert past.manifest == raw
    oracle = Oracle(made.base)
    assert oracle.content_of(raw) == b"content"
    oracle.close()


async def test_own_file_of_that_name_becomes_a_file_like_any_other(watched: Watched) -> None:
    made = watched.world
    made.write("solver.f", b"      PROGRAM MAIN")
    await watched.until(lambda: made.names() == {b"solver.f.f"})


async def test_root_that_vanishes_concludes_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pstore.folders.folder.PRESENCE_S", 0.2)
    made = watched.world
    for number in range(5):
        made.write(f"file {number}", b"content %d" % number)
    await watched.until(
        lambda: len(made.names()) == 5 and all(n[-2:] == b".f" for n in made.names())
    )
    await watched.settled()
    away = made.base / "away"
    os.rename(made.path, away)
    await watched.until(lambda: watched.folder.root is None)
    assert {row.state for row in watched.rows().values()} == {State.PLACEHOLDER}
    os.rename(away, made.path)
    await watched.until(lambda: watched.folder.root is not None)
    await watched.settled()
    assert {row.state for row in watched.rows().values()} == {State.PLACEHOLDER}


async def test_emptied_root_without_its_marker_concludes_nothing(watched: Watched) -> None:
    """An unplugged disk leaves an empty directory of the same name; so does `rm -rf`."""
    made = watched.world
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    await watched.settled()
    shutil.rmtree(made.path / ".p2pstore")
    made.at("one.f").unlink()
    await watched.until(lambda: watched.folder.root is None)
    assert watched.state(b"one") == State.PLACEHOLDER


async def many(watched: Watched, number: int = 30) -> set[bytes]:
    made = watched.world
    for i in range(number):
        made.write(f"{i:02}", b"content %d" % i)
    names = {b"%02d.f" % i for i in range(number)}
    await watched.until(lambda: made.names() == names)
    await watched.settled()
    return names


async def test_mass_deletion_pauses_and_can_be_undone(watched: Watched) -> None:
    made = watched.world
    names = await many(watched)
    watched.set(settle_s=0.3)
    for name in names:
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    assert {row.state for row in watched.rows().values()} == {State.PLACEHOLDER}
    assert await watched.folder.undo_change() == 30
    await watched.settled()
    assert made.names() == names
    assert not watched.folder.is_paused


async def test_edits_that_were_accepted_are_not_asked_about_while_they_come_to_rest(
    watched: Watched,
) -> None:
    made = watched.world
    names = await many(watched)
    watched.set(settle_s=1.0)
    for name in names:
        made.at(name).write_bytes(b"new " + name)
    await watched.until(lambda: watched.folder.is_paused)
    watched.folder.accept_change()
    for _ in range(3):
        looked = watched.folder._looking._ended
        watched.folder.ask_rescan("the test asks")
        await watched.until(lambda before=looked: watched.folder._looking._ended != before)
        assert not watched.folder.is_paused
    await watched.settled()
    assert not watched.folder.is_paused
    made.write("one more", b"content")
    await watched.until(lambda: watched.state(b"one more") == State.PLACEHOLDER)


@pytest.mark.parametrize("paused", ["", "paused by its owner"])
async def test_what_is_accepted_before_it_happens_is_asked_about_all_the_same(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, paused: str
) -> None:
    made = watched.world
    names = await many(watched)
    monkeypatch.setattr(losses, "WINDOW_S", 0.1)
    monkeypatch.setattr(folder, "PRESENCE_S", 0.05)
    watched.folder.set_paused(paused)
    watched.folder.accept_change()
    await watched.until(lambda: not watched.folder.losses._accepted)
    for name in names:
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    assert {row.state for row in watched.rows().values()} == {State.PLACEHOLDER}


async def test_what_was_concluded_before_it_was_many_is_undone_too(watched: Watched) -> None:
    """Who deletes slowly deletes all the same."""
    made = watched.world
    names = sorted(await many(watched))
    watched.set(settle_s=0.05)
    for name in names[:10]:
        made.at(name).unlink()
    await watched.until(lambda: watched.state(b"09") == State.DELETED)
    for name in names[10:]:
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    assert watched.folder.losses.change == (30, 30)
    assert await watched.folder.undo_change() == 30
    await watched.settled()
    assert made.names() == set(names)
    assert {row.state for row in watched.rows().values()} == {State.PLACEHOLDER}
    assert (await brought_back(watched, b"00.f")) == [None]
    assert made.at(b"00").read_bytes() == b"content 0"


async def test_mass_overwriting_pauses_and_can_be_undone(watched: Watched) -> None:
    """What an extortionist's program does to a folder: every `.f` is something else now."""
    made = watched.world
    names = await many(watched)
    watched.set(settle_s=0.3)
    before = {name: made.at(name).read_bytes() for name in names}
    for name in names:
        made.at(name).write_bytes(b"pay " + name)
    await watched.until(lambda: watched.folder.is_paused)
    assert await watched.folder.undo_change() == 30
    assert {name: made.at(name).read_bytes() for name in names} == before
    assert len(made.names()) == 60  # what had been written is kept beside


async def test_mass_deletion_that_is_accepted_goes_to_the_history(watched: Watched) -> None:
    made = watched.world
    names = await many(watched)
    watched.set(settle_s=0.3)
    for name in names:
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    watched.folder.accept_change()
    await watched.until(lambda: not watched.rows())
    past = made.catalog.view(lambda db: files.deleted_beneath(db, made.row))
    assert len(past) == 30


async def test_accepting_one_mass_change_does_not_accept_the_next(watched: Watched) -> None:
    made = watched.world
    names = await many(watched)
    watched.set(settle_s=0.3)
    for name in names:
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    watched.folder.accept_change()
    await watched.until(lambda: not watched.rows())
    watched.set(settle_s=0.0)
    names = await many(watched)
    watched.set(settle_s=0.3)
    await watched.settled()
    for name in names:
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    assert len(watched.rows()) == 30


async def test_editor_that_saves_beside_its_placeholder_keeps_both_versions(
    watched: Watched,
) -> None:
    """The file vanished from under an editor that holds no descriptor; it writes the name anew."""
    made = watched.world
    made.write("text", b"first")
    await watched.until(lambda: watched.state(b"text") == State.PLACEHOLDER)
    await watched.settled()
    made.write("text", b"second")
    await watched.until(lambda: watched.state(b"text") == State.PROTECTED)
    await watched.settled()
    assert made.names() == {b"text", b"text.f"}
    oracle = Oracle(made.base)
    oracle.assert_nothing_lost([b"first", b"second"])
    oracle.close()
    past = made.catalog.view(lambda db: files.history(db, made.row, b"text"))
    assert len(past) == 1


async def test_editor_that_saves_by_rename_keeps_both_versions(watched: Watched) -> None:
    made = watched.world
    made.write("text", b"first")
    await watched.until(lambda: watched.state(b"text") == State.PLACEHOLDER)
    await watched.settled()
    made.write("text.new", b"second")
    os.rename(made.at("text.new"), made.at("text"))
    await watched.until(lambda: watched.state(b"text") == State.PROTECTED)
    row = made.file_row("text")
    assert row is not None
    assert row.file_size == len(b"second")
    assert made.at("text").read_bytes() == b"second"


async def test_file_goes_when_its_editor_has_closed_it_unchanged(watched: Watched) -> None:
    made = watched.world
    made.write(".text.swp", b"vim")
    made.write("text", b"content")
    await watched.until(lambda: watched.state(b"text") == State.PROTECTED)
    await watched.settled()
    row = made.file_row("text")
    assert row is not None
    assert row.reason == "open in an editor"
    made.at(".text.swp").unlink()
    await watched.settled()
    await watched.until(lambda: watched.state(b"text") == State.PLACEHOLDER)


async def test_file_that_is_written_without_pause_is_left_alone(watched: Watched) -> None:
    made = watched.world
    with open(made.write("log", b"begin\n"), "ab", buffering=0) as log:
        await watched.until(lambda: bool(watched.folder.waiting.reasons()))
        assert dict(watched.folder.waiting.reasons())[b"log"] == "open in another program"
        log.write(b"end\n")
    assert made.at("log").read_bytes() == b"begin\nend\n"


async def test_trash_that_cannot_be_emptied_does_not_end_the_watch(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tried = watched.world, []

    def broken(*_: object) -> None:
        tried.append(True)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("p2pstore.folders.trash.empty", broken)
    made.write("one", b"content")
    await watched.until(lambda: bool(tried))
    made.write("two", b"content of another")
    await watched.until(lambda: watched.state(b"two") == State.PLACEHOLDER)
    # Both batches are still spoken of: nothing was forgotten with the error.
    await watched.until(lambda: len(made.waiting()) == len(watched.folder.trash()) == 2)


async def test_closed_root_opens_nothing(watched: Watched) -> None:
    """A descriptor's number is soon somebody else's: a root that was left fails instead."""
    root = Root(watched.world.path, watched.folder.folder_id)
    root.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        root.open(b"file", os.O_RDONLY)


async def test_where_nothing_may_be_replaced_files_are_protected_until_it_may_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that became read-only, and is writable again."""
    monkeypatch.setattr("p2pstore.folders.folder.PRESENCE_S", 0.1)
    monkeypatch.setattr(Root, "obstacle", lambda _: UNWRITABLE)
    made = watched.world
    await watched.until(lambda: watched.folder.obstacle is not None)
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PROTECTED)
    await watched.settled()
    row = made.file_row("one")
    assert row is not None
    assert row.reason == UNWRITABLE
    assert made.names() == {b"one"}
    monkeypatch.setattr(Root, "obstacle", lambda _: None)
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)


async def test_nothing_is_kept_open_on_a_disk_at_rest(watched: Watched) -> None:
    """Its owner could not take it out otherwise."""
    made = watched.world
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    await watched.until(lambda: not made.waiting())
    made.root.close()  # the test's own

    def is_open() -> bool:
        mine = os.fsencode(made.path)
        fds = (b"/proc/self/fd/" + number for number in os.listdir(b"/proc/self/fd"))
        links = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
        return any(link == mine or link.startswith(mine + b"/") for link in links)

    await watched.until(lambda: not is_open())
    assert watched.folder.root is not None
    # And it is used again when something happens.
    made.write("two", b"content of another")
    await watched.until(lambda: watched.state(b"two") == State.PLACEHOLDER)


async def test_root_in_use_does_not_rest(watched: Watched) -> None:
    root = Root(watched.world.path, watched.folder.folder_id)
    assert root.acquire()
    root.rest()
    os.close(root.open(b".", os.O_RDONLY))
    root.release()
    root.rest()
    with pytest.raises(OSError, match="Bad file descriptor"):
        root.open(b".", os.O_RDONLY)
    assert root.acquire()
    os.close(root.open(b".", os.O_RDONLY))
    root.close()
    root.release()
    assert not root.acquire()


async def test_root_that_was_replaced_at_rest_is_not_taken_for_it(watched: Watched) -> None:
    made = watched.world
    root = Root(made.path, watched.folder.folder_id)
    root.rest()
    await watched.stop()
    os.rename(made.path, made.base / "away")
    shutil.copytree(made.base / "away", made.path)
    assert not root.acquire()
    shutil.rmtree(made.path)
    os.rename(made.base / "away", made.path)
    assert root.acquire()
    root.close()


async def test_a_folder_is_never_called_settled_between_rest_and_batch(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken out of the waiting room and is not in a batch yet is on its way."""
    claims: list[bool] = []
    real = batching.still

    def looked_at(root: Root, paths: Iterable[bytes]) -> dict[bytes, Seen]:
        claims.append(watched.folder.is_settled())
        return real(root, paths)

    monkeypatch.setattr(batching, "still", looked_at)
    made = watched.world
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    assert claims
    assert not any(claims)


async def test_a_folder_rests_when_what_is_being_concluded_has_ended(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that was about to be written down must not meet rows that came later."""
    concluding, may_end = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any) -> None:
        concluding.set()
        await may_end.wait()

    monkeypatch.setattr(folder, "conclude", slow)
    watched.folder.ask_rescan("the test asks")
    await concluding.wait()
    resting = asyncio.create_task(watched.folder.rest())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not resting.done()
    may_end.set()
    assert await resting
    concluding.clear()
    watched.folder.ask_rescan("the test asks")
    await watched.until(lambda: watched.folder.is_settled())
    assert not concluding.is_set()
    watched.folder.set_paused("paused by its owner")
    assert not await watched.folder.rest()
    assert watched.folder.entry.paused == "paused by its owner"


YEAR_2286 = 10**19  # in ns since the epoch: more than 64 bits hold


@pytest.mark.parametrize("when", [YEAR_2286, -(10**18)])
async def test_a_file_of_a_far_year_is_a_file_like_any_other(watched: Watched, when: int) -> None:
    made = watched.world
    made.write("one", b"content")
    os.utime(made.at("one"), ns=(when, when))
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    await watched.settled()
    assert await brought_back(watched, b"one.f") == [None]
    assert made.at("one").read_bytes() == b"content"
    assert made.at("one").stat().st_mtime_ns == min(when, (1 << 63) - 1)


async def test_a_known_file_that_gets_a_far_year_ends_no_look(watched: Watched) -> None:
    made = watched.world
    made.write("one", b"content")
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    await watched.settled()
    os.utime(made.at("one.f"), ns=(YEAR_2286, YEAR_2286))
    await watched.settled()
    row = made.file_row("one")
    assert row is not None
    assert (row.state, row.mtime_ns) == (State.PLACEHOLDER, (1 << 63) - 1)


async def deleted_one(watched: Watched, content: bytes) -> None:
    """`one` was protected and replaced; then its owner removed the placeholder."""
    made = watched.world
    made.write("one", content)
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    await watched.settled()
    made.at("one.f").unlink()
    await watched.until(lambda: watched.state(b"one") == State.DELETED)


async def test_a_batch_that_has_the_new_file_of_a_name_keeps_the_deleted_one(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read that there is nothing before it: what came back meanwhile it would write over."""
    made = watched.world
    await deleted_one(watched, b"old content")
    began, go_on = threading.Event(), threading.Event()
    real = made.taking._protect_and_replace

    def slowly(*args: Any) -> None:
        began.set()
        assert go_on.wait(20)
        real(*args)

    monkeypatch.setattr(made.taking, "_protect_and_replace", slowly)
    made.write("one", b"new content")
    await watched.until(began.is_set)
    entries = deleted(made.catalog, made.row, [b"one"])
    done = await watched.folder.undelete(entries)
    go_on.set()
    await watched.settled()
    assert (done.back, [path for path, _ in done.failed]) == ([], [b"one"])
    past = made.catalog.view(lambda db: files.history(db, made.row, b"one"))
    oracle = Oracle(made.base)
    versions = [entry.manifest for entry in past] + [made.at("one.f").read_bytes()]
    assert [oracle.content_of(raw) for raw in versions] == [b"old content", b"new content"]
    oracle.close()
    assert (await watched.folder.undelete(entries)).back == []  # the new one has the name


async def test_many_that_were_concluded_come_back_a_batch_at_a_time(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is open for each until its name is there: no node may have so many."""
    made = watched.world
    names = sorted(await many(watched, 40))
    watched.set(settle_s=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(losses, "is_mass_change", lambda lost, total: False)
        for name in names[:30]:
            made.at(name).unlink()
        await watched.until(lambda: len(watched.folder.losses.concluded) == 30)
    made.at(names[30]).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    lay, sizes = undeleting.lay_placeholders, []

    def laying(root: Root, placeholders: Any, **how: Any) -> Any:
        sizes.append(len(placeholders))
        return lay(root, placeholders, **how)

    monkeypatch.setattr(undeleting, "lay_placeholders", laying)
    monkeypatch.setattr(folder, "BATCH", 16)
    assert await watched.folder.undo_change() == 31
    assert sizes == [16, 14]
    await watched.settled()
    assert made.names() == set(names)


async def test_what_can_have_no_placeholder_keeps_none_of_the_others_away(watched: Watched) -> None:
    made = watched.world
    names = await many(watched)
    made.write("d/in", b"in a directory")
    made.write("e", b"a directory will have the name of its placeholder")
    made.write("x" * 254, b"its name is too long")
    for path in (b"d/in", b"e"):
        await watched.until(lambda path=path: watched.state(path) == State.PLACEHOLDER)
    await watched.until(lambda: watched.state(b"x" * 254) == State.PROTECTED)
    await watched.settled()
    watched.set(settle_s=0.3)
    for name in made.names():
        made.at(name).unlink()
    made.at("d").rmdir()
    made.write("d", b"no directory any more")
    made.at("e.f").mkdir()
    await watched.until(lambda: watched.folder.is_paused)
    assert await watched.folder.undo_change() == 30
    assert names < made.names()
    for path in (b"d/in", b"x" * 254):  # these are deleted files like others
        await watched.until(lambda path=path: watched.state(path) == State.DELETED)


async def test_a_file_of_ones_own_in_the_place_of_a_placeholder_is_not_taken_for_it(
    watched: Watched,
) -> None:
    made = watched.world
    watched.set(keep_s=3600.0, protect_only=("*.f",))
    names = await many(watched)
    made.write("solver.f", b"      PROGRAM MAIN")
    await watched.until(lambda: watched.state(b"solver.f") == State.PROTECTED)
    made.write("solver", b"ELF")
    await watched.until(lambda: watched.state(b"solver") == State.PROTECTED)
    await watched.settled()
    watched.set(settle_s=0.3)
    for name in (*names, b"solver"):
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    assert await watched.folder.undo_change() == 30
    assert watched.state(b"solver") != State.PLACEHOLDER
    await watched.until(lambda: watched.state(b"solver") == State.DELETED)
    assert made.at("solver.f").read_bytes() == b"      PROGRAM MAIN"


async def test_what_a_crash_left_of_an_undelete_is_newer_than_the_deletion(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever heard of the deletion would hold that the file is gone still."""
    made = watched.world
    await deleted_one(watched, b"content")
    deletion = made.file_row("one")

    def crash(*_: object) -> None:
        raise OSError(errno.EIO, "power cut")

    monkeypatch.setattr(undeleting, "_record", crash)
    with pytest.raises(OSError, match="power cut"):
        await watched.folder.undelete(deleted(made.catalog, made.row, [b"one"]))
    await watched.until(lambda: watched.state(b"one") == State.PLACEHOLDER)
    row = made.file_row("one")
    assert row is not None
    assert deletion is not None
    before, now = decode_version(deletion.version), decode_version(row.version)
    assert compare_versions(before, now) is Relation.OLDER


async def test_a_trash_whose_record_is_damaged_waits_and_does_not_end_the_watch(
    made: World,
) -> None:
    async with OpenWatcher(SystemClock()) as opens:
        watched = Watched(made, opens, trash_hold_s=0.5)
        made.write("one", b"content")
        await watched.until(lambda: watched.folder.trash() != [])
        change = "UPDATE journal SET body=x'c1'"
        made.catalog.write(lambda db: db.execute(change)).result()
        await asyncio.sleep(1)
        made.write("two", b"content 2")
        await watched.until(lambda: watched.state(b"two") == State.PLACEHOLDER)
        await watched.settled()
        await asyncio.sleep(1)
        assert not watched.task.done()
        assert len([*made.path.glob(".p2pstore/trash/*/one")]) == 1
        await watched.stop()


async def test_nobody_waits_for_a_folder_that_is_not_there(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pstore.folders.folder.PRESENCE_S", 0.1)
    await watched.until(lambda: watched.folder.is_scanned)
    os.rename(watched.world.path, watched.world.base / "away")
    await watched.until(lambda: watched.folder.root is None)
    with pytest.raises(Unavailable, match="not there"):
        await asyncio.wait_for(_settled([watched.folder], lambda news: None), 5)


async def test_links_that_are_gone_come_back_with_the_rest(watched: Watched) -> None:
    made = watched.world
    names = await many(watched)
    os.symlink("00", made.at("link"))
    await watched.until(lambda: watched.state(b"link") == State.PROTECTED)
    watched.set(settle_s=0.3)
    for name in (*names, b"link"):
        made.at(name).unlink()
    await watched.until(lambda: watched.folder.is_paused)
    assert await watched.folder.undo_change() == 31
    assert os.readlink(made.at("link")) == "00"
    await watched.settled()
    assert not watched.folder.losses.gone
    assert watched.state(b"link") == State.PROTECTED
