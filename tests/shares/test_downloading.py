"""What a key may lead to, and what is made of it."""

from __future__ import annotations

import pytest

from p2pstore.shares.downloading import presentable


@pytest.mark.parametrize(
    ("name", "appears"),
    [
        (b"holiday.mp4", b"holiday.mp4"),
        ("größe \u65e5\u672c.txt".encode(), "größe \u65e5\u672c.txt".encode()),
        ("\u0645\u06cc\u200c\u062e.txt".encode(), "\u0645\u06cc\u200c\u062e.txt".encode()),
        (b"a\xff\x9b.txt", b"a\xff\x9b.txt"),
        (b"a\nb\x1b[2J\x7f", b"a_b_[2J_"),
        ("photo\u202egpj.exe".encode(), b"photo_gpj.exe"),
        ("a\u2066b\u2069\u200e".encode(), b"a_b__"),
        ("a\u009b2J\u0085".encode(), b"a_2J_"),
        ("line\u2028end".encode(), b"line_end"),
        (b"..hidden", b"hidden"),
        (b"...", b"file"),
        ("\u202e".encode() * 85, b"_" * 85),
    ],
)
def test_a_name_does_nothing_but_name(name: bytes, appears: bytes) -> None:
    assert presentable(name) == appears
