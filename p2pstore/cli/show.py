"""How values look on a terminal: names made harmless, sizes, spans of time, JSON."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from p2pstore.text import plural

NARROWEST = 24  # columns that words need to be read in a column of their own
INDENT = 6  # where they begin otherwise


def name(text: object) -> str:
    """Return a name as one printable piece of a line, whatever bytes it has.

    Control characters, line ends, direction overrides and bytes that are no UTF-8 are written as
    escapes: a file's name must not be able to move the cursor or to fake another line.
    """
    return "".join(ch if ch.isprintable() else _escaped(ch) for ch in str(text))


def _escaped(ch: str) -> str:
    if "\udc80" <= ch <= "\udcff":
        return f"\\x{ord(ch) - 0xDC00:02x}"
    return ch.encode("unicode_escape", "surrogatepass").decode()


def path(text: object) -> str:
    """Return a path as people write it: harmless, and with ~ for their home."""
    shown = name(text)
    home = os.path.expanduser("~")
    if len(home) > 1 and (shown == home or shown.startswith(home + "/")):
        return "~" + shown[len(home) :]
    return shown


def argument(text: object) -> str:
    """Return a path as it can be pasted into a shell behind a command that we propose."""
    full = str(text)
    if not full.isprintable():
        return f"$'{''.join(_shell_escaped(ch) for ch in full)}'"
    shown = path(full)
    tilde = "~/" if shown.startswith("~/") else ""
    return tilde + shlex.quote(shown[len(tilde) :])


def _shell_escaped(ch: str) -> str:
    if ch.isprintable():
        return f"\\{ch}" if ch in "'\\" else ch
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(ch))


def size(count: float | None) -> str:
    """Return bytes as `3.1 GB`, decimal units as in shops and file managers."""
    number, unit = _scaled(count or 0)
    return f"{number} {unit}"


def size_of(done: float, total: float) -> str:
    """Return `3.1 of 9.8 GB`, both in one unit where that is honest."""
    number, unit = _scaled(done)
    total_number, total_unit = _scaled(total)
    if unit == total_unit:
        return f"{number} of {total_number} {unit}"
    return f"{number} {unit} of {total_number} {total_unit}"


def _scaled(count: float) -> tuple[str, str]:
    from p2pstore.config import format_size

    number, _, unit = format_size(int(count)).rpartition(" ")
    return number, unit


def number(count: int) -> str:
    return f"{count:,}"


def files(count: int) -> str:
    return plural(count, "file")


def span(seconds: float) -> str:
    """Return a span in its greatest unit: `12 min`, `3 days`."""
    seconds = max(0.0, seconds)
    for unit, length in (("day", 86_400), ("hour", 3_600), ("min", 60), ("s", 1)):
        count = int(seconds // length)
        if count or unit == "s":
            return f"{count} {unit}{'s' if count > 1 and unit in ('day', 'hour') else ''}"
    return "0 s"


def ago(then: float, now: float) -> str:
    return "just now" if now - then < 1 else f"{span(now - then)} ago"


def moment(then: float, now: float) -> str:
    """Return a time of day, with the weekday or date when it is not today."""
    when = datetime.fromtimestamp(then).astimezone()
    if time.localtime(then)[:3] == time.localtime(now)[:3]:
        return when.strftime("%H:%M")
    if abs(now - then) < 6 * 86_400:
        return when.strftime("%a %H:%M")
    return when.strftime("%Y-%m-%d %H:%M")


def short_id(text: object) -> str:
    """Return a hex id as people see it, other words as they are."""
    from p2pstore.ids import short

    try:
        raw = bytes.fromhex(str(text))
    except ValueError:
        return name(text)
    return short(raw) if len(raw) >= 16 else name(text)


def reasons(counts: Mapping[str, int]) -> str:
    """Return `7 in work, 9 open`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count:,} {name(reason)}" for reason, count in ordered)


def copies(count: int) -> str:
    """Return how safe something is in the words used everywhere."""
    if count <= 0:
        return "on this device only"
    return "on 1 other" if count == 1 else f"safe on {count} others"


def table(
    rows: Sequence[Sequence[str]],
    right: frozenset[int] = frozenset(),
    width: int | None = None,
) -> list[str]:
    """Return aligned lines; columns in `right` are right-aligned.

    Where a line would be longer than `width` its last cell goes on below itself, if there is room
    for words, else further to the left.
    """
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    start = sum(widths[:-1]) + 2 * (len(widths) - 1)
    lines: list[str] = []
    for row in rows:
        cells = [
            cell.rjust(wide) if i in right else cell.ljust(wide)
            for i, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        if width is None or len(line) <= width:
            lines.append(line)
            continue
        indent = start if width - start >= NARROWEST else INDENT
        before = "  ".join(cells[:-1]).rstrip()
        if indent < start:
            lines.append(before)
            before = ""
        lines += _wrapped(row[-1].split(" "), " ", before.ljust(indent), indent, width)
    return lines


def fold(words: Sequence[str], between: str, *, width: int | None, indent: int) -> list[str]:
    """Join words that stay whole; lines after the first are indented."""
    if width is None:
        return [between.join(words)]
    return _wrapped(words, between, "", indent, width)


def _wrapped(words: Sequence[str], between: str, line: str, indent: int, width: int) -> list[str]:
    lines: list[str] = []
    is_fresh = True
    for word in words:
        joined = f"{line}{word}" if is_fresh else f"{line}{between}{word}"
        if not is_fresh and len(joined) > width:
            lines.append(line.rstrip())
            joined = " " * indent + word
        line, is_fresh = joined, False
    return [*lines, line.rstrip()]


def width() -> int | None:
    """Return the terminal's columns; None where no terminal is."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_json(document: object) -> str:
    """Return one JSON document in ASCII; bytes that are no UTF-8 stay \\udcXX (os.fsencode)."""
    return json.dumps(document, indent=2)
