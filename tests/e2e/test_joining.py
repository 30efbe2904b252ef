"""Invitations: one person's next computer comes in, and nobody else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, until, write


@pytest.fixture(scope="module")
def inviter(nodes: NewNode) -> Node:
    first = nodes("inviter")
    first.init()
    return first.start()


def test_a_used_invitation_lets_nobody_else_in(inviter: Node, new_node: NewNode) -> None:
    link = inviter.ok("invite", "--yes").out.strip()
    first, second = new_node("first"), new_node("second")
    first.ok("join", link, "--name", "first")
    done = second.type("join", link, "--name", "second")
    assert done.code not in (0, 1)
    assert "used already" in done.err
    assert "Traceback" not in done.err
    assert not (second.home / "group.state").exists()


def test_a_guessed_secret_lets_nobody_in_and_burns_after_three_tries(
    inviter: Node, new_node: NewNode
) -> None:
    link = inviter.ok("invite", "--yes").out.strip()
    address, _, secret = link.partition("#")
    guess = address + "#" + ("b" if secret[0] != "b" else "c") + secret[1:]
    stranger = new_node("stranger")
    for _ in range(3):
        done = stranger.type("join", guess, "--name", "stranger")
        assert done.code not in (0, 1), done
        assert "Traceback" not in done.err
    assert stranger.type("join", link, "--name", "stranger").code not in (0, 1)
    assert "stranger" not in inviter.ok("peers").out


def test_a_link_that_is_cut_off_is_wrong_usage(inviter: Node, new_node: NewNode) -> None:
    link = inviter.ok("invite", "--yes").out.strip()
    done = new_node("joiner").type("join", link[:-3])
    assert done.code == 2
    assert is_one_sentence(done)


def test_joining_to_nobody_is_not_available(new_node: NewNode) -> None:
    gone = new_node("gone")
    gone.init()
    gone.start()
    link = gone.ok("invite", "--yes").out.strip()
    gone.stop()
    done = new_node("joiner").type("join", link)
    assert done.code == 5
    assert is_one_sentence(done)


def test_a_home_that_has_protected_something_cannot_join(
    inviter: Node, new_node: NewNode, tmp_path: Path
) -> None:
    other = new_node("other")
    other.init()
    other.start()
    write(tmp_path / "Own", [("a.txt", b"alpha")])
    other.add(tmp_path / "Own")
    done = other.type("join", inviter.ok("invite", "--yes").out.strip())
    assert done.code == 2
    assert is_one_sentence(done)
    assert other.ok("cat", tmp_path / "Own" / "a.txt").raw == b"alpha"


def test_a_running_node_joins_and_begins_anew_as_a_member(inviter: Node, new_node: NewNode) -> None:
    late = new_node("late").start()
    late.ok("join", inviter.ok("invite", "--yes").out.strip(), "--name", "late")

    def is_member() -> bool:
        try:
            return bool(late.status()["node"]["group"] == inviter.status()["node"]["group"])
        except Exception:  # it begins anew
            return False

    until(is_member, "membership", tell=lambda: late.log)
