"""The messages that nodes exchange over a link. This docstring and the classes are the spec.

A message is a MessagePack array: its number, then its fields in the order of the class. Numbers and
the order of fields never change; new fields are appended with a default, and a reader skips fields
that it does not know. Raw bytes of blocks and lists travel as the frame's payload behind it (see
`session`). Times are milliseconds since 1970, sizes are bytes.

Requests open an exchange, replies answer it, the last reply is final; PUT and JOIN have further
messages of the asker inside one exchange:

    PING -> PONG                            GET_PEERS -> PEERS
    JOIN step 1 -> JOIN_NONCE, JOIN step 2 -> WELCOME          (see `invite`)
    GET_HEADS -> HEADS                      PUT_HEADS -> HEADS_KEPT
    GET -> BLOCK_REPLY + payload, any number, then GET_DONE
    HAVE -> HAVE_REPLY                      HOLDINGS -> HOLDINGS_PAGE
    PUT + payload -> PUT_READY, then PUT_BLOCK + payload, any number and unanswered,
        PUT_END -> RECEIPT
    CHALLENGE -> PROOF | STALE              LOCK -> LOCKED | STALE
    UNLOCK, RELEASE, MOVE -> OK             LIVE_MAP_UPDATE -> OK | STALE
    RENEW -> RENEWED                        GET_LIST -> BLOCK_LIST + payload
    TUNNEL_TO -> TUNNEL_DATA, then TUNNEL_DATA + payload, any number both ways, until OK
    REACH -> REACHED

FAIL may answer any request. HELLO is the first frame of each side and never comes again.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from p2pstore.ids import (
    BlockId,
    BundleId,
    Bytes32,
    FolderId,
    GroupId,
    NodeId,
    PublicKey,
    Tag,
)
from p2pstore.wire.claims import MAX_RECEIPT, MAX_SIGNED_GET, MAX_WANTED, Chain, Seq, Size
from p2pstore.wire.record import MAX_RECORD, Host, Milliseconds, Name, NetworkName

VERSIONS = (1,)  # protocol versions that this program speaks
MAX_VERSIONS = 32
MAX_FRIEND_CHAINS = 8  # groups whose friend a node says it is in one HELLO, within a control frame
MAX_PEERS = 50  # records of <= 1,000 B in a control frame
MAX_BITMAP = 16_384 // 8  # one bit for each block of a full bundle
MAX_LIVE_MAP = 8 * 1024  # bitmap, signature and chain
MAX_GRANTS = 16
MAX_GRANT = 2048  # 16 of them and a live map stay below a control frame
MAX_HOPS = 3  # beyond that a forwarded GET costs the network more than a look-up
MAX_STATES = 8  # newest group state of each generation
MAX_STATE = 512 * 1024
MAX_HEADS = 512
MAX_HEAD = 8 * 1024  # a sealed manifest (4 KiB), a chain and a signature
MAX_HOLDINGS = 400  # about 130 B each, within a control frame
MAX_TEXT = 300  # a sentence
MAX_LEASE_S = 400 * 86_400

Blob: TypeAlias = bytes  # `bytes` is also the name of a field below
Record = Annotated[Blob, Meta(max_length=MAX_RECORD)]
LiveMapBytes = Annotated[Blob, Meta(max_length=MAX_LIVE_MAP)]
StateBytes = Annotated[Blob, Meta(max_length=MAX_STATE)]
HeadBytes = Annotated[Blob, Meta(max_length=MAX_HEAD)]
Heads_ = Annotated[tuple[HeadBytes, ...], Meta(max_length=MAX_HEADS)]
Index = Annotated[int, Meta(ge=0, lt=16_384)]
LeaseSeconds = Annotated[int, Meta(ge=0, le=MAX_LEASE_S)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
FailCode = Literal["unavailable", "integrity", "refused", "busy", "unknown", "no-room", "protocol"]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages; each has its own number as tag."""


class Hello(Message, frozen=True, tag=1):
    """The first frame of both sides: which network, which protocol versions, who.

    `public_key` must be the key that TLS proved. `chain` is the credential for the node's own group
    `group` (that group's public key), `friend_chains` those that other groups gave it as a friend;
    without a valid one it is a stranger. `record` is its signed address record.
    """

    network: NetworkName
    versions: Annotated[tuple[int, ...], Meta(min_length=1, max_length=MAX_VERSIONS)]
    public_key: PublicKey
    chain: Chain = b""
    friend_chains: Annotated[tuple[Chain, ...], Meta(max_length=MAX_FRIEND_CHAINS)] = ()
    name: Name = ""
    record: Record | None = None
    group: PublicKey | None = None


