from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.errors import LocalProtocolError, RemoteProtocolError
from p2pstore.ids import BlockId, BundleId, GroupId, PublicKey, Tag
from p2pstore.wire import (
    MAX_EXCHANGES,
    MAX_HEADER,
    MAX_PAYLOAD,
    BlockReply,
    Cancelled,
    Fail,
    Get,
    GetDone,
    GetHeads,
    Have,
    Heads,
    Hello,
    HelloReceived,
    Message,
    MoreReceived,
    Ok,
    PeerFailed,
    Ping,
    Pong,
    Put,
    PutBlock,
    PutEnd,
    ReplyReceived,
    RequestReceived,
    Session,
    Side,
)
from p2pstore.wire.message import encode_message
from p2pstore.wire.session import BUFFER, CANCEL, FINAL, FIRST_BUFFER

HELLO = Hello("main", (1,), PublicKey(bytes(32)))
PUT_END = PutEnd(bytes(32))
BLOCK = BlockReply(BlockId(bytes(32)))


def frame(
    message: Message | bytes, payload: bytes = b"", *, exchange: int = 0, flags: int = 0
) -> bytes:
    header = message if isinstance(message, bytes) else encode_message(message)
    return struct.pack(">III", flags << 24 | len(header), len(payload), exchange) + header + payload


def pair() -> tuple[Session, Session]:
    dialled, accepted = Session(Side.DIALLED), Session(Side.ACCEPTED)
    accepted.receive(b"".join(dialled.send_hello(HELLO)))
    dialled.receive(b"".join(accepted.send_hello(HELLO)))
    return dialled, accepted


def greeted() -> Session:
    """An accepting session that has the peer's HELLO and takes its payloads."""
    session = Session(Side.ACCEPTED)
    session.send_hello(HELLO)
    session.receive(frame(HELLO))
    session.allow_payload()
    return session


def a_put(dialled: Session) -> tuple[int, list[bytes]]:
    put = Put(BundleId(bytes(32)), Tag(bytes(20)), b"", (), 5, 60)
    return dialled.send_request(put, b"list")


def test_frames_have_their_golden_bytes() -> None:
    dialled, accepted = pair()
    number, frames = dialled.send_request(Ping())
    assert b"".join(frames).hex() == "0000000200000000000000019102"
    accepted.receive(b"".join(frames))
    assert b"".join(accepted.send_reply(number, Pong(), b"xy")).hex() == (
        "01000002000000020000000191037879"
    )
    number, frames = accepted.send_request(Ping())
    assert b"".join(frames).hex() == "0000000200000000000000029102"
    assert b"".join(accepted.send_cancel(number)).hex() == "020000000000000000000002"


def test_request_and_final_reply_end_the_exchange() -> None:
    dialled, accepted = pair()
    number, frames = dialled.send_request(Ping())
    assert accepted.receive(b"".join(frames)) == [RequestReceived(number, Ping(), b"")]
    assert dialled.receive(b"".join(accepted.send_reply(number, Pong()))) == [
        ReplyReceived(number, Pong(), b"", True)
    ]
    assert dialled.open_exchanges == accepted.open_exchanges == 0


def test_both_sides_ask_at_once_without_mixing_exchanges() -> None:
    dialled, accepted = pair()
    first, there = dialled.send_request(Ping())
    second, here = accepted.send_request(GetHeads(GroupId(bytes(32))))
    assert accepted.receive(b"".join(there)) == [RequestReceived(first, Ping(), b"")]
    assert isinstance(dialled.receive(b"".join(here))[0], RequestReceived)
    assert (first % 2, second % 2) == (1, 0)


def test_stream_ends_with_the_final_frame() -> None:
    dialled, accepted = pair()
    number, frames = dialled.send_request(Get(b"x"))
    accepted.receive(b"".join(frames))
    replies = accepted.send_reply(number, BLOCK, b"block", final=False)
    replies += accepted.send_reply(number, GetDone())
    assert dialled.receive(b"".join(replies)) == [
        ReplyReceived(number, BLOCK, b"block", False),
        ReplyReceived(number, GetDone(), b"", True),
    ]


def test_put_sends_further_messages_within_one_exchange() -> None:
    dialled, accepted = pair()
    accepted.allow_payload()
    number, frames = a_put(dialled)
    frames += dialled.send_more(number, PutBlock(3), b"block")
    frames += dialled.send_more(number, PUT_END)
    events = accepted.receive(b"".join(frames))
    assert events[1:] == [
        MoreReceived(number, PutBlock(3), b"block"),
        MoreReceived(number, PUT_END, b""),
    ]


