from __future__ import annotations

import json
import shutil
import time

import pytest

from p2pstore.cli import show
from p2pstore.errors import Unavailable, UsageError

LINK = f"p2ps://192.168.1.5:8080/{'vov2xk5l' * 4}?n=default#{'ceir' * 6}ce"
INVITATION = {"invite": "i1", "link": LINK, "fingerprint": "a b c", "expires_s": 600}


@pytest.fixture
def inviting(served):
    served.answers["invite"] = INVITATION
    served.answers["wait_invite"] = {"name": "n\x1bas", "fingerprint": "apple pear plum"}
    served.answers["confirm_invite"] = {"id": "ab" * 20, "name": "nas", "role": "device"}
    return served


def test_invite_with_yes_prints_the_link_alone_and_returns(line, inviting):
    ran = line("invite", "--yes", terminal=True)
    assert (ran.code, ran.out, ran.err) == (0, f"{LINK}\n", "")
    assert inviting.calls == [("invite", {"role": "device", "confirm": False})]


@pytest.mark.parametrize(
    ("answer", "accept", "code"), [("y\n", True, 0), ("n\n", False, 1), ("", False, 1)]
)
def test_inviter_confirms_the_fingerprint(line, inviting, answer, accept, code):
    ran = line("invite", terminal=True, stdin=answer)
    assert ran.code == code
    assert "apple pear plum" in ran.err
    assert "n\\x1bas" in ran.err
    assert inviting.asked("wait_invite") == [{"invite": "i1"}]
    assert inviting.asked("confirm_invite") == [{"invite": "i1", "accept": accept}]
    assert ("nas is in.\n" in ran.out) is accept


def test_invite_shows_a_qr_code_on_a_terminal_only(line, inviting):
    assert "█" in line("invite", terminal=True, stdin="y\n").out
    assert line("invite", stdin="y\n").out == f"{LINK}\nnas is in.\n"


def test_invite_says_what_a_device_may_do(line, inviting):
    err = line("invite", stdin="y\n").err
    assert "will read all your files" in err
    assert "10 min" in err


def test_invitation_that_ran_out_is_exit_5(line, inviting):
    inviting.answers["wait_invite"] = Unavailable("Nobody came within 10 minutes.")
    assert line("invite").code == 5


# -- join

JOINED = {"id": "ab" * 20, "name": "nas", "group": "00" * 32, "role": "device"}


def test_join_while_running(line, served):
    def work(args, progress):
        progress({"text": "Compare the words: apple pear plum"})
        return JOINED

    served.answers["join"] = work
    ran = line("join", LINK, "--offer", "100GB", "--name", "nas")
    assert (ran.code, ran.out) == (0, "Joined group aaaa-aa as nas.\n")
    assert "apple pear plum" in ran.err
    assert served.asked("join") == [{"link": LINK, "offer": 100_000_000_000, "name": "nas"}]


def test_join_reads_the_link_from_a_pipe(line, served):
    served.answers["join"] = JOINED
    line("join", "-", stdin=f"  {LINK}\n")
    assert served.asked("join")[0]["link"] == LINK


def test_join_with_an_empty_pipe_is_exit_2(line, served):
    assert line("join", "-").code == 2
    assert served.calls == []


def test_mistake_in_the_link_makes_no_home(line, stopped, home):
    shutil.rmtree(home)
    ran = line("join", LINK[:-3])
    assert (ran.code, ran.err) == (2, "The invitation was not copied completely.\n")
    assert not home.exists()
    assert stopped.opened == []


def test_join_works_before_the_first_run(line, control, stopped, home):
    shutil.rmtree(home)
    control.answers["join"] = JOINED
    ran = line("join", LINK)
    assert ran.code == 0
    assert stopped.opened == [home]
    assert stopped.inits == []
    assert "p2pstore run" in ran.err


def test_join_refused_is_the_nodes_code(line, served):
    served.answers["join"] = UsageError("This HOME has protected files already.")
    assert line("join", LINK).code == 2


# -- peers

PEER = {"id": "ab" * 20, "name": "nas", "address": "h:1", "role": "device", "connected": True,
        "holds_bytes": 61_000_000_000}  # fmt: skip


def test_peers(line, served):
    served.answers["peers"] = {"peers": [PEER]}
    assert line("peers").out == "nas  device  connected  holds 61.0 GB for you\n"
    assert json.loads(line("peers", "--json").out) == {"peers": [PEER]}


def test_peers_says_since_when_each_is_connected(line, served):
    began = 1_500_000_000
    served.answers["peers"] = {"peers": [{**PEER, "since": began}]}
    said = f"connected since {show.moment(began, time.time())}"
    assert line("peers").out == f"nas  device  {said}  holds 61.0 GB for you\n"


