"""LEAVE: every file comes back, what others rely on is moved first, and the node ends.

    allowed   may it? not as the only other holder of the keys of a group whose words nobody has
              confirmed; is there room for everything? Asked before anything moves, and after
              the devices that are connected were asked for the group's newest state
    handover  what is kept here for others goes to other holders, by their owners; what cannot go
              is named, and the node stays
    back      every placeholder comes back in its folder, or (export) all is written below DIR, and
              is looked for: nothing stands as a placeholder any more, or DIR has all of it
    goodbye   the folders are no longer watched, and holders are asked to let our bundles go

Only then the owner is told that HOME may be deleted; service and desktop entries are removed by the
command line, which made them. Whatever stops it leaves everything as usable as before, and it can
be typed again; until it is, the node is a holder like before, unless it was only stopped or
interrupted while others move what it has: that goes on. A holder that is absent keeps what it has
until its lease ends: that is said, and no reason to stay.
"""

from p2pstore.node.leaving.flow import Leaving, leave

__all__ = ["Leaving", "leave"]
