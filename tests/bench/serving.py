"""Blocks of one size from one node to another, over one connection: what TLS and Python allow.

    python -m tests.bench.serving serve HOME SIZE LIST     until stdin ends
    python -m tests.bench.serving fetch HOME LINK LIST

The blocks are random bytes in the page cache of the serving node. They come with all checks, from
authorisation to the comparison with their ids, and are thrown away: no key, no file, no disk.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from p2pstore.content import BUNDLE_BYTES, BundleHeader, BundleRef, Kind, SealedBlock, block_id_of
from p2pstore.home import Home
from p2pstore.ids import BlockId, BundleId, PublicKey, Tag
from p2pstore.members import found
from p2pstore.node.build import Node
from p2pstore.node.inviting import invite
from p2pstore.node.life import run_loop, tune
from p2pstore.restore import Wanted
from tests.bench.measure import Phase
from tests.bench.node import config_of, joined, linked

BYTES = 256 << 20  # served in all, of small blocks
BLOCKS = 32 << 10  # ... at most so many
CALL_BYTES = 8 << 20  # fetched by one call, as the windows of a large file are
CALL_BLOCKS = 512
CALLS = 4  # at once

Listed = list[tuple[bytes, list[bytes]]]  # bundles with their blocks


def count(size: int) -> int:
    """How many blocks of that size are served."""
    return min(BYTES // size, BLOCKS)


async def _serve(home: Path, size: int, listed: Path) -> None:
    found(Home(home), "bench", now=time.time(), random=os.urandom(32))
    node = Node(Home(home), config_of(home))
    async with node.running():
        bundles = [_bundle(node, size) for _ in range(count(size) * size // BUNDLE_BYTES)]
        listed.write_bytes(msgspec.msgpack.encode(bundles))
        print("link", invite(node, "device", confirm=False)["link"], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def _bundle(node: Node, size: int) -> tuple[bytes, list[bytes]]:
    author = node.group.author()
    opener = PublicKey(bytes(author.key.verify_key))
    header = BundleHeader(BundleId(os.urandom(32)), author.group, opener, Kind.DATA, 1)
    contents = [os.urandom(size) for _ in range(BUNDLE_BYTES // size)]
    blocks = [SealedBlock(block_id_of(content), b"", content) for content in contents]
    bundle = node.store.create(header, author.key)
    bundle.append(blocks)
    bundle.seal()
    return header.bundle_id, [block.block_id for block in blocks]


async def _fetch(home: Path, link: str, listed: Path) -> None:
    node = await joined(home, link)
    calls = _calls(msgspec.msgpack.decode(listed.read_bytes(), type=Listed))
    async with node.running():
        await linked(node)
        await _take(node, iter([next(calls)]))  # from here on it knows who has them
        with Phase("serve"):
            async with asyncio.TaskGroup() as group:
                for _ in range(CALLS):
                    group.create_task(_take(node, calls))


def _calls(bundles: Listed) -> Iterator[list[Wanted]]:
    """The first block alone, then all of them."""
    yield _wanted(bundles[0][0], bundles[0][1][:1])
    for bundle, blocks in bundles:
        step = min(CALL_BLOCKS, len(blocks) * CALL_BYTES // BUNDLE_BYTES)
        for start in range(0, len(blocks), step):
            yield _wanted(bundle, blocks[start : start + step])


def _wanted(bundle: bytes, blocks: list[bytes]) -> list[Wanted]:
    ref = BundleRef(BundleId(bundle), Tag(bytes(20)))
    return [Wanted(ref, BlockId(block)) for block in blocks]


async def _take(node: Node, calls: Iterator[list[Wanted]]) -> None:
    for wanted in calls:
        await node.source.blocks(wanted)


def main(how: str, home: str, *rest: str) -> None:
    tune()
    if how == "serve":
        size, listed = rest
        run_loop(_serve(Path(home), int(size), Path(listed)))
    else:
        link, listed = rest
        run_loop(_fetch(Path(home), link, Path(listed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
