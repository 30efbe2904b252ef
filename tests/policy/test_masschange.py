from __future__ import annotations

import pytest

from p2pstore.policy import is_mass_change


@pytest.mark.parametrize(
    ("gone", "total", "mass"),
    [
        (20, 20, False),
        (21, 21, True),
        (21, 209, True),
        (21, 210, False),
        (1000, 100_000, False),
        (10_001, 100_000, True),
        (0, 0, False),
        (21, 0, True),
    ],
)
def test_more_than_20_files_and_10_percent(gone: int, total: int, mass: bool) -> None:
    assert is_mass_change(gone, total) is mass
