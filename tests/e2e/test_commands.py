"""What is typed at one lonely node, and what it answers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, names, some_bytes, until, write

# -- add-folder ---


def test_dry_run_previews_and_changes_nothing(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, [("a.txt", b"x" * 1000), ("b.tmp", b"t"), ("c.sqlite", b"d"), ("r/.git/x", b"g")])
    done = node.ok("add-folder", folder, "--dry-run")
    assert "4 files" in done.out
    assert "become .f" in done.out
    assert "are stored and stay" in done.out
    assert "are left out" in done.out
    assert names(folder) == ["a.txt", "b.tmp", "c.sqlite", "r"]
    assert os.fspath(folder) not in node.ok("folders").out


def test_wait_replaces_everything_and_lists_what_stays(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, [("a.txt", b"alpha"), ("sub/b.bin", some_bytes(5000)), ("c.sqlite", b"d")])
    done = node.ok("add-folder", folder, "--yes", "--wait")
    assert "2 files" in done.out
    assert "c.sqlite" in done.out
    assert names(folder) == ["a.txt.f", "c.sqlite", "sub"]
    assert names(folder / "sub") == ["b.bin.f"]


def test_a_pipe_is_not_asked(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    folder.mkdir()
    assert "Watching" in node.ok("add-folder", folder).out


def test_add_folder_again_changes_the_given_settings_only(node: Node, folder: Path) -> None:
    node.ok("add-folder", folder, "--exclude", "*.iso", "--min-copies", "3")
    node.ok("add-folder", folder, "--keep", "2h")
    row = next(
        row
        for row in node.ok("folders", "--json").json["folders"]
        if row["path"] == os.fspath(folder)
    )
    assert row["settings"]["exclude"] == ["*.iso"]
    assert row["settings"]["min_copies"] == 3
    assert row["settings"]["keep_s"] == 7200


def test_exclude_protect_only_and_replace_decide(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, [("a.log", b"1"), ("b.raw", b"2"), ("c.sqlite", b"3"), ("d.txt", b"4")])
    node.add(folder, "--exclude", "*.log", "--protect-only", "*.raw", "--replace", "*.sqlite")
    assert names(folder) == ["a.log", "b.raw", "c.sqlite.f", "d.txt.f"]
    assert node.state(folder / "a.log")["state"] == "skipped"
    assert node.state(folder / "b.raw")["state"] == "protected"


def test_min_size_leaves_small_files(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, [("small", b"1" * 999), ("large", b"2" * 1000)])
    node.add(folder, "--min-size", "1000")
    assert names(folder) == ["large.f", "small"]


def test_pinned_folder_is_protected_and_never_replaced(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, [("a.txt", b"alpha")])
    node.add(folder, "--pin")
    assert names(folder) == ["a.txt"]
    assert node.state(folder / "a.txt")["state"] == "protected"


@pytest.mark.parametrize("mark", [".stfolder", ".dropbox", ".nextcloudsync.log", ".sync_12.db"])
def test_folders_of_other_sync_tools_are_refused(node: Node, tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "Vault"
    write(folder, [(mark, b""), ("a", b"a")])
    done = node.type("add-folder", folder, "--yes")
    assert (done.code, mark in done.err, "--force" in done.err) == (2, True, True)


def test_force_overrides_the_mark_of_another_sync_tool(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, [(".stfolder/x", b""), ("a", b"a")])
    node.add(folder, "--force")
    assert "a.f" in names(folder)


def test_places_that_must_not_be_watched_are_refused(node: Node, folder: Path) -> None:
    (folder / "inside").mkdir()
    for place in (Path("/"), Path(node.env["HOME"]), node.home, node.base, folder / "inside"):
        done = node.type("add-folder", place, "--yes")
        assert done.code == 2, place
        assert is_one_sentence(done)
    assert node.type("add-folder", folder.parent, "--yes").code == 2


def test_what_is_no_directory_is_refused(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for place in (tmp_path / "file", tmp_path / "missing"):
        done = node.type("add-folder", place)
        assert done.code == 2
        assert is_one_sentence(done)


def test_ctrl_c_stops_the_waiting_only(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, [("a.txt", b"alpha")])
    # A settle that is too long for the test to end by itself.
    waiting = node.spawn("add-folder", folder, "--yes", "--wait", "--settle", "10m")
    until(lambda: os.fspath(folder) in node.ok("folders").out, "the folder")
    until(lambda: node.folder(folder)["pending"] == 1, "the file waits")
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert b"p2pstore pause" in err
    assert b"Traceback" not in err
    node.ok("add-folder", folder, "--settle", "300ms")
    node.wait_replaced(folder / "a.txt")


# -- status, ls, folders ---


@pytest.fixture(scope="module")
def vault(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two placeholders, one file that stays and one that is skipped; only read."""
    folder = tmp_path_factory.mktemp("readonly") / "Vault"
    write(
        folder,
        [
            ("letter.txt", b"Dear reader, " * 300),
            ("sub/film.bin", some_bytes(700_000, 7)),
            ("stays.sqlite", b"database"),
            ("left.part", b"half"),
        ],
    )
    node.add(folder)
    return folder


