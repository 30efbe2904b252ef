from __future__ import annotations

import pytest

from p2pstore.dht.address import (
    Address,
    Reach,
    is_public,
    may_tell,
    numeric,
    pack_contacts,
    reach,
    subnet,
    unpack_contacts,
)
from p2pstore.errors import FormatError


@pytest.mark.parametrize(
    "host", ["localhost", "example.org", "", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fe80::1%e"]
)
def test_what_is_no_address_of_a_node(host: str) -> None:
    assert numeric(host, 8080) is None


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_impossible_ports(port: int) -> None:
    assert numeric("20.0.0.1", port) is None


def test_one_form_for_each_address() -> None:
    assert numeric("::ffff:20.0.0.1", 1) == Address("20.0.0.1", 1)
    assert numeric("2a00:0:0::0001", 1) == Address("2a00::1", 1)


def test_reach_and_who_may_tell_what() -> None:
    outside, home, here = Address("20.0.0.1", 1), Address("192.168.1.2", 1), Address("127.0.0.1", 1)
    assert [reach(a.host) for a in (here, home, outside)] == list(Reach)
    assert reach("100.64.0.1") is Reach.PRIVATE
    assert not may_tell(outside, home)
    assert not may_tell(home, here)
    assert may_tell(home, outside)
    assert may_tell(here, here)


def test_names_and_addresses_of_homes_are_not_public() -> None:
    assert is_public("20.0.0.1")
    assert is_public("2a00::1")
    for host in ("example.org", "192.168.1.2", "100.64.0.1", "127.0.0.1", "::1", "fd00::1"):
        assert not is_public(host)


def test_subnets_count_only_where_strangers_choose() -> None:
    assert subnet("20.0.0.1") == subnet("20.0.0.255") != subnet("20.0.1.1")
    assert subnet("2a00:1:2:3::1") == subnet("2a00:1:2:ffff::1") != subnet("2a00:1:3::1")
    assert subnet("192.168.1.1") is None
    assert subnet("127.0.0.1") is None


def test_contacts_survive_packing() -> None:
    contacts = [(b"a" * 20, Address("20.0.0.1", 80)), (b"b" * 20, Address("2a00::1", 65535))]
    assert unpack_contacts(pack_contacts(contacts), 20) == contacts
    assert unpack_contacts(b"", 20) == []


def test_packed_contacts_cut_anywhere_are_refused() -> None:
    raw = pack_contacts([(b"a" * 20, Address("20.0.0.1", 80))] * 2)
    for size in set(range(1, len(raw))) - {len(raw) // 2}:
        with pytest.raises(FormatError):
            unpack_contacts(raw[:size], 20)
    with pytest.raises(FormatError):
        unpack_contacts(raw, 1)


def test_contacts_nobody_can_have_are_left_out() -> None:
    raw = pack_contacts([(b"a" * 20, Address("0.0.0.0", 80)), (b"b" * 20, Address("20.0.0.1", 0))])
    assert unpack_contacts(raw, 20) == []
