"""Asking the router of this network to let others through to our port; the door of the package.

`gateway` finds the router; `pcp`, `natpmp` and `igd` are the three languages that routers speak,
bytes in and values out; `speaking` has the sockets; `mapper` asks, renews and takes back.
"""

from p2pstore.net.portmap.gateway import Gateway, default_gateway
from p2pstore.net.portmap.mapper import PortMapper, PortMapping
from p2pstore.net.portmap.speaking import RouterPorts

__all__ = ["Gateway", "PortMapper", "PortMapping", "RouterPorts", "default_gateway"]
