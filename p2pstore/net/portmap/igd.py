"""UPnP's Internet Gateway Device: SSDP to find the description, SOAP to ask for a mapping.

    M-SEARCH (UDP 1900)  -> HTTP headers with LOCATION, the URL of a description
    GET description      -> XML with services; of one that maps ports: its type and control URL
    POST control URL     -> SOAP calls AddPortMapping, DeletePortMapping, GetExternalIPAddress

All of it comes from the local network, where anybody may answer: whoever calls takes answers of the
router only, URLs that lead to the router only, and so many bytes only. XML with a document type is
refused, since entities can grow without bound.
"""

from __future__ import annotations

import ipaddress
import re
from html import escape  # what it writes is XML, too
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

from p2pstore.net.portmap.asking import Granted, NotSpoken, Refused, Wish

SSDP_PORT: Final = 1900
SSDP_GROUP: Final = "239.255.255.250"
MAX_DATAGRAM: Final = 2048
MAX_DESCRIPTION: Final = 256 * 1024  # real ones have 3 to 30 KiB
MAX_ANSWER: Final = 32 * 1024
DESCRIPTION: Final = "p2pstore"  # what the router's own page shows
ONLY_PERMANENT: Final = 725  # an error of old routers: they know no lease
CONFLICT: Final = 718  # the outer port belongs to another
ABSENT: Final = 714  # there is nothing to delete

SEARCH: Final = (
    f"M-SEARCH * HTTP/1.1\r\nHOST: {SSDP_GROUP}:{SSDP_PORT}\r\n"
    'MAN: "ssdp:discover"\r\nMX: 1\r\n'
    "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
).encode()

# It goes into a header, so nothing else may be in it.
_MAPS_PORTS: Final = re.compile(r"urn:schemas-upnp-org:service:WAN(IP|PPP)Connection:[1-9]")
_ENVELOPE: Final = (
    '<?xml version="1.0"?>\r\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
    '<u:{action} xmlns:u="{service}">{arguments}</u:{action}></s:Body></s:Envelope>\r\n'
)


class Service(NamedTuple):
    """What of the router maps ports."""

    kind: str
    url: str


class Call(NamedTuple):
    """One POST."""

    url: str
    headers: dict[str, str]
    body: bytes


class Fault(Refused):
    """The router answered with a SOAP fault of that code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"The router refused (UPnP error {code}{f', {text}' if text else ''}).")
        self.code = code


def read_location(raw: bytes, router: str) -> str | None:
    """The URL of the description, when it lies on the router itself."""
    head, _, rest = raw.partition(b"\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return None
    for line in rest.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"location":
            url = value.strip().decode("ascii", "replace")
            return url if is_on(url, router) else None
    return None


def is_on(url: str, router: str) -> bool:
    """Whether the URL leads to the router, by its number: no name is ever resolved."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.hostname == router and parts.port != 0
    except ValueError:
        return False


def read_description(raw: bytes, location: str, router: str) -> Service:
    """The first service that maps ports; NotSpoken when there is none."""
    root = _parse(raw)
    base = next((_text(e) for e in root.iter() if _local(e) == "URLBase"), "") or location
    for element in root.iter():
        if _local(element) != "service":
            continue
        fields = {_local(child): _text(child) for child in element}
        kind = fields.get("serviceType", "")
        if not _MAPS_PORTS.fullmatch(kind):
            continue
        try:
            url = urljoin(base, fields.get("controlURL", ""))
        except ValueError:
            continue
        if is_on(url, router):
            return Service(kind, url)
    raise NotSpoken("The router describes nothing that maps ports.")


def ask_mapping(service: Service, wish: Wish, own: str) -> Call:
    return _call(
        service,
        "AddPortMapping",
        NewRemoteHost="",
        NewExternalPort=wish.outer,
        NewProtocol=wish.protocol.value,
        NewInternalPort=wish.inner,
        NewInternalClient=own,
        NewEnabled=1,
        NewPortMappingDescription=DESCRIPTION,
        NewLeaseDuration=wish.lease_s,
    )


def ask_removal(service: Service, wish: Wish) -> Call:
    return _call(
        service,
        "DeletePortMapping",
        NewRemoteHost="",
        NewExternalPort=wish.outer,
        NewProtocol=wish.protocol.value,
    )


def ask_address(service: Service) -> Call:
    return _call(service, "GetExternalIPAddress")


def read_mapping(status: int, raw: bytes, wish: Wish) -> Granted:
    """Fault when the router refuses."""
    _answer(status, raw)
    return Granted(wish.outer, wish.lease_s)


def read_address(status: int, raw: bytes) -> str:
    root = _answer(status, raw)
    text = next((_text(e) for e in root.iter() if _local(e) == "NewExternalIPAddress"), "")
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as exc:
        raise NotSpoken("The router does not say what its outer address is.") from exc


def _call(service: Service, action: str, **arguments: str | int) -> Call:
    body = "".join(f"<{name}>{escape(str(v))}</{name}>" for name, v in arguments.items())
    envelope = _ENVELOPE.format(action=action, service=escape(service.kind), arguments=body)
    headers = {
        "Content-Type": 'text/xml; charset="utf-8"',
        "SOAPAction": f'"{service.kind}#{action}"',
    }
    return Call(service.url, headers, envelope.encode())


def _answer(status: int, raw: bytes) -> ElementTree.Element:
    root = _parse(raw)
    if status == 200:
        return root
    fields = {_local(element): _text(element) for element in root.iter()}
    try:
        code = int(fields.get("errorCode", ""))
    except ValueError as exc:
        raise NotSpoken(f"The router answers with HTTP status {status}.") from exc
    text = fields.get("errorDescription", "")[:100]
    raise Fault(code, "".join(c if c.isprintable() else " " for c in text))


class _NoTypes(ElementTree.TreeBuilder):
    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise NotSpoken("The router's XML has a document type.")


def _parse(raw: bytes) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_NoTypes())
    try:
        parser.feed(raw)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as exc:
        raise NotSpoken("The router's XML cannot be read.") from exc
    return root


def _local(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _text(element: ElementTree.Element) -> str:
    return (element.text or "").strip()
