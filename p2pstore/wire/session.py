"""Frames and exchanges of one link, without IO: bytes in and events out, messages in and bytes out.

A frame is 12 bytes, then the header, then the payload; numbers are big-endian:

    u8 flags | u24 header length | u32 payload length | u32 exchange
    header: one message (see `message`), 0 to 64 KiB
    payload: raw bytes, 0 to 2 MiB

flags: FINAL (1) = the last frame of the answering side, which ends the exchange. CANCEL (2) = the
asking side wants no more; header and payload are empty; the other side still ends the exchange with
a final frame. Other bits must be 0.

Exchange 0 belongs to the connection: HELLO as the first frame of each side, FAIL as a last word.
The side that dialled opens exchanges with odd numbers, the other one with even numbers, each side
counting upwards, so that a number alone says who asks and who answers. Frames of the asker for an
exchange that was already answered are still on their way when the answer is sent: they are dropped.
A message of `BULKY` that exceeds a control frame travels as BULK with its encoding as payload.

Before the HELLO of the peer has come nothing else is taken; no request may carry a payload until
`allow_payload` was called (for peers that may PUT). Whatever breaks these rules raises
RemoteProtocolError, after which the session is of no use. Whether HELLO is true (network, key) is
for the caller to judge.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TypeAlias

import msgspec

from p2pstore.errors import LocalProtocolError, RemoteProtocolError, Unavailable
from p2pstore.wire.message import (
    BULKY_TYPES,
    LONG,
    MORE,
    REPLIES,
    REQUESTS,
    Bulk,
    Fail,
    Hello,
    Message,
    decode_bulky,
    decode_message,
    encode_message,
)

MAX_HEADER = 64 * 1024  # a control frame; the longest list of ids (1,024) takes 36 KiB
MAX_PAYLOAD = 2 * 1024 * 1024  # a block (1 MiB and its padding) or a bundle's list (600 KiB)
MAX_EXCHANGES = 64  # requests in flight that a peer may have with us, and we with it
MAX_EXCHANGE_ID = 2**32 - 1

FINAL = 1
CANCEL = 2

_FRAME = struct.Struct(">III")
FRAME_HEAD = _FRAME.size
BUFFER = 256 * 1024  # what one read of asyncio's or uvloop's TLS layer can yield
FIRST_BUFFER = 16 * 1024  # most links are idle most of the time; a busy one soon has BUFFER


class Side(IntEnum):
    """Who made the connection; the value is the parity of the exchanges that this side opens."""

    ACCEPTED = 0
    DIALLED = 1


class _Event(msgspec.Struct, frozen=True, gc=False):
    pass


class HelloReceived(_Event, frozen=True, gc=False):
    hello: Hello


class RequestReceived(_Event, frozen=True, gc=False):
    """The peer asks: answer with `send_reply` until final."""

    exchange: int
    message: Message
    payload: bytes


class MoreReceived(_Event, frozen=True, gc=False):
    """A further message of the asker within an exchange that it opened."""

    exchange: int
    message: Message
    payload: bytes


class Cancelled(_Event, frozen=True, gc=False):
    """The asker wants no more; a final reply is still due."""

    exchange: int


class ReplyReceived(_Event, frozen=True, gc=False):
    """An answer to what we asked; `final` ends the exchange."""

    exchange: int
    message: Message
    payload: bytes
    final: bool


class PeerFailed(_Event, frozen=True, gc=False):
    """The peer closes the connection, and says why."""

    fail: Fail


Event: TypeAlias = (
    HelloReceived | RequestReceived | MoreReceived | Cancelled | ReplyReceived | PeerFailed
)


class Session:
    def __init__(self, side: Side, *, max_exchanges: int = MAX_EXCHANGES) -> None:
        self._side = side
        self._max_exchanges = max_exchanges
        self._greeted = False  # the peer's HELLO has come
        self._hello_sent = False
        self._payload_allowed = False
        self._ended: RemoteProtocolError | None = None
        self._next_own = int(side) or 2
        self._last_theirs = 0
        # Exchanges that we opened and that are not finished: True = the asker may send more.
        self._own: dict[int, bool] = {}
        self._theirs: dict[int, bool] = {}
        self._buffer = bytearray(FIRST_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._was_full = False
        self._need = FRAME_HEAD  # bytes that the frame at `_start` has, as far as known

    # -- what stands where -------------------------------------------------------------------

    @property
    def is_greeted(self) -> bool:
        return self._greeted

    @property
    def open_exchanges(self) -> int:
        """Exchanges of both sides that have no final reply yet."""
        return len(self._own) + len(self._theirs)

    @property
    def own_exchanges(self) -> int:
        return len(self._own)

    @property
    def may_open(self) -> bool:
        """Another request fits below the limit of the peer."""
        return len(self._own) < self._max_exchanges

    @property
    def is_mid_frame(self) -> bool:
        """Part of a frame has come and the rest is awaited."""
        return self._end > self._start

    def allow_payload(self) -> None:
        """Take requests with payloads from this peer from now on (it may PUT)."""
        self._payload_allowed = True

    # -- bytes in ----------------------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        """Room to receive into; call `buffer_updated` with the number of bytes written there."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._was_full and len(self._buffer) < BUFFER:
            self._make_room(2 * len(self._buffer))
        self._was_full = False
        free = len(self._buffer) - self._end
        wanted = self._need - (self._end - self._start)
        if free < wanted or not free:
            self._make_room(0)
        return self._view[self._end :]

    def _make_room(self, wish: int) -> None:
        """Move what is there to the front, into a larger buffer where one is called for."""
        used = self._end - self._start
        kept = self._view[self._start : self._end]
        size = len(self._buffer)
        if self._need > size and used * 2 >= size:
            # Grows with what has come, not with what was announced: an announcement is free.
            wish = max(wish, min(self._need + BUFFER, 2 * size))
        if wish > size:
            self._buffer = bytearray(wish)
            self._view = memoryview(self._buffer)
        elif self._start:
            kept = memoryview(bytes(kept))  # the two places may overlap
        self._view[:used] = kept
        self._start, self._end = 0, used

    def shrink(self) -> None:
        """Give back the memory of an idle session's large buffer."""
        if not self.is_mid_frame and len(self._buffer) > FIRST_BUFFER:
            self._buffer = bytearray(FIRST_BUFFER)
            self._view = memoryview(self._buffer)
            self._start = self._end = 0

    def buffer_updated(self, count: int) -> list[Event]:
        """Take `count` bytes that were written into `get_buffer()`."""
        if self._ended is not None:
            raise self._ended
        self._end += count
        self._was_full = self._end == len(self._buffer)
        events: list[Event] = []
        try:
            while self._end - self._start >= FRAME_HEAD:
                if not self._take_frame(events):
                    break
            else:
                self._need = FRAME_HEAD
        except RemoteProtocolError as exc:
            self._ended = exc
            raise
        return events

    def receive(self, chunk: bytes) -> list[Event]:
        """The same for bytes at hand."""
        events: list[Event] = []
        rest = memoryview(chunk)
        while rest:
            room = self.get_buffer()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            rest = rest[count:]
            events += self.buffer_updated(count)
        return events

    def receive_end(self) -> None:
        """The peer sends no more; RemoteProtocolError in the middle of a frame."""
        if self.is_mid_frame:
            raise RemoteProtocolError("The connection ended in the middle of a frame.")

    def _take_frame(self, events: list[Event]) -> bool:
        start = self._start
        word, payload_length, exchange = _FRAME.unpack_from(self._buffer, start)
        flags, header_length = word >> 24, word & 0xFFFFFF
        self._check_head(flags, header_length, payload_length, exchange)
        need = FRAME_HEAD + header_length + payload_length
        if self._end - start < need:
            self._need = need
            return False
        middle = start + FRAME_HEAD + header_length
        header = self._view[start + FRAME_HEAD : middle]
        body = self._view[middle : start + need]
        self._start = start + need
        event = self._event(flags, exchange, header, body)
        if event is not None:
            events.append(event)
        return True

    def _check_head(self, flags: int, header: int, payload: int, exchange: int) -> None:
        """What can be refused before the frame's bytes are even awaited."""
        if header > MAX_HEADER or payload > MAX_PAYLOAD:
            raise RemoteProtocolError(
                f"A frame of {header} + {payload} bytes is longer than allowed."
            )
        if flags & ~(FINAL | CANCEL):
            raise RemoteProtocolError("A frame has unknown flags.")
        if not self._greeted and exchange:
            raise RemoteProtocolError("The first frame is not HELLO.")
        if exchange == 0:
            if payload or flags:
                raise RemoteProtocolError("A frame of the connection has payload or flags.")
        elif exchange & 1 == self._side:
            if exchange not in self._own:
                raise RemoteProtocolError("An answer to nothing that was asked.")
        elif flags & FINAL:
            raise RemoteProtocolError("A question is marked as final answer.")
        elif flags & CANCEL and (header or payload):
            raise RemoteProtocolError("A cancel frame is not empty.")
        elif payload and not self._payload_allowed:
            raise RemoteProtocolError("A stranger sends payload.")

    def _event(
        self, flags: int, exchange: int, header: memoryview, body: memoryview
    ) -> Event | None:
        if exchange == 0:
            return self._connection_event(_decode(header))
        if exchange & 1 == self._side:
            return self._reply_event(flags, exchange, header, body)
        if exchange > self._last_theirs:
            if flags & CANCEL:
                raise RemoteProtocolError("A cancel for nothing that was asked.")
            message, payload = _open(header, body)
            return self._request_event(exchange, message, payload)
        if exchange not in self._theirs:
            return None  # answered already; this was on its way
        if flags & CANCEL:
            return Cancelled(exchange)
        message, payload = _open(header, body)
        if type(message) not in MORE or not self._theirs[exchange]:
            raise RemoteProtocolError("A second message within a request that has one.")
        return MoreReceived(exchange, message, payload)

    def _connection_event(self, message: Message) -> Event:
        if isinstance(message, Fail):
            return PeerFailed(message)
        if not isinstance(message, Hello) or self._greeted:
            raise RemoteProtocolError("A message outside an exchange.")
        self._greeted = True
        return HelloReceived(message)

    def _request_event(self, exchange: int, message: Message, payload: bytes) -> Event:
        kind = type(message)
        if kind not in REQUESTS:
            raise RemoteProtocolError(f"{kind.__name__} is no request.")
        if len(self._theirs) >= self._max_exchanges:
            raise RemoteProtocolError(f"More than {self._max_exchanges} requests in flight.")
        self._last_theirs = exchange
        self._theirs[exchange] = kind in LONG
        return RequestReceived(exchange, message, payload)

    def _reply_event(
        self, flags: int, exchange: int, header: memoryview, body: memoryview
    ) -> Event:
        if flags & CANCEL:
            raise RemoteProtocolError("An answer is marked as cancel.")
        message, payload = _open(header, body)
        if type(message) not in REPLIES:
            raise RemoteProtocolError(f"{type(message).__name__} is no answer.")
        final = bool(flags & FINAL)
        if final:
            del self._own[exchange]
        return ReplyReceived(exchange, message, payload, final)

    # -- bytes out ---------------------------------------------------------------------------

    def send_hello(self, hello: Hello) -> list[bytes]:
        if self._hello_sent:
            raise LocalProtocolError("HELLO is sent once.")
        self._hello_sent = True
        return _frame(0, 0, hello, b"")

    def send_request(self, message: Message, payload: bytes = b"") -> tuple[int, list[bytes]]:
        """Open an exchange: its number, and what to write."""
        if not (self._greeted and self._hello_sent):
            raise LocalProtocolError("Nothing is asked before both HELLOs.")
        if type(message) not in REQUESTS:
            raise LocalProtocolError(f"{type(message).__name__} is no request.")
        if not self.may_open:
            raise LocalProtocolError("Too many requests in flight.")
        exchange = self._next_own
        if exchange > MAX_EXCHANGE_ID:
            raise Unavailable("The connection has used up its exchange numbers; connect anew.")
        frames = _frame(0, exchange, message, payload)
        self._next_own += 2
        self._own[exchange] = type(message) in LONG
        return exchange, frames

    def send_more(self, exchange: int, message: Message, payload: bytes = b"") -> list[bytes]:
        """A further message of the asker; nothing to write when the answer has come already."""
        if type(message) not in MORE:
            raise LocalProtocolError(f"{type(message).__name__} does not continue a request.")
        if exchange not in self._own:
            return []
        if not self._own[exchange]:
            raise LocalProtocolError("This request has one message only, or was cancelled.")
        return _frame(0, exchange, message, payload)

    def send_cancel(self, exchange: int) -> list[bytes]:
        """Want no more; replies may still come until the final one."""
        if exchange not in self._own:
            return []
        self._own[exchange] = False
        return [_FRAME.pack(CANCEL << 24, 0, exchange)]

    def send_reply(
        self, exchange: int, message: Message, payload: bytes = b"", *, final: bool = True
    ) -> list[bytes]:
        if type(message) not in REPLIES:
            raise LocalProtocolError(f"{type(message).__name__} is no answer.")
        if exchange not in self._theirs:
            raise LocalProtocolError("This request has its final answer already.")
        frames = _frame(FINAL if final else 0, exchange, message, payload)
        if final:
            del self._theirs[exchange]
        return frames

    def send_failure(self, fail: Fail) -> list[bytes]:
        """The last word before the connection is closed."""
        return _frame(0, 0, fail, b"")


def _frame(flags: int, exchange: int, message: Message, payload: bytes) -> list[bytes]:
    header = encode_message(message)
    if len(header) > MAX_HEADER:
        if payload or type(message) not in BULKY_TYPES:
            raise LocalProtocolError(f"{type(message).__name__} exceeds a control frame.")
        payload, header = header, encode_message(Bulk())
    if len(payload) > MAX_PAYLOAD:
        raise LocalProtocolError(f"A payload of {len(payload)} bytes exceeds {MAX_PAYLOAD}.")
    head = _FRAME.pack(flags << 24 | len(header), len(payload), exchange) + header
    return [head, payload] if payload else [head]


def _decode(header: memoryview) -> Message:
    try:
        return decode_message(header)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise RemoteProtocolError("A message cannot be read.") from exc


def _open(header: memoryview, body: memoryview) -> tuple[Message, bytes]:
    message = _decode(header)
    if type(message) is not Bulk:
        return message, bytes(body)
    try:
        return decode_bulky(body), b""
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise RemoteProtocolError("A bulky message cannot be read.") from exc