class Ping(Message, frozen=True, tag=2):
    """Are you there? Answered by the link itself."""


class Pong(Message, frozen=True, tag=3):
    """Yes."""


class GetPeers(Message, frozen=True, tag=4):
    """Which nodes of the network do you know?"""


class Peers(Message, frozen=True, tag=5):
    """Signed peer records, the liveliest first."""

    records: Annotated[tuple[Record, ...], Meta(max_length=MAX_PEERS)]


class Join(Message, frozen=True, tag=6):
    """Let me in: step 1 brings the joiner's nonce, step 2 its proof (see `invite`).

    Both steps carry the same key, nonce, name and role; `mac` is zeros in step 1.
    """

    public_key: PublicKey
    nonce: Bytes32
    mac: Bytes32
    name: Name
    role: Literal["device", "friend"]
    step: Literal[1, 2]


class JoinNonce(Message, frozen=True, tag=7):
    """The inviter's nonce, in answer to step 1."""

    nonce: Bytes32


class Welcome(Message, frozen=True, tag=8):
    """The inviter's proof, and what the joiner becomes.

    `chain` is the joiner's certificate chain, `group` the public key it leads to. `state` is the
    encoded group state, which holds the secrets sealed to a new device (a friend gets none inside).
    `records` are addresses of nodes of the group, `name` is the inviter's.
    """

    mac: Bytes32
    chain: Chain
    group: PublicKey
    state: StateBytes = b""
    name: Name = ""
    records: Annotated[tuple[Record, ...], Meta(max_length=MAX_PEERS)] = ()


class GetHeads(Message, frozen=True, tag=9):
    """Which group states and folder heads of this group do you keep?"""

    group: GroupId


class Heads(Message, frozen=True, tag=10):
    """The newest group state of each generation, and the newest head of each folder and device."""

    states: Annotated[tuple[StateBytes, ...], Meta(max_length=MAX_STATES)]
    heads: Heads_


class PutHeads(Message, frozen=True, tag=11):
    """Keep these, where they are newer than what you have."""

    group: GroupId
    state: StateBytes | None
    heads: Heads_


class HeadsKept(Message, frozen=True, tag=12):
    """What the holder has now: (generation, seq) of the state, (folder, device, incarnation, seq)
    of each head. Sent only after it is durable."""

    generation: Count
    seq: Seq
    heads: Annotated[tuple[tuple[FolderId, NodeId, Count, Seq], ...], Meta(max_length=MAX_HEADS)]


class Get(Message, frozen=True, tag=13):
    """Send blocks. `request` is an encoded SignedGet, `hops` how often it was forwarded."""

    request: Annotated[Blob, Meta(max_length=MAX_SIGNED_GET)]
    hops: Annotated[int, Meta(ge=0, le=MAX_HOPS)] = 0


class BlockReply(Message, frozen=True, tag=14):
    """One block; its sealed bytes are the payload. Blocks come in any order."""

    block_id: BlockId


class GetDone(Message, frozen=True, tag=15):
    """All that could be sent was sent; these were not found."""

    missing: Annotated[tuple[BlockId, ...], Meta(max_length=MAX_WANTED)] = ()


class Have(Message, frozen=True, tag=16):
    """Which of these bundles do you hold, asked by tag or by id?"""

    tags: Annotated[tuple[Tag, ...], Meta(max_length=MAX_WANTED)] = ()
    bundles: Annotated[tuple[BundleId, ...], Meta(max_length=MAX_WANTED)] = ()


class HaveReply(Message, frozen=True, tag=17):
    """In the order of the question: held or not; and the live map's seq, or None when not held."""

    tags: Annotated[tuple[bool, ...], Meta(max_length=MAX_WANTED)] = ()
    bundles: Annotated[tuple[Seq | None, ...], Meta(max_length=MAX_WANTED)] = ()


