"""One file in a place that stores bytes: stored as pieces, fetched whole or in part.

Knows files and carriers; how pieces and their list look says `content.pieces`.
"""

from p2pstore.pieces.fetching import Fetched, fetch
from p2pstore.pieces.flow import Patience, Progress
from p2pstore.pieces.reading import Reader, get_meta, open_upload
from p2pstore.pieces.storing import Stored, store

__all__ = [
    "Fetched",
    "Patience",
    "Progress",
    "Reader",
    "Stored",
    "fetch",
    "get_meta",
    "open_upload",
    "store",
]
