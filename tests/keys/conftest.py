"""A group with keys and dice that are the same at every run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from nacl.signing import SigningKey

from p2pstore.ids import PublicKey
from p2pstore.keys import GroupState, Role, create_group, group_signing_key, new_root, public_key_of


def dice(seed: str) -> Callable[[int], bytes]:
    count = 0

    def roll(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed} {count}".encode()).digest(size)

    return roll


def key(number: int) -> SigningKey:
    return SigningKey(hashlib.sha256(b"key %d" % number).digest())


def public(number: int) -> PublicKey:
    return public_key_of(key(number))


@dataclass
class Family:
    """A group whose first device (1) has the admin key (2)."""

    root: bytes = field(default_factory=lambda: new_root(bytes(range(32))))
    device: SigningKey = field(default_factory=lambda: key(1))
    admin: SigningKey = field(default_factory=lambda: key(2))
    random: Callable[[int], bytes] = field(default_factory=lambda: dice("family"))

    @property
    def group_key(self) -> SigningKey:
        return group_signing_key(self.root)

    def founded(self) -> GroupState:
        return create_group(
            self.root,
            device=self.device,
            admin=self.admin,
            name="laptop",
            now_ms=1000,
            random=self.random,
        )

    def with_member(
        self, state: GroupState, number: int, role: Role = Role.DEVICE, name: str = "nas"
    ) -> GroupState:
        chain = state.certify(public(number), role, name, signer=self.admin, now_ms=2000)
        return state.with_member(
            chain,
            signer=self.admin,
            secrets=state.open(self.device),
            now_ms=2000,
            random=self.random,
        )

    def without(
        self, state: GroupState, number: int, signer: SigningKey | None = None
    ) -> GroupState:
        return state.with_revocation(
            public(number),
            signer=signer or self.admin,
            secrets=state.open(self.device),
            now_ms=3000,
            random=self.random,
        )


@pytest.fixture
def family() -> Family:
    return Family()
