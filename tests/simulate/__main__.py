"""`make simulate`, or `python -m tests.simulate [--million N] [--workers N] [--plots DIR] ...`"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.simulate import plot, report
from tests.simulate.run import WORLD_YEARS, Figures, run_all
from tests.simulate.scenario import STEADY, Scenario, by_copies, by_trouble

GOAL = 1e-6  # lost per bundle and year, with 4 copies
CURVE_YEARS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    print(
        "The policy of p2pstore against years of churn: 8 devices that live a year each, some off"
        " at night,\nsome flapping, 10 Mbit/s up; 32 GiB in 2,048 bundles, all evicted here;"
        " a copy is replaced a day after\nits holder was last seen. The owner's machine lives a"
        " year as well and is recovered in 3 days.\n"
    )
    is_good = True
    if options.only != "trouble":
        is_good = _show_copies(options)
    if options.only != "copies":
        _show_trouble(options)
    return 0 if is_good else 1


def _show_copies(options: argparse.Namespace) -> bool:
    """Whether the goal is met."""
    results = _run(by_copies(), options.million, options)
    print(report.render(results), end="\n\n")
    if options.plots is not None:
        _draw(options.plots, results)
    rate, bound = next(f for f in results if f.scenario.name == STEADY.name).loss()
    is_good = rate <= GOAL
    print(
        f"4 copies lose {rate:.1e} per bundle and year (95 % below {bound:.1e});"
        f" the goal is {GOAL:.0e}: {'met' if is_good else 'NOT met'}.\n",
        flush=True,
    )
    return is_good


def _show_trouble(options: argparse.Namespace) -> None:
    results = _run(by_trouble(), options.million * options.trouble, options)
    print("Four copies, and\n")
    for figures in results:
        print(f"  {figures.scenario.name}: {figures.scenario.says}")
    print("\n" + report.render(results), end="\n\n")
    for figures in results:
        if sentence := report.liars(figures):
            print(sentence)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument(
        "--million", type=float, default=10.0, help="bundle-years of each row, in millions"
    )
    parser.add_argument(
        "--trouble", type=float, default=0.03, help="share of that for each kind of trouble"
    )
    parser.add_argument("--only", choices=("copies", "trouble"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plots", type=Path, help="write the charts into this directory")
    return parser.parse_args(arguments)


def _run(
    scenarios: Sequence[Scenario], million: float, options: argparse.Namespace
) -> list[Figures]:
    results = []
    for scenario in scenarios:
        worlds = max(2, round(million * 1e6 / scenario.bundles / WORLD_YEARS))
        began = time.monotonic()
        results.append(
            run_all(
                scenario,
                worlds=worlds,
                seed=options.seed,
                workers=options.workers,
                tell=_teller(scenario.name, worlds),
            )
        )
        print(f"{scenario.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return results


def _teller(name: str, worlds: int) -> Callable[[int], None]:
    def tell(done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == worlds else ""
            print(f"\r{name}: {done} of {worlds} worlds ", end=end, file=sys.stderr, flush=True)

    return tell


def _draw(directory: Path, results: Sequence[Figures]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    bars = [plot.Bar(f.scenario.name, *f.loss()) for f in results]
    title = "Bundles lost per bundle and year (line: 95 % below)"
    plot.save(directory / "loss.png", plot.bars_chart(title, bars, goal=GOAL))
    lines = [plot.Line(f.scenario.name, _curve(f)) for f in results]
    title = "Bundles still there after so many years"
    plot.save(directory / "alive.png", plot.lines_chart(title, "years", lines, right=CURVE_YEARS))


def _curve(figures: Figures) -> list[tuple[float, float]]:
    """Share of the first groups that are not lost yet, over the years."""
    groups = figures.worlds * figures.scenario.groups
    ended = sorted(year for year in figures.total.ended if year <= CURVE_YEARS)
    points = [(0.0, 1.0)]
    points += [(year, 1 - (n + 1) / groups) for n, year in enumerate(ended)]
    return [*points[:: max(1, len(points) // 400)], (CURVE_YEARS, 1 - len(ended) / groups)]


if __name__ == "__main__":
    sys.exit(main())
