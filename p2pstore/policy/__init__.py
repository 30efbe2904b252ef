"""What we decide, and nothing of how it is done: pure functions of facts and `now`."""

from p2pstore.policy.access import Ask, Need, may, need
from p2pstore.policy.admission import admit_put, room_for_batch
from p2pstore.policy.classes import (
    Entity,
    Treatment,
    classify,
    editor_marks,
    is_own,
    marks_repository,
    refuse_folder,
)
from p2pstore.policy.copies import (
    Candidate,
    Copy,
    Holder,
    counted,
    counted_holders,
    eligible,
    is_counted,
    target,
)
from p2pstore.policy.evict import (
    FRESH_PROOF_S,
    LOCK_MARGIN_S,
    Confirmation,
    Facts,
    is_confirmed,
    why_not,
)
from p2pstore.policy.masschange import is_mass_change
from p2pstore.policy.opens import OpenGate
from p2pstore.policy.rest import in_work_for

__all__ = [
    "FRESH_PROOF_S",
    "LOCK_MARGIN_S",
    "Ask",
    "Candidate",
    "Confirmation",
    "Copy",
    "Entity",
    "Facts",
    "Holder",
    "Need",
    "OpenGate",
    "Treatment",
    "admit_put",
    "classify",
    "counted",
    "counted_holders",
    "editor_marks",
    "eligible",
    "in_work_for",
    "is_confirmed",
    "is_counted",
    "is_mass_change",
    "is_own",
    "marks_repository",
    "may",
    "need",
    "refuse_folder",
    "room_for_batch",
    "target",
    "why_not",
]
