"""The node's SQLite database: opened, migrated, written by one thread, read by any.

This module knows how rows become durable, and nothing about what they say: the functions of
`files`, `blocks`, `copies`, `journal` and `folders` take the connection as their first argument,
so that a caller puts several of them into one change:

    await catalog.awrite(lambda db: (files.upsert_many(db, rows), journal.close(db, intent)))

Writing. One thread owns the one connection that writes and checkpoints (SQLite below 3.51.3 can
corrupt a WAL that two connections reset). Changes that wait together run one after another, each
in a savepoint, and share one COMMIT with `synchronous=FULL`: a future is resolved when its change
is on the disk, and an error in one change takes back that change only.

Reading. A few read-only connections, each lent to one thread at a time; they cannot checkpoint.

After a disk error the kernel may call lost pages clean, so a commit is never tried again: the
catalog refuses all further changes until it is opened anew (SAFETY.md 2).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from p2pstore.errors import IntegrityError, LocalProtocolError, NoRoom, Unavailable, UsageError
from p2pstore.store import schema

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = tuple[Any, ...]

QUEUE_LIMIT: Final = 4096  # changes that wait; the one who brings more waits too
GROUP_LIMIT: Final = 256  # changes that share a commit; bounds what a power cut takes back
READERS_KEPT: Final = 8  # idle read connections, about 0.3 MB each
QUIET_S: Final = 1.0  # without changes: a moment for a checkpoint
WAL_IDLE_BYTES: Final = 1 << 20  # ... when the log is longer than this
WAL_FULL_BYTES: Final = 64 << 20  # checkpoint at once above this


class CatalogDamaged(IntegrityError):
    """The database file is not readable as ours; it can be rebuilt from bundles and heads."""


class CatalogFailed(Unavailable):
    """The disk failed under the catalog; nothing is written until a restart has checked it."""


_UNDO: Final = ("ROLLBACK TO change", "RELEASE change")
_UNDO_FIRST: Final = ("ROLLBACK", "BEGIN IMMEDIATE")

_Job = tuple[Callable[[sqlite3.Connection], Any], Future[Any]]


class Catalog:
    """Make it with `Catalog.open`; every method may be called from any thread."""

    def __init__(self, path: Path, writer: sqlite3.Connection, *, is_new: bool) -> None:
        self.path = path
        self.is_new = is_new  # made just now: in a HOME that had one, it must be rebuilt
        self._db = writer
        self._wal = path.with_name(path.name + "-wal")
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUE_LIMIT)
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._failure: BaseException | None = None
        self.commits = 0
        self._thread = threading.Thread(target=self._run, name="catalog", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, *, check: bool = True) -> Catalog:
        """Open or create the catalog at `path`, whose directory exists.

        CatalogDamaged when the file is not a sound catalog, UsageError when a newer version of
        the program wrote it. `check` reads the whole file for damage (about 0.5 GB/s).
        """
        path = Path(path)
        with translated(path):
            db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            try:
                is_new = _prepare(db, path, check=check)
            except BaseException:
                db.close()
                raise
        return cls(path, db, is_new=is_new)

    def write(self, change: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue `change`; the future holds its answer once the change is durable.

        `change` runs in the writer's thread: it must not block, must not end the transaction,
        and must leave no cursor behind. A future that is cancelled in time is not run.
        """
        if threading.current_thread() is self._thread:
            raise LocalProtocolError("a catalog change queued another one")
        future: Future[T] = Future()
        with self._closing:
            self._refuse_when_unfit()
            self._jobs.put((change, future))
        return future

    async def awrite(self, change: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.wrap_future(self.write(change))

    def read(self, query: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of one query."""
        with self._reader() as db:
            return db.execute(query, parameters).fetchall()

    def view(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """The answer of `look`, whose queries all see the same state.

        `look` must have fetched what it returns: a cursor is dead afterwards.
        """
        with self._reader() as db:
            db.execute("BEGIN")
            try:
                return look(db)
            finally:
                db.rollback()

    def damages(self) -> list[str]:
        """What SQLite finds wrong in the file; empty when all is well."""
        found = self.read("PRAGMA quick_check(20)")
        return [text for (text,) in found if text != "ok"]

    def copy_to(self, target: Path) -> None:
        """A consistent copy of the whole catalog, while it is in use."""
        with self._reader() as db, translated(target):
            _copy(db, target)

    def close(self) -> None:
        """Write what is queued, move the log into the database, let go of the file."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        with self._readers_lock:
            for reader in self._readers:
                reader.close()
            self._readers.clear()
        self._db.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Reading

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._readers_lock:
            if self._closed:
                raise Unavailable("The catalog is closed.")
            db = self._readers.pop() if self._readers else None
        with translated(self.path):
            if db is None:
                db = sqlite3.connect(
                    f"file:{quote(str(self.path))}?mode=ro",
                    uri=True,
                    isolation_level=None,
                    check_same_thread=False,
                )
                db.execute("PRAGMA query_only=1")
                db.execute("PRAGMA busy_timeout=5000")
            try:
                yield db
            finally:
                self._give_back(db)

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._readers_lock:
            if not self._closed and len(self._readers) < READERS_KEPT:
                self._readers.append(db)
                return
        db.close()

    # Writing: everything below runs in the writer's thread

    def _run(self) -> None:
        ended = unsettled = False
        while not ended:
            try:
                first = self._jobs.get(timeout=QUIET_S if unsettled else None)
            except queue.Empty:
                unsettled = False
                self._checkpoint(WAL_IDLE_BYTES)
                continue
            if first is None:
                break
            ended = self._commit_group(first)
            del first  # a finished change must not keep its rows alive while we wait
            unsettled = True
            self._checkpoint(WAL_FULL_BYTES)
        self._checkpoint(0)

    def _commit_group(self, first: _Job) -> bool:
        """Run `first` and what waits behind it under one commit; whether the end was met."""
        done: list[tuple[Future[Any], Any]] = []
        failed: list[tuple[Future[Any], BaseException]] = []
        ended = False
        if (unfit := self._begin()) is not None:
            if first[1].set_running_or_notify_cancel():
                first[1].set_exception(unfit)
            return False
        try:
            job: _Job | None = first
            while job is not None:
                change, future = job
                if future.set_running_or_notify_cancel():
                    answer, error = self._run_one(change, is_first=not done)
                    if error is None:
                        done.append((future, answer))
                    else:
                        failed.append((future, error))
                    if error is not None and not self._db.in_transaction:
                        raise error  # SQLite took back all of it: a full disk and the like
                if len(done) + len(failed) >= GROUP_LIMIT:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                ended = job is None
            self._db.execute("COMMIT")
            self.commits += 1
        except BaseException as exc:
            lost = self._judge(exc)
            self._roll_back()
            failed.extend((future, lost) for future, _ in done)
            done.clear()
        for future, error in failed:
            future.set_exception(error)
        for future, answer in done:
            future.set_result(answer)
        return ended

    def _begin(self) -> BaseException | None:
        if self._failure is not None:
            return self._unfit()
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as exc:
            return self._judge(exc)
        return None

    def _run_one(
        self, change: Callable[[sqlite3.Connection], Any], *, is_first: bool
    ) -> tuple[Any, BaseException | None]:
        # The first needs no savepoint, which would copy each page that it touches.
        db = self._db
        if not is_first:
            db.execute("SAVEPOINT change")
        try:
            answer = change(db)
            if not db.in_transaction:
                raise LocalProtocolError("a catalog change ended the transaction")
            if not is_first:
                db.execute("RELEASE change")
        except BaseException as exc:  # handed to the caller through its future
            if db.in_transaction:
                for statement in _UNDO_FIRST if is_first else _UNDO:
                    db.execute(statement)
            return None, self._judge(exc)
        return answer, None

    def _judge(self, exc: BaseException) -> BaseException:
        """The error that the caller gets; a disk error also ends all further writing."""
        error = _translate(exc, self.path) if isinstance(exc, sqlite3.Error) else exc
        if isinstance(error, CatalogFailed | CatalogDamaged) and self._failure is None:
            self._failure = error
            logger.error("The catalog takes no more changes: %s", error)
        return error

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as exc:
            self._judge(exc)

    def _checkpoint(self, above: int) -> None:
        """Move the log into the database file when it has grown beyond `above` bytes."""
        try:
            if self._failure is None and self._wal.stat().st_size > above:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except FileNotFoundError:
            return
        except OSError as exc:
            # The size of the log cannot be asked: the next commit meets the same disk.
            logger.warning("The catalog's log cannot be looked at: %s", exc)
        except sqlite3.OperationalError as exc:
            if _code(exc) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                self._judge(exc)
        except sqlite3.Error as exc:
            self._judge(exc)

    def _refuse_when_unfit(self) -> None:
        if self._closed:
            raise Unavailable("The catalog is closed.")
        if self._failure is not None:
            raise self._unfit() from self._failure

    def _unfit(self) -> BaseException:
        if isinstance(self._failure, CatalogDamaged):
            return CatalogDamaged(str(self._failure))
        return CatalogFailed(f"The disk failed under {self.path}: restart p2pstore.")


def _version(db: sqlite3.Connection, path: Path, *, check: bool) -> int:
    """Of the schema, 0 for a new file. CatalogDamaged, UsageError."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    application = int(db.execute("PRAGMA application_id").fetchone()[0])
    tables = int(db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if version < 0 or ((version or tables) and application != schema.APPLICATION_ID):
        raise CatalogDamaged(f"{path} is not a catalog of p2pstore.")
    if version > len(schema.STEPS):
        raise UsageError(
            f"{path} was written by a newer p2pstore (schema {version}, this one knows "
            f"{len(schema.STEPS)}): update this program."
        )
    if check and version:
        found = [text for (text,) in db.execute("PRAGMA quick_check(1)") if text != "ok"]
        if found:
            raise CatalogDamaged(f"{path} is damaged: {found[0]}")
    return version


def _prepare(db: sqlite3.Connection, path: Path, *, check: bool) -> bool:
    db.execute("PRAGMA busy_timeout=5000")
    try:
        version = _version(db, path, check=check)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
        if isinstance(exc, sqlite3.DatabaseError) and _translate(exc, path) is not exc:
            raise
        # These questions are right: what SQLite stumbles over is the file.
        raise CatalogDamaged(f"{path} is damaged: {exc}.") from exc
    if not version:
        db.execute("PRAGMA page_size=8192")  # a third fewer seconds per commit than with 4096
    if (mode := db.execute("PRAGMA journal_mode=WAL").fetchone()[0]) != "wal":
        raise Unavailable(f"{path} lies on a file system without a write-ahead log ({mode}).")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA busy_timeout=0")  # a checkpoint does not wait for a slow reader
    db.execute("PRAGMA wal_autocheckpoint=0")  # the writer's thread does it between commits
    db.execute("PRAGMA cache_size=-16384")
    db.execute("PRAGMA temp_store=MEMORY")
    db.execute("PRAGMA foreign_keys=0")  # the domain functions keep the references
    if 0 < version < len(schema.STEPS):
        _copy(db, path.with_name(f"{path.name}.schema-{version}"))
    for number in range(version, len(schema.STEPS)):
        _step(db, number)
    return version == 0


def _step(db: sqlite3.Connection, number: int) -> None:
    """Go from schema `number` to the next, wholly or not at all."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in schema.STEPS[number].split(";\n"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={number + 1}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _copy(db: sqlite3.Connection, target: Path) -> None:
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        copy.execute("PRAGMA synchronous=FULL")
        db.backup(copy)


def _code(exc: sqlite3.Error) -> int:
    """The primary result code; extended ones carry more in the upper bits."""
    code: int = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _translate(exc: sqlite3.Error, path: Path) -> Exception:
    match _code(exc):
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            error: Exception = CatalogDamaged(f"{path} is damaged: {exc}.")
        case sqlite3.SQLITE_FULL:
            error = NoRoom(f"The disk with {path} is full.")
        case sqlite3.SQLITE_IOERR:
            error = CatalogFailed(f"The disk failed under {path} ({exc}): restart p2pstore.")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            error = Unavailable(f"{path} cannot be opened for writing ({exc}).")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            error = Unavailable(f"{path} is in use by another process.")
        case _:
            return exc  # a bug of ours: let it be seen as it is
    error.__cause__ = exc
    return error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of SQLite as ours; those that can only be bugs stay what they are."""
    try:
        yield
    except sqlite3.Error as exc:
        error = _translate(exc, path)
        if error is exc:
            raise
        raise error from exc
