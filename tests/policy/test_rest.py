from __future__ import annotations

from p2pstore.policy import in_work_for


def test_a_file_in_work_stays_for_keep_after_its_last_use() -> None:
    def left(last_use: float, *, replaced: bool = False, edited: bool = False) -> float:
        return in_work_for(
            last_use=last_use,
            now=1000,
            keep_s=100,
            replaced_before=replaced,
            edited_since_protected=edited,
        )

    assert left(1000) == 0
    assert left(1000, replaced=True) == 100
    assert left(950, edited=True) == 50
    assert left(900, replaced=True) == 0
    assert left(99_999, replaced=True) == 100  # the clock was set back