def test_status_shows_the_folder_the_room_and_that_nobody_else_is_there(
    node: Node, vault: Path
) -> None:
    text = node.ok("status").out
    assert text.startswith("laptop · p2pstore ")
    assert os.fspath(vault) in text
    assert "this device only" in text
    assert "Room   store " in text
    assert "No other node yet: nothing is freed, these files are on this disk alone." in text
    assert "p2pstore invite" in text


def test_status_json_keeps_its_fields(node: Node, vault: Path) -> None:
    said = node.ok("status", "--json").json
    assert {"id", "name", "listen", "ui", "group", "version"} <= said["node"].keys()
    assert said["peers"] == []
    assert {
        "bundles_bytes",
        "trash_bytes",
        "offered_bytes",
        "held_for_others_bytes",
    } <= said["space"].keys()
    row = next(row for row in said["folders"] if row["path"] == os.fspath(vault))
    assert (row["files"], row["pending"], row["protected"]) == (3, 0, 1)
    assert (row["placeholders"], row["skipped"], row["paused"]) == (2, 1, False)
    assert row["bytes"] == 3900 + 700_000 + 8
    assert 0 < row["stored_bytes"] < 720_000


def test_status_of_paths_tells_each_ones_state(node: Node, vault: Path) -> None:
    paths = [vault / "letter.txt.f", vault / "stays.sqlite", vault / "left.part", vault / "none"]
    lines = node.ok("status", "--json", *paths).json["files"]
    assert [line["state"] for line in lines] == ["placeholder", "protected", "skipped", "unknown"]
    assert all(
        {"path", "state", "reason", "size", "local", "copies", "min_copies"} <= line.keys()
        for line in lines
    )
    assert (lines[0]["size"], lines[0]["local"], lines[0]["copies"]) == (3900, True, 0)
    assert lines[0]["min_copies"] == 2
    assert lines[1]["reason"] == "database"


def test_status_path_in_words(node: Node, vault: Path) -> None:
    text = node.ok("status", vault / "stays.sqlite").out
    assert "protected" in text
    assert "database" in text


def test_status_check_is_green_while_nobody_is_needed(node: Node) -> None:
    assert node.type("status", "--check").code == 0


def test_ls_lists_logical_names(node: Node, vault: Path) -> None:
    assert node.ok("ls", vault).out.split("\n")[:4] == [
        "left.part",
        "letter.txt",
        "stays.sqlite",
        "sub/",
    ]


def test_ls_long_and_json_tell_sizes_and_states(node: Node, vault: Path) -> None:
    assert "placeholder" in node.ok("ls", "-l", vault).out
    entries = {e["name"]: e for e in node.ok("ls", vault, "--json").json["entries"]}
    assert (entries["letter.txt"]["size"], entries["letter.txt"]["state"]) == (3900, "placeholder")
    assert entries["sub"]["type"] == "folder"