def test_messages_behind_the_final_reply_are_dropped() -> None:
    dialled, accepted = pair()
    accepted.allow_payload()
    number, frames = a_put(dialled)
    accepted.receive(b"".join(frames))
    late = dialled.send_more(number, PutBlock(0), b"late")
    dialled.receive(b"".join(accepted.send_reply(number, Fail("no-room"))))
    assert accepted.receive(b"".join(late)) == []
    assert dialled.send_more(number, PutBlock(1), b"later") == []


def test_cancelled_exchange_lives_until_its_final_reply() -> None:
    dialled, accepted = pair()
    number, frames = dialled.send_request(Get(b"x"))
    accepted.receive(b"".join(frames))
    assert accepted.receive(b"".join(dialled.send_cancel(number))) == [Cancelled(number)]
    assert dialled.own_exchanges == 1
    dialled.receive(b"".join(accepted.send_reply(number, Fail("unavailable"))))
    assert dialled.own_exchanges == 0
    assert dialled.send_cancel(number) == []


def test_bulky_message_travels_as_payload() -> None:
    dialled, accepted = pair()
    number, frames = dialled.send_request(GetHeads(GroupId(bytes(32))))
    accepted.receive(b"".join(frames))
    heads = Heads((b"s" * 100_000,), (b"h" * 4000,) * 30)
    events = dialled.receive(b"".join(accepted.send_reply(number, heads)))
    assert events == [ReplyReceived(number, heads, b"", True)]


@pytest.mark.parametrize("size", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, MAX_PAYLOAD])
def test_payload_of_any_allowed_size_arrives(size: int) -> None:
    dialled, accepted = pair()
    number, frames = dialled.send_request(Get(b"x"))
    accepted.receive(b"".join(frames))
    payload = random.Random(size).randbytes(size)
    raw = b"".join(accepted.send_reply(number, BLOCK, payload, final=False))
    assert dialled.receive(raw * 2) == [ReplyReceived(number, BLOCK, payload, False)] * 2


def test_byte_by_byte_is_the_same_as_at_once() -> None:
    dialled, accepted = pair()
    accepted.allow_payload()
    number, frames = a_put(dialled)
    frames += dialled.send_more(number, PutBlock(3), b"block" * 20)
    frames += dialled.send_cancel(number)
    raw = b"".join(frames)
    twin = greeted()
    assert [e for i in range(len(raw)) for e in twin.receive(raw[i : i + 1])] == accepted.receive(
        raw
    )


@given(st.lists(st.integers(1, 400_000), max_size=8), st.integers(0, 2**32))
def test_cuts_anywhere_change_nothing(cuts: list[int], seed: int) -> None:
    payload = random.Random(seed).randbytes(150_000)
    raw = b"".join(frame(PutBlock(i), payload[: i * 30_000], exchange=1) for i in range(1, 5))
    first = frame(encode_message_of_put(), b"", exchange=1)
    session = greeted()
    session.receive(first)
    expected = [MoreReceived(1, PutBlock(i), payload[: i * 30_000]) for i in range(1, 5)]
    events, at = [], 0
    for size in [*cuts, len(raw)]:
        events += session.receive(raw[at : at + size])
        at += size
    assert events == expected
    assert not session.is_mid_frame


def encode_message_of_put() -> bytes:
    return encode_message(Put(BundleId(bytes(32)), Tag(bytes(20)), b"", (), 5, 60))


def test_buffer_grows_with_what_came_not_with_what_was_announced() -> None:
    session = greeted()
    session.receive(struct.pack(">III", 10, MAX_PAYLOAD, 1))
    assert len(session.get_buffer()) <= BUFFER


def test_large_buffer_is_given_back() -> None:
    session = greeted()
    session.receive(frame(encode_message_of_put(), bytes(MAX_PAYLOAD), exchange=1))
    session.shrink()
    assert len(session.get_buffer()) == FIRST_BUFFER


LIST = encode_message_of_put()
PING = encode_message(Ping())

