from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from p2pstore.dht.claim import (
    CLAIM_KEYS,
    LIFETIME_MS,
    SKEW_MS,
    check_signature,
    check_times,
    make_claim,
    prove,
    proven_root,
    root_of,
    split_keys,
)
from p2pstore.errors import FormatError, IntegrityError

VECTORS = Path(__file__).parents[1] / "vectors" / "dht"
KEY = SigningKey(bytes(range(32)))
NOW = 1_800_000_000_000


def leaves(count: int) -> list[bytes]:
    return [i.to_bytes(20, "big") for i in range(count)]


@given(
    st.integers(1, CLAIM_KEYS).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))
    )
)
def test_any_subset_of_the_tags_can_be_proven(case: tuple[int, set[int]]) -> None:
    count, wanted = case
    keys = leaves(count)
    hashes = prove(keys, sorted(wanted))
    assert proven_root(count, {i: keys[i] for i in wanted}, hashes) == root_of(keys)


def test_a_proof_is_good_for_no_other_tag_or_place() -> None:
    keys = leaves(7)
    hashes = prove(keys, [3])
    assert proven_root(7, {3: b"x" * 20}, hashes) != root_of(keys)
    assert proven_root(7, {2: keys[3]}, hashes) != root_of(keys)


def test_proofs_that_do_not_fit_are_refused() -> None:
    keys = leaves(7)
    hashes = prove(keys, [3])
    cases = [
        (7, {3: keys[3]}, hashes[:-1]),
        (7, {3: keys[3]}, hashes + b"x"),
        (7, {7: keys[3]}, hashes),
        (7, {-1: keys[3]}, hashes),
        (0, {0: keys[3]}, b""),
        (CLAIM_KEYS + 1, {0: keys[3]}, b""),
        (7, {}, hashes),
    ]
    for count, known, proof in cases:
        with pytest.raises(FormatError):
            proven_root(count, known, proof)


def test_each_field_is_signed() -> None:
    claim = make_claim(KEY, "main", leaves(3), NOW, NOW + 1000)
    root = root_of(claim.keys)
    check_signature("main", claim, 3, root)
    wrong = [
        ("other", claim, 3, root),
        ("main", claim._replace(issued_ms=NOW + 1), 3, root),
        ("main", claim._replace(expires_ms=NOW + 2000), 3, root),
        ("main", claim, 2, root),
        ("main", claim, 3, bytes(20)),
        ("main", claim._replace(public_key=bytes(32)), 3, root),
    ]
    for arguments in wrong:
        with pytest.raises(IntegrityError):
            check_signature(*arguments)


@pytest.mark.parametrize(
    ("issued", "expires"),
    [
        (NOW, NOW),
        (NOW, NOW + LIFETIME_MS + 1),
        (NOW + SKEW_MS + 1, NOW + SKEW_MS + 2),
        (NOW - LIFETIME_MS, NOW - 1),
    ],
)
def test_claims_out_of_their_time(issued: int, expires: int) -> None:
    check_times(NOW, NOW + LIFETIME_MS, NOW)
    with pytest.raises(IntegrityError):
        check_times(issued, expires, NOW)


def test_keys_are_ascending_and_few() -> None:
    assert split_keys(b"".join(leaves(CLAIM_KEYS))) == tuple(leaves(CLAIM_KEYS))
    for wrong in (
        b"",
        b"x" * 19,
        b"x" * 40,
        b"".join(reversed(leaves(2))),
        b"".join(leaves(CLAIM_KEYS + 1)),
    ):
        with pytest.raises(FormatError):
            split_keys(wrong)


def test_golden_claim() -> None:
    golden = json.loads((VECTORS / "claim-1.json").read_text())
    claim = make_claim(KEY, "main", leaves(5), NOW, NOW + LIFETIME_MS)
    assert root_of(claim.keys).hex() == golden["root"]
    assert claim.signature.hex() == golden["signature"]
    assert prove(claim.keys, [1, 4]).hex() == golden["proof_of_1_and_4"]


def test_roots_differ_for_any_two_sets() -> None:
    roots = [root_of(leaves(n)) for n in range(1, CLAIM_KEYS + 1)]
    assert all(a != b for a, b in itertools.combinations(roots, 2))
