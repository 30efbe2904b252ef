"""Placement: the only part that creates, renames or removes anything in a user's folder."""

from p2pstore.placement.arrive import (
    Arrival,
    Landed,
    Landing,
    arrive,
    displace,
    finish,
    remove_copy,
    swap_path,
)
from p2pstore.placement.claim import Claim, Identity, Phase, Turned, claim
from p2pstore.placement.lay import Laid, lay_link, lay_placeholders
from p2pstore.placement.replace import (
    SUFFIX,
    Placing,
    Replaced,
    put_back,
    replace,
    to_trash,
    trash_path,
    write_placeholder,
)
from p2pstore.placement.root import (
    OWN,
    TEMPORARY,
    TRASH,
    Directories,
    Root,
    free_name,
    read_placeholder,
)
from p2pstore.placement.trash import Doomed, Fate, content_hash, discard, listing

__all__ = [
    "OWN",
    "SUFFIX",
    "TEMPORARY",
    "TRASH",
    "Arrival",
    "Claim",
    "Directories",
    "Doomed",
    "Fate",
    "Identity",
    "Laid",
    "Landed",
    "Landing",
    "Phase",
    "Placing",
    "Replaced",
    "Root",
    "Turned",
    "arrive",
    "claim",
    "content_hash",
    "discard",
    "displace",
    "finish",
    "free_name",
    "lay_link",
    "lay_placeholders",
    "listing",
    "put_back",
    "read_placeholder",
    "remove_copy",
    "replace",
    "swap_path",
    "to_trash",
    "trash_path",
    "write_placeholder",
]
