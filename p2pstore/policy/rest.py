"""When a file that is at rest may be replaced: no longer in work (SAFETY, 3.1).

In work: a path that was replaced before, or edited after it was protected, stays `keep` after its
last use. It is protected meanwhile; only its replacement waits. An editor holds no descriptor, so
nothing else would keep a file from vanishing while somebody works on it.
"""

from __future__ import annotations


def in_work_for(
    *,
    last_use: float,
    now: float,
    keep_s: float,
    replaced_before: bool,
    edited_since_protected: bool,
) -> float:
    """Seconds for which the path must not be replaced yet; 0 when it may be (wall clock).

    A last use in the future (somebody set the clock back) counts as one of just now.
    """
    if not (replaced_before or edited_since_protected):
        return 0.0
    return max(0.0, keep_s - max(0.0, now - last_use))
