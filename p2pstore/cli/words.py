"""words: show or confirm the 24 recovery words; and how they are asked for."""

from __future__ import annotations

import sys

import click

from p2pstore.cli.shell import Shell, example, pass_shell
from p2pstore.errors import UsageError
from p2pstore.keys import WORD_COUNT


@click.group(epilog=example("p2pstore words confirm"))
def words() -> None:
    """Show or confirm the 24 recovery words.

    Until they are confirmed they lie in HOME/words.txt, and no local copy is freed.
    """


@words.command("show", epilog=example("p2pstore words show"))
@pass_shell
def words_show(shell: Shell) -> int:
    """Show the words while HOME still has them."""
    try:
        text = (shell.home / "words.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        shell.need_home()
        raise UsageError(
            "This HOME has no words any more: they were confirmed, and only your note has them."
        ) from None
    shell.result(" ".join(_words_in(text)))
    shell.say("When they are on paper: p2pstore words confirm")
    return 0


def _words_in(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return " ".join(lines).split()


@words.command("confirm", epilog=example("p2pstore words confirm", "p2pstore words confirm -"))
@click.argument("given", metavar="[-]", required=False)
@pass_shell
def words_confirm(shell: Shell, given: str | None) -> int:
    """Type all 24 words; when they are right HOME forgets them. `-` reads standard input."""
    node = shell.running()
    if node is None:
        shell.need_home()
    if given == "-" or (given is None and not sys.stdin.isatty()):
        said = " ".join(sys.stdin.read().split())
    elif given is not None:
        raise UsageError("Arguments are public: type the words when asked, or give - and a pipe.")
    else:
        said = ask_words(shell)
    said = said.lower()
    if len(said.split()) != WORD_COUNT:
        raise UsageError(f"{len(said.split())} words came, {WORD_COUNT} are needed.")
    if node is not None:
        node.call("words_confirm", words=said)
    else:
        from p2pstore import node as stopped

        stopped.confirm_words(shell.home, said)
    shell.result("Right. The words are only on your note now; keep it well.")
    return 0


def ask_words(shell: Shell) -> str:
    shell.say("Type the 24 words, in their order, on one line or several.")
    typed: list[str] = []
    while len(typed) < WORD_COUNT:
        prompt = f"Words from {len(typed) + 1}"
        typed += str(click.prompt(prompt, err=True)).split()
    return " ".join(typed)
