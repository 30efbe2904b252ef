"""The house keeps its floors: who may import whom, and which parts are pure.

The table is that of the design: imports go down only, neighbours do not know each other, a package
is entered by its door, there are no cycles, and the pure parts touch nothing outside. All of it is
read from the source, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "p2pstore"

# Units of one floor are neighbours and do not import each other, except on the ground floor, whose
# parts are single words that may lean on one another (a system call raises an error of `errors`).
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "ids", "clock", "text"})
    | {"syscalls", "filesystems", "durable", "threads", "sdnotify", "sandbox"},
    frozenset({"content", "wire", "policy", "keys", "config"}),
    frozenset({"store", "net", "dht", "watch", "leases", "home", "carriers"}),
    frozenset({"swarm"}),
    frozenset({"ingest", "restore", "placement", "pieces"}),
    frozenset({"folders", "maintenance", "members", "shares", "vfs"}),
    frozenset({"node", "api"}),
    frozenset({"cli", "http", "webdav"}),
    frozenset({"__main__"}),
)
GROUND = 0
FACE = "api"  # what `import p2pstore` shows of the house, imported when it is asked for
NO_CODE = frozenset({"data", "__pycache__"})  # package data, read through importlib.resources

PURE = frozenset({"content", "wire", "policy"})
# What reaches a clock, a disk, a socket, a loop or dice.
IMPURE_MODULES = frozenset(
    {
        "aiofiles",
        "aiohttp",
        "asyncio",
        "concurrent",
        "ctypes",
        "datetime",
        "fcntl",
        "glob",
        "importlib",
        "io",
        "kademlia",
        "logging",
        "mmap",
        "multiprocessing",
        "nacl.utils",
        "os",
        "p2pstore.clock",
        "p2pstore.durable",
        "p2pstore.filesystems",
        "p2pstore.sandbox",
        "p2pstore.sdnotify",
        "p2pstore.syscalls",
        "p2pstore.threads",
        "platformdirs",
        "queue",
        "random",
        "rpcudp",
        "secrets",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "socketserver",
        "sqlite3",
        "ssl",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "uuid",
        "watchfiles",
        "zeroconf",
    }
)
# `io` and `os` are barred as doors to the disk; these names of theirs only shape values in memory.
PURE_NAMES = frozenset({"io.BytesIO", "os.fsencode", "os.fsdecode", "datetime.timedelta"})
IMPURE_BUILTINS = frozenset({"open", "input", "print", "exec", "eval"})
# A `Path` may be compared and taken apart; asking the disk about it is another matter.
PATH_IO = frozenset(
    {
        "absolute",
        "chmod",
        "cwd",
        "exists",
        "expanduser",
        "glob",
        "home",
        "is_dir",
        "is_file",
        "is_mount",
        "is_symlink",
        "iterdir",
        "lstat",
        "mkdir",
        "read_bytes",
        "read_text",
        "resolve",
        "rglob",
        "rmdir",
        "touch",
        "unlink",
        "write_bytes",
        "write_text",
    }
)


class Import(NamedTuple):
    importer: str  # dotted module
    target: str  # dotted module, as far as it is known to be one
    name: str | None  # what is taken out of it
    line: int
    for_types_only: bool
    is_offered: bool = False  # a module that the door of its package names in __all__

    def __str__(self) -> str:
        what = f"{self.target}.{self.name}" if self.name else self.target
        return f"{self.importer}:{self.line} imports {what}"


def sources(root: Path) -> dict[str, str]:
    """Dotted name -> source text of every module; a package goes by its own name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path.read_text(encoding="utf-8")
    return found


@functools.cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def packages(modules: Mapping[str, str]) -> set[str]:
    return {name.rpartition(".")[0] for name in modules} - {""}


@functools.cache
def offered(door: str) -> frozenset[str]:
    """The names in the __all__ of a package's source."""
    for node in parsed(door).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


