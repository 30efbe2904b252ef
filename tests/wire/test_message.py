"""Every message keeps its bytes for ever: tests/vectors/wire/messages.json is only appended to."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from p2pstore.ids import BlockId, BundleId, FolderId, GroupId, NodeId, PublicKey, Tag
from p2pstore.wire import message as m
from p2pstore.wire.claims import MAX_WANTED
from p2pstore.wire.session import MAX_HEADER

VECTORS = Path(__file__).parent.parent / "vectors" / "wire" / "messages.json"

KEY = PublicKey(b"K" * 32)
GROUP = GroupId(b"G" * 32)
BUNDLE = BundleId(b"B" * 32)
BLOCK = BlockId(b"b" * 32)
TAG = Tag(b"T" * 20)
NODE = NodeId(b"N" * 20)
FOLDER = FolderId(b"F" * 16)
NONCE = b"n" * 32

SAMPLES: tuple[m.Message, ...] = (
    m.Hello("main", (1,), KEY, b"chain", (b"friend",), "laptop", b"record", KEY),
    m.Ping(),
    m.Pong(),
    m.GetPeers(),
    m.Peers((b"one", b"two")),
    m.Join(KEY, NONCE, bytes(32), "phone", "device", 1),
    m.JoinNonce(NONCE),
    m.Welcome(NONCE, b"chain", KEY, b"state", "laptop", (b"record",)),
    m.GetHeads(GROUP),
    m.Heads((b"state",), (b"head", b"head2")),
    m.PutHeads(GROUP, b"state", (b"head",)),
    m.HeadsKept(1, 2, ((FOLDER, NODE, 3, 4),)),
    m.Get(b"signed", 2),
    m.BlockReply(BLOCK),
    m.GetDone((BLOCK,)),
    m.Have((TAG,), (BUNDLE,)),
    m.HaveReply((True,), (None, 7)),
    m.Put(BUNDLE, TAG, b"map", (b"grant",), 16_000_000, 86_400),
    m.PutReady(b"\xff\x01"),
    m.PutBlock(16_383),
    m.PutEnd(NONCE),
    m.Receipt(b"receipt"),
    m.Challenge(BUNDLE, 3, NONCE),
    m.Proof(NONCE),
    m.Stale(4),
    m.Lock(BUNDLE, 3, 600),
    m.Locked(600, 1_800_000_000_000),
    m.Unlock(BUNDLE),
    m.Ok(),
    m.Release(BUNDLE),
    m.LiveMapUpdate(b"map"),
    m.Holdings(GROUP, BUNDLE, 100),
    m.HoldingsPage((m.Holding(BUNDLE, TAG, 1, KEY, 2, 3, 4),), True),
    m.Fail("no-room", "The offer is used up."),
    m.Bulk(),
    m.Renew((BUNDLE,), 15_552_000),
    m.Renewed(15_552_000, (None, 7)),
    m.Move((BUNDLE,), "leaving"),
    m.GetList(BUNDLE),
    m.BlockList(b"map"),
    m.TunnelTo(NODE),
    m.TunnelData(262_144, True),
    m.Reach(8080),
    m.Reached("192.0.2.7", False, "No answer."),
)


def test_every_message_has_a_sample() -> None:
    assert {type(sample) for sample in SAMPLES} == set(m.Message.__subclasses__())


def test_numbers_are_distinct() -> None:
    numbers = [kind.__struct_config__.tag for kind in m.Message.__subclasses__()]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_message_has_its_golden_bytes(sample: m.Message) -> None:
    golden = json.loads(VECTORS.read_text())[type(sample).__name__]
    assert m.encode_message(sample).hex() == golden
    assert m.decode_message(bytes.fromhex(golden)) == sample


def test_fields_that_we_do_not_know_are_skipped() -> None:
    raw = msgspec.msgpack.encode([26, BUNDLE, 3, 600, "new field", {"and": "more"}])
    assert m.decode_message(raw) == m.Lock(BUNDLE, 3, 600)


@pytest.mark.parametrize(
    "raw",
    [
        [9, b"short"],
        [9, b"G" * 33],
        [13, b"x", m.MAX_HOPS + 1],
        [13, b"x", -1],
        [20, 16_384],
        [34, "other code", ""],
        [15, [b"b" * 32] * (MAX_WANTED + 1)],
        [1, "", [1], b"K" * 32],
        [1, "main", [], b"K" * 32],
        [32, b"G" * 32, None, m.MAX_HOLDINGS + 1],
        [36, [b"B" * 32] * (MAX_WANTED + 1), 1],
        [36, [b"B" * 32], m.MAX_LEASE_S + 1],
        [37, 1, [-1]],
        [38, [b"B" * 32] * (MAX_WANTED + 1), "room"],
        [38, [], "bored"],
        [39, b"N" * 19],
        [40, -1],
        [40, 2**30 + 1],
        [43, 0],
        [43, 65_536],
    ],
)
def test_values_beyond_their_limits_are_refused(raw: list[object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        m.decode_message(msgspec.msgpack.encode(raw))


def test_longest_lists_fit_a_control_frame() -> None:
    blocks = (BLOCK,) * MAX_WANTED
    holding = m.Holding(BUNDLE, TAG, 255, KEY, 2**53, 2**53, 2**53)
    longest = (
        m.GetDone(blocks),
        m.Have((TAG,) * MAX_WANTED, (BUNDLE,) * MAX_WANTED),
        m.Renew((BUNDLE,) * MAX_WANTED, m.MAX_LEASE_S),
        m.Renewed(m.MAX_LEASE_S, (2**53,) * MAX_WANTED),
        m.Move((BUNDLE,) * MAX_WANTED, "leaving"),
        m.HoldingsPage((holding,) * m.MAX_HOLDINGS, True),
        m.Peers((b"r" * 1000,) * m.MAX_PEERS),
        m.Put(
            BUNDLE, TAG, b"m" * m.MAX_LIVE_MAP, (b"g" * m.MAX_GRANT,) * m.MAX_GRANTS, 1, 1
        ),
        m.HeadsKept(2**53, 2**53, ((FOLDER, NODE, 2**53, 2**53),) * m.MAX_HEADS),
        m.Hello("n" * 64, (1,), KEY, b"c" * 4096, (b"c" * 4096,) * 8, "n" * 64, b"r" * 1000, KEY),
    )  # fmt: skip
    for message in longest:
        assert len(m.encode_message(message)) <= MAX_HEADER, type(message).__name__
