"""The figures of one run as one table, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.bench.corpora import Corpus
from tests.bench.measure import Figure

PHASES = {
    "protect": "protect",
    "replace": "protect + replace",
    "restore": "restore",
    "rescan": "re-scan",
    "fetch": "serve + fetch, TLS",
    "serve": "serve, one link",
    "encode": "encode, one core",
    "decode": "decode, one core",
    "put": "put",
    "get": "get",
}


class Results:
    def __init__(self) -> None:
        self.best: dict[tuple[str, str, str], Figure] = {}
        self.failures: list[str] = []

    def add(self, corpus: str, phase: str, contender: str, figure: Figure) -> None:
        key = (corpus, phase, contender)
        before = self.best.get(key)
        if before is None or figure.wall_s < before.wall_s:
            self.best[key] = figure

    def get(self, corpus: str, phase: str, contender: str) -> Figure | None:
        """Who only backs up is compared with our replacing by his backup."""
        figure = self.best.get((corpus, phase, contender))
        if figure is None and phase == "replace":
            return self.best.get((corpus, "protect", contender))
        return figure

    def as_json(self, built: Sequence[Corpus]) -> dict[str, Any]:
        return {
            "corpora": {c.name: {"files": c.files, "bytes": c.bytes} for c in built},
            "figures": [
                {"corpus": corpus, "phase": phase, "contender": contender, **figure._asdict()}
                for (corpus, phase, contender), figure in self.best.items()
            ],
            "failures": self.failures,
        }


def render(built: Sequence[Corpus], results: Results, contenders: Sequence[str]) -> str:
    """Wall of each, its ratio to ours in walls (above 1: slower than we), CPU seconds, peak."""
    rows = [["corpus", "what", "who", "wall s", "MB/s", "number/s", "x our wall", "CPU s", "MiB"]]
    for corpus in built:
        for phase, title in PHASES.items():
            ours = results.get(corpus.name, phase, "p2pstore")
            for contender in contenders:
                figure = results.get(corpus.name, phase, contender)
                if figure is not None:
                    rows.append(_row(corpus, title, contender, figure, ours))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    about = [f"{c.name}: {c.files:,}, {c.bytes / 1e6:,.0f} MB" for c in built]
    return "\n".join(["; ".join(about), "", *lines, "", *results.failures])


def _row(
    corpus: Corpus, title: str, contender: str, figure: Figure, ours: Figure | None
) -> list[str]:
    wall = max(figure.wall_s, 1e-6)
    ratio = "" if ours is None or contender == "p2pstore" else f"{wall / ours.wall_s:.2f}"
    return [
        corpus.name,
        title,
        contender,
        f"{wall:.2f}",
        f"{corpus.bytes / wall / 1e6:,.0f}",
        f"{corpus.files / wall:,.0f}" if corpus.files > 1 else "",
        ratio,
        f"{figure.cpu_s:.1f}",
        f"{figure.peak_bytes / 2**20:.0f}",
    ]
