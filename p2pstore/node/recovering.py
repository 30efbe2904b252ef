"""Everything back from 24 words: holders are found, HOME is written, and a node does the rest.

`recover` is the command, in the foreground; it may be stopped at any time and typed again. What it
leaves undone is done by any node that runs on the HOME (laying.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from p2pstore.clock import SystemClock
from p2pstore.config import Address, Config
from p2pstore.errors import UsageError
from p2pstore.home import Home
from p2pstore.ids import FolderId
from p2pstore.keys import root_of
from p2pstore.members import Recovered, Recovery, default_name, is_recovering, named_mistake
from p2pstore.net import PeerBook
from p2pstore.node.build import Node
from p2pstore.node.laying import failure
from p2pstore.node.seeking import PATIENCE_S, groups_met, seek
from p2pstore.placement import Root
from p2pstore.policy import refuse_folder

Json = dict[str, Any]
Progress = Callable[[Json], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How an owner wants everything back."""

    name: str | None = None  # of this device
    bootstrap: tuple[Address, ...] = ()  # nodes that may know, beside those of the configuration
    to: Path | None = None  # folders come back below it, not where they were
    patience_s: float = PATIENCE_S  # for the first holder to answer
    placeholders_only: bool = False


async def from_words(
    home: Home, words: str, config: Config, wishes: Wishes, progress: Progress
) -> Recovered:
    """The first half: find holders, write HOME. The caller has HOME's lock."""
    clock = SystemClock()
    name = wishes.name or config.name or default_name()
    try:
        root_of(words)
    except UsageError as exc:
        mistake = await asyncio.to_thread(named_mistake, words, await groups_met(config))
        if mistake is None:
            raise
        raise UsageError(f"The words are not right. {mistake}") from exc
    recovery = Recovery(home, words, name=name, network=config.network, now=clock.wall())
    home.make_directory()
    book = PeerBook(home.path / "peers.json")
    await seek(recovery, words, config, book, clock, progress, patience_s=wishes.patience_s)
    book.save()
    return await asyncio.to_thread(recovery.settle, Places(home.path, wishes.to).choose)


class Places:
    """Chooses where folders come back, each in a directory of its own in which nothing is yet.

    What a note says of the place was written on another computer, perhaps by somebody who had
    stolen it: nothing comes back where no folder may be watched, nor in a hidden directory, where
    nobody looks and programs find what they are to run.
    """

    def __init__(self, home: Path, to: Path | None) -> None:
        self._home = home
        self._to = to
        self._chosen: list[Path] = []

    def choose(self, folder_id: FolderId, name: str, was: str) -> Path:
        """Below `to`, or where it was, or in the user's home directory."""
        name = os.path.basename(name) or "folder"
        if self._to is not None:
            places = [self._to / name]
        else:
            visible = name.lstrip(".") or "folder"
            places = [Path(was)] if _is_open_path(was) else []
            places.append(Path.home() / visible)
        last = places[-1]
        places += [last.with_name(f"{last.name}.recovered-{number}") for number in range(1, 100)]
        for place in places:
            real = Path(os.path.realpath(place))
            if self._is_free(real) and _is_usable(real, folder_id):
                self._chosen.append(real)
                return real
        raise UsageError(f"{last} exists, and so do the names beside it: p2pstore recover --to DIR")

    def _is_free(self, place: Path) -> bool:
        home = Path(os.path.realpath(self._home))
        refused = refuse_folder(place, Path.home(), home, self._chosen, frozenset())
        return refused is None and place not in self._chosen


def _is_open_path(was: str) -> bool:
    """An absolute path without a hidden directory."""
    parts = Path(was).parts
    return os.path.isabs(was) and "\0" not in was and not any(p.startswith(".") for p in parts)


def _is_usable(place: Path, folder_id: FolderId) -> bool:
    """Missing, or empty but for what an earlier attempt left; and it can be made."""
    try:
        there = {entry.name for entry in place.iterdir()}
    except FileNotFoundError:
        parent = next(p for p in place.parents if p.exists())
        return parent.is_dir() and os.access(parent, os.W_OK)
    except OSError:
        return False
    return there <= {".p2pstore"} and Root.marker(place) in (None, folder_id.hex())


# -- with a node -----------------------------------------------------------------------------------


async def bring_back(node: Node, progress: Progress) -> list[Json]:
    """Hydrate every folder; what could not be brought back, and why."""
    failed: list[Json] = []
    for folder in node.folders.all():
        for one in await node.folders.hydrate([os.fspath(folder.path)], progress):
            if one.error is not None:
                failed.append(failure(one.placeholder.name, one.error))
    return failed


async def recover(
    config: Config, path: Path, ask_words: Callable[[], str], wishes: Wishes, progress: Progress
) -> Json:
    """All of it. `ask_words` is called when HOME has no identity yet."""
    config = msgspec.structs.replace(config, bootstrap=(*config.bootstrap, *wishes.bootstrap))
    home = Home(path)
    with home.locked():
        left: tuple[tuple[str, str], ...] = ()
        as_of: dict[str, float] = {}
        if not is_recovering(home):
            made = await from_words(home, ask_words(), config, wishes, progress)
            left = made.left
            as_of = {f.path: then for f, then in zip(made.folders, made.as_of, strict=True)}
        node = await asyncio.to_thread(Node, home, config)
        try:
            done = await _with_node(node, wishes, progress)
        except ExceptionGroup as errors:
            raise _first(errors) from errors
        for line in done["folders"]:
            line["as_of"] = as_of.get(line["path"])  # None: an earlier attempt knew
        return {**done, "left": [{"name": name, "device": device} for name, device in left]}


async def _with_node(node: Node, wishes: Wishes, progress: Progress) -> Json:
    async with node.running():
        failed_to_lay = await node.laying.lay_out(progress)
        failed = [*failed_to_lay]
        if not wishes.placeholders_only:
            failed += await bring_back(node, progress)
        if not failed_to_lay:
            await node.laying.end()
        return {
            "group": node.group.group_id.hex(),
            "name": node.group.name,
            "folders": [_line(node, folder.path) for folder in node.folders.all()],
            "failed": failed,
        }


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """What to say when several things failed together."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


def _line(node: Node, path: Path) -> Json:
    entries = node.vfs.entries(os.fspath(path))
    return {
        "path": os.fspath(path),
        "files": sum(e.files if e.is_directory else 1 for e in entries),
        "bytes": sum(e.size for e in entries),
    }
