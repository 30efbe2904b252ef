"""Words for people."""

from __future__ import annotations

import pytest

from p2pstore.text import plural


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (32_000, "32,000 files")]
)
def test_a_count_and_its_noun(count: int, said: str) -> None:
    assert plural(count, "file") == said


def test_a_noun_may_have_a_plural_of_its_own() -> None:
    assert (plural(1, "copy", "copies"), plural(3, "copy", "copies")) == ("1 copy", "3 copies")
