from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, IntegrityError, UsageError
from p2pstore.ids import PublicKey
from p2pstore.keys import (
    MAX_CHAIN,
    Certificate,
    Role,
    encode_chain,
    issue,
    public_key_of,
    split_chain,
    verify_chain,
)
from p2pstore.keys.certificate import CONTEXT, revoke, verify_revocation
from p2pstore.keys.signed import encode, sign

GROUP_KEY, ADMIN_KEY, DEVICE_KEY, OTHER_KEY = (SigningKey(bytes([n]) * 32) for n in range(1, 5))
GROUP, ADMIN, DEVICE, OTHER = map(public_key_of, (GROUP_KEY, ADMIN_KEY, DEVICE_KEY, OTHER_KEY))


def certificate(
    issuer: SigningKey, subject: PublicKey, role: str, group: PublicKey = GROUP
) -> bytes:
    return issue(issuer, group=group, subject=subject, role=role, name="x", now_ms=1)


def forged(issuer: SigningKey, subject: PublicKey, role: str) -> bytes:
    """What `issue` refuses to make."""
    fields = (GROUP, subject, role, "x", 1, public_key_of(issuer))
    return sign(CONTEXT, encode(fields), issuer)


UPPER = certificate(GROUP_KEY, ADMIN, "admin")
LOWER = certificate(ADMIN_KEY, DEVICE, "device")
CHAIN = encode_chain([UPPER, LOWER])


@pytest.mark.parametrize("role", [Role.DEVICE, Role.FRIEND])
def test_a_chain_leads_from_the_group_over_its_admin_to_the_subject(role: Role) -> None:
    chain = encode_chain([UPPER, certificate(ADMIN_KEY, DEVICE, role)])
    found = verify_chain(chain, GROUP, frozenset(), DEVICE)
    assert (found.role, found.subject, found.issuer) == (role, DEVICE, ADMIN)


@pytest.mark.parametrize("role", [Role.ADMIN, Role.DEVICE, Role.FRIEND])
def test_the_group_key_certifies_anybody_directly(role: Role) -> None:
    chain = encode_chain([certificate(GROUP_KEY, DEVICE, role)])
    assert verify_chain(chain, GROUP, frozenset(), DEVICE).role is role


@pytest.mark.parametrize("revoked", [{ADMIN}, {DEVICE}, {ADMIN, DEVICE}])
def test_a_revoked_link_breaks_the_chain(revoked: set[PublicKey]) -> None:
    with pytest.raises(IntegrityError, match="revoked"):
        verify_chain(CHAIN, GROUP, revoked, DEVICE)


def test_a_chain_is_good_for_its_own_group_and_subject_only() -> None:
    with pytest.raises(IntegrityError):
        verify_chain(CHAIN, OTHER, frozenset(), DEVICE)
    with pytest.raises(IntegrityError):
        verify_chain(CHAIN, GROUP, frozenset(), OTHER)
    with pytest.raises(IntegrityError):
        verify_chain(CHAIN, GROUP, frozenset(), ADMIN)


@pytest.mark.parametrize(
    "links",
    [
        [LOWER],
        [LOWER, UPPER],
        [UPPER, certificate(OTHER_KEY, DEVICE, "device")],
        [UPPER, forged(ADMIN_KEY, DEVICE, "admin")],
        [UPPER, forged(ADMIN_KEY, DEVICE, "stranger")],
        [forged(OTHER_KEY, DEVICE, "admin")],
        [certificate(GROUP_KEY, ADMIN, "device"), LOWER],
        [certificate(GROUP_KEY, ADMIN, "friend"), LOWER],
        [UPPER, certificate(ADMIN_KEY, DEVICE, "device", group=OTHER)],
    ],
)
def test_nobody_certifies_beyond_his_right(links: list[bytes]) -> None:
    with pytest.raises((IntegrityError, FormatError)):
        verify_chain(encode_chain(links), GROUP, frozenset(), DEVICE)


def test_three_links_are_no_chain() -> None:
    with pytest.raises(ValueError):
        encode_chain([UPPER, UPPER, LOWER])
    with pytest.raises(FormatError):
        split_chain(encode((UPPER, UPPER, LOWER)))
    with pytest.raises(FormatError):
        split_chain(encode(()))


