from __future__ import annotations

import stat
from pathlib import PurePosixPath as P

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.config import FolderSettings
from p2pstore.policy import Entity, Treatment, classify, editor_marks, refuse_folder
from p2pstore.policy.classes import matches

US = 1000
PLAIN = FolderSettings()


def treated(
    path: bytes,
    settings: FolderSettings = PLAIN,
    *,
    siblings: frozenset[bytes] = frozenset(),
    in_repository: bool = False,
    **change: int,
) -> tuple[str, str]:
    entity = Entity(path, stat.S_IFREG | 0o644, 1, US, 5, 0)._replace(**change)  # type: ignore[arg-type]
    return classify(entity, settings, our_uid=US, in_repository=in_repository, siblings=siblings)


@pytest.mark.parametrize(
    "path",
    [
        b"photo.jpg",
        b"solver.f",
        b"a/b c/\xff\n.txt",
        b"x" * 253,
        b"partly",
        b"my.part.txt",
        b"notes.temp",
        b"empty",
        b".hidden",
    ],
)
def test_ordinary_files_are_replaced(path: bytes) -> None:
    assert treated(path) == (Treatment.REPLACE, "")
    assert treated(path, size=0) == (Treatment.REPLACE, "")


@pytest.mark.parametrize(
    "path",
    [
        b".p2pstore/trash/x",
        b"a/.p2pstore/x",
        b"film.part",
        b"film.CRDOWNLOAD",
        b"x.tmp",
        b".x.swp",
        b".~lock.a.odt#",
        b"~$a.docx",
        b".#a",
        b".DS_Store",
        b"a/Thumbs.db",
        b"desktop.ini",
    ],
)
def test_temporary_files_are_skipped(path: bytes) -> None:
    assert treated(path)[0] == Treatment.SKIP


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR])
def test_what_is_no_file_is_skipped(kind: int) -> None:
    assert treated(b"x", mode=kind | 0o644) == (Treatment.SKIP, "no regular file")


def test_links_are_recorded_whatever_their_owner() -> None:
    assert treated(b"x", mode=stat.S_IFLNK | 0o777, uid=0, nlink=2)[0] == Treatment.LINK
    excluded = FolderSettings(exclude=("x",))
    assert treated(b"x", excluded, mode=stat.S_IFLNK | 0o777)[0] == Treatment.SKIP


GUESSED = [
    (b"a.sqlite", "database"),
    (b"a.SQLite3", "database"),
    (b"a.sqlite-wal", "database"),
    (b"cat.lrcat", "database"),
    (b"vm.qcow2", "disk image"),
    (b"x/.git/config", "in a repository"),
    (b"x/.git", "in a repository"),
    (b"node_modules/a/b.js", "installed packages"),
    (b".venv/bin/x", "installed packages"),
    (b"My.photoslibrary/a.jpg", "in a media library"),
]


@pytest.mark.parametrize(("path", "reason"), GUESSED)
def test_guesses_give_way_to_replace(path: bytes, reason: str) -> None:
    assert treated(path) == (Treatment.PROTECT_ONLY, reason)
    assert treated(path, FolderSettings(replace=("**/*",))) == (Treatment.REPLACE, "")


def test_a_repository_above_counts() -> None:
    assert treated(b"a.c", in_repository=True) == (Treatment.PROTECT_ONLY, "in a repository")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uid": 0}, "another owner"),
        ({"nlink": 2}, "hard link"),
        ({"immutable": True}, "immutable"),
        ({"mode": stat.S_IFREG | 0o4755}, "set-uid"),
        ({"mode": stat.S_IFREG | 0o2755}, "set-uid"),
    ],
)
def test_what_cannot_be_replaced_exactly_never_is(change: dict[str, int], reason: str) -> None:
    everything = FolderSettings(replace=("*",))
    assert treated(b"a", everything, **change) == (Treatment.PROTECT_ONLY, reason)


def test_a_name_must_leave_room_for_the_suffix() -> None:
    assert treated(b"d/" + b"x" * 253)[0] == Treatment.REPLACE
    assert treated(b"d/" + b"x" * 254) == (Treatment.PROTECT_ONLY, "name too long for .f")


def test_path_too_long_for_the_trash_is_protected_only() -> None:
    long = b"/".join([b"d" * 199] * 20)
    assert len(long) == 3_999
    assert treated(long + b"d") == (Treatment.REPLACE, "")
    assert treated(long + b"dd") == (Treatment.PROTECT_ONLY, "path too long for the trash")


