"""Which router leads out of this network, and by which address of ours it knows us (IPv4, Linux).

`/proc/net/route` has a line for each route: interface, destination, gateway, flags, and so on, the
addresses in hexadecimal as the machine's own byte order has them.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from typing import Final, NamedTuple

ROUTES: Final = Path("/proc/self/net/route")  # the path that a sandboxed service sees too
_UP: Final = 1
_GATEWAY: Final = 2


class Gateway(NamedTuple):
    """Numeric addresses."""

    host: str
    own: str  # our address in the network that the router is in


def read_gateway(routes: str) -> str | None:
    """The router of the default route with the lowest metric; None without one."""
    best: tuple[int, str] | None = None
    for line in routes.splitlines()[1:]:
        fields = line.split()
        try:
            destination, via, flags, metric, mask = (
                int(fields[1], 16),
                int(fields[2], 16),
                int(fields[3], 16),
                int(fields[6]),
                int(fields[7], 16),
            )
        except (IndexError, ValueError):
            continue
        if destination or mask or flags & (_UP | _GATEWAY) != _UP | _GATEWAY:
            continue
        host = str(ipaddress.IPv4Address(via.to_bytes(4, sys.byteorder)))
        if best is None or metric < best[0]:
            best = (metric, host)
    return None if best is None else best[1]


def default_gateway() -> Gateway | None:
    """Asked anew at each call: a laptop goes from network to network."""
    try:
        host = read_gateway(ROUTES.read_text("ascii"))
    except (OSError, UnicodeDecodeError):
        return None  # no such file: not Linux, or it is hidden from us
    if host is None:
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing; the kernel chooses our address
            return Gateway(host, str(probe.getsockname()[0]))
    except OSError:
        return None