def test_ls_without_path_lists_the_folders(node: Node, vault: Path) -> None:
    assert f"{vault}/" in node.ok("ls").out.splitlines()


def test_ls_outside_of_watched_folders_is_refused(node: Node, tmp_path: Path) -> None:
    done = node.type("ls", tmp_path)
    assert done.code == 2
    assert is_one_sentence(done)


# -- cat and inspect ---


def test_cat_of_placeholder_or_path_gives_the_exact_bytes(node: Node, vault: Path) -> None:
    for name in ("sub/film.bin.f", "sub/film.bin"):
        assert node.ok("cat", vault / name).raw == some_bytes(700_000, 7)
    assert (vault / "sub" / "film.bin.f").exists()
    assert not (vault / "sub" / "film.bin").exists()


@pytest.mark.parametrize(
    ("span", "start", "end"),
    [
        ("0-0", 0, 1),
        ("100-199", 100, 200),
        ("65535-65536", 65535, 65537),
        ("699999-699999", 699_999, 700_000),
        ("600000-", 600_000, 700_000),
        ("699990-999999999", 699_990, 700_000),
    ],
)
def test_cat_range_is_inclusive_and_exact(
    node: Node, vault: Path, span: str, start: int, end: int
) -> None:
    done = node.ok("cat", vault / "sub" / "film.bin.f", "--range", span)
    assert done.raw == some_bytes(700_000, 7)[start:end]


def test_cat_of_a_range_behind_the_end_or_backwards(node: Node, vault: Path) -> None:
    film = vault / "sub" / "film.bin.f"
    assert node.type("cat", film, "--range", "9-3").code == 2
    assert node.type("cat", film, "--range", "x").code == 2
    behind = node.type("cat", film, "--range", "700000-700001")
    assert behind.raw == b""
    assert "Traceback" not in behind.err


def test_inspect_says_what_the_manifest_says(node: Node, vault: Path) -> None:
    said = node.ok("inspect", vault / "sub" / "film.bin.f", "--json").json
    assert said["name"] == "film.bin"
    assert said["size"] == 700_000
    assert said["signature"] == "valid"
    assert said["device"] == "laptop"
    assert said["blocks"] >= 1
    assert len(said["bundles"]) >= 1
    text = node.ok("inspect", vault / "sub" / "film.bin.f").out
    assert "film.bin" in text
    assert "valid" in text


def test_the_placeholder_is_small_and_tells_people_what_it_is(vault: Path, tmp_path: Path) -> None:
    # Through a hard link: an open of the name in the folder would bring the original back.
    os.link(vault / "sub" / "film.bin.f", tmp_path / "look")
    head = (tmp_path / "look").read_bytes()
    os.unlink(tmp_path / "look")
    assert len(head) <= 4096
    assert b"film.bin" in head
    assert b"p2pstore" in head


# -- exit codes ---


def test_wrong_usage_is_2(node: Node) -> None:
    for words in (["nosuch"], ["cat"], ["add-folder"], ["status", "--nosuch"]):
        assert node.type(*words).code == 2


def test_a_command_of_a_later_issue_does_not_exist(node: Node) -> None:
    for command in ("upload", "share", "web", "webdav", "recover"):
        assert node.type(command).code == 2


def test_what_is_no_manifest_is_3(node: Node, folder: Path, tmp_path: Path) -> None:
    fortran = tmp_path / "solver.f"
    fortran.write_text("      PROGRAM SOLVER\n      END\n")
    for command in ("inspect", "cat", "open"):
        done = node.type(command, fortran)
        assert done.code == 3, (command, done)
        assert is_one_sentence(done)


