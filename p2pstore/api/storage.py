"""Single files in a place that stores bytes, for programs that are not asynchronous.

    key, meta = Storage(width=600, height=600).upload("photo.jpg")
    Storage().download_file(key, "copy.jpg")

Without a carrier the place is a folder of pictures: P2PSTORE_PICTURES, or `p2pstore-pictures` in
the user's data directory. Not in the node's HOME: that may be deleted after `p2pstore leave`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypedDict, TypeVar

import platformdirs

from p2pstore.api.reaching import home_path
from p2pstore.carriers import (
    Carrier,
    CarrierConfig,
    PictureFolderConfig,
    load_config,
    make_carrier,
    prepare,
)
from p2pstore.content import UploadMeta, capacity
from p2pstore.errors import UsageError
from p2pstore.pieces import Progress, fetch, get_meta, store
from p2pstore.sandbox import cannot_write

T = TypeVar("T")

THREADS: Final = 4  # sealing releases the interpreter; the disk has no use for more


class MetaPiece(TypedDict):
    seq: int
    key: str
    offset: int
    size: int
    checksum: str


class Meta(TypedDict):
    """What was stored, in the form of the old system (see content/pieces.py)."""

    protocol_version: str
    filename: str
    piece_width: int
    piece_height: int
    pieces: list[MetaPiece]


class Storage:
    """May be used by several threads at once, and by code that an event loop runs (it blocks it).

    Errors are those of p2pstore.errors. What it holds goes with it, or at `close`; or use `with`.
    """

    def __init__(
        self,
        width: int = 600,
        height: int = 600,
        *,
        carrier: Carrier | str | Path | None = None,
        encrypt: bool = True,
    ) -> None:
        """`carrier`: one of your own, the name of one that was added to the node, or the path of a
        folder for pictures (a word without a slash is a name). `width`, `height`: of the pictures;
        they decide how much a piece holds. Not encrypted, the old system can read it.
        """
        capacity(width, height)  # UsageError now, not at the first file
        self._encrypt = encrypt
        self._place = _Place(carrier, width, height, os.environ)
        self._worker = _Worker()
        weakref.finalize(self, self._worker.end, self._place.close)

    def upload(
        self, path: str | Path, *, name: str | None = None, progress: Progress | None = None
    ) -> tuple[str, Meta]:
        """Store a file; (the key that fetches it, what was stored). Call it again to go on.

        `progress` is told (bytes done, bytes in all) from another thread.
        """

        async def work(pool: Executor) -> tuple[str, Meta]:
            carrier = self._place.carrier(for_writing=True)
            stored = await store(
                carrier,
                path,
                pool=pool,
                name=name,
                encrypt=self._encrypt,
                picture=self._place.picture,
                place=self._place.name or "The carrier",
                journals=_journals() if self._place.name else None,
                progress=progress,
            )
            return stored.key, _described(stored.meta)

        return self._worker.run(work)

    def put_file(self, path: str | Path) -> tuple[str, Meta]:
        """The old name of `upload`."""
        return self.upload(path)

    def download_file(
        self,
        key: str,
        path: str | Path | None = None,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Fetch a file to `path` (a folder: its own name there; None: here); where it is now.

        Nothing is overwritten without `force`. Call it again to go on.
        """

        async def work(pool: Executor) -> Path:
            carrier = self._place.carrier()
            fetched = await fetch(carrier, key, path, pool=pool, force=force, progress=progress)
            return fetched.path

        return self._worker.run(work)

    def get_meta(self, key: str) -> Meta:
        """What lies under a key, without its content."""

        async def work(pool: Executor) -> Meta:
            return _described(await get_meta(self._place.carrier(), key, pool=pool))

        return self._worker.run(work)

    def close(self) -> None:
        self._worker.end(self._place.close)

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _described(meta: UploadMeta) -> Meta:
    pieces: list[MetaPiece] = [
        {
            "seq": piece.seq,
            "key": piece.key,
            "offset": piece.offset,
            "size": piece.size,
            "checksum": piece.checksum or "",
        }
        for piece in meta.pieces
    ]
    return {
        "protocol_version": "1.0",
        "filename": meta.name,
        "piece_width": meta.width,
        "piece_height": meta.height,
        "pieces": pieces,
    }


