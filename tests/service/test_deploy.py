"""What lies in deploy/ says the same as the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2pstore.config import FILE, KEYS, Config, load

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SETTING = re.compile(r"^#([a-z_]+ = .*)$", re.MULTILINE)


def example() -> str:
    return (DEPLOY / "config.toml").read_text()


def test_the_example_shows_every_default(tmp_path: Path) -> None:
    shown = SETTING.findall(example())
    (tmp_path / FILE).write_text("\n".join(shown))
    assert {line.split(" ")[0] for line in shown} == set(KEYS)
    assert load(tmp_path, {}, {}) == Config()


def test_the_example_as_it_is_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(example())
    assert load(tmp_path, {}, {}) == Config()


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "FIREWALL.md"])
def test_ports_are_those_of_the_defaults(name: str) -> None:
    assert str(Config().listen.port) in (DEPLOY / name).read_text()


def test_the_container_keeps_its_store_in_a_volume() -> None:
    lines = (DEPLOY / "Dockerfile").read_text()
    home = re.search(r"P2PSTORE_HOME=(\S+)", lines)
    assert home
    assert f'VOLUME ["{home.group(1)}"]' in lines
    assert re.search(r"^USER (?!root)", lines, re.MULTILINE)
