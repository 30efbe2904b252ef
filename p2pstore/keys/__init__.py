"""Who belongs to a group, and the keys that say so: words, certificates, group state.

Nothing here reads a clock, a disk or dice: randomness and times are arguments. Keys on disk belong
to `home`, sealing with a group's secrets to `content`.
"""

from p2pstore.keys.certificate import (
    MAX_CHAIN,
    Certificate,
    Revocation,
    Role,
    encode_chain,
    issue,
    public_key_of,
    split_chain,
    verify_chain,
)
from p2pstore.keys.derive import group_signing_key, recovery_key, recovery_tag
from p2pstore.keys.group import GroupState, create_group, merge, newer, recovery_chain
from p2pstore.keys.part import MAX_STATE, EpochSecret, GroupSecrets
from p2pstore.keys.words import WORD_COUNT, amend, fingerprint, new_root, root_of, words_of

__all__ = [
    "MAX_CHAIN",
    "MAX_STATE",
    "WORD_COUNT",
    "Certificate",
    "EpochSecret",
    "GroupSecrets",
    "GroupState",
    "Revocation",
    "Role",
    "amend",
    "create_group",
    "encode_chain",
    "fingerprint",
    "group_signing_key",
    "issue",
    "merge",
    "new_root",
    "newer",
    "public_key_of",
    "recovery_chain",
    "recovery_key",
    "recovery_tag",
    "root_of",
    "split_chain",
    "verify_chain",
    "words_of",
]
