"""p2pstore: a folder becomes a window on your own swarm of nodes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pstore.api import Client, Storage

__version__ = "0.1.0"

__all__ = ["Client", "Storage", "__version__"]

if not TYPE_CHECKING:  # a type checker is to know every name, and no other

    def __getattr__(name):
        # Only when they are used: every command imports this package first.
        if name not in ("Client", "Storage"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("p2pstore.api"), name)
