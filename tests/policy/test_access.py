from __future__ import annotations

import pytest

from p2pstore.policy import Ask, Need, may, need

# Written out anew from the design, not derived from the code.
STRANGER = {Ask.HELLO, Ask.PING, Ask.PEERS, Ask.REACH, Ask.JOIN, Ask.GET}


@pytest.mark.parametrize("role", ["device", "admin", "friend"])
def test_relations_may_ask_everything(role: str) -> None:
    assert all(may(role, ask) for ask in Ask)


@pytest.mark.parametrize("role", ["stranger", "", "root", "DEVICE"])
def test_strangers_and_unknown_roles_may_ask_little(role: str) -> None:
    assert {ask for ask in Ask if may(role, ask)} == STRANGER


def test_what_has_to_be_shown() -> None:
    assert need("stranger", Ask.GET) is Need.TOKEN
    assert need("stranger", Ask.PUT) is Need.NEVER
    assert need("stranger", Ask.HEADS) is Need.NEVER
    assert need("friend", Ask.GET) is Need.OWN_GROUP
    assert need("device", Ask.RELEASE) is Need.OWN_GROUP
    assert need("friend", Ask.PUT) is Need.OFFER
    assert need("friend", Ask.RENEW) is Need.OWN_GROUP
    assert need("friend", Ask.LIST) is Need.OWN_GROUP
    assert need("friend", Ask.MOVE) is Need.HOLDER
    assert need("stranger", Ask.MOVE) is Need.NEVER
    assert all(need(role, Ask.JOIN) is Need.INVITATION for role in ("stranger", "device"))