@functools.cache
def statements(text: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Each import statement, and whether it is there for type checkers alone."""
    every = list(ast.walk(parsed(text)))
    for_types: set[int] = set()
    for node in every:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types.update(id(inner) for part in node.body for inner in ast.walk(part))
    kinds = ast.Import | ast.ImportFrom
    return [(node, id(node) in for_types) for node in every if isinstance(node, kinds)]


def imports(name: str, text: str, modules: Mapping[str, str]) -> Iterator[Import]:
    for node, types_only in statements(text):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, None, node.lineno, types_only)
        else:
            target = node.module or ""
            if node.level:
                base = name.split(".")
                if name not in packages(modules):
                    base = base[:-1]
                base = base[: len(base) - (node.level - 1)]
                target = ".".join([*base, target] if target else base)
            for alias in node.names:
                inner = f"{target}.{alias.name}"
                if inner in modules:
                    is_offered = alias.name in offered(modules.get(target, ""))
                    yield Import(name, inner, None, node.lineno, types_only, is_offered)
                else:
                    yield Import(name, target, alias.name, node.lineno, types_only)


def unit(module: str) -> str | None:
    """The part of the house that a module belongs to; None outside of it and for the root."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def floor(part: str) -> int | None:
    return next((level for level, parts in enumerate(FLOORS) if part in parts), None)


def all_imports(modules: Mapping[str, str]) -> list[Import]:
    return [found for name, text in modules.items() for found in imports(name, text, modules)]


def wrong_directions(modules: Mapping[str, str]) -> list[str]:
    faults = []
    for found in all_imports(modules):
        above, below = unit(found.importer), unit(found.target)
        if above is None and below is not None and not (below == FACE and found.for_types_only):
            faults.append(f"{found}: the root module imports nothing of the house")
        if above is None or below is None or above == below:
            continue
        here, there = floor(above), floor(below)
        if here is None or there is None:
            continue  # told by `homeless`
        if there > here:
            faults.append(f"{found}: upwards, from floor {here} to {there}")
        elif there == here != GROUND:
            faults.append(f"{found}: a neighbour on floor {here}")
    return faults


def homeless(modules: Mapping[str, str]) -> list[str]:
    parts = {unit(name) for name in modules} - {None} - NO_CODE
    return sorted(f"{part} has no floor" for part in parts if part and floor(part) is None)


def past_the_door(modules: Mapping[str, str]) -> list[str]:
    return [
        str(found)
        for found in all_imports(modules)
        if unit(found.importer) != unit(found.target)
        and unit(found.target) is not None
        and found.target.count(".") > 1
        and not found.is_offered
    ]


def impurities(modules: Mapping[str, str]) -> list[str]:
    faults = []
    for name, text in modules.items():
        if unit(name) not in PURE:
            continue
        uses_paths = False
        for found in imports(name, text, modules):
            whole = f"{found.target}.{found.name}" if found.name else found.target
            uses_paths = uses_paths or found.target == "pathlib"
            if whole in PURE_NAMES:
                continue
            steps = whole.split(".")
            ancestors = {".".join(steps[: n + 1]) for n in range(len(steps))}
            if ancestors & IMPURE_MODULES:
                faults.append(str(found))
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
                faults.append(f"{name}:{node.lineno} is asynchronous")
            if isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Name) and called.id in IMPURE_BUILTINS:
                    faults.append(f"{name}:{node.lineno} calls {called.id}()")
                if isinstance(called, ast.Attribute) and (
                    (uses_paths and called.attr in PATH_IO)
                    or ast.unparse(called) in {"SigningKey.generate", "PrivateKey.generate"}
                ):
                    faults.append(f"{name}:{node.lineno} calls {ast.unparse(called)}()")
    return faults


