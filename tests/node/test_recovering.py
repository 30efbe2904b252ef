"""Where folders come back after a recovery."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pstore.ids import FolderId
from p2pstore.node.recovering import Places
from p2pstore.placement import Root

FOLDER = FolderId(b"f" * 16)
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