VIOLATIONS = {
    "long header": struct.pack(">III", MAX_HEADER + 1, 0, 1),
    "long payload": struct.pack(">III", 1, MAX_PAYLOAD + 1, 1),
    "unknown flag": frame(Ping(), exchange=1, flags=4),
    "second hello": frame(HELLO),
    "message of exchange 0": frame(Ping()),
    "payload of exchange 0": frame(Fail("busy"), b"x"),
    "answer to nothing": frame(Pong(), exchange=2, flags=FINAL),
    "question marked final": frame(Ping(), exchange=1, flags=FINAL),
    "reply as request": frame(Pong(), exchange=1),
    "more as request": frame(PUT_END, exchange=1),
    "cancel of nothing": frame(b"", exchange=1, flags=CANCEL),
    "cancel with header": frame(Ping(), exchange=1, flags=CANCEL),
    "second message": frame(Have(), exchange=1) + frame(PUT_END, exchange=1),
    "request within an exchange": frame(LIST, exchange=1) + frame(Ping(), exchange=1),
    "no message": frame(b"\xc1", exchange=1),
    "empty header": frame(b"", exchange=1),
    "unknown number": frame(b"\x91\x7f", exchange=1),
    "junk behind a message": frame(PING + b"\0", exchange=1),
    "deep nesting": frame(b"\x91" * 60_000, exchange=1),
    "bulk of nothing": frame(b"\x91\x23", b"\x00", exchange=1),
    "bulk of a small message": frame(b"\x91\x23", PING, exchange=1),
    "too many": b"".join(frame(Ping(), exchange=2 * i + 1) for i in range(MAX_EXCHANGES + 1)),
}


@pytest.mark.parametrize("raw", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_violation_is_noticed(raw: bytes) -> None:
    session = greeted()
    with pytest.raises(RemoteProtocolError):
        session.receive(raw)
    with pytest.raises(RemoteProtocolError):
        session.receive(frame(Ping(), exchange=1001))


@pytest.mark.parametrize("first", [Ping(), HELLO], ids=["request", "hello in an exchange"])
def test_nothing_is_taken_before_hello(first: Message) -> None:
    session = Session(Side.ACCEPTED)
    with pytest.raises(RemoteProtocolError):
        session.receive(frame(first, exchange=1))


def test_first_frame_may_be_a_failure() -> None:
    session = Session(Side.DIALLED)
    assert session.receive(frame(Fail("busy"))) == [PeerFailed(Fail("busy"))]


def test_strangers_payload_is_refused_at_its_announcement() -> None:
    session = Session(Side.ACCEPTED)
    assert session.receive(frame(HELLO)) == [HelloReceived(HELLO)]
    with pytest.raises(RemoteProtocolError):
        session.receive(struct.pack(">III", 10, 1, 1))


def test_asking_before_hello_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        Session(Side.DIALLED).send_request(Ping())


def test_asker_stays_below_the_limit_of_the_peer() -> None:
    dialled, _ = pair()
    for _ in range(MAX_EXCHANGES):
        dialled.send_request(Ping())
    assert not dialled.may_open
    with pytest.raises(LocalProtocolError):
        dialled.send_request(Ping())


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_second_final_reply_is_our_bug(payload: bytes) -> None:
    dialled, accepted = pair()
    number, frames = dialled.send_request(Ping())
    accepted.receive(b"".join(frames))
    accepted.send_reply(number, Ok())
    with pytest.raises(LocalProtocolError):
        accepted.send_reply(number, Ok(), payload)


def test_too_long_payload_is_our_bug() -> None:
    session = greeted()
    session.receive(frame(Get(b"x"), exchange=1))
    with pytest.raises(LocalProtocolError):
        session.send_reply(1, BLOCK, bytes(MAX_PAYLOAD + 1))


def test_end_within_a_frame_is_a_violation() -> None:
    session = greeted()
    session.receive_end()
    session.receive(frame(Ping(), exchange=1)[:-1])
    with pytest.raises(RemoteProtocolError):
        session.receive_end()


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_else(raw: bytes) -> None:
    for session in (greeted(), Session(Side.DIALLED)):
        try:
            session.receive(raw)
        except RemoteProtocolError:
            continue


@given(st.data())
def test_flipped_bits_raise_nothing_else(draw: st.DataObject) -> None:
    raw = bytearray(frame(LIST, b"list", exchange=1) + frame(Get(b"xyz"), exchange=3))
    for _ in range(draw.draw(st.integers(1, 4))):
        raw[draw.draw(st.integers(0, len(raw) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    session = greeted()
    try:
        session.receive(bytes(raw))
    except RemoteProtocolError:
        return
