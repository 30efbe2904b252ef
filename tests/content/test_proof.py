from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pstore.content import Prover
from p2pstore.ids import NodeId

NONCE, ANNA, BERT = b"n" * 32, NodeId(b"a" * 20), NodeId(b"b" * 20)


def prove(nonce: bytes, verifier: NodeId, holder: NodeId, *blocks: bytes) -> bytes:
    prover = Prover(nonce, verifier, holder)
    for block in blocks:
        prover.update(block)
    return prover.digest()


def test_each_question_has_its_own_answer() -> None:
    answers = {
        prove(NONCE, ANNA, BERT, b"one", b"two"),
        prove(NONCE, BERT, ANNA, b"one", b"two"),
        prove(NONCE + b"n", ANNA, BERT, b"one", b"two"),
        prove(b"m" * 32, ANNA, BERT, b"one", b"two"),
        prove(NONCE, ANNA, BERT, b"two", b"one"),
        prove(NONCE, ANNA, BERT, b"one"),
        prove(NONCE, ANNA, BERT),
    }
    assert len(answers) == 7


def test_a_nonce_that_could_be_foreseen_is_refused() -> None:
    for nonce in (b"", bytes(15), bytes(65)):
        with pytest.raises(ValueError):
            Prover(nonce, ANNA, BERT)
    with pytest.raises(ValueError):
        Prover(NONCE, NodeId(bytes(32)), BERT)


def test_golden_proofs(vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("proofs"):
        nonce, verifier, holder = (
            bytes.fromhex(vector[name]) for name in ("nonce", "verifier", "holder")
        )
        blocks = [bytes.fromhex(block) for block in vector["blocks"]]
        answer = prove(nonce, NodeId(verifier), NodeId(holder), *blocks)
        assert answer.hex() == vector["proof"]
