"""Bytes in, values out: what routers say, and what is no answer of theirs."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.errors import P2PStoreError
from p2pstore.net.portmap import igd, natpmp, pcp
from p2pstore.net.portmap.asking import Granted, NotSpoken, Protocol, Refused, Wish
from p2pstore.net.portmap.gateway import read_gateway

TCP = Wish(Protocol.TCP, 8080, 8080, 3600)
UDP = Wish(Protocol.UDP, 8080, 9090, 3600)
NONCE = bytes(range(12))

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.skipif("sys.byteorder != 'little'", reason="the sample is of a little-endian machine")
def test_the_gateway_with_the_lowest_metric() -> None:
    assert read_gateway(ROUTES) == "10.0.0.1"
    assert read_gateway(ROUTES.replace("0003", "0002")) is None  # not up
    assert read_gateway(ROUTES.replace("\t00000000\t0", "\t00FFFFFF\t0", 3)) is None


@pytest.mark.parametrize("routes", ["", "junk", "a\nb c d\n", "h\n" + "x " * 20])
def test_no_gateway_in_what_is_no_table(routes: str) -> None:
    assert read_gateway(routes) is None


# -- NAT-PMP (the bytes of RFC 6886, 3.2 and 3.3) ---


def test_natpmp_requests() -> None:
    assert natpmp.ask_mapping(TCP).hex() == "000200001f901f9000000e10"
    assert natpmp.ask_mapping(UDP._replace(lease_s=0)).hex() == "000100001f90000000000000"


def test_natpmp_answers() -> None:
    assert natpmp.read_address(bytes.fromhex("008000000000000714010203")) == "20.1.2.3"
    granted = bytes.fromhex("00820000000000071f901f9100000708")
    assert natpmp.read_mapping(granted, TCP) == Granted(8081, 1800)
    assert natpmp.read_mapping(granted, UDP) is None
    assert natpmp.read_mapping(granted, TCP._replace(inner=1)) is None
    assert natpmp.read_mapping(granted[:-1], TCP) is None
    assert natpmp.read_mapping(b"", TCP) is None
    with pytest.raises(Refused, match="switched off"):
        natpmp.read_mapping(bytes.fromhex("00820002000000071f90000000000000"), TCP)
    with pytest.raises(Refused, match="granted nothing"):
        natpmp.read_mapping(bytes.fromhex("00820000000000071f90000000000000"), TCP)
    with pytest.raises(NotSpoken):
        natpmp.read_mapping(bytes.fromhex("0282000000000007"), TCP)


# -- PCP (RFC 6887, 7.1, 7.2 and 11.1) ---


def answer(result: int = 0, nonce: bytes = NONCE, lease: int = 1800, outer: int = 8081) -> bytes:
    host = bytes(10) + b"\xff\xff" + bytes((20, 1, 2, 3))
    return struct.pack(
        ">BBBBII12x12sB3xHH16s", 2, 129, 0, result, lease, 7, nonce, 6, 8080, outer, host
    )


def test_pcp_requests() -> None:
    raw = pcp.ask_mapping(TCP, "192.168.1.2", NONCE)
    assert len(raw) == 60
    assert raw[:8].hex() == "0201000000000e10"
    assert raw[8:24].hex() == "00" * 10 + "ffff" + "c0a80102"
    assert raw[24:36] == NONCE
    assert raw[36:44].hex() == "060000001f901f90"
    assert raw[44:].hex() == "00" * 10 + "ffff" + "00000000"


def test_pcp_answers() -> None:
    assert pcp.read_mapping(answer(), TCP, NONCE) == Granted(8081, 1800, "20.1.2.3")
    assert pcp.read_mapping(answer(), UDP, NONCE) is None
    assert pcp.read_mapping(answer(nonce=bytes(12)), TCP, NONCE) is None
    assert pcp.read_mapping(answer()[:-1], TCP, NONCE) is None
    assert pcp.read_mapping(b"", TCP, NONCE) is None
    with pytest.raises(Refused, match="another router"):
        pcp.read_mapping(answer(12), TCP, NONCE)
    with pytest.raises(Refused, match="granted nothing"):
        pcp.read_mapping(answer(lease=0), TCP, NONCE)
    with pytest.raises(NotSpoken):
        pcp.read_mapping(answer(1), TCP, NONCE)
    with pytest.raises(NotSpoken):
        pcp.read_mapping(bytes.fromhex("0080000100000007"), TCP, NONCE)


@given(st.binary(max_size=70))
def test_noise_is_no_mapping(raw: bytes) -> None:
    for head in (b"", b"\2\x81\0\0", b"\0\x82\0\0"):
        for read in (
            lambda noise: pcp.read_mapping(noise, TCP, NONCE),
            lambda noise: natpmp.read_mapping(noise, TCP),
            natpmp.read_address,
        ):
            with contextlib.suppress(P2PStoreError):
                read(head + raw)


# -- UPnP ---

SERVICE = igd.Service("urn:schemas-upnp-org:service:WANIPConnection:1", "http://10.0.0.1/c")


def test_upnp_calls_are_well_formed() -> None:
    call = igd.ask_mapping(SERVICE, UDP, "10.0.0.2")
    assert call.url == SERVICE.url
    assert call.headers["SOAPAction"] == f'"{SERVICE.kind}#AddPortMapping"'
    root = igd._parse(call.body)
    fields = {igd._local(e): igd._text(e) for e in root.iter()}
    assert fields["NewExternalPort"] == "9090"
    assert fields["NewInternalPort"] == "8080"
    assert fields["NewProtocol"] == "UDP"
    assert fields["NewInternalClient"] == "10.0.0.2"
    assert fields["NewRemoteHost"] == ""


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 404 No\r\nLocation: http://10.0.0.1/\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
)
def test_what_is_no_answer_to_a_search(raw: bytes) -> None:
    assert igd.read_location(raw, "10.0.0.1") is None


def test_addresses_that_are_none_are_refused() -> None:
    for text in ("", "nonsense", "::1", "1.2.3.4.5"):
        raw = f"<a><NewExternalIPAddress>{text}</NewExternalIPAddress></a>".encode()
        with pytest.raises(NotSpoken):
            igd.read_address(200, raw)


@given(st.binary(max_size=300))
def test_noise_is_no_answer(raw: bytes) -> None:
    with pytest.raises((NotSpoken, Refused)):
        igd.read_address(500, raw)
    with pytest.raises(NotSpoken):
        igd.read_description(raw, "http://10.0.0.1/", "10.0.0.1")
    igd.read_location(raw, "10.0.0.1")
