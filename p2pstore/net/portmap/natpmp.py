"""NAT-PMP (RFC 6886): datagrams to UDP port 5351 of the router, numbers big-endian.

ask for the outer address   u8 0 | u8 0
answer                      u8 0 | u8 128 | u16 result | u32 seconds since its start | 4 address
ask for a mapping           u8 0 | u8 op (1 UDP, 2 TCP) | u16 0 | u16 inner port
                            | u16 wished outer port | u32 seconds (0: take it back)
answer                      u8 0 | u8 128 + op | u16 result | u32 seconds since its start
                            | u16 inner port | u16 outer port | u32 seconds
"""

from __future__ import annotations

import ipaddress
import struct

from p2pstore.net.portmap.asking import Granted, NotSpoken, Protocol, Refused, Wish

PORT = 5351
ASK_ADDRESS = b"\0\0"

_OPS = {Protocol.UDP: 1, Protocol.TCP: 2}
_ASK = struct.Struct(">BBHHHI")
_HEAD = struct.Struct(">BBHI")
_MAPPED = struct.Struct(">HHI")
_RESULTS = {
    1: "it speaks another version",
    2: "port mapping is switched off there",
    3: "it has no connection itself",
    4: "it has no room for more mappings",
    5: "it does not know the request",
}


def ask_mapping(wish: Wish) -> bytes:
    outer = wish.outer if wish.lease_s else 0
    return _ASK.pack(0, _OPS[wish.protocol], 0, wish.inner, outer, wish.lease_s)


def read_address(raw: bytes) -> str | None:
    """The outer address; None for a datagram that answers something else."""
    if len(raw) != _HEAD.size + 4 or not _is_answer(raw, 0):
        return None
    return str(ipaddress.IPv4Address(raw[-4:]))


def read_mapping(raw: bytes, wish: Wish) -> Granted | None:
    """What was granted; None for a datagram that answers something else."""
    if len(raw) < _HEAD.size or not _is_answer(raw, _OPS[wish.protocol]):
        return None
    if len(raw) != _HEAD.size + _MAPPED.size:
        return None
    inner, outer, lease_s = _MAPPED.unpack_from(raw, _HEAD.size)
    if inner != wish.inner:
        return None
    if wish.lease_s and (not outer or not lease_s):
        raise Refused("The router granted nothing.")
    return Granted(outer, lease_s)


def _is_answer(raw: bytes, op: int) -> bool:
    version, answered, result, _ = _HEAD.unpack_from(raw)
    if version != 0:
        raise NotSpoken("The router does not speak NAT-PMP.")
    if answered != 128 + op:
        return False
    if result in (1, 5):
        raise NotSpoken(f"The router refused ({_RESULTS[result]}).")
    if result:
        raise Refused(f"The router refused ({_RESULTS.get(result, f'error {result}')}).")
    return True
