"""What every carrier must do: run on each kind, and on the faulty one while nothing fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from p2pstore.carriers import (
    MAX_KEY,
    MAX_NAME,
    Carrier,
    FolderConfig,
    NotThere,
    PictureFolderConfig,
    PictureHostConfig,
    make_carrier,
    prepare,
    try_out,
)
from p2pstore.errors import UsageError
from tests.carriers.faulty import FaultyCarrier
from tests.carriers.memory import MemoryCarrier
from tests.carriers.servers import s3_config

SIDE = {"width": 80, "height": 64}
Ask = Callable[[str], Any]  # for a fixture, so that no server starts that is not needed


def in_memory(ask: Ask) -> Carrier:
    return MemoryCarrier(15_000)


def without_promises(ask: Ask) -> Carrier:
    return MemoryCarrier(15_000, is_exact=False, keeps_names=False, deletes=False)


def faulty(ask: Ask) -> Carrier:
    return FaultyCarrier(in_memory(ask))


def a_folder(ask: Ask) -> Carrier:
    path: Path = ask("tmp_path") / "disk"
    return make_carrier("disk", prepare(FolderConfig(path=str(path))))


def a_picture_folder(ask: Ask) -> Carrier:
    path: Path = ask("tmp_path") / "album"
    return make_carrier("album", prepare(PictureFolderConfig(path=str(path), **SIDE)))


def an_s3_bucket(ask: Ask) -> Carrier:
    return make_carrier("cloud", s3_config(ask("s3"), prefix=f"tests/{os.urandom(4).hex()}"))


def a_picture_host(ask: Ask) -> Carrier:
    return make_carrier("web", PictureHostConfig(url=f"{ask('host')}/upload", **SIDE))


QUICK = [in_memory, without_promises, faulty, a_folder, a_picture_folder]
SLOW = [an_s3_bucket, a_picture_host]


@pytest.fixture(params=[*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
async def carrier(request: pytest.FixtureRequest) -> AsyncIterator[Carrier]:
    made: Carrier = request.param(request.getfixturevalue)
    yield made
    await made.close()


async def test_what_is_put_can_be_got(carrier: Carrier) -> None:
    most = carrier.promises.piece
    for number, size in enumerate((0, 1, 4096, min(most, 1 << 20) - 1, min(most, 1 << 20))):
        content = os.urandom(size)
        key = await carrier.put(f"piece-{number}", content)
        assert 0 < len(key) <= MAX_KEY
        assert await carrier.get(key) == content


async def test_more_than_a_piece_is_refused(carrier: Carrier) -> None:
    with pytest.raises(UsageError):
        await carrier.put("large", bytes(carrier.promises.piece + 1))


async def test_kept_names_are_told_without_asking(carrier: Carrier) -> None:
    key = await carrier.put("named", b"one")
    assert carrier.key_of("named") == (key if carrier.promises.keeps_names else None)


async def test_the_same_piece_twice_is_no_error(carrier: Carrier) -> None:
    keys = [await carrier.put("twice", b"the same") for _ in range(2)]
    assert [await carrier.get(key) for key in keys] == [b"the same"] * 2


async def test_nothing_is_overwritten(carrier: Carrier) -> None:
    first = await carrier.put("taken", b"the first")
    if carrier.promises.keeps_names:
        for other in (b"the other", b"", b"the first and more"):
            with pytest.raises(UsageError):
                await carrier.put("taken", other)
    else:
        assert await carrier.get(await carrier.put("taken", b"the other")) == b"the other"
    assert await carrier.get(first) == b"the first"


async def test_what_is_not_there_is_said(carrier: Carrier) -> None:
    key = await carrier.put("there", b"a piece")
    if carrier.promises.keeps_names:
        other = carrier.key_of("elsewhere")
        assert other is not None
    else:
        head, slash, _ = key.rpartition("/")
        other = f"{head}{slash}0123456789abcdef.png"
    with pytest.raises(NotThere):
        await carrier.get(other)


async def test_deleted_is_gone_and_may_be_put_again(carrier: Carrier) -> None:
    key = await carrier.put("short-lived", b"a piece")
    if not carrier.promises.deletes:
        with pytest.raises(UsageError):
            await carrier.delete(key)
        assert await carrier.get(key) == b"a piece"
        return
    await carrier.delete(key)
    with pytest.raises(NotThere):
        await carrier.get(key)
    await carrier.delete(key)
    assert await carrier.get(await carrier.put("short-lived", b"another")) == b"another"


@pytest.mark.parametrize("name", ["a", "-", "A.b_c-9", "a..b", "a.png", "x" * MAX_NAME])
async def test_harmless_names_are_taken(carrier: Carrier, name: str) -> None:
    assert await carrier.get(await carrier.put(name, name.encode())) == name.encode()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/a",
        ".a",
        "a.",
        "a b",
        "ä",
        "a\0",
        "a\n",
        "x" * (MAX_NAME + 1),
    ],
)
async def test_other_names_are_refused(carrier: Carrier, name: str) -> None:
    with pytest.raises(UsageError):
        await carrier.put(name, b"a piece")
    if carrier.promises.keeps_names:
        with pytest.raises(UsageError):
            await carrier.get(name)


async def test_many_at_once(carrier: Carrier) -> None:
    contents = {f"many-{number}": os.urandom(3000) for number in range(20)}
    keys = await asyncio.gather(*(carrier.put(*each) for each in contents.items()))
    assert await asyncio.gather(*(carrier.get(key) for key in keys)) == list(contents.values())


async def test_the_same_piece_at_once(carrier: Carrier) -> None:
    keys = await asyncio.gather(*(carrier.put("at-once", b"the same") for _ in range(8)))
    assert await asyncio.gather(*(carrier.get(key) for key in keys)) == [b"the same"] * 8


async def test_of_two_pieces_at_once_under_one_name_one_is_kept(carrier: Carrier) -> None:
    contents = [b"one", b"two"] * 4
    keys = await asyncio.gather(
        *(carrier.put("race", content) for content in contents), return_exceptions=True
    )
    kept = {await carrier.get(key) for key in keys if isinstance(key, str)}
    assert len(kept) == (1 if carrier.promises.keeps_names else 2)
    refused = [key for key in keys if not isinstance(key, str)]
    assert len(refused) == (4 if carrier.promises.keeps_names else 0)
    assert all(isinstance(key, UsageError) for key in refused)


async def test_trying_out_leaves_nothing_behind_where_it_can(carrier: Carrier) -> None:
    await try_out(carrier)
