"""A double click, as the desktop's own tools do it: what opens, with which program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, some_bytes, until, write

TOOLS = ("gio", "xdg-open", "update-mime-database", "update-desktop-database")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

PNG = b"\x89PNG\r\n\x1a\n"
FORTRAN = b"      PROGRAM SOLVER\n      END\n"


class Desktop:
    """A session whose programs write down what they are asked to open."""

    def __init__(self, node: Node, base: Path) -> None:
        self.log = base / "opened"
        self.log.touch()
        share = base / "share"
        # GNOME's way, which asks for no other tool; no window is opened, so no display is needed.
        node.env |= {
            "XDG_DATA_HOME": str(share),
            "XDG_CURRENT_DESKTOP": "GNOME",
            "DISPLAY": ":none",
            "P2PSTORE_HOME": str(node.home),
        }
        self.env = node.env
        for name, kinds in (("viewer", "image/png"), ("editor", "text/plain;text/x-fortran")):
            program = base / name
            program.write_text(f'#!/bin/sh\necho "{name} $1" >> "{self.log}"\n')
            program.chmod(0o755)
            entry = share / "applications" / f"{name}.desktop"
            entry.parent.mkdir(parents=True, exist_ok=True)
            entry.write_text(
                f"[Desktop Entry]\nType=Application\nName={name}\nExec={program} %f\n"
                f"MimeType={kinds};\n"
            )
        node.ok("desktop", "install")

    def double_click(self, path: Path) -> None:
        done = subprocess.run(
            ["gio", "open", path], env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def opens(self, program: str, path: Path) -> None:
        wanted = f"{program} {path}"
        until(lambda: wanted in self.log.read_text().splitlines(), wanted, tell=self.log.read_text)


@pytest.fixture
def node(new_node: NewNode) -> Node:
    made = new_node()
    made.init()
    return made


def test_a_placeholder_opens_as_what_it_stands_for(node: Node, tmp_path: Path) -> None:
    desktop = Desktop(node, tmp_path)
    node.start()
    vault = tmp_path / "My Vault"
    write(vault, [("photo 1.png", PNG + some_bytes(500)), ("later.png", PNG + some_bytes(600, 1))])
    node.add(vault)

    desktop.double_click(vault / "photo 1.png.f")
    desktop.opens("viewer", vault / "photo 1.png")

    node.stop()
    desktop.double_click(vault / "later.png.f")
    desktop.opens("viewer", vault / "later.png")
    assert (vault / "later.png").read_bytes() == PNG + some_bytes(600, 1)


def test_fortran_opens_in_the_editor(node: Node, tmp_path: Path) -> None:
    desktop = Desktop(node, tmp_path)
    source = tmp_path / "solver.f"
    source.write_bytes(FORTRAN)
    desktop.double_click(source)
    desktop.opens("editor", source)
