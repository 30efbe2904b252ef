from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import MoveStep, Moving, enough_to_release, next_move

HERE = Moving(counted=0, eligible=4, reachable=4, min_copies=2, target=4, is_here=True)
number = st.integers(0, 6)
anything = st.builds(
    Moving,
    counted=number,
    eligible=number,
    reachable=number,
    min_copies=st.integers(1, 5),
    target=st.integers(1, 6),
    is_here=st.booleans(),
)


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, 4),
        ({"reachable": 3}, 3),
        ({"reachable": 0}, 2),
        ({"eligible": 1, "reachable": 1}, 1),
        ({"eligible": 0, "reachable": 0}, 1),
        ({"is_here": False, "eligible": 1, "reachable": 1}, 2),
        ({"is_here": False}, 4),
        ({"min_copies": 4, "reachable": 2}, 4),
    ],
)
def test_how_many_must_have_it(changes: dict[str, int], counted: int) -> None:
    moving = replace(HERE, **changes)
    assert enough_to_release(moving) == counted
    assert next_move(replace(moving, counted=counted)) is MoveStep.RELEASE
    assert next_move(replace(moving, counted=counted - 1)) is not MoveStep.RELEASE


def test_what_is_away_is_brought_here_only_when_somebody_could_take_it() -> None:
    away = replace(HERE, is_here=False)
    assert next_move(away) is MoveStep.FETCH
    assert next_move(replace(away, eligible=0, reachable=0)) is MoveStep.WAIT


@given(anything)
def test_nothing_is_let_go_of_that_nobody_else_has(moving: Moving) -> None:
    if next_move(moving) is MoveStep.RELEASE:
        assert moving.counted >= 1
        assert moving.is_here or moving.counted >= moving.min_copies


@given(anything)
def test_what_is_here_is_not_fetched(moving: Moving) -> None:
    assert not (moving.is_here and next_move(moving) is MoveStep.FETCH)


@given(anything)
def test_one_copy_more_never_takes_a_release_back(moving: Moving) -> None:
    if next_move(moving) is MoveStep.RELEASE:
        assert next_move(replace(moving, counted=moving.counted + 1)) is MoveStep.RELEASE
