"""Progress of long work: a bar on a terminal, plain lines elsewhere (at most one a second)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from p2pstore.cli import show
from p2pstore.text import plural

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY_S = 1.0

_STAGES = {
    "scan": "Looking",
    "rest": "Waiting until nothing changes any more",
    "protect": "Protecting",
    "replace": "Replacing",
    "push": "Copying",
    "hydrate": "Hydrating",
    "fetch": "Bringing back",
    "upload": "Storing",
    "download": "Fetching",
    "evict": "Freeing",
    "check": "Checking",
    "repair": "Mending",
    "rebuild": "Rebuilding",
    "lay": "Laying out",
    "export": "Exporting",
    "move": "Moving",
}


class Meter:
    """Shows progress objects of the control API on stderr; a context manager and a callable."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        terminal: bool | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._monotonic = monotonic
        self._rates: dict[str, Rate] = {}
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, news: dict[str, Any]) -> None:
        if self._quiet:
            return
        if "text" in news:
            self._say(show.name(news["text"]))
            return
        now = self._monotonic()
        stage = str(news.get("stage", "work"))
        rate = self._rates.setdefault(stage, Rate(now, news.get("bytes") or 0))
        if self._terminal:
            self._draw(stage, news, describe(news, rate, now))
        elif now - self._last_line >= PLAIN_EVERY_S:
            self._last_line = now
            self._say(describe(news, rate, now))

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw(self, stage: str, news: dict[str, Any], line: str) -> None:
        if self._bar is None:
            self._bar = _rich_bar()
        if stage not in self._tasks:
            for past in self._tasks.values():
                self._bar.update(past, visible=False)
            self._tasks[stage] = self._bar.add_task(line, total=None)
        key = "bytes" if news.get("bytes_total") else counted(news)
        self._bar.update(
            self._tasks[stage],
            description=line,
            total=news.get(f"{key}_total"),
            completed=news.get(key) or 0,
        )


def _rich_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # Names and reasons come from outside: no markup in them.
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar


class Rate:
    """Bytes a second since the stage began."""

    def __init__(self, now: float, count: float) -> None:
        self._began = now
        self._first = count

    def at(self, now: float, count: float) -> float:
        """Return the mean speed; 0 while it is too early to tell."""
        elapsed = now - self._began
        return (count - self._first) / elapsed if elapsed >= 0.5 else 0.0


def counted(news: dict[str, Any]) -> str:
    """Return what the stage goes through: `files`, or `bundles` where it looks at the store."""
    return "bundles" if "bundles" in news else "files"


def describe(news: dict[str, Any], rate: Rate, now: float) -> str:
    """Return `Protecting  12,400 of 32,118 files   3.1 of 9.8 GB   212 MB/s   31 s left`."""
    stage = str(news.get("stage", "work"))
    words = [_STAGES.get(stage, show.name(stage).capitalize())]
    done, total = news.get(things := counted(news)), news.get(f"{things}_total")
    if done and total:
        words.append(f"{done:,} of {plural(total, things[:-1])}")
    elif done is not None and (done or total):  # nothing of it is done yet, or who knows how many
        words.append(plural(total or done, things[:-1]))
    if news.get("note"):
        words.append(show.name(news["note"]))
    count, count_total = news.get("bytes"), news.get("bytes_total")
    if count is not None and (count or count_total):
        words.append(show.size_of(count, count_total) if count_total else show.size(count))
        speed = rate.at(now, count)
        if speed > 0:
            words.append(f"{show.size(speed)}/s")
            if count_total and count_total > count:
                words.append(f"{show.span((count_total - count) / speed)} left")
    return words[0] if len(words) == 1 else words[0] + "  " + "   ".join(words[1:])
