from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import p2pstore
from p2pstore import Storage
from p2pstore.carriers import NotThere, PictureFolderConfig, Promises, prepare, save_config
from p2pstore.content import capacity
from p2pstore.errors import FormatError, UsageError


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pictures go by default."""
    path = tmp_path / "data" / "pictures"
    monkeypatch.setenv("P2PSTORE_PICTURES", str(path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(os.urandom(100_000))
    return path


class Memory:
    """A carrier of somebody's own."""

    promises = Promises(50_000, is_exact=True, keeps_names=True, deletes=True)

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.is_closed = False

    async def put(self, name: str, content: bytes) -> str:
        self.loops.add(asyncio.get_running_loop())
        self.kept[name] = content
        return name

    async def get(self, key: str) -> bytes:
        if key not in self.kept:
            raise NotThere("no")
        return self.kept[key]

    async def delete(self, key: str) -> None:
        self.kept.pop(key, None)

    def key_of(self, name: str) -> str | None:
        return name

    async def close(self) -> None:
        self.is_closed = True


def test_a_file_goes_into_pictures_and_comes_back(
    pictures: Path, photo: Path, tmp_path: Path
) -> None:
    key, meta = Storage(width=100, height=100).upload(photo)
    assert meta["filename"] == "photo.jpg"
    assert (meta["piece_width"], meta["piece_height"]) == (100, 100)
    assert sum(piece["size"] for piece in meta["pieces"]) == 100_000
    assert Storage().get_meta(key) == meta
    assert Storage().download_file(key, tmp_path / "copy.jpg") == tmp_path / "copy.jpg"
    assert (tmp_path / "copy.jpg").read_bytes() == photo.read_bytes()
    shown = [path for path in pictures.rglob("*.png")]
    assert len(shown) == len(meta["pieces"]) + 1
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in shown)


def test_the_old_name_works(pictures: Path, photo: Path) -> None:
    key, meta = Storage(100, 100).put_file(str(photo))
    assert Storage().get_meta(key) == meta


