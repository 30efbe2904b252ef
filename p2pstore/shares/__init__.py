"""Shares: a file for whoever has its key, members of the group or not.

`Shares` makes and ends them; `record` is what HOME keeps of each; `Downloads` reads what a key
stands for, whoever made it.
"""

from p2pstore.shares.downloading import Downloads
from p2pstore.shares.record import ShareRecord
from p2pstore.shares.service import Shares

__all__ = ["Downloads", "ShareRecord", "Shares"]
