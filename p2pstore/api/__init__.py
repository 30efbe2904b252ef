"""p2pstore for programs: `Storage` keeps single files in a place, `Client` talks to the node.

Both are imported when they are asked for: the command line, which only needs the way to the socket,
must start quickly.
"""

from typing import TYPE_CHECKING

from p2pstore.api.reaching import (
    CONNECT_S,
    MAX_LINE,
    connected,
    error_from,
    find_socket,
    home_path,
    is_home_chosen,
    not_running,
)

if TYPE_CHECKING:
    from p2pstore.api.client import Client, Download, NodeFile, Upload
    from p2pstore.api.storage import Meta, MetaPiece, Storage

_PLACES = {
    "Client": "client",
    "Download": "client",
    "Meta": "storage",
    "MetaPiece": "storage",
    "NodeFile": "client",
    "Storage": "storage",
    "Upload": "client",
}

__all__ = [
    "CONNECT_S",
    "MAX_LINE",
    "Client",
    "Download",
    "Meta",
    "MetaPiece",
    "NodeFile",
    "Storage",
    "Upload",
    "connected",
    "error_from",
    "find_socket",
    "home_path",
    "is_home_chosen",
    "not_running",
]

if not TYPE_CHECKING:  # a type checker is to know every name, and no other

    def __getattr__(name):
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
