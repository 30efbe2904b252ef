"""Where a file is cut: FastCDC 2020, minimum 64 KiB, average 256 KiB, maximum 1 MiB.

Cuts depend on content only, so an insertion moves the cuts near it and no others. They do not
depend on how the file is handed over: any division into calls of `cut` gives the same chunks.
The parameters and the gear table (the one of the FastCDC reference implementation, seed 0) are
part of the format in this sense: other cuts are valid files, but share nothing with older ones.
Golden cut vectors hold them fast.

A cut needs to see at most CHUNK_MAX bytes ahead, so a chunk is decided as soon as something
follows it or it has the greatest length.
"""

from __future__ import annotations

from pyfastcdc import FastCDC

CHUNK_MIN = 64 * 1024
CHUNK_AVERAGE = 256 * 1024
CHUNK_MAX = 1024 * 1024


class Chunker:
    """One per thread: the object below keeps state during a call."""

    __slots__ = ("_cut",)

    def __init__(self) -> None:
        self._cut = FastCDC(
            CHUNK_AVERAGE,
            min_size=CHUNK_MIN,
            max_size=CHUNK_MAX,
            normalized_chunking=1,
            seed=0,
        ).cut_buf

    def cut(self, data: bytes | bytearray | memoryview, *, final: bool) -> list[int]:
        """The lengths of the chunks that are complete, from the start of `data`.

        What is left over is to be given again, in front of more data. With `final` everything is
        cut. Give at least CHUNK_MAX bytes unless final, or nothing may be decided.
        """
        size = len(data)
        if size <= CHUNK_MIN:
            return [size] if final and size else []
        lengths = [chunk.length for chunk in self._cut(data)]
        # The last piece ends because the data ends, unless it cannot grow.
        if not final and lengths[-1] < CHUNK_MAX:
            lengths.pop()
        return lengths