def cycles(modules: Mapping[str, str]) -> list[str]:
    """Groups of modules that import each other, by Tarjan's strongly connected components."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for found in all_imports(modules):
        if found.target in modules and not found.for_types_only and found.target != found.importer:
            graph[found.importer].add(found.target)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[str] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for below in sorted(graph[name]):
            if below not in order:
                visit(below)
                low[name] = min(low[name], low[below])
            elif below in stack:
                low[name] = min(low[name], order[below])
        if low[name] == order[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                groups.append(" <-> ".join(sorted(group)))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return groups


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    found = sources(ROOT / PACKAGE)
    assert f"{PACKAGE}.errors" in found, "the source was not found"
    return found


def test_every_part_has_a_floor(modules: dict[str, str]) -> None:
    assert homeless(modules) == []


def test_imports_go_down_and_neighbours_are_strangers(modules: dict[str, str]) -> None:
    assert wrong_directions(modules) == []


def test_packages_are_entered_by_their_door(modules: dict[str, str]) -> None:
    assert past_the_door(modules) == []


def test_pure_parts_touch_nothing_outside(modules: dict[str, str]) -> None:
    assert impurities(modules) == []


def test_there_are_no_cycles(modules: dict[str, str]) -> None:
    assert cycles(modules) == []


def house(**texts: str) -> dict[str, str]:
    """A small house: `wire__session="..."` is p2pstore/wire/session.py."""
    named = {f"{PACKAGE}.{key.replace('__', '.')}": text for key, text in texts.items()}
    return {PACKAGE: "", **named}


@pytest.mark.parametrize(
    "text",
    [
        "from p2pstore.swarm import Fetch",
        "import p2pstore.swarm",
        "from ..swarm import Fetch",
        "def late():\n    from p2pstore.swarm import Fetch",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p2pstore.swarm import Fetch",
        "from p2pstore import swarm",
    ],
)
def test_an_import_upwards_is_seen(text: str) -> None:
    tree = house(store="", store__catalog=text, swarm="")
    assert len(wrong_directions(tree)) == 1


def test_a_neighbour_is_seen_and_the_ground_floor_is_free() -> None:
    assert wrong_directions(house(content="from p2pstore.wire import Get", wire=""))
    assert not wrong_directions(house(syscalls="from p2pstore.errors import NoRoom", errors=""))


def test_a_part_without_floor_is_seen() -> None:
    assert homeless(house(helpers="")) == ["helpers has no floor"]


@pytest.mark.parametrize(
    "text", ["from p2pstore.wire.message import Get", "from p2pstore.wire import message"]
)
def test_a_way_past_the_door_is_seen(text: str) -> None:
    assert past_the_door(house(net=text, wire="", wire__message=""))
    assert not past_the_door(house(wire=text, wire__message=""))


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "import os",
        "from os import urandom",
        "from nacl.utils import random",
        "from nacl import utils",
        "import asyncio",
        "async def f(): ...",
        "open('x')",
        "from pathlib import Path\nPath('x').exists()",
        "from p2pstore.clock import SystemClock",
        "SigningKey.generate()",
    ],
)
def test_an_impurity_is_seen(text: str) -> None:
    assert impurities(house(content="", content__block=text, clock=""))
    assert not impurities(house(store="", store__disk=text, clock=""))


@pytest.mark.parametrize(
    "text",
    [
        "from io import BytesIO",
        "from pathlib import PurePath\nPurePath('x').name",
        "from nacl.signing import SigningKey",
    ],
)
def test_values_in_memory_are_pure(text: str) -> None:
    assert not impurities(house(content=text))


def test_a_module_that_the_door_offers_may_be_taken() -> None:
    text = "from p2pstore.wire import message"
    assert not past_the_door(house(net=text, wire='__all__ = ["message"]', wire__message=""))
    text = "from p2pstore.wire.message import Get"
    assert past_the_door(house(net=text, wire='__all__ = ["message"]', wire__message=""))


def test_a_cycle_is_seen_and_one_for_types_is_not() -> None:
    there = "from p2pstore.store.b import x"
    back = "from p2pstore.store.a import y"
    assert cycles(house(store="", store__a=there, store__b=back))
    hidden = f"if TYPE_CHECKING:\n    {back}"
    assert not cycles(house(store="", store__a=there, store__b=hidden))
