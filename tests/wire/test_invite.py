from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.errors import IntegrityError, LocalProtocolError, NotAllowed, UsageError
from p2pstore.ids import NodeId, PublicKey
from p2pstore.wire import (
    LIFETIME_S,
    Invitation,
    InviteLink,
    Joining,
    JoinNonce,
    Welcome,
    build_link,
    parse_address,
    parse_link,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "wire" / "invite.json"
SECRET = bytes(range(16))
JOINER, INVITER = PublicKey(b"J" * 32), PublicKey(b"I" * 32)
LINK = InviteLink((("192.0.2.7", 8080), ("2001:db8::7", 8081)), NodeId(b"N" * 20), "main", SECRET)


def joining(secret: bytes = SECRET, *, joiner: PublicKey = JOINER) -> Joining:
    return Joining(secret, "device", joiner=joiner, inviter=INVITER, nonce=b"j" * 32, name="phone")


def shake(invitation: Invitation, joining: Joining, now: float = 10.0) -> Welcome:
    admission = invitation.open(
        joining.first(), joiner=JOINER, inviter=INVITER, nonce=b"i" * 32, now=now
    )
    mac = admission.admit(joining.second(admission.nonce), now=now)
    return joining.finish(Welcome(mac, b"chain", INVITER))


def test_both_sides_prove_the_secret() -> None:
    assert shake(Invitation(SECRET, "device", now=0.0), joining()).chain == b"chain"


def test_macs_have_their_golden_bytes() -> None:
    golden = json.loads(VECTORS.read_text())
    joiner = joining()
    invitation = Invitation(SECRET, "device", now=0.0)
    admission = invitation.open(
        joiner.first(), joiner=JOINER, inviter=INVITER, nonce=b"i" * 32, now=1.0
    )
    second = joiner.second(admission.nonce)
    assert second.mac.hex() == golden["joiner"]
    assert admission.admit(second, now=1.0).hex() == golden["inviter"]
    assert build_link(LINK) == golden["link"]


def test_a_link_tells_what_one_becomes() -> None:
    link = dataclasses.replace(LINK, membership="friend")
    assert "?n=main&r=friend#" in build_link(link)
    assert parse_link(build_link(link)) == link
    assert parse_link(build_link(LINK)).membership == "device"
    with pytest.raises(UsageError):
        parse_link(build_link(LINK).replace("#", "&r=admin#"))


def test_second_use_is_refused() -> None:
    invitation = Invitation(SECRET, "device", now=0.0)
    shake(invitation, joining())
    with pytest.raises(NotAllowed):
        shake(invitation, joining())


def test_two_joiners_at_once_cannot_both_use_it() -> None:
    invitation = Invitation(SECRET, "device", now=0.0)
    admissions = []
    for _ in range(2):
        joiner = joining()
        admission = invitation.open(
            joiner.first(), joiner=JOINER, inviter=INVITER, nonce=b"i" * 32, now=1.0
        )
        admissions.append((admission, joiner.second(admission.nonce)))
    admissions[0][0].admit(admissions[0][1], now=1.0)
    with pytest.raises(NotAllowed):
        admissions[1][0].admit(admissions[1][1], now=1.0)


def test_three_wrong_macs_end_it() -> None:
    invitation = Invitation(SECRET, "device", now=0.0)
    for _ in range(3):
        assert invitation.is_live(10.0)
        with pytest.raises(NotAllowed):
            shake(invitation, joining(b"x" * 16))
    assert not invitation.is_live(10.0)
    with pytest.raises(NotAllowed):
        shake(invitation, joining())


@pytest.mark.parametrize(("age", "live"), [(LIFETIME_S - 0.1, True), (LIFETIME_S, False)])
def test_it_expires(age: float, live: bool) -> None:
    invitation = Invitation(SECRET, "device", now=100.0)
    assert invitation.is_live(100.0 + age) is live
    if not live:
        with pytest.raises(NotAllowed):
            shake(invitation, joining(), now=100.0 + age)


def test_it_expires_between_the_steps_too() -> None:
    invitation = Invitation(SECRET, "device", now=0.0)
    joiner = joining()
    admission = invitation.open(
        joiner.first(), joiner=JOINER, inviter=INVITER, nonce=b"i" * 32, now=1.0
    )
    with pytest.raises(NotAllowed):
        admission.admit(joiner.second(admission.nonce), now=LIFETIME_S + 1)


def test_another_tls_key_than_the_named_one_is_refused() -> None:
    invitation = Invitation(SECRET, "device", now=0.0)
    with pytest.raises(NotAllowed):
        shake(invitation, joining(joiner=PublicKey(b"X" * 32)))


def test_other_membership_is_refused() -> None:
    with pytest.raises(NotAllowed):
        shake(Invitation(SECRET, "friend", now=0.0), joining())


def test_inviter_without_the_secret_is_noticed() -> None:
    joiner = joining()
    joiner.first()
    second = joiner.second(JoinNonce(b"i" * 32))
    for mac in (bytes(32), second.mac):  # a guess; our own proof sent back
        with pytest.raises(IntegrityError):
            joiner.finish(Welcome(mac, b"chain", INVITER))


def test_changed_second_step_is_refused() -> None:
    invitation = Invitation(SECRET, "device", now=0.0)
    joiner = joining()
    admission = invitation.open(
        joiner.first(), joiner=JOINER, inviter=INVITER, nonce=b"i" * 32, now=1.0
    )
    second = joiner.second(admission.nonce)
    for change in ({"step": 1}, {"nonce": bytes(32)}, {"role": "friend"}):
        with pytest.raises(NotAllowed):
            admission.admit(msgspec.structs.replace(second, **change), now=1.0)


def test_steps_out_of_order_are_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        joining().finish(Welcome(bytes(32), b"", INVITER))


def test_link_comes_back() -> None:
    assert parse_link(build_link(LINK)) == LINK
    assert parse_link("  " + build_link(LINK) + "\n") == LINK


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=64))
def test_any_network_name_comes_back(network: str) -> None:
    link = InviteLink((("host.example", 1),), LINK.node_id, network, SECRET)
    assert parse_link(build_link(link)) == link


def test_secret_is_not_shown() -> None:
    assert "secret" not in repr(LINK)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://example.org/",
        build_link(LINK)[:-1],
        build_link(LINK)[:-5],
        build_link(LINK).partition("#")[0],
        build_link(LINK).replace(":8080", ":0"),
        build_link(LINK).replace(":8080", ""),
        build_link(LINK).replace("?n=main", ""),
        build_link(LINK) + "a" * 3000,
    ],
)
def test_damaged_link_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_link(text)


@given(st.text(max_size=80))
def test_any_text_is_a_usage_error(text: str) -> None:
    for link in (text, "p2ps://" + text, build_link(LINK).partition("#")[0] + "#" + text):
        try:
            parse_link(link)
        except UsageError:
            continue


@pytest.mark.parametrize(
    ("text", "address"),
    [("host:1", ("host", 1)), ("[::1]:65535", ("::1", 65535)), ("1.2.3.4:80", ("1.2.3.4", 80))],
)
def test_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["host", "host:", ":1", "host:0", "host:65536", "::1:80", "a b:1"])
def test_wrong_addresses_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)
