"""A catalog that was brought back from a copy knows less than this device has told others.

What it says of files is of the past: bundles that were evicted since are recorded as here, files
that came since are unknown, versions would be counted anew. Each head of this device that HOME has
was noted in the catalog before it was published, with its number; a head beyond that number means
an older catalog. One that was rebuilt begins to note with the incarnation of its rebuild.
"""

from __future__ import annotations

from functools import partial

from p2pstore.content import decode_head, head_order, verify_head
from p2pstore.errors import P2PStoreError
from p2pstore.home import Home
from p2pstore.ids import NodeId
from p2pstore.maintenance.index import written_order
from p2pstore.store import Catalog


def is_older(catalog: Catalog, home: Home, me: NodeId, rebuilt: int) -> bool:
    """Whether HOME has heads of this device that the catalog never heard of. `rebuilt`: the
    incarnation that the catalog's last rebuild began, 0 for none."""
    for raw in home.heads():
        try:
            head = verify_head(decode_head(raw))
        except P2PStoreError:
            continue  # the rebuild names it; no reason to begin one
        if head.device != me or head.incarnation < rebuilt:
            continue
        noted = catalog.view(partial(written_order, folder_id=head.folder))
        if noted is None or tuple(noted) < head_order(head):
            return True
    return False
