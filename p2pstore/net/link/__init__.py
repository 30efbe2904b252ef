"""One connection to one peer: requests and answers in both directions over a `wire.Session`.

`link` is the connection itself, from its beginning to its end. What happens on it lies beside:
`judging` decides who may stay, `asking` has our requests and `serving` the peer's, `inflow` and
`outflow` keep either side from being flooded, `pulse` ends what stalls or has died.
"""

from p2pstore.net.link.asking import Exchange
from p2pstore.net.link.judging import STRANGER, Address, WrongPeer
from p2pstore.net.link.link import Household, Link
from p2pstore.net.link.serving import Request

__all__ = ["STRANGER", "Address", "Exchange", "Household", "Link", "Request", "WrongPeer"]
