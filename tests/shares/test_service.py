"""Shares from their first byte to their end, whatever happens in between."""

from __future__ import annotations

import os
from typing import Any

from p2pstore.ingest import Ingest
from tests.maintenance.nodes import Group
from tests.shares.conftest import MakeSharing

CONTENT = os.urandom(300_000)


async def test_nothing_is_copied_before_it_can_be_given_away(
    group: Group, sharing: MakeSharing, monkeypatch: Any
) -> None:
    """A holder that was given a bundle without its grant would never give it to a stranger."""
    a, b = await group.devices(2)
    mine = sharing(a)
    protect = Ingest.protect

    def watched(*args: Any, **kwargs: Any) -> Any:
        done = protect(*args, **kwargs)
        made = {row.bundle_id for row in a.ledger.lacking(a.look(), b.node_id, 1000)}
        assert made <= before, "sealed, but nobody may give it yet"
        return done

    before = {row.bundle_id for row in a.ledger.lacking(a.look(), b.node_id, 1000)}
    monkeypatch.setattr(Ingest, "protect", watched)
    record = await mine.upload(CONTENT)
    lacking = {row.bundle_id for row in a.ledger.lacking(a.look(), b.node_id, 1000)}
    for ref in record.bundles:
        assert ref.bundle_id in lacking
        assert mine.shares.grants(ref.bundle_id)
