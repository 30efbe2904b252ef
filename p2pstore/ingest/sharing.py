"""Small chunks share a block: which of them, decided by their lengths alone.

A block costs the same work however little it holds: a compressor's start, two hashes, a cipher, a
record in the bundle, a read, all of it again in the read-back. Neighbours also compress better
together, and a holder learns less from the sizes. Who fetches one small file fetches its neighbours
with it, so a shared block is kept below the shortest chunk of a large file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2pstore.content import CHUNK_MIN

SHARED_CHUNKS = CHUNK_MIN  # plain bytes that chunks fill together
SHARED_MANIFESTS = 16 << 10  # manifests: a dozen; they are read one at a time after a loss


def shared(lengths: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Runs (first, behind the last) of neighbours whose lengths add up to at most `limit`.

    What is longer stays alone. Order is kept, and every position is in one run.
    """
    first = held = 0
    for position, length in enumerate(lengths):
        if held and held + length > limit:
            yield first, position
            first, held = position, 0
        held += length
    if first < len(lengths):
        yield first, len(lengths)