def test_issuing_refuses_what_nobody_would_believe() -> None:
    with pytest.raises(UsageError):
        certificate(ADMIN_KEY, DEVICE, "admin")
    with pytest.raises(UsageError):
        certificate(GROUP_KEY, DEVICE, "stranger")
    with pytest.raises(UsageError):
        issue(GROUP_KEY, group=GROUP, subject=DEVICE, role="device", name="n" * 65, now_ms=1)
    with pytest.raises(IntegrityError):
        certificate(ADMIN_KEY, PublicKey(bytes(32)), "device")  # a point of small order


@given(st.integers(0, len(CHAIN) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(place: int, mask: int) -> None:
    changed = bytearray(CHAIN)
    changed[place] ^= mask
    with pytest.raises((IntegrityError, FormatError)):
        verify_chain(bytes(changed), GROUP, frozenset(), DEVICE)


@given(st.integers(0, len(CHAIN) - 1))
def test_no_cut_chain_passes(length: int) -> None:
    with pytest.raises(FormatError):
        verify_chain(CHAIN[:length], GROUP, frozenset(), DEVICE)


@given(st.binary(max_size=200))
def test_junk_is_a_format_error(junk: bytes) -> None:
    with pytest.raises(FormatError):
        split_chain(junk + b"\xc1")


@pytest.mark.parametrize("size", [MAX_CHAIN + 1, 1 << 20])
def test_a_long_chain_is_not_parsed(size: int) -> None:
    with pytest.raises(FormatError, match="longer"):
        split_chain(b"\x91" * size)


def test_nested_arrays_do_not_exhaust_the_stack() -> None:
    with pytest.raises(FormatError):
        split_chain(b"\x91" * MAX_CHAIN)


def test_a_later_version_may_add_fields() -> None:
    fields = (GROUP, DEVICE, "device", "x", 1, GROUP, "what comes later")
    chain = encode_chain([sign(CONTEXT, encode(fields), GROUP_KEY)])
    assert verify_chain(chain, GROUP, frozenset(), DEVICE).name == "x"


def test_a_signature_for_another_use_is_worth_nothing() -> None:
    payload = msgspec.msgpack.encode(Certificate(GROUP, DEVICE, Role.DEVICE, "x", 1, GROUP))
    chain = encode_chain([sign(b"p2pstore 2026 revocation", payload, GROUP_KEY)])
    with pytest.raises(IntegrityError, match="signature"):
        verify_chain(chain, GROUP, frozenset(), DEVICE)


def test_a_revocation_comes_from_the_group_or_an_admin() -> None:
    by_group = revoke(GROUP_KEY, group=GROUP, subject=DEVICE, chain=b"", now_ms=1)
    by_admin = revoke(ADMIN_KEY, group=GROUP, subject=DEVICE, chain=encode_chain([UPPER]), now_ms=1)
    assert verify_revocation(by_group, GROUP).subject == DEVICE
    assert verify_revocation(by_admin, GROUP).issuer == ADMIN
    for bad in (
        revoke(DEVICE_KEY, group=GROUP, subject=OTHER, chain=CHAIN, now_ms=1),
        revoke(OTHER_KEY, group=GROUP, subject=DEVICE, chain=encode_chain([UPPER]), now_ms=1),
        revoke(ADMIN_KEY, group=GROUP, subject=GROUP, chain=encode_chain([UPPER]), now_ms=1),
        revoke(GROUP_KEY, group=OTHER, subject=DEVICE, chain=b"", now_ms=1),
    ):
        with pytest.raises((IntegrityError, FormatError)):
            verify_revocation(bad, GROUP)


def test_a_certificate_that_names_another_issuer_than_its_signer_is_wrong() -> None:
    lower = sign(CONTEXT, encode((GROUP, DEVICE, "device", "x", 1, OTHER)), ADMIN_KEY)
    with pytest.raises(IntegrityError, match="somebody else"):
        verify_chain(encode_chain([UPPER, lower]), GROUP, frozenset(), DEVICE)
