"""An invitation between two people at terminals: what they see, type and break off."""

from __future__ import annotations

import re
import signal

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, until
from tests.e2e.terminal import COLUMNS, LINES, Terminal

CTRL_C = "\x03"
FINGERPRINT = re.compile(r"(?:must show|other screen): +((?:[a-z]+ ){4}[a-z]+)\n")


@pytest.fixture(scope="module")
def inviter(nodes: NewNode) -> Node:
    first = nodes("inviter")
    first.init()
    return first.start()


def link_on(terminal: Terminal) -> str:
    screen = terminal.until("Waiting for it")
    (link,) = [line for line in screen.splitlines() if line.startswith("p2ps:")]
    return link


def words_on(terminal: Terminal) -> str:
    return terminal.find(FINGERPRINT)[1]


def test_both_see_the_same_words_and_a_yes_lets_in(inviter: Node, new_node: NewNode) -> None:
    joiner = new_node("nas")
    with Terminal(inviter, "invite") as here, Terminal(joiner, "join", "-", "--name", "nas") as nas:
        nas.type(link_on(here) + "\n")
        here.until("The same words?")
        nas.until("other screen")
        assert words_on(here) == words_on(nas)
        here.type("y\n")
        assert (here.end(), nas.end()) == (0, 0)
        assert "nas is in." in here.screen
        assert "Joined group" in nas.screen


def test_the_link_and_its_code_fit_the_window(inviter: Node) -> None:
    with Terminal(inviter, "invite") as here:
        link_on(here)
        lines = here.screen.splitlines()
        code = [line for line in lines if "█" in line]
        assert len(code) > 15
        assert len(set(map(len, code))) == 1, "a square"
        assert max(map(len, code)) <= COLUMNS
        last = lines[-LINES:]
        assert any(line.startswith("p2ps:") for line in last), "the link is still to be seen"


def test_a_terminal_without_such_signs_gets_the_link_alone(
    inviter: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(inviter.env, "PYTHONIOENCODING", "latin-1")
    with Terminal(inviter, "invite") as here:
        link_on(here)
        assert "█" not in here.screen
        assert "\\u2588" not in here.screen


@pytest.mark.parametrize("answer", ["n\n", "\n", CTRL_C], ids=["no", "nothing", "ctrl-c"])
def test_no_answer_but_yes_lets_in(inviter: Node, new_node: NewNode, answer: str) -> None:
    with Terminal(inviter, "invite") as here:
        link = link_on(here)
        with Terminal(new_node("evil"), "join", link, "--name", "evil") as evil:
            here.until("The same words?")
            if answer == CTRL_C:
                here.interrupt(until="Refused.")
            else:
                here.type(answer)
            assert (here.end(), evil.end()) == (1, 2)
            assert "Refused. The invitation is used up" in here.screen
            assert "its owner said that the words are not the same" in evil.screen
    assert "evil" not in inviter.ok("peers").out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_an_inviter_that_no_longer_waits_takes_the_link_back(
    inviter: Node, new_node: NewNode, how: signal.Signals
) -> None:
    """Or whoever used it would wait ten minutes for an answer that nobody can give."""
    with Terminal(inviter, "invite") as here:
        link = link_on(here)
        if how is signal.SIGINT:
            here.interrupt(until="The invitation is taken back")
            assert here.end() == 130
        else:
            here.process.kill()
    late = new_node("late")
    # Of a killed one the node hears a moment later; a joiner that is quicker is refused then.
    done = until(lambda: late.type("join", link, timeout_s=20), "an answer")
    assert done.code == 2
    assert "refused" in done.err
    assert not (late.home / "group.state").exists()


def test_a_joiner_that_breaks_off_is_not_in(inviter: Node, new_node: NewNode) -> None:
    with Terminal(inviter, "invite") as here:
        link = link_on(here)
        with Terminal(new_node("shy"), "join", link, "--name", "shy") as shy:
            here.until("The same words?")
            shy.until("other screen")
            shy.interrupt(until="Not waiting any longer")
            assert shy.end() == 130
        here.type("y\n")
        assert here.end() == 5
        assert "went away" in here.screen
    assert "shy" not in inviter.ok("peers").out
