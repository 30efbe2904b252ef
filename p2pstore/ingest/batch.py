"""What one call of `Ingest.protect` carries from stage to stage, and what its threads work with."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pstore.content import BundleRef, Chunker, Entry, EpochKeys, Keyring, Sealer, Unsealer
from p2pstore.ids import BundleId, GroupId, NodeId
from p2pstore.ingest.intake import Intake
from p2pstore.ingest.rolling import Rolling, Written


@dataclass(slots=True)
class Batch:
    """What one call of protect writes, shared by its files."""

    ring: Keyring
    me: NodeId
    group: GroupId
    intent: int  # the open journal row that keeps what this batch relies on
    data: Rolling
    meta: Rolling
    written: dict[bytes, tuple[BundleRef, Entry]] = field(default_factory=dict)  # by fingerprint
    finished: list[Future[None]] = field(default_factory=list)
    recorded: dict[BundleId, Future[None]] = field(default_factory=dict)  # rows on their way
    rows: dict[BundleId, int] = field(default_factory=dict)
    leant: dict[bytes, tuple[BundleRef, Entry]] = field(default_factory=dict)  # known chunks
    used: dict[BundleId, dict[int, Written]] = field(default_factory=dict)  # ... and their blocks
    relied: dict[int, bool] = field(default_factory=dict)  # row of an earlier bundle -> may we

    @property
    def keys(self) -> EpochKeys:
        return self.ring.current


class Draft(NamedTuple):
    """A file whose chunks have their places."""

    intake: Intake
    hash: bytes
    holes: tuple[tuple[int, int], ...]
    entries: list[tuple[BundleRef, Entry]]
    stored: int


class Tools:
    """Chunkers and ciphers keep state during a call: each thread gets its own.

    `turn` is for work on many small things. The interpreter runs one thread at a time anyway, and
    each cipher, hash and system call of some microseconds gives it away: threads that do such work
    at once wait for each other's wake-ups most of the time.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._local = threading.local()

    def sealer(self, keys: EpochKeys) -> Sealer:
        held: tuple[bytes, Sealer] | None = getattr(self._local, "sealer", None)
        if held is None or held[0] != keys.epoch:
            held = (keys.epoch, Sealer(keys.block))
            self._local.sealer = held
        return held[1]

    def unsealer(self) -> Unsealer:
        unsealer: Unsealer | None = getattr(self._local, "unsealer", None)
        if unsealer is None:
            unsealer = self._local.unsealer = Unsealer()
        return unsealer

    def chunker(self) -> Chunker:
        chunker: Chunker | None = getattr(self._local, "chunker", None)
        if chunker is None:
            chunker = self._local.chunker = Chunker()
        return chunker
