"""Bundles kept for others, and for the other devices of our group.

    root/bundles/      the bundle files, as `DiskBundles` lays them out; released ones in its trash
    root/sides/        what was promised of each (sidefile.py)
    root/incoming/     uploads that are not complete

`table` is what is known of each in memory, in step with the side files (`sides`); `scan` fills it
at start. `uploads` takes bundles in, `promises` are leases and locks, `trash` is where released
bundles wait, `maps` what a live map says. `HeldStore` is the door to all of them.

Who may ask for what is judged above. All methods may be called from any thread.
"""

from p2pstore.store.held.maps import StaleMap
from p2pstore.store.held.store import HeldStore
from p2pstore.store.held.table import Held
from p2pstore.store.held.uploads import Upload

__all__ = ["Held", "HeldStore", "StaleMap", "Upload"]
