"""A router on loopback that speaks some of PCP, NAT-PMP and UPnP."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from typing import Any

from aiohttp import web

from p2pstore.net.portmap import Gateway, RouterPorts

OUTER_HOST = "20.1.2.3"
DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">
 <device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
  <deviceList><device><serviceList>
   <service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>
    <controlURL>/other</controlURL></service>
   <service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
    <controlURL>/control</controlURL></service>
  </serviceList></device></deviceList>
 </device>
</root>"""
FAULT = """<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>
<detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>
<errorDescription>{text}</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"""
ANSWER = """<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>
<u:R xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">{inside}</u:R>
</s:Body></s:Envelope>"""


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, raw: bytes, source: Any) -> None:
        for reply in self.answer(raw, source):
            self.transport.sendto(reply, source)


class Router:
    """`mapped` is what it lets through: (protocol, outer port) -> (inner port, lease)."""

    def __init__(self, *speaks: str) -> None:
        self.speaks = speaks
        self.mapped: dict[tuple[str, int], tuple[int, int]] = {}
        self.asked: list[str] = []
        self.lease_s = 3600
        self.taken: set[int] = set()  # outer ports that belong to others
        self.only_permanent = False
        self.only_tcp = False
        self.refusal = 0
        self.description = DESCRIPTION
        self.location: str | None = None
        self.lose = 0  # so many datagrams
        self._udp: list[Any] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> Router:
        loop = asyncio.get_running_loop()
        self.pcp_port = await self._listen(loop, self._pcp)
        self.ssdp_port = await self._listen(loop, self._ssdp)
        application = web.Application()
        application.router.add_get("/root.xml", self._describe)
        application.router.add_post("/control", self._control)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.location = self.location or f"http://127.0.0.1:{port}/root.xml"
        return self

    async def _listen(self, loop: asyncio.AbstractEventLoop, answer: Any) -> int:
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Udp(answer), local_addr=("127.0.0.1", 0)
        )
        self._udp.append(transport)
        return int(transport.get_extra_info("sockname")[1])

    @property
    def gateway(self) -> Gateway:
        return Gateway("127.0.0.1", "127.0.0.1")

    @property
    def ports(self) -> RouterPorts:
        return RouterPorts(pcp=self.pcp_port, ssdp=self.ssdp_port, group=None)

    async def stop(self) -> None:
        for transport in self._udp:
            transport.close()
        if self._runner is not None:
            await self._runner.cleanup()

    # -- PCP and NAT-PMP ---------------------------------------------------------------------

    def _pcp(self, raw: bytes, source: Any) -> list[bytes]:
        if self.lose:
            self.lose -= 1
            return []
        if raw[0] == 2:
            self.asked.append("PCP")
            return self._answer_pcp(raw) if "PCP" in self.speaks else self._old_version()
        self.asked.append("NAT-PMP")
        return self._answer_natpmp(raw) if "NAT-PMP" in self.speaks else []

    def _old_version(self) -> list[bytes]:
        return [struct.pack(">BBHI", 0, 128, 1, 7)] if "NAT-PMP" in self.speaks else []

    def _answer_pcp(self, raw: bytes) -> list[bytes]:
        _, _, _, lease, _, nonce, number, inner, outer, _ = struct.unpack(
            ">BBHI16s12sB3xHH16s", raw
        )
        protocol = {6: "TCP", 17: "UDP"}[number]
        outer, lease = self._map(protocol, inner, outer, lease)
        host = b"\0" * 10 + b"\xff\xff" + socket.inet_aton(OUTER_HOST)
        return [
            struct.pack(
                ">BBBBII12x12sB3xHH16s",
                2, 129, 0, self.refusal, lease, 7, nonce, number, inner, outer, host,
            )
        ]  # fmt: skip

    def _answer_natpmp(self, raw: bytes) -> list[bytes]:
        if raw == b"\0\0":
            return [struct.pack(">BBHI", 0, 128, 0, 7) + socket.inet_aton(OUTER_HOST)]
        _, op, _, inner, outer, lease = struct.unpack(">BBHHHI", raw)
        outer, lease = self._map({1: "UDP", 2: "TCP"}[op], inner, outer, lease)
        return [struct.pack(">BBHIHHI", 0, 128 + op, self.refusal, 7, inner, outer, lease)]

    def _map(self, protocol: str, inner: int, outer: int, lease: int) -> tuple[int, int]:
        if lease == 0:
            self.mapped = {
                key: value
                for key, value in self.mapped.items()
                if not (key[0] == protocol and value[0] == inner)
            }
            return 0, 0
        while outer in self.taken:
            outer += 1
        self.mapped[protocol, outer] = (inner, self.lease_s)
        return outer, self.lease_s

    # -- UPnP --------------------------------------------------------------------------------

    def _ssdp(self, raw: bytes, source: Any) -> list[bytes]:
        self.asked.append("SSDP")
        if "UPnP" not in self.speaks or b"InternetGatewayDevice:1" not in raw:
            return []
        return [f"HTTP/1.1 200 OK\r\nST: x\r\nLocation: {self.location}\r\n\r\n".encode()]

    async def _describe(self, _: web.Request) -> web.Response:
        return web.Response(text=self.description, content_type="text/xml")

    async def _control(self, request: web.Request) -> web.Response:
        body = await request.text()
        action = request.headers["SOAPAction"].strip('"').rpartition("#")[2]
        self.asked.append(action)
        fields = dict(re.findall(r"<(New\w+)>([^<]*)</", body))
        if action == "GetExternalIPAddress":
            inside = f"<NewExternalIPAddress>{OUTER_HOST}</NewExternalIPAddress>"
            return self._said(ANSWER.format(inside=inside))
        key = (fields["NewProtocol"], int(fields["NewExternalPort"]))
        if action == "DeletePortMapping":
            if key not in self.mapped:
                return self._said(FAULT.format(code=714, text="NoSuchEntryInArray"), 500)
            del self.mapped[key]
            return self._said(ANSWER.format(inside=""))
        assert fields["NewInternalClient"] == "127.0.0.1"
        lease = int(fields["NewLeaseDuration"])
        if self.only_tcp and key[0] == "UDP":
            return self._said(FAULT.format(code=501, text="ActionFailed"), 500)
        if self.refusal:
            return self._said(FAULT.format(code=self.refusal, text="no\x07"), 500)
        if key[1] in self.taken:
            return self._said(FAULT.format(code=718, text="ConflictInMappingEntry"), 500)
        if lease and self.only_permanent:
            return self._said(FAULT.format(code=725, text="OnlyPermanentLeasesSupported"), 500)
        self.mapped[key] = (int(fields["NewInternalPort"]), lease)
        return self._said(ANSWER.format(inside=""))

    def _said(self, text: str, status: int = 200) -> web.Response:
        return web.Response(text=text.replace("\x07", ""), status=status, content_type="text/xml")
