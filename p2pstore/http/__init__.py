"""The node's own servers: control API on a Unix socket, read-only status page on the UI port.

They translate and decide nothing; what the node answers is specified in `control`.
"""

from p2pstore.http.control import Control, Progress
from p2pstore.http.frontends import Frontends

__all__ = ["Control", "Frontends", "Progress"]
