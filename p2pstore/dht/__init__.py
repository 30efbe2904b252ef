"""Finding nodes and providers through a Kademlia DHT over UDP; the door of the package."""

from p2pstore.dht.address import is_public
from p2pstore.dht.dht import LOOPBACK, Announced, Dht, DhtSettings

__all__ = ["LOOPBACK", "Announced", "Dht", "DhtSettings", "is_public"]
