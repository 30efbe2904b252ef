"""Where nodes live: numeric IP addresses and ports, and what may be believed about them.

Hides the text and byte forms of addresses. A host name is never an address here: whoever tells
one would make us ask a name server of his choice, and block the loop. Only what the user typed
(`--bootstrap`) is resolved, elsewhere, off the loop.

A packed contact, as in a `Contacts` reply: 20 bytes node id, u8 length of the address (4 or 16),
the address, u16 port, big-endian. Contacts follow one another without separators.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from p2pstore.errors import FormatError

CONTACT_MAX = 20 + 1 + 16 + 2
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT is neither private nor global


class Address(NamedTuple):
    host: str
    port: int


class Reach(IntEnum):
    """From how far away an address means anything."""

    LOOPBACK = 0
    PRIVATE = 1
    GLOBAL = 2


@lru_cache(maxsize=4096)
def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_multicast or ip.is_unspecified or (ip.version == 4 and ip.is_reserved):
        return None
    if ip.version == 6 and ip.is_link_local:
        return None  # means nothing without the name of an interface
    return ip


def numeric(host: str, port: int) -> Address | None:
    """The one form of this address; None when nobody can live there or it is a host name."""
    ip = _parsed(host)
    if ip is None or not 0 < port < 65536:
        return None
    return Address(str(ip), port)


@lru_cache(maxsize=4096)
def reach(host: str) -> Reach:
    ip = _parsed(host)
    if ip is None or ip.is_loopback:
        return Reach.LOOPBACK
    if ip.is_private or ip.is_link_local or (ip.version == 4 and ip in _SHARED):
        return Reach.PRIVATE
    return Reach.GLOBAL


def is_public(host: str) -> bool:
    """Whether it means the same to everybody: no loopback, no home network, no host name."""
    return reach(host) is Reach.GLOBAL


def may_tell(teller: Address, told: Address) -> bool:
    """Nobody out there can know our loopback or our home network: such hints are traps."""
    return reach(told.host) >= reach(teller.host)


@lru_cache(maxsize=4096)
def subnet(host: str) -> bytes | None:
    """What one owner gets cheaply: the /24 or the /48. None where no stranger can choose."""
    ip = _parsed(host)
    if ip is None or reach(host) is not Reach.GLOBAL:
        return None
    return ip.packed[:3] if ip.version == 4 else ip.packed[:6]


@lru_cache(maxsize=4096)
def household(host: str) -> bytes:
    """What shares one packet budget: an IPv4 address or an IPv6 /64."""
    ip = _parsed(host)
    if ip is None:
        return b""
    return ip.packed if ip.version == 4 else ip.packed[:8]


def pack_contacts(contacts: Iterable[tuple[bytes, Address]]) -> bytes:
    parts = []
    for node_id, address in contacts:
        packed = ipaddress.ip_address(address.host).packed
        parts.append(node_id + bytes((len(packed),)) + packed + address.port.to_bytes(2, "big"))
    return b"".join(parts)


def unpack_contacts(raw: bytes, limit: int) -> list[tuple[bytes, Address]]:
    """At most `limit` contacts; those with impossible addresses are left out. FormatError."""
    contacts: list[tuple[bytes, Address]] = []
    at = 0
    while at < len(raw):
        size = raw[at + 20] if at + 20 < len(raw) else 0
        end = at + 21 + size + 2
        if size not in (4, 16) or end > len(raw) or len(contacts) >= limit:
            raise FormatError("contacts")
        host = str(ipaddress.ip_address(raw[at + 21 : at + 21 + size]))
        address = numeric(host, int.from_bytes(raw[end - 2 : end], "big"))
        if address is not None:
            contacts.append((raw[at : at + 20], address))
        at = end
    return contacts
