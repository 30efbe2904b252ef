"""The figures as tables, in a form that a README can take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles

from tests.simulate.run import Figures
from tests.simulate.scenario import BUNDLE, DAY

HEAD = (
    "scenario",
    "watched (bundle-years)",
    "bundles lost",
    "lost per bundle and year",
    "95 % below",
    "time below min_copies",
    "sent per bundle and year",
)


def row(figures: Figures) -> tuple[str, ...]:
    total = figures.total
    rate, bound = figures.loss()
    return (
        figures.scenario.name,
        f"{total.bundle_years / 1e6:,.1f} M",
        f"{total.lost:,}",
        _rate(rate) + (" (split)" if figures.is_split else ""),
        _rate(bound),
        _share(total.low_years / total.bundle_years),
        f"{total.moved / total.bundle_years * BUNDLE / 1e6:,.0f} MB",
    )


def liars(figures: Figures) -> str:
    """One sentence, or none."""
    total = figures.total
    if not total.liars:
        return ""
    days = sorted(seconds / DAY for seconds in total.found_after)
    text = f"{figures.scenario.name}: {len(days):,} of {total.liars:,} liars found"
    if len(days) > 1:
        half, most = quantiles(days, n=20)[9::9]
        text += f", half within {half:.1f} days, 95 % within {most:.1f}"
    return text + f"; {total.accused} honest holders accused"


def render(results: Sequence[Figures]) -> str:
    rows = [HEAD, *(row(figures) for figures in results)]
    widths = [max(len(line[n]) for line in rows) for n in range(len(HEAD))]
    lines = []
    for line in rows:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _rate(rate: float) -> str:
    if rate == 0:
        return "0"
    return f"{rate:.2f}" if rate >= 0.1 else f"{rate:.1e}".replace("e-0", "e-")


def _share(share: float) -> str:
    if share == 0:
        return "0"
    return f"{share * 100:.1f} %" if share >= 1e-3 else _rate(share)
