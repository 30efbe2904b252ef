"""Shares: a file for whoever has its key, members of the group or not.

`Shares` keeps, grants and ends them; a `Reader` opens what is to be shared, a `Maker` writes it;
`record` is what HOME keeps of each. `Downloads` reads what a key stands for, whoever made it.
`Uploads` puts files at carriers instead.
"""

from p2pstore.shares.carrying import Uploads, looks_like_upload_key
from p2pstore.shares.downloading import Downloads
from p2pstore.shares.making import Maker
from p2pstore.shares.reading import Reader
from p2pstore.shares.record import ShareRecord
from p2pstore.shares.service import Shares

__all__ = [
    "Downloads",
    "Maker",
    "Reader",
    "ShareRecord",
    "Shares",
    "Uploads",
    "looks_like_upload_key",
]
