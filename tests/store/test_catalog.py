from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.errors import LocalProtocolError, NoRoom, Unavailable, UsageError
from p2pstore.store import Catalog, CatalogDamaged, CatalogFailed, folders, schema
from p2pstore.store import catalog as catalog_module


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db") as made:
        yield made


def put(key: str, value: bytes = b"") -> object:
    return lambda db: folders.kv_set(db, key, value)


def keys(catalog: Catalog) -> set[str]:
    return {key for (key,) in catalog.read("SELECT key FROM kv")}


def hold(catalog: Catalog) -> threading.Event:
    """Keep the writer busy, so that what is queued meanwhile shares a commit."""
    started, go = threading.Event(), threading.Event()

    def wait(db: sqlite3.Connection) -> None:
        started.set()
        go.wait(10)

    catalog.write(wait)
    started.wait(10)
    return go


def test_a_resolved_change_is_seen_by_readers(catalog: Catalog) -> None:
    catalog.write(put("a", b"1")).result()
    assert catalog.view(lambda db: folders.kv_get(db, "a")) == b"1"


async def test_awaited_change(catalog: Catalog) -> None:
    assert await catalog.awrite(lambda db: 7) == 7


def test_waiting_changes_share_a_commit(catalog: Catalog) -> None:
    go = hold(catalog)
    futures = [catalog.write(put(str(n))) for n in range(100)]
    before = catalog.commits
    go.set()
    for future in futures:
        future.result()
    assert catalog.commits == before + 1
    assert len(keys(catalog)) == 100


def test_an_error_takes_back_its_own_change_only(catalog: Catalog) -> None:
    def fail_late(name: str) -> object:
        def change(db: sqlite3.Connection) -> None:
            folders.kv_set(db, name, b"")
            raise ValueError(name)

        return change

    go = hold(catalog)
    names = ["bad1", "good1", "bad2", "good2", "bad3"]
    futures = {
        name: catalog.write(fail_late(name) if "bad" in name else put(name)) for name in names
    }
    go.set()
    for name, future in futures.items():
        if "bad" in name:
            with pytest.raises(ValueError, match=name):
                future.result()
        else:
            future.result()
    assert keys(catalog) == {"good1", "good2"}


def test_a_failing_first_change_harms_nobody(catalog: Catalog) -> None:
    def fail(db: sqlite3.Connection) -> None:
        folders.kv_set(db, "bad", b"")
        raise ValueError

    with pytest.raises(ValueError):
        catalog.write(fail).result()
    catalog.write(put("good")).result()
    assert keys(catalog) == {"good"}


def test_futures_wait_for_the_commit(catalog: Catalog) -> None:
    go = hold(catalog)
    first = catalog.write(put("first"))
    started, release = threading.Event(), threading.Event()

    def second(db: sqlite3.Connection) -> None:
        started.set()
        release.wait(10)

    last = catalog.write(second)
    go.set()
    started.wait(10)
    assert not first.done(), "its change ran, but nothing is on the disk"
    assert keys(catalog) == set()
    release.set()
    last.result()
    assert first.done()


def test_a_cancelled_change_is_not_run(catalog: Catalog) -> None:
    go = hold(catalog)
    future = catalog.write(put("never"))
    assert future.cancel()
    go.set()
    catalog.write(put("after")).result()
    assert keys(catalog) == {"after"}


def test_a_change_that_ends_the_transaction_is_a_bug(catalog: Catalog) -> None:
    go = hold(catalog)
    other = catalog.write(put("other"))
    rogue = catalog.write(lambda db: db.rollback())
    go.set()
    with pytest.raises(LocalProtocolError):
        rogue.result()
    with pytest.raises(LocalProtocolError):
        other.result()
    catalog.write(put("later")).result()
    assert keys(catalog) == {"later"}


def test_a_change_may_not_queue_another(catalog: Catalog) -> None:
    with pytest.raises(LocalProtocolError):
        catalog.write(lambda db: catalog.write(put("x"))).result()


def test_readers_cannot_write(catalog: Catalog) -> None:
    with pytest.raises(Unavailable):
        catalog.view(lambda db: folders.kv_set(db, "a", b""))