class Put(Message, frozen=True, tag=18):
    """Keep this bundle. The payload is the signed block list (content.signed_list).

    `live_map` is an encoded SignedLiveMap, `bytes` the sealed bytes that its live blocks have,
    `grants` signed grants of shares, `lease_s` how long the owner asks for.
    """

    bundle: BundleId
    tag: Tag
    live_map: LiveMapBytes
    grants: Annotated[
        tuple[Annotated[Blob, Meta(max_length=MAX_GRANT)], ...], Meta(max_length=MAX_GRANTS)
    ]
    bytes: Size
    lease_s: LeaseSeconds


class PutReady(Message, frozen=True, tag=19):
    """The holder has room and says what it still wants: bit i (LSB first) = block i."""

    missing: Annotated[Blob, Meta(max_length=MAX_BITMAP)]


class PutBlock(Message, frozen=True, tag=20):
    """One wanted block as payload, by its index in the list. Not answered; many in flight."""

    index: Index


class PutEnd(Message, frozen=True, tag=21):
    """All wanted blocks were sent: prove with this nonce, sign the receipt."""

    nonce: Bytes32


class Receipt(Message, frozen=True, tag=22):
    """`raw` is an encoded signed ReceiptBody; sent only after the bytes are durable."""

    raw: Annotated[Blob, Meta(max_length=MAX_RECEIPT)]


class Challenge(Message, frozen=True, tag=23):
    """Prove that you hold all live blocks of the bundle under the live map `seq`."""

    bundle: BundleId
    seq: Seq
    nonce: Bytes32


class Proof(Message, frozen=True, tag=24):
    """content.Prover's digest for that nonce; both node ids are those of the TLS session."""

    proof: Bytes32


class Stale(Message, frozen=True, tag=25):
    """The live map here has another seq: this one. Not a lie, and not a proof."""

    seq: Seq


class Lock(Message, frozen=True, tag=26):
    """Promise not to drop the bundle for `lease_s` seconds (at most what the holder grants)."""

    bundle: BundleId
    seq: Seq
    lease_s: LeaseSeconds


class Locked(Message, frozen=True, tag=27):
    """Locked for `seconds` from now; `until_ms` is the same by the holder's clock, for humans."""

    seconds: LeaseSeconds
    until_ms: Milliseconds = 0


class Unlock(Message, frozen=True, tag=28):
    """The lock is no longer needed."""

    bundle: BundleId


class Ok(Message, frozen=True, tag=29):
    """Done, durably."""


class Release(Message, frozen=True, tag=30):
    """Put the bundle into the trash for 7 days. Only from its opener or an admin."""

    bundle: BundleId


class LiveMapUpdate(Message, frozen=True, tag=31):
    """Fewer blocks are live: an encoded SignedLiveMap with a higher seq."""

    live_map: LiveMapBytes


class Holdings(Message, frozen=True, tag=32):
    """Which bundles of this group do you hold? Pages in order of the id, behind `after`."""

    group: GroupId
    after: BundleId | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_HOLDINGS)] = MAX_HOLDINGS


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """One held bundle, as HOLDINGS_PAGE lists it; `kind` as in content.Kind."""

    bundle: BundleId
    tag: Tag
    kind: int
    opener: PublicKey
    seq: Seq
    bytes: Size
    lease_until_ms: Milliseconds


class HoldingsPage(Message, frozen=True, tag=33):
    """`more`: ask again behind the last one."""

    items: Annotated[tuple[Holding, ...], Meta(max_length=MAX_HOLDINGS)]
    more: bool


class Fail(Message, frozen=True, tag=34):
    """The request failed (`code` for programs, `text` one sentence for humans); final.

    As a frame of exchange 0 it says why the sender closes the connection.
    """

    code: FailCode
    text: Annotated[str, Meta(max_length=MAX_TEXT)] = ""


class Bulk(Message, frozen=True, tag=35):
    """The message itself is the payload: one of `BULKY` that is longer than a control frame."""


class Renew(Message, frozen=True, tag=36):
    """Keep these bundles for `lease_s` seconds from now: all that one owner has here, in bulk.

    A lease is only ever made longer. Any device of the group may ask.
    """

    bundles: Annotated[tuple[BundleId, ...], Meta(max_length=MAX_WANTED)]
    lease_s: LeaseSeconds


class Renewed(Message, frozen=True, tag=37):
    """Each bundle with a seq is promised for at least `seconds` from now, durably.

    `seqs` are the seqs of the live maps here, in the order of the question; None for a bundle that
    is not held, was released, or is just being removed: nothing is promised of it.
    """

    seconds: LeaseSeconds
    seqs: Annotated[tuple[Seq | None, ...], Meta(max_length=MAX_WANTED)]


