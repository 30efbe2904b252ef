"""The proxy as a program, in front of one node: the same port for TCP and UDP, as nodes have it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from p2pstore.config import parse_address, parse_duration, parse_size
from p2pstore.errors import P2PStoreError
from tests.chaos import Faults, TcpProxy, UdpProxy

TRIES = 20  # for a port that is free for TCP and UDP alike


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only in newest click
    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except (P2PStoreError, ValueError) as exc:
            self.fail(str(exc), param, ctx)


def _span(text: str) -> tuple[float, float]:
    low, dash, high = text.partition("-")
    return float(parse_duration(low)), float(parse_duration(high if dash else low))


ADDRESS = _Parsed("HOST:PORT", parse_address)
BYTES = _Parsed("size", parse_size)
SPAN = _Parsed("D-D", _span)
TIME = _Parsed("duration", parse_duration)
CHANCE = click.FloatRange(0, 1)


@click.command()
@click.option("--to", required=True, type=ADDRESS, help="The node behind the proxy.")
@click.option("--listen", type=ADDRESS, default="127.0.0.1:0", show_default=True)
@click.option("--seed", type=int, help="The same seed spoils the same bytes; else a new one.")
@click.option("--delay", type=SPAN, help="Of everything that passes, as 10ms-80ms.")
@click.option("--corrupt-every", type=BYTES, help="A bit flips once in so many bytes.")
@click.option("--rate", type=BYTES, help="TCP: bytes a second and direction.")
@click.option("--cut-every", type=BYTES, help="TCP: a connection is reset once in so many bytes.")
@click.option("--stall-every", type=BYTES, help="TCP: nothing more passes after so many bytes,")
@click.option("--stall", type=TIME, help="for so long; default: for ever.")
@click.option("--loss", type=CHANCE, help="UDP: the share that is lost.")
@click.option("--reorder", type=CHANCE, help="UDP: the share that lets later ones pass.")
@click.option("--duplicate", type=CHANCE, help="UDP: the share that comes twice.")
def main(to: Any, listen: Any, seed: int | None, **options: Any) -> None:
    """Stand between a node and its peers, and be bad weather, until Ctrl-C."""
    names = {"delay": "delay_s", "stall": "stall_s"}
    given = {names.get(key, key): value for key, value in options.items() if value is not None}
    seed = secrets.randbits(32) if seed is None else seed
    asyncio.run(_run((to.host, to.port), (listen.host, listen.port), Faults(**given), seed))


async def _run(to: tuple[str, int], at: tuple[str, int], faults: Faults, seed: int) -> None:
    tcp, udp = TcpProxy(to, faults, seed=seed), UdpProxy(to, faults, seed=seed)
    for tried in range(1, TRIES + 1):
        await tcp.start(*at)
        try:
            await udp.start(at[0], tcp.address[1])
            break
        except OSError:
            await tcp.close()
            if at[1] or tried == TRIES:
                raise
    print(f"Listening at {tcp.address[0]}:{tcp.address[1]}, seed {seed}", flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await tcp.close()
    await udp.close()
    for name, count in sorted((tcp.told + udp.told).items()):
        print(f"{name:12} {count:,}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
