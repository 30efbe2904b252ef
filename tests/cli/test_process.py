from __future__ import annotations

import re

import pytest

from p2pstore.config import Address, Config
from p2pstore.errors import UsageError


def test_init_on_a_pipe_prints_the_words_alone(line, stopped, home):
    ran = line("init", "--name", "nas")
    assert (ran.code, ran.out) == (0, f"{stopped.WORDS}\n")
    assert stopped.inits == [(home, "nas")]
    assert stopped.confirmed == []
    assert "p2pstore words confirm" in ran.err


def test_init_takes_the_configured_name(line, stopped, home, monkeypatch):
    monkeypatch.setenv("P2PSTORE_NAME", "nas")
    line("init")
    line("init", "--name", "desk")
    assert stopped.inits == [(home, "nas"), (home, "desk")]


def test_init_with_yes_counts_as_confirmed(line, stopped):
    ran = line("init", "--yes", terminal=True)
    assert ran.code == 0
    assert stopped.confirmed == [stopped.WORDS]
    assert "Word " not in ran.err


def answers_for(line, monkeypatch, give):
    """Fix which words are asked for: the third and the tenth."""
    monkeypatch.setattr("secrets.SystemRandom.sample", lambda self, population, k: [9, 2])
    return line("init", terminal=True, stdin=give)


def test_init_asks_a_terminal_for_two_words(line, stopped, monkeypatch):
    ran = answers_for(line, monkeypatch, "word3\n WORD10 \n")
    assert re.findall(r"Word \d+", ran.err) == ["Word 3", "Word 10"]
    assert stopped.confirmed == [stopped.WORDS]
    assert " 3. word3" in ran.out
    assert "24. word24" in ran.out


def test_init_takes_a_second_try(line, stopped, monkeypatch):
    answers_for(line, monkeypatch, "wrong\nword3\nword10\n")
    assert stopped.confirmed == [stopped.WORDS]


def test_init_with_wrong_words_leaves_them_unconfirmed(line, stopped, monkeypatch):
    ran = answers_for(line, monkeypatch, "a\nb\nc\n")
    assert ran.code == 0
    assert stopped.confirmed == []
    assert "p2pstore words confirm" in ran.err


def test_init_in_a_home_that_has_a_node_is_exit_2(line, stopped, monkeypatch):
    def refuse(home, name, *, now):
        raise UsageError("There is a node in it already.")

    monkeypatch.setattr(stopped, "init_home", refuse, raising=False)
    assert line("init").code == 2


def ran_with(line, *words: str) -> Config:
    handed: list[Config] = []

    def run_node(config, home):
        handed.append(config)
        return 0

    ran = line("run", *words, run_node=run_node)
    assert ran.code == 0, ran.err
    return handed[0]


def test_run_options_win(line, home, monkeypatch):
    (home / "config.toml").write_text('listen = "0.0.0.0:1"\noffer = "1GiB"\n')
    monkeypatch.setenv("P2PSTORE_LISTEN", "0.0.0.0:2")
    config = ran_with(
        line, "--listen", "127.0.0.1:3", "--ui", "off", "--bootstrap", "a:1", "--bootstrap",
        "b:2", "--no-mdns", "--no-port-map", "--network", "test",
    )  # fmt: skip
    assert config.listen == Address("127.0.0.1", 3)
    assert config.ui is None
    assert config.bootstrap == (Address("a", 1), Address("b", 2))
    assert config.mdns is False
    assert config.port_map is False
    assert config.network == "test"
    assert config.offer == 1 << 30


def test_run_without_options_is_the_files_and_the_environments(line, home, monkeypatch):
    (home / "config.toml").write_text('listen = "0.0.0.0:1"\nmdns = false\n')
    monkeypatch.setenv("P2PSTORE_LISTEN", "0.0.0.0:2")
    config = ran_with(line)
    assert config.listen.port == 2
    assert config.mdns is False


@pytest.mark.parametrize(
    "words", [["--listen", "nowhere"], ["--offer", "much"], ["--ui", "x"]], ids=" ".join
)
def test_run_with_bad_option_is_exit_2(line, words):
    assert line("run", *words, run_node=lambda config, home: 0).code == 2


def test_run_with_damaged_config_is_exit_2_and_names_it(line, home):
    (home / "config.toml").write_text("listen = [[[")
    ran = line("run", run_node=lambda config, home: 0)
    assert ran.code == 2
    assert "config.toml" in ran.err


def test_exit_code_of_the_node_is_the_commands(line):
    assert line("run", run_node=lambda config, home: 5).code == 5
