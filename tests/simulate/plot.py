"""Small charts as PNG, drawn with nothing but the standard library.

A palette image of a few colours, drawn by pixels at twice its size: a few kilobytes each, and no
library for charts that everybody who runs the tests would have to install. The letters are the
usual five by seven points.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

WHITE, BLACK, GREY, FIRST = 0, 1, 2, 3
PALETTE = ("ffffff", "202020", "dddddd", "d1495b", "edae49", "00798c", "2e4057", "66a182")

# Columns of each letter from left to right, the top point in the lowest bit.
_FONT = {
    " ": "0000000000", ".": "0060600000", ",": "0050300000", "-": "0808080808", "%": "2313086462",
    "(": "001c224100", ")": "0041221c00", "/": "2010080402", ":": "0000140000", "=": "1414141414",
    "<": "0814224100", "+": "08083e0808", "0": "3e5149453e", "1": "00427f4000", "2": "7249494946",
    "3": "2141494d33", "4": "1814127f10", "5": "2745454539", "6": "3c4a494931", "7": "4121110907",
    "8": "3649494936", "9": "464949291e", "A": "7c1211127c", "B": "7f49494936", "C": "3e41414122",
    "D": "7f4141413e", "E": "7f49494941", "F": "7f09090901", "G": "3e41415173", "H": "7f0808087f",
    "I": "00417f4100", "K": "7f08142241", "L": "7f40404040", "M": "7f021c027f", "N": "7f0408107f",
    "O": "3e4141413e", "P": "7f09090906", "R": "7f09192946", "S": "2649494932", "T": "03017f0103",
    "U": "3f4040403f", "V": "1f2040201f", "W": "3f4038403f", "Y": "0304780403", "a": "2054547840",
    "b": "7f28444438", "c": "3844444428", "d": "384444287f", "e": "3854545418", "f": "00087e0902",
    "g": "18a4a49c78", "h": "7f08040478", "i": "00447d4000", "j": "2040403d00", "k": "7f10284400",
    "l": "00417f4000", "m": "7c04780478", "n": "7c08040478", "o": "3844444438", "p": "fc18242418",
    "q": "18242418fc", "r": "7c08040408", "s": "4854545424", "t": "04043f4424", "u": "3c4040207c",
    "v": "1c2040201c", "w": "3c4030403c", "x": "4428102844", "y": "4c9090907c", "z": "4464544c44",
}  # fmt: skip


class Line(NamedTuple):
    label: str
    points: Sequence[tuple[float, float]]


class Bar(NamedTuple):
    label: str
    value: float
    bound: float  # the true value is below it, 95 % sure


class Canvas:
    def __init__(self, width: int, height: int, zoom: int = 2) -> None:
        self.width, self.height = width, height
        self._zoom = zoom
        self._rows = [bytearray(width) for _ in range(height)]

    def fill(self, x: float, y: float, width: float, height: float, colour: int) -> None:
        left, right = max(0, round(x)), min(self.width, round(x + width))
        for row in self._rows[max(0, round(y)) : max(0, round(y + height))]:
            row[left:right] = bytes([colour]) * max(0, right - left)

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: int) -> None:
        steps = max(1, math.ceil(max(abs(to_x - x), abs(to_y - y))))
        for n in range(steps + 1):
            share = n / steps
            self.fill(x + (to_x - x) * share, y + (to_y - y) * share, 2, 2, colour)

    def text(self, x: float, y: float, text: str, colour: int = BLACK) -> None:
        x, y = round(x), round(y)  # a letter of half points would lose some
        for place, letter in enumerate(text):
            for column, points in enumerate(bytes.fromhex(_FONT[letter])):
                for row in range(8):
                    if points >> row & 1:
                        self.fill(x + 6 * place + column, y + row, 1, 1, colour)

    def png(self) -> bytes:
        zoom = self._zoom
        lines = bytearray()
        for row in self._rows:
            wide = bytes(colour for colour in row for _ in range(zoom))
            lines += (b"\0" + wide) * zoom
        head = struct.pack(">IIBBBBB", self.width * zoom, self.height * zoom, 8, 3, 0, 0, 0)
        palette = bytes.fromhex("".join(PALETTE))
        parts = [(b"IHDR", head), (b"PLTE", palette), (b"IDAT", zlib.compress(lines, 9))]
        png = b"\x89PNG\r\n\x1a\n"
        for kind, body in [*parts, (b"IEND", b"")]:
            crc = zlib.crc32(kind + body)
            png += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
        return png


def lines_chart(title: str, across: str, lines: Sequence[Line], *, right: float) -> bytes:
    """Shares from 0 to 100 % over 0 to `right`."""
    canvas = Canvas(420, 220)
    left, top, width, height = 40, 24, 250, 160
    canvas.text(8, 6, title)
    for percent in range(0, 101, 25):
        y = top + height * (1 - percent / 100)
        canvas.fill(left, y, width, 1, GREY)
        canvas.text(left - 32, y - 3, f"{percent:3} %")
    for step in range(6):
        value = right * step / 5
        canvas.text(left + width * step / 5 - 3, top + height + 6, f"{value:g}")
    canvas.text(left + width / 2 - 3 * len(across), top + height + 20, across)
    for n, line in enumerate(lines):
        places = [(left + width * x / right, top + height * (1 - y)) for x, y in line.points]
        for (x, y), (to_x, to_y) in pairwise(places):
            canvas.line(x, y, to_x, to_y, FIRST + n)
        canvas.fill(left + width + 14, top + 10 + 16 * n, 8, 8, FIRST + n)
        canvas.text(left + width + 26, top + 10 + 16 * n, line.label)
    return canvas.png()


def bars_chart(title: str, bars: Sequence[Bar], *, goal: float) -> bytes:
    """Rates on a scale of powers of ten; a thin line goes up to the bound."""
    canvas = Canvas(420, 40 + 22 * len(bars) + 24)
    left, top, width = 110, 24, 290
    low = math.floor(math.log10(min([goal, *(b.value or b.bound for b in bars)]) / 3))
    high = max(0, math.ceil(math.log10(max(b.bound for b in bars))))

    def across(value: float) -> float:
        return left + width * max(0.0, (math.log10(value) - low) / (high - low))

    bottom = top + 22 * len(bars)
    canvas.text(8, 6, title)
    for power in range(low, high + 1):
        canvas.fill(across(10.0**power), top, 1, bottom - top, GREY)
        canvas.text(across(10.0**power) - 9, bottom + 6, f"1e{power}" if power else "  1")
    for n, bar in enumerate(bars):
        y = top + 22 * n + 4
        canvas.text(8, y + 3, bar.label)
        if bar.value:
            canvas.fill(left, y, across(bar.value) - left, 14, FIRST + n)
        begin = across(bar.value) if bar.value else left
        canvas.fill(begin, y + 6, across(bar.bound) - begin, 2, FIRST + n)
    canvas.fill(across(goal), top, 1, bottom - top, BLACK)
    canvas.text(across(goal) - 12, bottom + 16, "goal")
    return canvas.png()


def save(path: Path, png: bytes) -> None:
    path.write_bytes(png)