def test_a_view_sees_one_state(catalog: Catalog) -> None:
    catalog.write(put("a", b"1")).result()

    def look(db: sqlite3.Connection) -> tuple[bytes | None, bytes | None]:
        before = folders.kv_get(db, "a")
        catalog.write(put("a", b"2")).result()
        return before, folders.kv_get(db, "a")

    assert catalog.view(look) == (b"1", b"1")
    assert catalog.view(lambda db: folders.kv_get(db, "a")) == b"2"


def test_many_threads_read_and_write(catalog: Catalog) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(10):
                catalog.write(put(f"{number}/{i}")).result()
                assert catalog.view(lambda db, i=i: folders.kv_get(db, f"{number}/{i}")) == b""
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(keys(catalog)) == 120
    assert len(catalog._readers) <= catalog_module.READERS_KEPT


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog.open(path)
    assert catalog.is_new
    for n in range(50):
        catalog.write(put(str(n)))
    catalog.close()
    catalog.close()
    with pytest.raises(Unavailable):
        catalog.write(put("late"))
    with pytest.raises(Unavailable):
        catalog.read("SELECT 1")
    with Catalog.open(path) as again:
        assert len(keys(again)) == 50
        assert not again.is_new


def test_the_log_is_moved_into_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "WAL_FULL_BYTES", 1 << 18)
    with Catalog.open(tmp_path / "catalog.db") as catalog:
        for n in range(20):
            catalog.write(put(str(n), bytes(50_000))).result()
        catalog.write(put("last")).result()
        assert (tmp_path / "catalog.db-wal").stat().st_size < 1 << 19
        assert len(keys(catalog)) == 21


