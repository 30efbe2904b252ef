"""The node: builds every part from the configuration, starts them and stops them."""

from p2pstore.node.life import confirm_words, init_home, offline, recover, run
from p2pstore.node.recovering import Wishes

__all__ = ["Wishes", "confirm_words", "init_home", "offline", "recover", "run"]
