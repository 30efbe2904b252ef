"""Links to peers over TLS (or in memory), and who they are; the door of the package."""

from p2pstore.net.endpoint import Endpoint, Handler, LinkWatcher, Transport, refuse_all
from p2pstore.net.limits import Limits
from p2pstore.net.link import STRANGER, Address, Exchange, Link, Request, WrongPeer
from p2pstore.net.memory import MemoryNetwork, MemoryTransport
from p2pstore.net.transport import TlsTransport

__all__ = [
    "STRANGER",
    "Address",
    "Endpoint",
    "Exchange",
    "Handler",
    "Limits",
    "Link",
    "LinkWatcher",
    "MemoryNetwork",
    "MemoryTransport",
    "Request",
    "TlsTransport",
    "Transport",
    "WrongPeer",
    "refuse_all",
]
