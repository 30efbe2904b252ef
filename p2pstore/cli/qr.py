"""A link or key as a picture for a phone's camera, where the terminal can show one."""

from __future__ import annotations

import io
import shutil
import sys


def show_qr(text: str) -> None:
    """Draw it on stdout; nothing where the terminal is too narrow or knows no blocks."""
    import segno

    drawn = io.StringIO()
    segno.make(text, error="l").terminal(out=drawn, compact=True, border=2)
    code = drawn.getvalue()
    try:
        code.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return
    if max(map(len, code.splitlines())) <= shutil.get_terminal_size().columns:
        print(code)
