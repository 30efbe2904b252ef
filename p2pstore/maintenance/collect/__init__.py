"""COLLECT: what no manifest of any device names any more goes, here and at holders (SAFETY 5).

    removed    files of a folder that was removed with all its originals back go to the history;
               a folder whose placeholders were left is kept as it is, for ever
    seen       each bundle of ours whose references have changed is held against them: what no
               file and no earlier version names is dying from now on, and its chunks are forgotten
               in the same transaction, so that no new file relies on them
    30 days    it stays as it is; whatever names it meanwhile revives it. Bundles of an ingest that
               ended without naming them wait for 24 hours
    others     then every other device of the group must have shown its newest indexes since it was
               seen, and none of them may name it; if one does, its days begin anew
    blocks     dead ones are punched out under a new signed live map, which holders are sent
    bundles    wholly dead ones go into the store's trash (row DEAD), stay there for 7 days, are
               removed, and let go of at each holder (7 more days in its trash); who does not
               answer is asked again; when no holder is left the rows go
    indexes    what only a superseded index lay in goes the same way, 7 days after it
    merged     what was merged into another bundle is dead at once (`merge`), and let go of while
               that one has as many copies

An error while anything is read ends the turn and nothing is concluded: it never means "empty". So
do a rebuild whose lists could not all be read, and one that is less than 30 days ago. Only while
each folder's newest head covers everything and every holder of ours has acknowledged it: who
recovers from one of them alone finds an index that names nothing dead.

Days are counted by a clock of its own (maintenance/age.py), which a jump of the computer's clock
moves by a week at the most: a wrong date is no reason to remove anything early.

    roots      who names what, as the catalog knows it
    others     who names what on other devices
    collector  the turn, and what is done to what is dead

A bundle whose bytes are with holders only goes when all of it is dead: which of its blocks lie
where nobody here can tell.
"""

from p2pstore.maintenance.collect.collector import Collector
from p2pstore.maintenance.collect.others import Others

__all__ = ["Collector", "Others"]
