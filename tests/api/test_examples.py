"""The README's examples for Python do what they say, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.nodes import CHECKOUT, Node

pytestmark = pytest.mark.slow


def examples() -> list[str]:
    """The Python blocks of the section."""
    text = (CHECKOUT / "README.md").read_text()
    section = text.partition("\n## From Python\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run(example: str, directory: Path, **env: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **{k: str(v) for k, v in env.items()}},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_there_is_one_for_each_of_the_two() -> None:
    assert [("Storage(" in text, "Client(" in text) for text in examples()] == [
        (True, False),
        (False, True),
    ]


def test_storage(tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    (tmp_path / "photo.jpg").write_bytes(content)
    run(examples()[0], tmp_path, XDG_DATA_HOME=tmp_path / "data", XDG_STATE_HOME=tmp_path / "state")
    assert (tmp_path / "copy.jpg").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy.jpg",
        "data",
        "photo.jpg",
        "state",
    ]


def test_client(node: Node, tmp_path: Path) -> None:
    (tmp_path / "Vault").mkdir()
    (tmp_path / "Vault" / "notes.txt").write_bytes(b"notes")
    said = run(examples()[1], tmp_path, P2PSTORE_HOME=node.home)
    assert said == f"{tmp_path}/Vault/notes.txt placeholder\nnotes\n"
    assert (tmp_path / "Vault" / "notes.txt").read_bytes() == b"notes"