class Move(Message, frozen=True, tag=38):
    """From a holder to a device of the owner's group: give these to others, then RELEASE them.

    No `bundles` means all that the asker holds of that group, which "leaving" always does; "room"
    names those that it would like to be rid of first. OK: it was noted, and is done in its own
    time; until the RELEASE the holder keeps and serves them. Asked again, FAIL says that it does
    not go on at present, or ("no-room") that the owner has no other device. A holder that no
    longer leaves says so with "staying", and counts again when it has proved its copies.
    """

    bundles: Annotated[tuple[BundleId, ...], Meta(max_length=MAX_WANTED)]
    why: Literal["leaving", "room", "staying"]


class TunnelTo(Message, frozen=True, tag=39):
    """Carry bytes between me and that node, to which you have a link.

    With the id of the node that is asked: somebody to whom the asker has a link wants to speak to
    you, through the asker. The first answer is an empty TUNNEL_DATA; then the end that began is a
    TLS client and the other one a TLS server, as over TCP; the node between sees sealed bytes only.
    """

    node: NodeId


class TunnelData(Message, frozen=True, tag=40):
    """The payload is the next piece of the stream in that direction, of at most 64 KiB.

    `taken`: so many bytes of the other direction were taken from the tunnel since this was last
    said. A sender is never more than 1 MiB ahead of what was taken: so a slow end stops its sender,
    not the links between. `end`: no more bytes in this direction.
    """

    taken: Annotated[int, Meta(ge=0, le=2**30)] = 0
    end: bool = False


class GetList(Message, frozen=True, tag=41):
    """Which blocks does the bundle have? Who dropped its own copy needs this to have it again."""

    bundle: BundleId


class BlockList(Message, frozen=True, tag=42):
    """The payload is the signed block list, as PUT brought it (content.signed_list).

    `live_map` is the encoded SignedLiveMap that holds here, or empty while all blocks are live.
    """

    live_map: LiveMapBytes = b""


class Reach(Message, frozen=True, tag=43):
    """Can you connect to me? Dial the address that this link comes from, at this port, now.

    Nobody is asked to dial an address that did not connect: the port is the asker's only choice.
    """

    port: Annotated[int, Meta(ge=1, le=65535)]


class Reached(Message, frozen=True, tag=44):
    """Whether the asker's key was found there; `host` is the address that its link comes from."""

    host: Host
    is_reached: bool
    why: Annotated[str, Meta(max_length=MAX_TEXT)] = ""


Request_: TypeAlias = (
    Ping | GetPeers | Join | GetHeads | PutHeads | Get | Have | Put | Challenge | Lock | Unlock
    | Release | LiveMapUpdate | Holdings | Renew | Move | GetList | TunnelTo | Reach
)  # fmt: skip
More: TypeAlias = PutBlock | PutEnd | Join | TunnelData
Reply: TypeAlias = (
    Pong | Peers | JoinNonce | Welcome | Heads | HeadsKept | BlockReply | GetDone | HaveReply
    | PutReady | Receipt | Proof | Stale | Locked | Ok | HoldingsPage | Fail | Renewed
    | BlockList | TunnelData | Reached
)  # fmt: skip
BULKY: TypeAlias = Heads | PutHeads | Welcome

REQUESTS: frozenset[type[Message]] = frozenset(Request_.__args__)
LONG: frozenset[type[Message]] = frozenset(
    {Put, Join, TunnelTo}
)  # whose asker sends further messages
MORE: frozenset[type[Message]] = frozenset(More.__args__)
REPLIES: frozenset[type[Message]] = frozenset(Reply.__args__)
BULKY_TYPES: frozenset[type[Message]] = frozenset(BULKY.__args__)

_decoder = msgspec.msgpack.Decoder(
    Hello | PutBlock | PutEnd | Bulk | Request_ | Reply  # every message
)
_bulky = msgspec.msgpack.Decoder(BULKY)
_encoder = msgspec.msgpack.Encoder()


def encode_message(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_message(raw: bytes | memoryview) -> Message:
    """The message; msgspec.DecodeError, RecursionError or UnicodeDecodeError when it is none."""
    message: Message = _decoder.decode(raw)
    return message


def decode_bulky(raw: bytes | memoryview) -> Message:
    message: Message = _bulky.decode(raw)
    return message
