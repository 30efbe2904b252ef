"""A proxy that is bad weather: it delays, loses, reorders, corrupts, stalls, cuts and throttles.

For TCP and for UDP, by a seed: the same seed spoils the same bytes. In a test:

    async with TcpProxy(address, Faults(cut_every=3e6), seed=7) as proxy:
        ... connect to proxy.address instead of address ...
    assert proxy.told["cuts"]

By hand, in front of a node:  python -m tests.chaos --to 127.0.0.1:8080 --loss 0.3 --cut-every 50MB
"""

from tests.chaos.datagrams import UdpProxy
from tests.chaos.faults import Faults
from tests.chaos.streams import Address, TcpProxy

__all__ = ["Address", "Faults", "TcpProxy", "UdpProxy"]
