"""What happens in watched folders: a scan tells what is there, watchers give hints. The door.

`watchfiles` is loaded with it; nothing that must start quickly enters.
"""

from p2pstore.watch.changes import (
    Changed,
    ChangeWatcher,
    Event,
    RescanWanted,
    RootBack,
    RootGone,
)
from p2pstore.watch.opens import Opened, OpenWatcher
from p2pstore.watch.scan import OWN_DIRECTORY, STAMP_SIZE, Seen, Unread, scan, stamp

__all__ = [
    "OWN_DIRECTORY",
    "STAMP_SIZE",
    "ChangeWatcher",
    "Changed",
    "Event",
    "OpenWatcher",
    "Opened",
    "RescanWanted",
    "RootBack",
    "RootGone",
    "Seen",
    "Unread",
    "scan",
    "stamp",
]