def test_durability_settings(catalog: Catalog) -> None:
    settings = catalog.write(
        lambda db: [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
    ).result()
    assert settings == ["wal", 2]


def test_a_killed_process_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from p2pstore.store import Catalog, folders
        catalog = Catalog.open(Path(sys.argv[1]))
        for n in range(100_000):
            catalog.write(lambda db: folders.kv_set(db, str(n), bytes(2000))).result()
            print(n, flush=True)
        """
    )
    path = tmp_path / "catalog.db"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 50:
                break
        os.kill(process.pid, signal.SIGKILL)
        told = max([50, *(int(line) for line in process.stdout if line.endswith("\n"))])
    with Catalog.open(path) as catalog:
        assert catalog.damages() == []
        assert keys(catalog) >= {str(n) for n in range(told + 1)}


# Opening


def test_an_older_schema_is_migrated_after_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        catalog.write(put("kept", b"x")).result()
    before = len(schema.STEPS)
    step = "ALTER TABLE kv ADD COLUMN more INTEGER;\nUPDATE kv SET more=5;\n"
    monkeypatch.setattr(schema, "STEPS", [*schema.STEPS, step])
    with Catalog.open(path) as catalog:
        assert catalog.read("SELECT key, value, more FROM kv") == [("kept", b"x", 5)]
        assert not catalog.is_new
    with sqlite3.connect(tmp_path / f"catalog.db.schema-{before}") as copy:
        assert copy.execute("SELECT * FROM kv").fetchall() == [("kept", b"x")]
    copy.close()


def test_a_failing_migration_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        catalog.write(put("kept", b"x")).result()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", [*schema.STEPS, "DELETE FROM kv;\nnonsense;\n"])
        with pytest.raises(sqlite3.OperationalError):
            Catalog.open(path)
    with Catalog.open(path) as catalog:
        assert keys(catalog) == {"kept"}


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalog.db"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", [*schema.STEPS, "CREATE TABLE later (a);\n"])
        Catalog.open(path).close()
    with pytest.raises(UsageError, match="newer"):
        Catalog.open(path)


@pytest.mark.parametrize("content", [b"hello" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_file_that_is_no_database_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(content)
    with pytest.raises(CatalogDamaged):
        Catalog.open(path)
    assert path.read_bytes() == content


def test_the_database_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.close()
    with pytest.raises(CatalogDamaged):
        Catalog.open(path)


@pytest.mark.parametrize("how", ["zeros", "cut"])
def test_a_damaged_catalog_is_noticed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "catalog.db"
    with Catalog.open(path) as catalog:
        for n in range(200):
            catalog.write(put(str(n), bytes(1000)))
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if how == "zeros":
            file.seek(size * 3 // 4)  # behind the roots of empty tables
            file.write(bytes(32_768))
        else:
            file.truncate(size // 2)
    with pytest.raises(CatalogDamaged):
        Catalog.open(path)
    if how == "zeros":
        with Catalog.open(path, check=False) as catalog, pytest.raises(CatalogDamaged):
            catalog.read("SELECT sum(length(value)) FROM kv")


def smeared(sound: bytes, how: str, seed: int) -> bytes:
    dice, raw = random.Random(seed), bytearray(sound)
    if how == "behind the first half page":
        raw[4096:] = dice.randbytes(len(raw) - 4096)
    elif how == "here and there":
        for _ in range(20):
            raw[dice.randrange(100, len(raw))] = dice.randrange(256)
    else:
        for _ in range(3):
            raw[dice.randrange(16, 100)] = dice.randrange(256)
    return bytes(raw)


# Seeds after which SQLite has said more than that the file is malformed.
@pytest.mark.parametrize(
    ("how", "seeds"),
    [
        ("behind the first half page", (64, 179, 201, 318)),
        ("here and there", (3, 11, 18, 51, 137)),
        ("in the head", (22, 182)),
    ],
)
def test_whatever_sqlite_says_of_a_smeared_file_it_is_damage(
    tmp_path: Path, how: str, seeds: tuple[int, ...]
) -> None:
    with Catalog.open(tmp_path / "sound.db"):
        pass
    sound = (tmp_path / "sound.db").read_bytes()
    for seed in (*seeds, *range(400, 440)):
        path = tmp_path / f"{seed}.db"
        path.write_bytes(smeared(sound, how, seed))
        # What is smeared may be what nothing is in, or the number of the version.
        with contextlib.suppress(CatalogDamaged, UsageError):
            Catalog.open(path).close()


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Catalog.open(tmp_path / "nowhere" / "catalog.db")


def test_a_copy_is_a_catalog(catalog: Catalog, tmp_path: Path) -> None:
    catalog.write(put("a")).result()
    catalog.copy_to(tmp_path / "copy.db")
    with Catalog.open(tmp_path / "copy.db") as copy:
        assert keys(copy) == {"a"}


# Failing disks


class _Failing:
    """A connection whose COMMIT fails as the disk would make it fail."""

    def __init__(self, db: sqlite3.Connection, code: int) -> None:
        self._db = db
        self._code = code
        self.commits = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, query: str, *args: object) -> object:
        if query == "COMMIT":
            self.commits += 1
            error = sqlite3.OperationalError("the disk")
            error.sqlite_errorcode = self._code
            raise error
        return self._db.execute(query, *args)


def test_after_a_disk_error_nothing_is_written(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.write(put("before")).result()
    failing = _Failing(catalog._db, sqlite3.SQLITE_IOERR | 4 << 8)
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_db", failing)
        with pytest.raises(CatalogFailed):
            catalog.write(put("lost")).result()
    with pytest.raises(CatalogFailed):
        catalog.write(put("refused"))
    assert failing.commits == 1
    assert keys(catalog) == {"before"}


def test_a_full_disk_passes(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_db", _Failing(catalog._db, sqlite3.SQLITE_FULL))
        with pytest.raises(NoRoom):
            catalog.write(put("lost")).result()
    catalog.write(put("later")).result()
    assert keys(catalog) == {"later"}


def test_running_out_of_pages_takes_back_the_group(catalog: Catalog) -> None:
    pages = catalog.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0]).result()
    catalog.write(lambda db: db.execute(f"PRAGMA max_page_count={pages + 2}").fetchone()).result()
    with pytest.raises(NoRoom):
        catalog.write(put("large", bytes(100_000))).result()
    catalog.write(put("small")).result()
    assert keys(catalog) == {"small"}