def test_no_peers_says_what_to_do(line, served):
    served.answers["peers"] = {"peers": []}
    assert "p2pstore invite" in line("peers").out


def test_connect(line, served):
    served.answers["connect"] = PEER
    assert line("connect", "nas.lan:8080").out == "Connected to nas (device).\n"
    assert served.asked("connect") == [{"address": "nas.lan:8080"}]


@pytest.mark.parametrize("address", ["nas", "nas:", ":80", "nas:0", "nas:99999", "nas:x"])
def test_connect_to_no_address_is_exit_2(line, served, address):
    assert line("connect", address).code == 2
    assert served.calls == []


# -- words


def test_words_show_while_the_file_is_there(line, home):
    (home / "words.txt").write_text("# keep these\nword1 word2\nword3\n")
    assert line("words", "show").out == "word1 word2 word3\n"


def test_words_show_without_a_node_does_not_call_them_confirmed(line):
    ran = line("words", "show")
    assert ran.code == 6
    assert "There is no node in" in ran.err


def test_words_show_afterwards_says_where_they_are(line, home):
    (home / "device.key").touch()
    ran = line("words", "show")
    assert ran.code == 2
    assert "only your note" in ran.err


def test_words_confirm_through_the_node(line, served, stopped):
    served.answers["words_confirm"] = {"confirmed": True}
    ran = line("words", "confirm", stdin=stopped.WORDS.upper().replace(" ", "\n"))
    assert ran.code == 0
    assert served.asked("words_confirm") == [{"words": stopped.WORDS}]
    assert stopped.confirmed == []


def test_words_confirm_offline(line, stopped):
    assert line("words", "confirm", "-", stdin=stopped.WORDS).code == 0
    assert stopped.confirmed == [stopped.WORDS]


def test_words_confirm_asks_a_terminal(line, stopped):
    half = len(stopped.WORDS) // 2
    cut = stopped.WORDS.index(" ", half)
    typed = f"{stopped.WORDS[:cut]}\n{stopped.WORDS[cut:]}\n"
    assert line("words", "confirm", terminal=True, stdin=typed).code == 0
    assert stopped.confirmed == [stopped.WORDS]


def test_words_confirm_asks_nothing_where_no_node_lives(line):
    ran = line("words", "confirm", stdin="three words came")
    assert ran.code == 6
    assert "There is no node in" in ran.err


@pytest.mark.parametrize("count", [0, 1, 23, 25])
def test_words_confirm_with_another_number_is_exit_2(line, stopped, count):
    assert line("words", "confirm", stdin=" ".join(["word"] * count)).code == 2
    assert stopped.confirmed == []


def test_words_as_arguments_are_refused(line, stopped):
    assert line("words", "confirm", stopped.WORDS).code == 2


# -- leave

LEFT = {"left": True, "home": "/h", "exported": None, "files": 40, "bytes": 5_000}


def test_leave_says_at_the_end_that_home_may_go(line, served):
    served.answers["leave"] = LEFT
    ran = line("leave")
    assert ran.code == 0
    assert ran.out == (
        "Every file is back and verified (40 files, 5.0 kB).\n/h may be deleted now.\n"
    )
    assert served.asked("leave") == [{"to": None, "yes": False}]


def test_leave_with_export(line, served):
    served.answers["leave"] = {**LEFT, "exported": "/x"}
    assert "Every file is back in /x" in line("leave", "--to", "/x", "--yes").out
    assert served.asked("leave") == [{"to": "/x", "yes": True}]


def test_leave_that_cannot_finish_names_why_and_is_exit_5(line, served):
    served.answers["leave"] = {"left": False, "reasons": ["3 bundles of nas would lose a copy"]}
    ran = line("leave", "--yes")
    assert ran.code == 5
    assert "nas would lose a copy" in ran.err
    assert "may be deleted" not in ran.out


def test_leave_asks_a_terminal(line, served):
    assert line("leave", terminal=True, stdin="n\n").code == 0
    assert served.calls == []


def test_leave_of_the_default_home_removes_service_and_desktop(
    control, home_of_its_own, monkeypatch, tmp_path, capsys
):
    from p2pstore import cli
    from p2pstore.cli import desktop, service
    from p2pstore.errors import Unavailable

    removed = []

    def uninstall() -> str:
        removed.append("service")
        raise Unavailable("No systemd here.")

    def remove() -> str:
        removed.append("desktop")
        return "Removed."

    monkeypatch.setattr(service, "uninstall", uninstall)
    monkeypatch.setattr(desktop, "remove", remove)
    monkeypatch.setattr("p2pstore.cli.shell.Shell.running", lambda self: _Node())

    class _Node:
        def call(self, method, progress=None, **args):
            return LEFT

    assert cli.main(["leave", "--yes"]) == 0
    assert removed == ["service", "desktop"]
