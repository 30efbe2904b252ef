"""FILING: what indexes and placeholders say of a folder becomes catalog rows.

The part of a rebuild that looks at files, and holds them against the disk. Of each path the newest
trusted manifest wins, whether an index or the `.f` on disk has it; a version is never lowered. What
lies on the disk says the state:

    original, content as the manifest says     protected, and in work: used now
    original, another content, beside its `.f`  the `.f`; the scan meets a newer file beside it
    original, another content                  protected, with an identity that the scan corrects
    `.f`                                       placeholder
    nothing                                    placeholder of no identity: the scan finds it gone

Bundles that are named and are not here get a row in state LOST, until a holder says that it has
them. Everything blocks; it is meant for a thread.

    local       what can be read of meta bundles here
    disk        what lies in the folder
    comparing   whether an original is what a manifest says
    references  which bundles a file needs, where manifests lie
    rows        what the catalog gets
    filer       who wins
    late        what a list says that comes when the folder is in use again
"""

from p2pstore.maintenance.filing.disk import Disk
from p2pstore.maintenance.filing.filer import Filer, Judge
from p2pstore.maintenance.filing.late import Hand, Late
from p2pstore.maintenance.filing.local import Local, Place
from p2pstore.maintenance.filing.references import bundle_row
from p2pstore.maintenance.filing.rows import Earlier

__all__ = ["Disk", "Earlier", "Filer", "Hand", "Judge", "Late", "Local", "Place", "bundle_row"]
