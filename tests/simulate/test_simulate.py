"""A short run of the simulator: it repeats itself, its estimates agree, and bad policy shows."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import Action, Condition, Holder, Verdict
from tests.simulate import plot, report, world
from tests.simulate.__main__ import _curve
from tests.simulate.nature import Tally
from tests.simulate.peer import Peer
from tests.simulate.run import Figures, run, run_all
from tests.simulate.scenario import HOUR, STEADY, YEAR, Scenario, by_copies, by_trouble

# Everything happens ten times as fast as in the real runs, so that a few years show it.
HASTY = replace(STEADY, life_years=0.1, groups=4, bundles=32, is_rare=False)


def watched(scenario: Scenario, years: float = 2.0, worlds: int = 2) -> Figures:
    return run_all(scenario, worlds=worlds, seed=1, years=years)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures() -> None:
    one, again, other = (run(replace(HASTY, copies=2), seed, 2.0) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.slow
def test_repair_keeps_what_is_lost_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real policy, and one that never finds anything to do."""
    kept = watched(HASTY).total

    def idle(condition: Condition, now: float) -> Verdict:
        return Verdict(Action.NOTHING, len(condition.copies))

    monkeypatch.setattr(world, "judge", idle)
    broken = watched(HASTY).total
    assert broken.lost_groups > 20 * max(kept.lost_groups, 1)
    assert broken.low_years > 20 * kept.low_years
    assert kept.moved > 0 == broken.moved


@pytest.mark.slow
def test_more_copies_lose_less() -> None:
    two, four = (watched(replace(HASTY, copies=copies)) for copies in (2, 4))
    assert two.total.lost_groups > 5 * four.total.lost_groups
    assert two.total.low_years > 5 * four.total.low_years


@pytest.mark.slow
def test_splitting_estimates_the_same_as_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of losses that are frequent enough to be counted."""
    monkeypatch.setattr("tests.simulate.run.FUTURES", (2, 3))
    figures = watched(replace(HASTY, life_years=0.02, is_rare=True), years=0.5)
    assert figures.total.lost_groups > 5
    assert figures.loss()[0] == pytest.approx(figures.plain_loss()[0], rel=0.4)


def test_a_branch_leaves_the_world_as_it_is() -> None:
    ours, alone = (world.World(HASTY, 3) for _ in range(2))
    for _ in range(200):
        ours.step()
        alone.step()
    branch = ours.branch(4)
    for _ in range(200):
        branch.step()
    for _ in range(200):
        ours.step()
        alone.step()
    assert ours.now == alone.now != branch.now
    assert ours.groups == alone.groups
    assert ours.tally == alone.tally


@pytest.mark.slow
def test_who_drops_or_relays_is_found_and_nobody_else() -> None:
    scenarios = {s.name: replace(s, groups=4, bundles=32) for s in by_trouble()}
    for name in ("droppers", "relaying liars"):
        figures = watched(scenarios[name])
        total = figures.total
        assert total.liars >= 3
        assert len(total.found_after) > total.liars / 2
        assert total.accused == 0
        assert "0 honest holders accused" in report.liars(figures)


@pytest.mark.slow
def test_no_world_falls_apart() -> None:
    """Every scenario, for a while: counts stay consistent."""
    for scenario in (*by_copies(), *by_trouble()):
        one = world.World(replace(scenario, groups=4, bundles=8), 5)
        for _ in range(300):
            one.step()
        for group in one.groups:
            there = sum(kept.is_there for kept in group.copies.values()) + group.is_local
            assert group.there == there
            assert all(group.number in one.peers[n].groups for n in group.copies)
        assert one.close(one.due()).bundle_years > 0


def test_the_table_says_what_was_seen() -> None:
    plain = replace(STEADY, is_rare=False, groups=64)  # of 32 bundles, lost together
    figures = Figures(plain)
    figures.add(Tally(world_years=10, bundle_years=20_480, lost=64, moved=40_960))
    text = report.render([figures])
    assert "| 3.1e-3" in text
    assert "| 34 MB" in text
    none = Figures(plain)
    none.add(Tally(bundle_years=3.2e6))
    assert none.loss() == (0.0, 3 / 1e5)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1, 24))
def test_work_goes_on_only_while_a_peer_is_on(start: float, work: float, on_h: float) -> None:
    peer = Peer(1, 0, Holder(b"", "device"), 0.0, 24 * HOUR, on_h * HOUR, phase=5 * HOUR)
    end = peer.after_work(start, work)

    def on_until(when: float) -> float:
        days, rest = divmod(when - peer.phase, peer.period)
        return days * peer.on + min(rest, peer.on)

    assert end >= start
    assert on_until(end) - on_until(start) == pytest.approx(work, abs=1e-3)


def test_charts_are_small_png_files() -> None:
    bars = [plot.Bar(s.name, 10.0**-n, 10.0 ** -(n - 1)) for n, s in enumerate(by_copies(), 1)]
    lost = Figures(HASTY)
    lost.add(Tally(ended=[0.5, 1.5, YEAR]))
    lines = [plot.Line(s.name, _curve(lost)) for s in by_copies()]
    for png in (
        plot.bars_chart("Bundles lost (95 %)", bars, goal=1e-6),
        plot.lines_chart("Still there", "years", lines, right=5.0),
    ):
        assert len(png) < 60_000
        width, height = struct.unpack(">II", png[16:24])
        data = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
        assert len(data) == height * (width + 1)
