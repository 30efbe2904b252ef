"""An invitation over a real link, both sides."""

from __future__ import annotations

from typing import Any

import pytest

from p2pstore.errors import NotAllowed
from p2pstore.net import Request
from p2pstore.wire import Invitation, Join, Joining, JoinNonce, Welcome

SECRET = b"s" * 16


class Inviter:
    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.invitation = Invitation(SECRET, "device", now=clock.monotonic())
        self.key = b""

    async def __call__(self, request: Request) -> None:
        first = request.message
        assert isinstance(first, Join)
        admission = self.invitation.open(
            first,
            joiner=request.link.public_key,
            inviter=self.key,  # type: ignore[arg-type]
            nonce=b"i" * 32,
            now=self.clock.monotonic(),
        )
        await request.reply(admission.nonce, final=False)
        second, _ = await request.receive()
        assert isinstance(second, Join)
        mac = admission.admit(second, now=self.clock.monotonic())
        welcome = Welcome(mac, b"chain", self.key, b"state" * 30_000)  # type: ignore[arg-type]
        await request.reply(welcome)


async def join(nodes: Any, secret: bytes) -> Welcome:
    inviter = Inviter(nodes.clock)
    server = nodes.make(inviter, role="stranger")
    inviter.key = server.public_key
    client = nodes.make()
    link = await client.dial(*await server.listen("127.0.0.1", 0), expect=server.node_id)
    joining = Joining(
        secret,
        "device",
        joiner=client.public_key,
        inviter=link.public_key,
        nonce=b"j" * 32,
        name="phone",
    )
    async with link.exchange(joining.first()) as exchange:
        answer, _ = await exchange.receive()
        assert isinstance(answer, JoinNonce)
        await exchange.send(joining.second(answer))
        welcome, _ = await exchange.receive()
        assert isinstance(welcome, Welcome)
        return joining.finish(welcome)


async def test_stranger_with_the_secret_is_let_in(nodes: Any) -> None:
    assert (await join(nodes, SECRET)).chain == b"chain"


async def test_stranger_without_it_is_not(nodes: Any) -> None:
    with pytest.raises(NotAllowed, match="secret"):
        await join(nodes, b"x" * 16)