def test_the_current_folder_is_where_files_come_without_a_path(
    pictures: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = Storage().upload(photo, name="../other.jpg")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Storage().download_file(key).name == "other.jpg"
    with pytest.raises(UsageError, match="exists"):
        Storage().download_file(key)
    Storage().download_file(key, force=True)


def test_without_anything_said_pictures_lie_outside_of_the_nodes_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Storage(64, 64).upload(photo)
    assert os.listdir(tmp_path / "data") == ["p2pstore-pictures"]


def test_a_plain_upload_has_a_plain_key(pictures: Path, photo: Path, tmp_path: Path) -> None:
    key, _ = Storage(encrypt=False).upload(photo)
    assert not key.startswith("p2pc:")
    Storage().download_file(key, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == photo.read_bytes()


def test_it_works_inside_of_a_running_loop(pictures: Path, photo: Path, tmp_path: Path) -> None:
    async def main() -> None:
        key, _ = Storage(64, 64).upload(photo)
        Storage().download_file(key, tmp_path / "copy")

    asyncio.run(main())
    assert (tmp_path / "copy").read_bytes() == photo.read_bytes()


def test_an_own_carrier_meets_one_loop_only(photo: Path) -> None:
    carrier = Memory()
    with Storage(carrier=carrier) as storage, ThreadPoolExecutor(3) as pool:
        keys = [key for key, _ in pool.map(storage.upload, [photo] * 3)]
        assert all(storage.get_meta(key)["filename"] == "photo.jpg" for key in keys)
        assert storage.get_meta(keys[0])["piece_width"] == 0
    assert len(carrier.loops) == 1
    assert not carrier.is_closed  # it is not ours


def test_a_carrier_is_found_by_its_path_or_its_name(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    home, place = tmp_path / "home", tmp_path / "stick"
    (home / "carriers").mkdir(parents=True)
    config = prepare(PictureFolderConfig(path=str(place), width=64, height=64))
    save_config(home / "carriers" / "stick.toml", config)
    monkeypatch.setenv("P2PSTORE_HOME", str(home))
    key, meta = Storage(carrier="stick").upload(photo)
    assert meta["piece_width"] == 64
    for chosen in (place, str(place), "stick"):
        assert Storage(carrier=chosen).get_meta(key) == meta
    for chosen in ("other", "", "..", ".toml"):
        with pytest.raises(UsageError, match="no carrier"):
            Storage(carrier=chosen)


@pytest.mark.parametrize(("width", "height"), [(0, 600), (600, -1), (1, 1)])
def test_impossible_pictures_are_refused(
    pictures: Path, photo: Path, width: int, height: int
) -> None:
    with pytest.raises(UsageError):
        Storage(width, height).upload(photo)


def test_errors_are_ours(pictures: Path, photo: Path) -> None:
    key, _ = Storage().upload(photo)
    with pytest.raises(FormatError):
        Storage().get_meta(key[:-3])
    with pytest.raises(NotThere):
        Storage().get_meta("nothing")


def test_an_upload_that_failed_goes_on_in_the_next_program(
    pictures: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2pstore.carriers.folder import FolderCarrier

    puts = 0
    real = FolderCarrier.put

    async def stop(self: FolderCarrier, name: str, content: bytes) -> str:
        nonlocal puts
        puts += 1
        if puts == 3:
            raise KeyError("the program ends")
        return await real(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(FolderCarrier, "put", stop)
        with pytest.raises(KeyError):
            Storage(64, 64).upload(photo)
    assert len(os.listdir(tmp_path / "state" / "p2pstore" / "uploads")) == 1
    key, _ = Storage(64, 64).upload(photo)
    assert os.listdir(tmp_path / "state" / "p2pstore" / "uploads") == []
    Storage().download_file(key, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == photo.read_bytes()


def test_ctrl_c_ends_the_work(photo: Path) -> None:
    carrier, ended = Memory(), threading.Event()

    async def stall(name: str, content: bytes) -> str:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return name

    carrier.put = stall  # type: ignore[method-assign]
    with Storage(carrier=carrier) as storage:
        with pytest.raises(KeyboardInterrupt):
            storage.upload(photo)
        assert ended.wait(10)


def test_what_it_holds_goes_with_it(photo: Path) -> None:
    storage = Storage(carrier=Memory())
    storage.upload(photo)
    names = {thread.name for thread in threading.enumerate()}
    assert "storage" in names
    del storage
    gc.collect()
    assert "storage" not in {thread.name for thread in threading.enumerate()}


def test_a_storage_that_was_closed_begins_anew(photo: Path) -> None:
    storage = Storage(carrier=Memory())
    key, _ = storage.upload(photo)
    storage.close()
    storage.close()
    assert storage.get_meta(key)["filename"] == "photo.jpg"
    storage.close()


def test_progress_is_told(photo: Path) -> None:
    told: list[tuple[int, int]] = []
    with Storage(carrier=Memory()) as storage:
        storage.upload(photo, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 100_000)
    assert told[-1] == (100_000, 100_000)


def test_the_package_offers_both_and_nothing_else() -> None:
    assert {"Client", "Storage"} <= set(p2pstore.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        p2pstore.nonsense  # type: ignore[attr-defined]  # noqa: B018
    assert capacity(600, 600) == 1_079_996


@pytest.mark.slow
def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import p2pstore, p2pstore.api, sys;"
        "print(*{'aiohttp', 'asyncio', 'msgspec', 'nacl', 'blake3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_type_checkers_know_what_the_package_offers(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from p2pstore import Client, Storage\n"
        "reveal_type(Storage().upload('x')[0])\n"
        "reveal_type(Client().status)\n"
        "from p2pstore import Nonsense\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(program)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert '"str"' in done.stdout
    assert "Coroutine" in done.stdout
    assert 'no attribute "Nonsense"' in done.stdout
    assert "Found 1 error" in done.stdout
