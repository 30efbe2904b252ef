"""A recovery concludes nothing before everything that is named is in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2pstore.errors import PeerUnreachable
from p2pstore.folders.laying import LaidOut
from p2pstore.home import RECOVERING
from p2pstore.ids import FolderId
from p2pstore.maintenance.rebuild import State, save_state
from p2pstore.node.recovering import Places, lay_out
from p2pstore.placement import TAKEN, TOO_LONG, Root
from p2pstore.store import Catalog

FOLDER = FolderId(b"f" * 16)


class Around:
    """A node with one folder that is being recovered, as `lay_out` sees it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.laid = LaidOut(0, 0, ())
        self.concluded = False
        self.copied: list[str] = []
        self.holder_is_there = True

    def unread(self, *folders: FolderId) -> None:
        state = State(1, False, len(folders), folders=folders)
        self.catalog.write(lambda db: save_state(db, state)).result()

    async def lay(self) -> list[dict[str, Any]]:
        folder = SimpleNamespace(
            folder_id=FOLDER, path=Path("/v"), entry=SimpleNamespace(paused=RECOVERING)
        )

        async def laid(*_: Any) -> LaidOut:
            return self.laid

        async def recovered(_: Any) -> None:
            self.concluded = True

        async def is_there(*_: Any) -> bool:
            return False

        async def copy(logical: str, _: str) -> None:
            if not self.holder_is_there:
                raise PeerUnreachable("it is away")
            self.copied.append(logical)

        async def take_in(*_: Any) -> None: ...

        with ThreadPoolExecutor(1) as pool:
            node: Any = SimpleNamespace(
                completed=asyncio.Event(),
                pool=pool,
                catalog=self.catalog,
                vfs=SimpleNamespace(copy=copy),
                folders=SimpleNamespace(
                    all=lambda: [folder],
                    lay_out=laid,
                    recovered=recovered,
                    is_there=is_there,
                    take_in=take_in,
                ),
            )
            node.completed.set()
            return await lay_out(node)


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    with Catalog.open(tmp_path / "catalog.sqlite") as catalog:
        yield Around(catalog)


async def test_a_folder_that_is_whole_is_watched(around: Around) -> None:
    assert await around.lay() == []
    assert around.concluded


async def test_while_its_index_was_not_read_whole_it_waits(around: Around) -> None:
    around.unread(FOLDER)
    (lack,) = await around.lay()
    assert "who keeps the rest of its list" in lack["error"]["message"]
    assert not around.concluded, "what comes to be known later would be taken for deleted"


async def test_another_folders_index_is_no_reason_to_wait(around: Around) -> None:
    around.unread(FolderId(b"o" * 16))
    assert await around.lay() == []
    assert around.concluded


@pytest.mark.parametrize("reason", [TOO_LONG, TAKEN])
async def test_what_can_have_no_placeholder_comes_back_whole(around: Around, reason: str) -> None:
    around.laid = LaidOut(0, 0, ((b"name", reason),))
    assert await around.lay() == []
    assert around.copied == ["/v/name"]
    assert around.concluded


async def test_while_who_keeps_that_is_away_the_folder_waits(around: Around) -> None:
    around.laid = LaidOut(0, 0, ((b"name", TOO_LONG),))
    around.holder_is_there = False
    (lack,) = await around.lay()
    assert lack["path"] == "/v/name"
    assert not around.concluded


async def test_without_its_manifest_a_file_is_waited_for(around: Around) -> None:
    around.laid = LaidOut(0, 0, ((b"name", "its manifest has not been found yet"),))
    assert len(await around.lay()) == 1
    assert not around.concluded


# -- where folders come back -----------------------------------------------------------------------

OTHER = FolderId(b"o" * 16)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory of a user."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


def places(user: Path, to: Path | None = None) -> Places:
    return Places(user / ".p2pstore-home", to)


def test_a_folder_comes_back_where_it_was(user: Path, tmp_path: Path) -> None:
    assert places(user).choose(FOLDER, "Vault", f"{tmp_path}/data/Vault") == tmp_path / "data/Vault"


def test_two_folders_of_one_place_get_a_place_each(user: Path) -> None:
    """Two computers of one person each had a folder of its own at the same path."""
    choose = places(user).choose
    was = f"{user}/Documents"
    first, second = choose(FOLDER, "Documents", was), choose(OTHER, "Documents", was)
    assert (first, second) == (user / "Documents", user / "Documents.recovered-1")


def test_no_folder_comes_back_inside_another(user: Path) -> None:
    choose = places(user).choose
    assert choose(FOLDER, "a", f"{user}/a") == user / "a"
    assert choose(OTHER, "b", f"{user}/a/b") == user / "b"


def test_the_empty_folder_of_another_node_is_left_to_it(user: Path) -> None:
    there = user / "Vault"
    there.mkdir()
    Root.mark(there, OTHER)
    assert places(user).choose(FOLDER, "Vault", f"{there}") == user / "Vault.recovered-1"


def test_a_repetition_takes_the_place_of_the_attempt_before(user: Path) -> None:
    there = user / "Vault"
    there.mkdir()
    Root.mark(there, FOLDER)
    assert places(user).choose(FOLDER, "Vault", f"{there}") == there


@pytest.mark.parametrize(
    "was",
    [
        "/etc/cron.d",
        "/usr/local/x",
        "{user}",
        "{user}/.ssh",
        "{user}/.config/autostart",
        "{user}/x/../.ssh",
        "{user}/.p2pstore-home/bundles",
        "{user}/a\0b",
        "relative",
    ],
)
def test_a_hostile_place_is_not_taken(user: Path, was: str) -> None:
    assert places(user).choose(FOLDER, "Vault", was.format(user=user)) == user / "Vault"


def test_a_hidden_name_is_shown(user: Path) -> None:
    assert places(user).choose(FOLDER, ".ssh", "") == user / "ssh"


def test_below_the_directory_that_the_user_names(user: Path, tmp_path: Path) -> None:
    choose = places(user, tmp_path / "usb").choose
    assert choose(FOLDER, "Vault", "/nowhere") == tmp_path / "usb" / "Vault"
    assert choose(OTHER, "Vault", "/nowhere") == tmp_path / "usb" / "Vault.recovered-1"
