"""What is verified of a placeholder before its original comes back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.content import manifest as format_of
from p2pstore.errors import IntegrityError, UsageError
from p2pstore.store import files
from tests.faults.world import World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replacing needs Linux")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_signature_is_verified_unless_the_catalog_has_these_bytes(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("recorded", "other"):
        made.write(name, name.encode())
    made.replace("recorded", "other")
    row = made.file_row("other")
    assert row is not None
    made.catalog.write(lambda db: files.set_manifest(db, row.id, b"another version")).result()

    def refuse(*_: object) -> None:
        raise IntegrityError("the signature is wrong")

    monkeypatch.setattr(format_of, "verify", refuse)
    made.hydrate("recorded.f")
    assert made.at("recorded").read_bytes() == b"recorded"
    made.hydrate("other.f")
    assert not made.at("other").exists()


def test_file_that_is_not_there_is_wrong_usage_and_not_to_be_tried_again(made: World) -> None:
    (brought,) = made.hydrate("absent.f")
    assert isinstance(brought.error, UsageError)


def test_the_placeholder_of_another_file_is_no_newer_version(made: World) -> None:
    """`solver` and `solver.f` may both be replaced; then `solver.f` is no Fortran any more."""
    made.write("solver.f", b"      PROGRAM MAIN")
    made.replace("solver.f")
    made.write("solver", b"ELF")
    made.replace("solver")
    assert made.names() == {b"solver.f", b"solver.f.f"}
    (brought,) = made.hydrate("solver.f.f")
    assert brought.error is None
    assert made.at(brought.path).read_bytes() == b"      PROGRAM MAIN"
    made.hydrate("solver.f")
    assert made.at("solver").read_bytes() == b"ELF"
