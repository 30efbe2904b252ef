"""p2pstore: a folder becomes a window on your own swarm of nodes."""

__version__ = "0.1.0"
