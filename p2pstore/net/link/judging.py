"""Who may stay at the other end of a link: the key that TLS proved, and what HELLO says.

The key is judged before a byte is sent, HELLO before anything is served or asked. Which role a
peer has is not decided here.
"""

from __future__ import annotations

from p2pstore.errors import NotAllowed, PeerUnreachable, RemoteProtocolError
from p2pstore.ids import NodeId, PublicKey, node_id_of, short
from p2pstore.wire import VERSIONS, Hello, format_address

STRANGER = "stranger"

Address = tuple[str, int]


class WrongPeer(PeerUnreachable):
    """Another node than the expected one answers at an address."""


def judge_key(
    proved: PublicKey, ours: PublicKey, *, expect: NodeId | None, address: Address
) -> NodeId:
    """The node whose key was proved; WrongPeer when it is not the one that was dialled."""
    node_id = node_id_of(proved)
    if proved == ours:
        raise WrongPeer("That address is this node itself.")
    if expect is not None and node_id != expect:
        raise WrongPeer(
            f"Node {short(node_id)} answers at {format_address(*address)}, not {short(expect)}."
        )
    return node_id


def judge_hello(hello: Hello, proved: PublicKey, network: str) -> None:
    """Same key, same network, a common version; raises what the peer is told."""
    if hello.public_key != proved:
        raise RemoteProtocolError("HELLO names another key than TLS proved.")
    if hello.network != network:
        raise NotAllowed(f"The peer is on the network {hello.network!r}, we on {network!r}.")
    if not set(hello.versions) & set(VERSIONS):
        raise NotAllowed("The peer speaks no version of the protocol that we speak.")