def test_a_manifest_with_one_bit_flipped_is_3_or_4_and_nothing_is_written(
    node: Node, vault: Path, tmp_path: Path
) -> None:
    os.link(vault / "letter.txt.f", tmp_path / "look")
    raw = bytearray((tmp_path / "look").read_bytes())
    os.unlink(tmp_path / "look")
    for place in (len(raw) - 1, len(raw) // 2):
        flipped = bytearray(raw)
        flipped[place] ^= 1
        damaged = tmp_path / f"letter-{place}.txt.f"
        damaged.write_bytes(flipped)
        for command in ("inspect", "cat"):
            done = node.type(command, damaged)
            assert done.code in (3, 4), (command, done)
            assert done.raw == b""
            assert is_one_sentence(done)


def test_a_stopped_node_is_6(new_node: NewNode, tmp_path: Path) -> None:
    node = new_node()
    node.init()
    for words in (["status"], ["peers"], ["hydrate", tmp_path], ["folders"], ["invite", "--yes"]):
        done = node.type(*words)
        assert done.code == 6
        assert "p2pstore run" in done.err
        assert is_one_sentence(done)


def test_several_paths_are_all_tried_and_the_gravest_code_wins(node: Node, folder: Path) -> None:
    write(folder, [("good.txt", b"good")])
    node.wait_replaced(folder / "good.txt")
    done = node.type("hydrate", folder / "missing.f", folder / "good.txt.f")
    assert (folder / "good.txt").read_bytes() == b"good"
    assert done.code != 0
    assert "missing.f" in done.err


def test_every_command_explains_itself_with_an_example(node: Node) -> None:
    from p2pstore.cli.app import _COMMANDS

    assert "Commands" in node.ok("--help").out
    for command in ("add-folder", "cat", "join"):
        assert command in _COMMANDS
        assert "Example" in node.ok(command, "--help").out


# -- hydrate, dehydrate, open, pin ---


def test_hydrate_and_dehydrate_a_tree(node: Node, folder: Path) -> None:
    files = write(folder, [("a.txt", b"alpha"), ("sub/b.bin", some_bytes(9000, 1))])
    node.wait_replaced(*(folder / name for name in files))
    node.ok("hydrate", folder)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert not (folder / "a.txt.f").exists()
    node.ok("dehydrate", folder)
    assert names(folder) == ["a.txt.f", "sub"]
    assert names(folder / "sub") == ["b.bin.f"]


def test_a_link_in_a_tree_is_no_file_that_stays(node: Node, folder: Path) -> None:
    write(folder, [("a.txt", b"alpha")])
    (folder / "link").symlink_to("a.txt")
    node.wait_replaced(folder / "a.txt")
    node.ok("dehydrate", folder)
    named = node.type("dehydrate", folder / "link")
    assert (named.code, "a link" in named.err) == (5, True)


def test_hydrated_keeps_mode_times_and_attributes(node: Node, folder: Path) -> None:
    path = folder / "tool.sh"
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o751)
    os.setxattr(path, "user.comment", b"mine")
    os.utime(path, ns=(1_234_567_890_123_456_789, 1_234_567_890_123_456_789))
    node.wait_replaced(path)
    node.ok("hydrate", folder / "tool.sh.f")
    stat = path.stat()
    assert stat.st_mode & 0o7777 == 0o751
    assert stat.st_mtime_ns == 1_234_567_890_123_456_789
    assert os.getxattr(path, "user.comment") == b"mine"


def test_open_print_brings_back_and_prints_the_path(node: Node, folder: Path) -> None:
    write(folder, [("photo.jpg", b"pixels")])
    node.wait_replaced(folder / "photo.jpg")
    done = node.ok("open", folder / "photo.jpg.f", "--print")
    assert done.out == f"{folder / 'photo.jpg'}\n"
    assert (folder / "photo.jpg").read_bytes() == b"pixels"


def test_pin_keeps_the_original_and_unpin_lets_it_go(node: Node, folder: Path) -> None:
    write(folder, [("a.txt", b"alpha")])
    node.wait_replaced(folder / "a.txt")
    node.ok("add-folder", folder, "--keep", "0")
    node.ok("pin", folder / "a.txt")
    assert (folder / "a.txt").read_bytes() == b"alpha"
    until(lambda: node.state(folder / "a.txt")["reason"] == "pinned", "pinned")
    node.ok("unpin", folder / "a.txt")
    node.wait_replaced(folder / "a.txt")


