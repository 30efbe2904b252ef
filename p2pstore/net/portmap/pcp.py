"""PCP (RFC 6887): the successor of NAT-PMP on the same UDP port, numbers big-endian.

    ask      u8 2 | u8 1 (MAP) | u16 0 | u32 seconds (0: take it back) | 16 our address
             | 12 nonce | u8 protocol (6 TCP, 17 UDP) | 3 zeros | u16 inner port
             | u16 wished outer port | 16 wished outer address
    answer   u8 2 | u8 129 | u8 0 | u8 result | u32 seconds | u32 seconds since its start | 12 zeros
             | 12 nonce | u8 protocol | 3 zeros | u16 inner port | u16 outer port | 16 outer address

IPv4 addresses are written as ::ffff:a.b.c.d. The nonce is ours for as long as the mapping lives:
only who knows it may change the mapping.
"""

from __future__ import annotations

import ipaddress
import struct

from p2pstore.net.portmap.asking import Granted, NotSpoken, Protocol, Refused, Wish

PORT = 5351
NONCE = 12

_PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17}
_ASK = struct.Struct(">BBHI16s12sB3xHH16s")
_ANSWER = struct.Struct(">BBBBII12x12sB3xHH16s")
_RESULTS = {
    2: "it does not allow it",
    4: "it does not know the request",
    7: "it has no connection itself",
    8: "it has no room for more mappings",
    10: "our share of mappings is used up",
    11: "the outer port is taken",
    12: "another router is between",
}
_NOT_SPOKEN = {1, 3, 4, 5, 9}  # version, malformed, opcode, option, protocol


def ask_mapping(wish: Wish, own: str, nonce: bytes) -> bytes:
    return _ASK.pack(
        2,
        1,
        0,
        wish.lease_s,
        _packed(own),
        nonce,
        _PROTOCOLS[wish.protocol],
        wish.inner,
        wish.outer if wish.lease_s else 0,
        _packed("0.0.0.0"),
    )


def read_mapping(raw: bytes, wish: Wish, nonce: bytes) -> Granted | None:
    """What was granted; None for a datagram that answers something else."""
    if not raw:
        return None
    if raw[0] != 2:
        raise NotSpoken("The router does not speak PCP.")
    if len(raw) < 4 or raw[1] != 129:
        return None
    if raw[3] in _NOT_SPOKEN:
        raise NotSpoken(f"The router does not understand PCP (error {raw[3]}).")
    if len(raw) != _ANSWER.size:
        return None
    _, _, _, result, lease_s, _, known, protocol, inner, outer, host = _ANSWER.unpack(raw)
    if known != nonce or protocol != _PROTOCOLS[wish.protocol] or inner != wish.inner:
        return None
    if result:
        raise Refused(f"The router refused ({_RESULTS.get(result, f'error {result}')}).")
    if not wish.lease_s:
        return Granted(outer, 0)
    if not outer or not lease_s:
        raise Refused("The router granted nothing.")
    mapped = ipaddress.IPv6Address(host)
    return Granted(outer, lease_s, str(mapped.ipv4_mapped or mapped))


def _packed(host: str) -> bytes:
    return ipaddress.IPv6Address(f"::ffff:{host}").packed
