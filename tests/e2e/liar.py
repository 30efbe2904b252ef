"""The program, but for one thing: asked for blocks it says that it has all, and sends garbage."""

from __future__ import annotations

from typing import Any

from p2pstore.__main__ import main
from p2pstore.swarm import Server
from p2pstore.wire import BlockReply, Get, GetDone, Have, HaveReply, verify_get

_honest = Server.serve


async def serve(self: Server, request: Any) -> None:
    message = request.message
    if isinstance(message, Have):
        await request.reply(HaveReply((True,) * len(message.tags), (0,) * len(message.bundles)))
    elif isinstance(message, Get):
        for block_id in verify_get(message.request).blocks:
            await request.reply(BlockReply(block_id), b"garbage" * 1000, final=False)
        await request.reply(GetDone())
    else:
        await _honest(self, request)


Server.serve = serve  # type: ignore[method-assign]
main()