def test_what_the_owner_wants_to_keep_stays() -> None:
    for settings, reason in (
        (FolderSettings(pin=True, replace=("*",)), "pinned"),
        (FolderSettings(protect_only=("*.txt",), replace=("*",)), "protect-only"),
        (FolderSettings(min_size=6, replace=("*",)), "smaller than min-size"),
    ):
        assert treated(b"a.txt", settings) == (Treatment.PROTECT_ONLY, reason)
    assert treated(b"a.txt", FolderSettings(min_size=5))[0] == Treatment.REPLACE


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        (b"a.txt", b".a.txt.swp"),
        (b".profile", b".profile.swp"),
        (b"a.odt", b".~lock.a.odt#"),
        (b"a.docx", b"~$a.docx"),
        (b"letter.docx", b"~$tter.docx"),
        (b"a.txt", b".#a.txt"),
    ],
)
def test_an_editors_mark_keeps_the_file(name: bytes, mark: bytes) -> None:
    assert mark in editor_marks(name)
    found = treated(b"d/" + name, siblings=frozenset({name, mark}))
    assert found == (Treatment.PROTECT_ONLY, "open in an editor")
    assert treated(b"d/other", siblings=frozenset({name, mark}))[0] == Treatment.REPLACE


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.iso", "a/b.iso", True),
        ("*.iso", "a/b.iso.txt", False),
        ("Cache", "x/Cache/y/z", True),
        ("Cache/", "x/Cache/y", True),
        ("/Cache", "x/Cache", False),
        ("/Cache", "Cache/x", True),
        ("a/*.txt", "a/b.txt", True),
        ("a/*.txt", "a/b/c.txt", False),
        ("a/*.txt", "x/a/b.txt", False),
        ("a/**/c.txt", "a/c.txt", True),
        ("a/**/c.txt", "a/x/y/c.txt", True),
        ("**/c", "c", True),
        ("**/c", "a/b/c/d", True),
        ("a/**", "a", False),
        ("a/**", "a/b/c", True),
        ("[ab]?", "ax", True),
        ("[ab]?", "cx", False),
        ("", "a", False),
        ("/", "a", False),
        ("[", "[", True),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path.split("/")) is expected


@given(st.text("*/a[?", max_size=30), st.lists(st.text("ab", min_size=1), max_size=12))
def test_no_pattern_is_slow_or_raises(pattern: str, parts: list[str]) -> None:
    matches("**/" * 12 + pattern, parts)


def test_patterns_take_names_that_are_no_utf8() -> None:
    settings = FolderSettings(exclude=("?.bin",))
    assert treated(b"\xff.bin", settings)[0] == Treatment.SKIP


def test_skipping_databases_by_pattern_wins_over_all() -> None:
    settings = FolderSettings(exclude=("*.sqlite",), replace=("*",))
    assert treated(b"a.sqlite", settings) == (Treatment.SKIP, "excluded")


@given(st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name))
def test_every_name_gets_a_treatment_and_all_but_replace_a_reason(path: bytes) -> None:
    treatment, reason = treated(path)
    assert (treatment == Treatment.REPLACE) == (reason == "")


HOME, STORE = P("/home/eva"), P("/home/eva/.local/share/p2pstore")


def refused(path: str, marks: frozenset[str] = frozenset(), watched: str = "/data/Vault") -> bool:
    return refuse_folder(P(path), HOME, STORE, [P(watched)], marks) is not None


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/home",
        "/home/eva",
        "/home/eva/.local",
        "/home/eva/.local/share/p2pstore",
        "/home/eva/.local/share/p2pstore/bundles",
        "/data",
        "/data/Vault/inner",
        "/etc",
        "/usr/share/x",
        "/var",
        "/proc/1",
    ],
)
def test_dangerous_folders_are_refused(path: str) -> None:
    assert refused(path)


@pytest.mark.parametrize(
    "path",
    ["/home/eva/Vault", "/data/Vault", "/data/Vault2", "/media/usb/Photos", "/tmp/x", "/var/x/y"],
)
def test_ordinary_folders_may_be_watched(path: str) -> None:
    assert not refused(path)


@pytest.mark.parametrize(
    "mark", [".dropbox", ".dropbox.cache", ".stfolder", ".nextcloudsync.log", ".sync_1a.db"]
)
def test_folders_of_another_sync_tool_are_refused(mark: str) -> None:
    assert refused("/home/eva/Vault", frozenset({mark, "a"}))
    assert not refused("/home/eva/Vault", frozenset({"sync.db", "dropbox"}))
