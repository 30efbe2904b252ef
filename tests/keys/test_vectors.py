"""Yesterday's words, certificates and group states must be readable for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pstore.ids import PublicKey
from p2pstore.keys import (
    GroupState,
    fingerprint,
    group_signing_key,
    public_key_of,
    recovery_key,
    recovery_tag,
    root_of,
    verify_chain,
    words_of,
)

from .conftest import key

VECTORS = Path(__file__).parent.parent / "vectors" / "keys"


def _load(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / name).read_text())


@pytest.mark.parametrize("vector", _load("roots.json"), ids=lambda v: v["root"][:8])
def test_root(vector: dict[str, str]) -> None:
    root = bytes.fromhex(vector["root"])
    assert words_of(root) == vector["words"]
    assert root_of(vector["words"]) == root
    group = public_key_of(group_signing_key(root))
    assert group.hex() == vector["group_public"]
    assert bytes(recovery_key(root).public_key).hex() == vector["recovery_public"]
    assert recovery_tag(root).hex() == vector["recovery_tag"]
    assert fingerprint(group) == vector["group_fingerprint"]


@pytest.mark.parametrize("vector", _load("states.json"), ids=lambda v: v["what"])
def test_state(vector: dict[str, Any]) -> None:
    state = GroupState.decode(bytes.fromhex(vector["raw"]))
    assert [state.generation, state.seq] == vector["order"]
    assert [subject.hex() for subject in state.revocations] == vector["revoked"]
    assert {c.subject.hex(): c.role for c in state.devices()} == vector["devices"]
    secrets = state.open(key(vector["reader"]))
    assert [[e.epoch.hex(), e.secret.hex(), e.created_ms] for e in secrets.epochs] == vector[
        "epochs"
    ]
    assert secrets.dedup.hex() == vector["dedup"]
    recovery = recovery_key(bytes.fromhex(vector["root"]))
    assert state.open_recovery(recovery) == secrets
    for chain, subject in vector["chains"]:
        good = PublicKey(bytes.fromhex(subject))
        verify_chain(bytes.fromhex(chain), state.group_public, state.revoked, good)
