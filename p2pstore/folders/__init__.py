"""Folders: the watched folders and what their owner asks of them."""

from p2pstore.folders.bringing import Bringing, Brought, Placeholder
from p2pstore.folders.folder import Folder
from p2pstore.folders.laying import LaidOut
from p2pstore.folders.opening import Opening
from p2pstore.folders.parts import Parts
from p2pstore.folders.preview import Preview
from p2pstore.folders.room import DiskRoom
from p2pstore.folders.service import Folders
from p2pstore.folders.taking import Taking

__all__ = [
    "Bringing",
    "Brought",
    "DiskRoom",
    "Folder",
    "Folders",
    "LaidOut",
    "Opening",
    "Parts",
    "Placeholder",
    "Preview",
    "Taking",
]
