"""What this node stores for the network: claims under tags, and address records of nodes.

Hides the limits. Strangers may fill what they may fill and no more, and what they fill never
pushes out somebody we have a relation with:

- 64 providers a tag, of them 8 from one subnet of the internet;
- 1,000 tags a stranger, 200,000 a related node, 1,000,000 in all: then the oldest claims of
  strangers go first;
- a node's newest word wins: a claim or record that was issued earlier than the one that we hold
  changes nothing, however often it is sent (I8);
- everything ends: claims at their own expiry, at most 24 h after they were issued, records 24 h
  after they were issued.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

from p2pstore.dht.claim import LIFETIME_MS, SKEW_MS, Claim
from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import NodeId, PublicKey
from p2pstore.wire import PeerRecord, verify_record

MAX_PROVIDERS = 64  # for one tag; nobody fetches from more at once
MAX_SUBNET = 8  # of them from one /24 or /48: many identities in one place are one liar
STRANGER_KEYS = 1_000
RELATED_KEYS = 200_000
TOTAL_KEYS = 1_000_000  # about 250 MB at the very worst
MAX_RECORDS = 20_000  # 20 MB
KEYS_A_CLAIM = 8  # a publisher's claims may on average be that empty, not emptier


class _Batch:
    """A claim on the shelf; it stays while any of its tags still points to it."""

    __slots__ = ("claim", "live", "provider", "related", "subnet")

    def __init__(self, claim: Claim, provider: NodeId, subnet: bytes | None, related: bool) -> None:
        self.claim = claim
        self.provider = provider
        self.subnet = subnet
        self.related = related
        self.live = 0


class ProviderShelf:
    def __init__(
        self,
        *,
        stranger_keys: int = STRANGER_KEYS,
        related_keys: int = RELATED_KEYS,
        total_keys: int = TOTAL_KEYS,
    ) -> None:
        self._limits = {False: stranger_keys, True: related_keys}
        self._total = total_keys
        self._by_key: dict[bytes, tuple[_Batch, ...]] = {}
        self._batches: dict[bool, OrderedDict[_Batch, None]] = {
            False: OrderedDict(),
            True: OrderedDict(),
        }
        self._keys_of: Counter[NodeId] = Counter()
        self._claims_of: Counter[NodeId] = Counter()
        self._pairs = 0

    def __len__(self) -> int:
        """Pairs of tag and provider."""
        return self._pairs

    def add(self, claim: Claim, *, subnet: bytes | None, related: bool) -> int:
        """Shelve a verified claim; how many of its tags now rest on it, or on a newer one."""
        batch = _Batch(claim, claim.provider, subnet, related)
        provider = batch.provider
        if self._claims_of[provider] >= self._limits[related] // KEYS_A_CLAIM + 4:
            return 0
        accepted = 0
        for key in claim.keys:
            present = self._by_key.get(key, ())
            old = next((b for b in present if b.provider == provider), None)
            if old is not None:
                accepted += 1
                if old.claim.issued_ms >= claim.issued_ms:
                    continue
                self._remove(key, old)
            elif self._may_add(key, batch):
                accepted += 1
            else:
                continue
            self._insert(key, batch)
        return accepted

    def under(self, keys: Sequence[bytes], now_ms: int) -> list[Claim]:
        """Unexpired claims for any of the tags: those of related nodes first, each once."""
        found: dict[_Batch, None] = {}
        for key in keys:
            for batch in self._by_key.get(key, ()):
                if batch.claim.expires_ms > now_ms:
                    found[batch] = None
        return [b.claim for b in sorted(found, key=lambda b: not b.related)]

    def expire(self, now_ms: int) -> None:
        for batches in self._batches.values():
            for batch in [b for b in batches if b.claim.expires_ms <= now_ms]:
                self._drop(batch)

    def _may_add(self, key: bytes, batch: _Batch) -> bool:
        if self._keys_of[batch.provider] >= self._limits[batch.related]:
            return False
        present = self._by_key.get(key, ())
        if batch.subnet is not None and not batch.related:
            neighbours = sum(b.subnet == batch.subnet for b in present)
            if neighbours >= MAX_SUBNET:
                return False
        if len(present) >= MAX_PROVIDERS:
            stranger = next((b for b in present if not b.related), None)
            if not batch.related or stranger is None:
                return False
            self._remove(key, stranger)
        while self._pairs >= self._total:
            oldest = next((b for b in self._batches[False] if b is not batch), None)
            if oldest is None:
                return False
            self._drop(oldest)
        return True

    def _insert(self, key: bytes, batch: _Batch) -> None:
        self._by_key[key] = (*self._by_key.get(key, ()), batch)
        if batch.live == 0:
            self._batches[batch.related][batch] = None
            self._claims_of[batch.provider] += 1
        batch.live += 1
        self._keys_of[batch.provider] += 1
        self._pairs += 1

    def _remove(self, key: bytes, batch: _Batch) -> None:
        rest = tuple(b for b in self._by_key[key] if b is not batch)
        if rest:
            self._by_key[key] = rest
        else:
            del self._by_key[key]
        self._pairs -= 1
        self._keys_of[batch.provider] -= 1
        if not self._keys_of[batch.provider]:
            del self._keys_of[batch.provider]
        batch.live -= 1
        if batch.live == 0:
            del self._batches[batch.related][batch]
            self._claims_of[batch.provider] -= 1
            if not self._claims_of[batch.provider]:
                del self._claims_of[batch.provider]

    def _drop(self, batch: _Batch) -> None:
        for key in batch.claim.keys:
            if batch in self._by_key.get(key, ()):
                self._remove(key, batch)


class RecordShelf:
    """The newest address record of each node that told us one."""

    def __init__(self, network: str, related: Callable[[NodeId], bool]) -> None:
        self._network = network
        self._related = related
        self._records: OrderedDict[NodeId, tuple[PeerRecord, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, raw: bytes, now_ms: int, signer: PublicKey | None = None) -> PeerRecord:
        """Verify and keep; the newest record of that node, which may be another one.

        FormatError or IntegrityError for one that is forged, not of `signer` (when given), of
        another network, from the future or older than a day.
        """
        record = verify_record(raw)
        if signer is not None and record.public_key != signer:
            raise IntegrityError("record signer")
        if record.network != self._network:
            raise IntegrityError("record network")
        if record.issued_ms > now_ms + SKEW_MS or record.issued_ms + LIFETIME_MS <= now_ms:
            raise IntegrityError("record time")
        node_id = record.node_id
        known = self._records.get(node_id)
        if known is not None and known[0].issued_ms >= record.issued_ms:
            return known[0]
        self._records.pop(node_id, None)
        self._records[node_id] = (record, raw)
        if len(self._records) > MAX_RECORDS:
            strangers = (n for n in self._records if not self._related(n))
            del self._records[next(strangers, next(iter(self._records)))]
        return record

    def try_add(
        self, raw: bytes, now_ms: int, among: Collection[NodeId] | None = None
    ) -> PeerRecord | None:
        """As `add`; None for a bad record, or one of a node that is not `among` those wanted."""
        try:
            if among is not None and verify_record(raw).node_id not in among:
                return None
            return self.add(raw, now_ms)
        except (FormatError, IntegrityError):
            return None

    def get(self, node_id: NodeId, now_ms: int) -> PeerRecord | None:
        known = self._records.get(node_id)
        return None if known is None or _dead(known[0], now_ms) else known[0]

    def raw(self, node_id: NodeId, now_ms: int) -> bytes | None:
        known = self._records.get(node_id)
        return None if known is None or _dead(known[0], now_ms) else known[1]

    def expire(self, now_ms: int) -> None:
        for node_id in [n for n, (r, _) in self._records.items() if _dead(r, now_ms)]:
            del self._records[node_id]

    def newest(self, limit: int) -> Iterable[bytes]:
        return [raw for _, raw in list(self._records.values())[-limit:]]


def _dead(record: PeerRecord, now_ms: int) -> bool:
    return record.issued_ms + LIFETIME_MS <= now_ms
