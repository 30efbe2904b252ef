"""Links without a network, for tests and for many nodes in one process.

A `MemoryNetwork` is the world in which `MemoryTransport`s find each other. The bytes take the same
way through `wire.Session` as over TLS, in pieces as they come; only the sockets are missing. The
pipe says whose key is at its other end, as TLS would have proved it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Iterable
from typing import Any

from nacl.signing import SigningKey

from p2pstore.errors import P2PStoreError, PeerUnreachable, PortInUse
from p2pstore.ids import NodeId, PublicKey
from p2pstore.net.endpoint import Endpoint
from p2pstore.net.link import Address, Link, WrongPeer

FIRST_PORT = 49152
PIECE = 64 * 1024  # bytes delivered in one turn of the loop


class MemoryNetwork:
    """Who listens where. Addresses in `unreachable` drop what is dialled."""

    def __init__(self) -> None:
        self.listeners: dict[Address, MemoryTransport] = {}
        self.unreachable: set[Address] = set()

    def free_port(self, host: str) -> int:
        port = FIRST_PORT
        while (host, port) in self.listeners:
            port += 1
        return port


class Pipe:
    """One end of a connection: what asyncio calls a transport, with the key of the other end."""

    def __init__(self, link: Link, other_key: PublicKey) -> None:
        self.other_key = other_key
        self.other: Pipe
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[memoryview] = deque()
        self._inbox_size = 0
        self._is_paused = False
        self._is_due = False
        self._is_closing = False
        self._is_lost = False
        self._ends = False  # the other end sends no more
        self._high = 64 * 1024
        self._sender_paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else self._high

    def get_write_buffer_size(self) -> int:
        return self.other._inbox_size

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        if self._is_closing or self.other._is_lost or not piece:
            return
        other = self.other
        other._inbox.append(memoryview(piece))
        other._inbox_size += len(piece)
        if other._inbox_size > self._high and not self._sender_paused:
            self._sender_paused = True
            self._link.pause_writing()
        other._schedule()

    def writelines(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._schedule()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.other._ends = True
            self.other._schedule()
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self._is_closing = True
        self._loop.call_soon(self._lose, None)
        self._loop.call_soon(self.other._lose, ConnectionResetError("aborted by the peer"))

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = self._is_closing = True
            self._inbox.clear()
            self._inbox_size = 0
            self._link.connection_lost(error)

    def _schedule(self) -> None:
        if not self._is_due and not self._is_lost:
            self._is_due = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._is_due = False
        if self._is_lost or self._is_paused:
            return
        left = PIECE
        while self._inbox and left and not self._is_lost:
            room = self._link.get_buffer(-1)
            piece = self._inbox.popleft()
            count = min(len(room), len(piece), left)
            room[:count] = piece[:count]
            if count < len(piece):
                self._inbox.appendleft(piece[count:])
            self._inbox_size -= count
            left -= count
            self._link.buffer_updated(count)
        if self.other._sender_paused and self._inbox_size <= self.other._high // 4:
            self.other._sender_paused = False
            self.other._link.resume_writing()
        if self._inbox:
            self._schedule()
        elif self._ends and not self._is_lost:
            self._link.eof_received()
            self.close()


class MemoryTransport(Endpoint):
    def __init__(self, network: MemoryNetwork, identity: SigningKey, **options: Any) -> None:
        super().__init__(identity, **options)
        self._network = network
        self._listening: list[Address] = []
        self._told: dict[int, PublicKey] = {}

    def peer_key(self, transport: Any) -> PublicKey:
        key: PublicKey
        if isinstance(transport, Pipe):
            key = transport.other_key
        else:
            key = self._told.pop(transport.get_extra_info("socket").fileno())
        return key

    async def listen(self, host: str, port: int) -> Address:
        address = (host, port or self._network.free_port(host))
        if address in self._network.listeners:
            raise PortInUse(f"Port {port} is in use.")
        self._network.listeners[address] = self
        self._listening.append(address)
        return address

    async def stop_listening(self) -> None:
        for address in self._listening:
            del self._network.listeners[address]

    async def _connect(self, link: Link, host: str, port: int) -> None:
        await asyncio.sleep(0)
        there = self._network.listeners.get((host, port))
        if there is None or (host, port) in self._network.unreachable:
            raise PeerUnreachable(f"{link} cannot be reached.")
        other = there._accept(("127.0.0.1", 1))
        if other is None:
            raise PeerUnreachable(f"{link} takes no more connections.")
        here_end, there_end = Pipe(link, there.public_key), Pipe(other, self.public_key)
        here_end.other, there_end.other = there_end, here_end
        other.connection_made(there_end)
        link.connection_made(here_end)

    async def probe(self, host: str, port: int, expect: NodeId) -> None:
        there = self._network.listeners.get((host, port))
        if there is None or (host, port) in self._network.unreachable:
            raise PeerUnreachable(f"{host}:{port} cannot be reached.")
        if there.node_id != expect:
            raise WrongPeer(f"Another node answers at {host}:{port}.")

    async def _secure(self, link: Link, connection: socket.socket) -> None:
        """Each end tells the other its key, and is believed: who lies here is a test's own."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(connection, self.public_key)
            key = b""
            while len(key) < len(self.public_key):
                piece = await loop.sock_recv(connection, len(self.public_key) - len(key))
                if not piece:
                    raise PeerUnreachable(f"{link} closed the tunnel.")
                key += piece
            self._told[connection.fileno()] = PublicKey(key)
            await loop.create_unix_connection(lambda: link, sock=connection)
        except BaseException:
            connection.close()
            raise

    async def _greet(self, link: Link, connection: socket.socket) -> None:
        try:
            await self._secure(link, connection)
        except (P2PStoreError, OSError) as exc:
            link.fail_to_connect(PeerUnreachable(f"{link} closed the tunnel ({exc})."))
