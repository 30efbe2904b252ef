"""The records alone: multicast is nothing that a test machine can be relied on to have."""

from __future__ import annotations

import pytest

from p2pstore.ids import NodeId
from p2pstore.net.discovery import SERVICE, build_service, local_addresses, read_service

NODE = NodeId(bytes(range(20)))


def test_record_says_who_and_where() -> None:
    info = build_service(NODE, "main", 8080, ["192.0.2.7", "2001:db8::7"])
    assert read_service(info, "main") == (NODE, (("192.0.2.7", 8080), ("2001:db8::7", 8080)))


def test_names_are_valid_in_dns() -> None:
    info = build_service(NODE, "a long network name " * 3, 8080, ["192.0.2.7"])
    label = info.name.removesuffix("." + SERVICE)
    assert len(label) == 32
    assert label.isalnum()


def test_other_network_is_not_ours() -> None:
    assert read_service(build_service(NODE, "other", 8080, ["192.0.2.7"]), "main") is None


def test_record_without_address_leads_nowhere() -> None:
    assert read_service(build_service(NODE, "main", 8080, []), "main") is None


@pytest.mark.parametrize("label", ["", "!", "aaaa", "a" * 33, "ä" * 32])
def test_damaged_id_is_nobody(label: str) -> None:
    from zeroconf import ServiceInfo

    info = ServiceInfo(
        SERVICE,
        f"x.{SERVICE}",
        port=8080,
        parsed_addresses=["192.0.2.7"],
        properties={"v": "1", "id": label, "n": "main"},
    )
    assert read_service(info, "main") is None


def test_local_addresses_are_not_loopback() -> None:
    assert not any(host.startswith("127.") for host in local_addresses())