def test_free_up_on_a_lonely_node_frees_nothing_and_says_why(node: Node, folder: Path) -> None:
    write(folder, [("a.bin", some_bytes(50_000, 3))])
    node.wait_replaced(folder / "a.bin")
    done = node.type("free-up", folder)
    assert done.code == 5
    assert "freed yet" in done.out
    assert "Traceback" not in done.err
    assert node.ok("cat", folder / "a.bin.f").raw == some_bytes(50_000, 3)


def test_free_up_replaces_first(node: Node, folder: Path) -> None:
    write(folder, [("a.txt", b"alpha")])
    node.wait_replaced(folder / "a.txt")
    node.ok("hydrate", folder)
    assert node.type("free-up", folder).code == 5
    assert names(folder) == ["a.txt.f"]


def test_evict_why_says_what_is_missing(node: Node, folder: Path) -> None:
    write(folder, [("a.bin", some_bytes(50_000, 4))])
    node.wait_replaced(folder / "a.bin")
    done = node.ok("evict", "--why", folder)
    assert "0 B could be freed now" in done.out
    assert os.fspath(folder / "a.bin") in done.out


# -- restore, undelete ---


def test_restore_writes_a_copy_and_touches_nothing(node: Node, vault: Path, tmp_path: Path) -> None:
    before = names(vault)
    node.ok("restore", vault / "letter.txt.f", "--to", tmp_path / "copy.txt")
    assert (tmp_path / "copy.txt").read_bytes() == b"Dear reader, " * 300
    assert names(vault) == before


def test_restore_never_overwrites(node: Node, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"mine")
    done = node.type("restore", vault / "letter.txt.f", "--to", tmp_path / "mine.txt")
    assert done.code != 0
    assert is_one_sentence(done)
    assert (tmp_path / "mine.txt").read_bytes() == b"mine"


def test_undelete_brings_a_deleted_placeholder_back(node: Node, folder: Path) -> None:
    write(folder, [("a.txt", b"alpha"), ("b.txt", b"beta")])
    node.wait_replaced(folder / "a.txt", folder / "b.txt")
    (folder / "a.txt.f").unlink()
    until(lambda: "a.txt" not in node.ok("ls", folder).out, "the deletion is seen")
    node.ok("undelete", folder / "a.txt")
    assert (folder / "a.txt.f").exists()
    assert node.ok("cat", folder / "a.txt.f").raw == b"alpha"


def test_undelete_of_what_never_was_is_refused(node: Node, folder: Path) -> None:
    done = node.type("undelete", folder / "never.txt")
    assert done.code == 2
    assert is_one_sentence(done)


# -- pause, resume, mass changes ---


def test_a_paused_folder_is_left_alone_until_resume(node: Node, folder: Path) -> None:
    node.ok("pause", folder)
    assert node.folder(folder)["paused"] is True
    assert node.type("status", "--check").code == 1
    write(folder, [("a.txt", b"alpha")])
    other = folder.parent / "Other"
    write(other, [("b.txt", b"beta")])
    node.add(other)  # the node had time to see both
    assert names(folder) == ["a.txt"]
    node.ok("resume", folder)
    node.wait_replaced(folder / "a.txt")