def _journals() -> Path:
    return Path(platformdirs.user_state_dir("p2pstore", appauthor=False)) / "uploads"


# -- where ----------------------------------------------------------------------------------------


class _Place:
    """Which carrier is meant; made when it is first used, in the loop that uses it."""

    def __init__(
        self, chosen: Carrier | str | Path | None, width: int, height: int, env: Mapping[str, str]
    ) -> None:
        self.name = ""  # of what can be found again by the next program; empty for a given object
        self.picture = (0, 0)
        self._config: CarrierConfig | None = None
        self._given: Carrier | None = None
        self._made: Carrier | None = None
        if chosen is None or isinstance(chosen, str | Path):
            config = self._config = _config(chosen, width, height, env)
            self.name = str(chosen or getattr(config, "path", ""))
            self.picture = getattr(config, "width", 0), getattr(config, "height", 0)
        else:
            self._given = chosen
            if chosen.promises.piece == capacity(width, height):
                self.picture = (width, height)

    def carrier(self, *, for_writing: bool = False) -> Carrier:
        if self._given is not None:
            return self._given
        assert self._config is not None
        if for_writing and isinstance(self._config, PictureFolderConfig) and not self._config.mark:
            self._config = _prepared(self._config)
        if self._made is None:
            self._made = make_carrier(self.name, self._config)
        return self._made

    async def close(self) -> None:
        """A carrier that was given is its owner's to close."""
        made, self._made = self._made, None
        if made is not None:
            await made.close()


def _prepared(config: PictureFolderConfig) -> CarrierConfig:
    """A folder of pictures needs no set-up: it is made when something is put there."""
    parent = Path(config.path).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(cannot_write(parent, exc)) from exc
    return prepare(config)


def _config(
    chosen: str | Path | None, width: int, height: int, env: Mapping[str, str]
) -> CarrierConfig:
    if isinstance(chosen, str) and os.sep not in chosen:
        path = home_path(None, env) / "carriers" / f"{chosen}.toml"
        if not chosen or chosen.startswith(".") or not path.is_file():
            raise UsageError(
                f"There is no carrier {chosen!r}. See: p2pstore carriers list (the path of a "
                "folder has a slash)."
            )
        return load_config(path)
    if chosen is None:
        default = Path(platformdirs.user_data_dir("p2pstore-pictures", appauthor=False))
        chosen = env.get("P2PSTORE_PICTURES") or default
    where = os.path.abspath(os.path.expanduser(chosen))
    return PictureFolderConfig(path=where, width=width, height=height)


# -- a loop of its own ----------------------------------------------------------------------------


class _Worker:
    """A thread with an event loop, begun when there is work: callers may have a loop themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Executor], Coroutine[Any, Any, T]]) -> T:
        loop, pool = self._begun()
        future = asyncio.run_coroutine_threadsafe(work(pool), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C here ends the work there
            raise

    def _begun(self) -> tuple[asyncio.AbstractEventLoop, Executor]:
        with self._lock:
            if self._thread is None:
                ready = threading.Event()
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pieces")
                self._thread = threading.Thread(
                    target=lambda: asyncio.run(self._main(ready)), name="storage", daemon=True
                )
                self._thread.start()
                ready.wait()
            assert self._loop is not None
            assert self._pool is not None
            return self._loop, self._pool

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await self._stop.wait()

    def end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `last` in the loop, then end it; it begins anew when there is work again."""
        with self._lock:
            thread, loop, pool, stop = self._thread, self._loop, self._pool, self._stop
            self._thread = None
        if thread is None or loop is None or pool is None or stop is None:
            return
        if thread is threading.current_thread():  # the collector may run anywhere
            stop.set()
            return
        asyncio.run_coroutine_threadsafe(last(), loop).result()
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        pool.shutdown()
