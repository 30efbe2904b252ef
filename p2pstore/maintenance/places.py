"""PLACES: the carriers of this HOME: set up, tried, given up, and asked for blocks.

    HOME/carriers/NAME.toml    how each is reached (carriers.config); mode 0600

To everything that counts copies a carrier is a holder with a node id of its own, made from its
name: so the rows of its copies outlive a restart, and another carrier of that name is not it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from p2pstore.carriers import (
    Carrier,
    CarrierConfig,
    FolderConfig,
    PictureFolderConfig,
    PictureHostConfig,
    S3Config,
    load_config,
    make_carrier,
    prepare,
    save_config,
    try_out,
)
from p2pstore.clock import Clock
from p2pstore.errors import P2PStoreError, UsageError
from p2pstore.ids import BlockId, BundleId, NodeId, short
from p2pstore.maintenance.carried import CarriedBundles, KeptParcels, keys_of
from p2pstore.store import BundleRow, Catalog, blocks, copies
from p2pstore.swarm import Shelf
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

MAX_CARRIERS: Final = 64  # each is asked for what nobody else has
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


def carrier_id(name: str) -> NodeId:
    """What stands for a carrier where holders have their node id."""
    return NodeId(blake3(b"p2pstore carrier\0" + name.encode()).digest(length=20))


class Place(NamedTuple):
    """One carrier."""

    name: str
    config: CarrierConfig
    carrier: Carrier
    bundles: CarriedBundles

    @property
    def kind(self) -> str:
        """As its owner types it."""
        match self.config:
            case FolderConfig():
                return "folder"
            case S3Config():
                return "s3"
            case PictureHostConfig() | PictureFolderConfig():
                return "png"

    @property
    def where(self) -> str:
        """For people; without what is secret."""
        match self.config:
            case S3Config(bucket=bucket, prefix=prefix):
                return f"s3://{bucket}/{prefix}".rstrip("/")
            case PictureHostConfig(url=url):
                return url
            case FolderConfig(path=path) | PictureFolderConfig(path=path):
                return path

    @property
    def keeps_letters(self) -> bool:
        """Whether the newest heads can lie there too (see `letters`)."""
        promises = self.carrier.promises
        return promises.keeps_names and promises.deletes


class Places:
    def __init__(
        self, home: Path, shelf: Shelf, *, catalog: Catalog, clock: Clock, pool: Executor
    ) -> None:
        """Blocks: it reads HOME. A set-up that cannot be read is told, and its carrier left out."""
        self._directory = home / "carriers"
        self._shelf = shelf
        self._catalog = catalog
        self._clock = clock
        self._pool = pool
        self._places: dict[NodeId, Place] = {}
        self._kept = KeptParcels()
        self.carried: dict[NodeId, CarriedBundles] = {}  # the bundles of each
        self.trouble: dict[str, str] = {}  # by name, what its set-up or the last call to it told
        for path in sorted(self._directory.glob("*.toml"))[:MAX_CARRIERS]:
            try:
                self._add(path.stem, load_config(path))
            except UsageError as exc:
                self.trouble[path.stem] = str(exc)
                log.warning("A carrier is left out: %s", exc)

    def ids(self) -> list[NodeId]:
        return list(self._places)

    def lettered(self) -> list[NodeId]:
        return [node for node, place in self._places.items() if place.keeps_letters]

    def all(self) -> list[Place]:
        return list(self._places.values())

    def name_of(self, node: NodeId) -> str | None:
        place = self._places.get(node)
        return None if place is None else place.name

    def get(self, name: str) -> Place:
        """UsageError when there is none of that name."""
        place = self._places.get(carrier_id(name))
        if place is not None:
            return place
        if name in self.trouble:
            raise UsageError(f"The carrier {name} cannot be used: {self.trouble[name]}")
        known = ", ".join(place.name for place in self.all())
        others = f", only {known}" if known else " yet"
        raise UsageError(f"There is no carrier {name!r}{others}. See: p2pstore carriers add --help")

    def some(self, name: str | None) -> list[tuple[str, Carrier]]:
        """The carrier of that name; without one all of them. UsageError when there is none."""
        if name is None and self._places:
            return [(place.name, place.carrier) for place in self.all()]
        if name is None:
            raise UsageError("There is no carrier yet. See: p2pstore carriers add --help")
        return [(name, self.get(name).carrier)]

    # -- setting up -------------------------------------------------------------------------------

    async def add(self, name: str, config: CarrierConfig) -> Place:
        """Prepared, tried with a real piece, then kept; what fails leaves nothing behind."""
        if _NAME.fullmatch(name) is None or name == "none":
            raise UsageError(
                f"{name!r} is no name of a carrier: up to 32 small letters, digits, - _ and ."
            )
        if carrier_id(name) in self._places or self._path(name).exists():
            raise UsageError(
                f"There is a carrier {name} already; it goes with: p2pstore carriers remove {name}"
            )
        if len(self._places) >= MAX_CARRIERS:
            raise UsageError(f"There are {MAX_CARRIERS} carriers already.")
        config = await in_thread(self._pool, prepare, config)
        carrier = make_carrier(name, config)
        try:
            await try_out(carrier)
        finally:
            await carrier.close()
        await in_thread(self._pool, self._keep, name, config)
        return self._add(name, config)

    async def test(self, name: str) -> None:
        """Put a piece there and read it back; what `Carrier` raises tells the rest."""
        await try_out(self.get(name).carrier)

    async def remove(self, name: str) -> None:
        """Forget it; what lies there stays. First nothing is to rely on it, and no folder is to
        name it."""
        place = self._places.get(carrier_id(name))
        if place is None and name not in self.trouble:
            self.get(name)  # says that there is none
        await in_thread(self._pool, self._path(name).unlink, missing_ok=True)
        node = carrier_id(name)
        await self._catalog.awrite(lambda db: copies.forget_holder(db, node))
        self.trouble.pop(name, None)
        self.carried.pop(node, None)
        self._places.pop(node, None)
        if place is not None:
            await place.carrier.close()

    def only_away(self, name: str) -> list[BundleRow]:
        """Bundles that lie there and not here. Blocks."""
        node = carrier_id(name)
        return self._catalog.view(lambda db: _only_away(db, node))

    def _keep(self, name: str, config: CarrierConfig) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        save_config(self._path(name), config)

    def _add(self, name: str, config: CarrierConfig) -> Place:
        node = carrier_id(name)
        carrier = make_carrier(name, config)
        bundles = CarriedBundles(
            node,
            carrier,
            self._shelf,
            keys=self._keys,
            clock=self._clock,
            pool=self._pool,
            kept=self._kept,
        )
        place = self._places[node] = Place(name, config, carrier, bundles)
        self.carried[node] = bundles
        self.trouble.pop(name, None)
        return place

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.toml"

    async def close(self) -> None:
        await asyncio.gather(*(place.carrier.close() for place in self.all()))

    # -- what lies there --------------------------------------------------------------------------

    def _keys(self, bundle_id: BundleId, node: NodeId) -> Sequence[str]:
        def look(db: sqlite3.Connection) -> Sequence[str]:
            row = blocks.get_bundle(db, bundle_id)
            known = [] if row is None else copies.of_bundle(db, row.id)
            return next((keys_of(c.receipt) for c in known if c.holder == node), [])

        return self._catalog.view(look)

    def totals(self) -> Mapping[NodeId, tuple[int, int]]:
        """(bytes, ms of the last proof) of what lies with each."""
        return self._catalog.view(copies.totals_of_holders)

    async def blocks(self, wanted: Mapping[BundleId, Iterable[BlockId]]) -> dict[BlockId, bytes]:
        """As many of these as any carrier has, each compared with its id."""
        found: dict[BlockId, bytes] = {}
        if not self._places:
            return found
        rows = await in_thread(self._pool, self._rows, list(wanted))
        for bundle_id, block_ids in wanted.items():
            row = rows.get(bundle_id)
            named = bundle_id if row is None else row.bundle_id
            for place in self._likely(row):
                left = [block for block in block_ids if block not in found]
                if not left:
                    break
                try:
                    found |= await place.bundles.blocks(named, 0 if row is None else row.seq, left)
                except P2PStoreError as exc:
                    log.info("%s does not give bundle %s: %s", place.name, short(named), exc)
        return found

    def _rows(self, bundles: Sequence[BundleId]) -> dict[BundleId, BundleRow]:
        return self._catalog.view(lambda db: blocks.get_bundles(db, bundles))

    def _likely(self, row: BundleRow | None) -> list[Place]:
        """All of them, those first that are known to have it."""
        known = set()
        if row is not None:
            held = self._catalog.view(lambda db: copies.of_bundle(db, row.id))
            known = {copy.holder for copy in held if copy.state in copies.HAVING}
        return [self._places[n] for n in sorted(self._places, key=lambda n: n not in known)]


def _only_away(db: sqlite3.Connection, node: NodeId) -> list[BundleRow]:
    query = (
        "SELECT b.id FROM bundles b JOIN copies c ON c.bundle=b.id AND c.holder=?"
        " WHERE b.state='evicted' ORDER BY b.id"
    )
    numbers = [number for (number,) in db.execute(query, (node,)).fetchall()]
    return [row for n in numbers if (row := blocks.by_rowid(db, n)) is not None]