@pytest.fixture
def many(node: Node, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A folder of 30 placeholders of which 25 were removed at once."""
    folder = tmp_path / "Many"
    files = write(folder, [(f"{n:02}.txt", b"number %d" % n) for n in range(30)])
    node.add(folder)
    assert node.process is not None
    # Stopped, it sees all of them gone at once: what is gone for longer is not a part of it.
    node.process.send_signal(signal.SIGSTOP)
    try:
        for n in range(25):
            (folder / f"{n:02}.txt.f").unlink()
    finally:
        node.process.send_signal(signal.SIGCONT)
    node.wait_rows(folder, paused=True)
    return folder, files


def test_a_mass_deletion_pauses_and_undo_brings_all_back(
    node: Node, many: tuple[Path, dict[str, bytes]]
) -> None:
    folder, files = many
    text = node.ok("status").out
    assert "--accept" in text
    assert "--undo" in text
    done = node.ok("resume", folder, "--undo")
    assert "25" in done.out
    assert names(folder) == sorted(f"{name}.f" for name in files)
    node.ok("hydrate", folder)
    assert node.folder(folder)["paused"] is False
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_a_mass_deletion_that_is_meant_is_accepted_and_can_be_undeleted(
    node: Node, many: tuple[Path, dict[str, bytes]]
) -> None:
    folder, _ = many
    node.ok("resume", folder, "--accept")
    node.wait_rows(folder, paused=False, placeholders=5)
    node.ok("undelete", folder / "07.txt")
    assert node.ok("cat", folder / "07.txt.f").raw == b"number 7"


def test_a_mass_change_needs_a_word(node: Node, many: tuple[Path, dict[str, bytes]]) -> None:
    folder, _ = many
    done = node.type("resume", folder)
    assert done.code == 2
    assert node.folder(folder)["paused"] is True


# -- remove-folder ---


def test_remove_folder_with_placeholders_needs_a_word(node: Node, folder: Path) -> None:
    write(folder, [("a.txt", b"alpha")])
    node.wait_replaced(folder / "a.txt")
    done = node.type("remove-folder", folder)
    assert done.code == 2
    assert "--hydrate" in done.err
    assert os.fspath(folder) in node.ok("folders").out


def test_remove_folder_hydrate_brings_all_back(node: Node, folder: Path) -> None:
    files = write(folder, [("a.txt", b"alpha"), ("sub/b.txt", b"beta")])
    node.wait_replaced(*(folder / name for name in files))
    node.ok("remove-folder", folder, "--hydrate")
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert names(folder) == ["a.txt", "sub"]
    assert os.fspath(folder) not in node.ok("folders").out


def test_a_folder_removed_with_its_placeholders_is_taken_up_again(node: Node, folder: Path) -> None:
    write(folder, [("a.txt", b"alpha")])
    node.wait_replaced(folder / "a.txt")
    node.ok("remove-folder", folder, "--leave-placeholders")
    assert names(folder) == ["a.txt.f"]
    node.add(folder)
    node.ok("hydrate", folder)
    assert (folder / "a.txt").read_bytes() == b"alpha"


def test_remove_folder_without_placeholders_needs_no_word(node: Node, folder: Path) -> None:
    node.ok("remove-folder", folder)
    done = node.type("remove-folder", folder)
    assert done.code == 2
    assert is_one_sentence(done)


# -- upkeep ---


def test_check_finds_a_good_store_good(node: Node, vault: Path) -> None:
    assert "good" in node.ok("check").out
    assert "good" in node.ok("check", "--read-data").out


def test_doctor_runs_and_names_no_bug(node: Node) -> None:
    done = node.type("doctor", "--json")
    assert done.code in (0, 1)
    assert json.loads(done.out)["findings"]
    assert "Traceback" not in done.err


def test_doctor_says_that_the_node_does_not_run(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    done = node.type("doctor")
    assert done.code == 1
    assert "not running" in done.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(node: Node, shell: str) -> None:
    assert "p2pstore" in node.ok("completion", shell).out


def test_version(node: Node) -> None:
    from p2pstore import __version__

    assert node.ok("--version").out.strip() == f"p2pstore {__version__}"


# -- a stopped node ---


def test_cat_inspect_and_open_work_while_the_node_is_stopped(
    new_node: NewNode, tmp_path: Path
) -> None:
    node = new_node()
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    files = write(folder, [("a.bin", some_bytes(200_000, 9))])
    node.add(folder)
    node.stop()
    said = node.ok("inspect", folder / "a.bin.f", "--json").json
    assert said["hash"]
    assert hashlib.sha256(node.ok("cat", folder / "a.bin.f").raw).digest() == (
        hashlib.sha256(files["a.bin"]).digest()
    )
    node.ok("open", folder / "a.bin.f", "--print")
    assert (folder / "a.bin").read_bytes() == files["a.bin"]
