"""Real nodes for whole modules: starting one takes a second or two."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.nodes import Node

NewNode = Callable[..., Node]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)


def ended(nodes: Sequence[Node]) -> None:
    """End all, then say whether one had a trouble that it did not expect."""
    for node in nodes:
        node.close()
    for node in nodes:
        troubles = set(re.findall(r"(?m)^Traceback.*\n(?:[ \t].*\n)*(.*)$", node.log))
        assert not troubles, f"{node.name} had: {sorted(troubles)}"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewNode]:
    """Makes nodes that a whole module shares."""
    base = tmp_path_factory.mktemp("e2e")
    made: list[Node] = []

    def make(name: str = "laptop", **settings: str) -> Node:
        made.append(Node(base, name, **settings))
        return made[-1]

    try:
        yield make
    finally:
        ended(made)


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[NewNode]:
    """Makes nodes for one test."""
    made: list[Node] = []

    def make(name: str = "laptop", **settings: str) -> Node:
        made.append(Node(tmp_path, name, **settings))
        return made[-1]

    try:
        yield make
    finally:
        ended(made)


@pytest.fixture(scope="module")
def node(nodes: NewNode) -> Node:
    """One lonely node that runs."""
    lonely = nodes()
    lonely.init()
    return lonely.start()


@pytest.fixture
def folder(node: Node, tmp_path: Path) -> Path:
    """An empty watched folder of the module's node."""
    path = tmp_path / "Vault"
    path.mkdir()
    node.add(path)
    return path
