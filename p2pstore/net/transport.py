"""Links over TCP and TLS 1.3 (recipe in `tls`)."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from typing import Any

from nacl.signing import SigningKey

from p2pstore.errors import PeerUnreachable, PortInUse
from p2pstore.ids import NodeId, PublicKey, node_id_of
from p2pstore.net.endpoint import Endpoint
from p2pstore.net.link import Address, Link, WrongPeer
from p2pstore.net.tls import SERVER_NAME, client_context, peer_key, server_context
from p2pstore.wire import format_address

log = logging.getLogger(__name__)

BACKLOG = 128
ACCEPT_PAUSE_S = 0.2  # when the machine is out of descriptors: others may give some back


class TlsTransport(Endpoint):
    """The signature is `Endpoint`'s."""

    def __init__(self, identity: SigningKey, **options: Any) -> None:
        super().__init__(identity, **options)
        self._server_context = server_context(identity)
        self._client_context = client_context(identity)
        self._listeners: list[socket.socket] = []

    def peer_key(self, transport: Any) -> PublicKey:
        return peer_key(transport.get_extra_info("ssl_object"))

    async def listen(self, host: str, port: int) -> Address:
        listener = await _bound(host, port)
        self._listeners.append(listener)
        self._keep()
        self.tasks.start(self._accept_for_ever(listener))
        name = listener.getsockname()
        return str(name[0]), int(name[1])

    async def stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def _accept_for_ever(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, name = await loop.sock_accept(listener)
            except OSError as exc:
                log.warning("A connection could not be accepted (%s).", exc.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            link = self._accept((str(name[0]), int(name[1])))
            if link is None:
                connection.close()
            else:
                self.tasks.start(self._greet(link, connection))

    async def _greet(self, link: Link, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: link,
                connection,
                ssl=self._server_context,
                ssl_handshake_timeout=self.limits.handshake_s,
                ssl_shutdown_timeout=self.limits.shutdown_s,
            )
        except OSError as exc:  # SSLError and ConnectionError are among them
            log.debug("A connection from %s came to nothing (%s).", link, exc)
            link.fail_to_connect(PeerUnreachable(f"{link} did not finish the handshake."))
            connection.close()
        except BaseException:
            if not link.is_closed:
                link.fail_to_connect(PeerUnreachable("The node was stopped."))
            raise

    async def _connect(self, link: Link, host: str, port: int) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: link,
                host,
                port,
                ssl=self._client_context,
                server_hostname=SERVER_NAME,
                ssl_handshake_timeout=self.limits.handshake_s,
                ssl_shutdown_timeout=self.limits.shutdown_s,
            )
        except ssl.SSLError as exc:
            raise PeerUnreachable(f"What answers at {link} is no p2pstore node.") from exc

    async def probe(self, host: str, port: int, expect: NodeId) -> None:
        """TLS alone proves the key; nothing is said."""
        place = format_address(host, port)
        try:
            async with asyncio.timeout(self.limits.connect_s + self.limits.handshake_s):
                _, writer = await asyncio.open_connection(
                    host, port, ssl=self._client_context, server_hostname=SERVER_NAME
                )
        except TimeoutError as exc:
            raise PeerUnreachable(f"{place} does not answer.") from exc
        except OSError as exc:
            raise PeerUnreachable(f"{place} cannot be reached ({exc.strerror or exc}).") from exc
        try:
            key = peer_key(writer.get_extra_info("ssl_object"))
        finally:
            writer.transport.abort()
        if node_id_of(key) != expect:
            raise WrongPeer(f"Another node answers at {place}.")

    async def _secure(self, link: Link, connection: socket.socket) -> None:
        await asyncio.get_running_loop().create_unix_connection(
            lambda: link,
            sock=connection,
            ssl=self._client_context,
            server_hostname=SERVER_NAME,
            ssl_handshake_timeout=self.limits.handshake_s,
            ssl_shutdown_timeout=self.limits.shutdown_s,
        )


async def _bound(host: str, port: int) -> socket.socket:
    """A listening socket; `::` also takes IPv4 where the system can."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            place[:2],
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=both,
        )
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"Port {port} is in use. Stop the other program, or choose another port."
            ) from exc
        raise PortInUse(f"{host}:{port} cannot be listened on ({exc.strerror or exc}).") from exc
    listener.setblocking(False)
    return listener
