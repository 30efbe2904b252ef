"""Shared files: several keys at once."""

from __future__ import annotations

from p2pstore.errors import FormatError, UsageError

KEYS = ["p2p:aeaabbbbcccc", "p2p:aeaaddddeeee", "p2p:aeaaffffgggg"]


def test_every_key_is_taken_back_and_the_gravest_code_wins(line, served):
    outcomes = [UsageError("This node made no share with that key."), FormatError("Mistyped.")]

    def answer(args, _):
        return {"name": "a.txt"} if args["key"] == KEYS[2] else outcomes.pop(0)

    served.answers["unshare"] = answer
    ran = line("unshare", *KEYS[:2], "-", stdin=KEYS[2])
    assert (ran.code, ran.out) == (3, "a.txt is not shared any more.\n")
    assert ran.err.splitlines() == [
        "p2p:aeaabbbb...: This node made no share with that key.",
        "p2p:aeaadddd...: Mistyped.",
    ]
    assert [args["key"] for args in served.asked("unshare")] == KEYS


def test_nothing_is_taken_back_while_a_key_is_missing(line, served):
    assert line("unshare", KEYS[0], "-").code == 2
    assert served.calls == []
