"""Links to peers over TLS (or in memory), and who they are; the door of the package.

`Connections` keeps the links, over one of the transports; `tunnel` carries those of nodes that
cannot reach each other over a third; `portmap` asks the router to let others in.
"""

from p2pstore.net.connections import Connections, pause_after
from p2pstore.net.discovery import Discovery, local_addresses
from p2pstore.net.endpoint import Endpoint, Handler, LinkWatcher, Transport, refuse_all
from p2pstore.net.limits import Limits
from p2pstore.net.link import STRANGER, Address, Exchange, Link, Request, WrongPeer
from p2pstore.net.memory import MemoryNetwork, MemoryTransport
from p2pstore.net.peers import KnownPeer, PeerBook
from p2pstore.net.portmap import (
    Gateway,
    PortMapper,
    PortMapping,
    RouterPorts,
    default_gateway,
)
from p2pstore.net.tasks import pause_or_wake
from p2pstore.net.transport import TlsTransport
from p2pstore.net.tunnel import OPEN_S as TUNNEL_OPEN_S
from p2pstore.net.tunnel import pair

__all__ = [
    "STRANGER",
    "TUNNEL_OPEN_S",
    "Address",
    "Connections",
    "Discovery",
    "Endpoint",
    "Exchange",
    "Gateway",
    "Handler",
    "KnownPeer",
    "Limits",
    "Link",
    "LinkWatcher",
    "MemoryNetwork",
    "MemoryTransport",
    "PeerBook",
    "PortMapper",
    "PortMapping",
    "Request",
    "RouterPorts",
    "TlsTransport",
    "Transport",
    "WrongPeer",
    "default_gateway",
    "local_addresses",
    "pair",
    "pause_after",
    "pause_or_wake",
    "refuse_all",
]
