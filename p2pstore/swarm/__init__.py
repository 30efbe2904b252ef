"""The swarm: serving bundles to peers, fetching blocks, giving bundles away, being found.

`Server` answers, `Source` fetches, `Pusher` gives and audits, `Forwarder` passes requests on,
`Announcer` tells the DHT, `Relay` pairs peers that cannot reach each other, `Reachability` finds
out whether others reach this node, `ShareFinder` finds what a key stands for. They share a `Shelf`
(what is on this disk) and a `Gate` (who may what).
"""

from p2pstore.swarm.access import Gate
from p2pstore.swarm.announce import EVERY_S as ANNOUNCE_EVERY_S
from p2pstore.swarm.announce import Announcer, Announcing
from p2pstore.swarm.cache import BlockCache
from p2pstore.swarm.call import Ticket
from p2pstore.swarm.finding import Finder
from p2pstore.swarm.forward import Forwarder
from p2pstore.swarm.getting import Asker, Lanes, Peers, get_blocks
from p2pstore.swarm.promises import OwnPromises
from p2pstore.swarm.push import LEASE_S, LOCK_S, MAX_RENEWED, Pusher, Receipt
from p2pstore.swarm.reach import DialBack, Reachability, Verdict
from p2pstore.swarm.relay import Relay
from p2pstore.swarm.serve import Groups, Server
from p2pstore.swarm.shares import ShareFinder, ShareRefused
from p2pstore.swarm.shelf import Place, Shelf
from p2pstore.swarm.source import BlocksNotFound, Source
from p2pstore.swarm.taking import Admission

__all__ = [
    "ANNOUNCE_EVERY_S",
    "LEASE_S",
    "LOCK_S",
    "MAX_RENEWED",
    "Admission",
    "Announcer",
    "Announcing",
    "Asker",
    "BlockCache",
    "BlocksNotFound",
    "DialBack",
    "Finder",
    "Forwarder",
    "Gate",
    "Groups",
    "Lanes",
    "OwnPromises",
    "Peers",
    "Place",
    "Pusher",
    "Reachability",
    "Receipt",
    "Relay",
    "Server",
    "ShareFinder",
    "ShareRefused",
    "Shelf",
    "Source",
    "Ticket",
    "Verdict",
    "get_blocks",
]
