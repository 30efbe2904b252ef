from __future__ import annotations

import json
import os
from typing import Any

import pytest

from p2pstore.cli import show
from p2pstore.cli.status import carrier_rows, file_lines, holder_warnings, needs_owner, status_lines

NOW = 1_700_000_000.0


def nas(**more: Any) -> dict[str, Any]:
    return {
        "id": "ab" * 20,
        "name": "nas",
        "address": "192.168.1.5:8080",
        "role": "device",
        "connected": True,
        "holds_bytes": 61_000_000_000,
        "proved": NOW - 720,
        **more,
    }


def vault(**more: Any) -> dict[str, Any]:
    return {
        "path": os.path.expanduser("~/Vault"),
        "files": 4_812,
        "bytes": 61_200_000_000,
        "freed_bytes": 52_100_000_000,
        "placeholders": 4_600,
        "skipped": 3,
        "min_copies": 2,
        "safe": {"files": 4_602, "bytes": 58_900_000_000},
        "one": {"files": 150, "bytes": 2_100_000_000},
        "here": {"files": 22, "bytes": 200_000_000, "note": "copying to nas, 1 min left"},
        "left": {"files": 35, "bytes": None, "reasons": {"in work": 7, "open": 9}},
        **more,
    }


def said(**more: Any) -> dict[str, Any]:
    return {
        "node": {
            "id": "cd" * 20,
            "name": "laptop",
            "listen": "0.0.0.0:8080",
            "ui": "http://127.0.0.1:8081",
            "group": "00" * 32,
            "version": "0.1.0",
            "started": NOW - 3 * 86_400,
            "reachable": "outside",
        },
        "peers": [nas(), nas(name="anna", role="friend", held_bytes=40.2e9, offer_bytes=100e9)],
        "space": {
            "bundles_bytes": 9.1e9,
            "trash_bytes": 1.2e9,
            "trash_until": NOW,
            "held_for_others_bytes": 40.2e9,
            "free_bytes": 81e9,
            "keep_free_bytes": 2e9,
        },
        "folders": [vault(), {"path": "/media/usb/Photos", "missing_since": NOW - 3 * 86_400}],
        "warnings": [
            {
                "text": "Recovery words not confirmed; a lost laptop would mean lost files:",
                "command": "p2pstore words confirm",
                "owner": True,
            }
        ],
        **more,
    }


def test_status_reads_as_sketched():
    lines = status_lines(said(), NOW)
    assert lines[0] == (
        "laptop · p2pstore 0.1.0 · up 3 days · group aaaa-aa · 8080 reachable from outside · "
        "http://127.0.0.1:8081"
    )
    text = "\n".join(" ".join(line.split()) for line in lines)
    for expected in (
        "~/Vault 4,812 files 61.2 GB 52.1 GB freed here",
        "safe on 2+ others 4,602 58.9 GB",
        "on 1 other 150 2.1 GB waits for a second holder",
        "this device only 22 200 MB copying to nas, 1 min left",
        "left as they are 35 9 open, 7 in work",
        "skipped 3 (p2pstore status ~/Vault/PATH says why)",
        "Peers nas device connected holds 61.0 GB for you proved 12 min ago",
        "you hold 40.2 of 100 GB for it",
        "/media/usb/Photos not plugged in since",
        "for others 40.2 GB · disk 81.0 GB free (2.0 GB kept free)",
        "! Recovery words not confirmed; a lost laptop would mean lost files: "
        "p2pstore words confirm",
    ):
        assert expected in text


def test_lonely_node_says_so():
    (warning,) = holder_warnings([vault()], [nas(role="stranger")], NOW)
    assert warning["text"] == (
        "No other node yet: nothing is freed, these files are on this disk alone."
    )
    assert warning["command"] == "p2pstore invite"


def test_too_few_holders_says_so():
    (warning,) = holder_warnings([vault()], [nas()], NOW)
    assert warning["text"] == (
        "~/Vault needs 2 other holders, there is 1 (nas). Invite one, or accept one copy:"
    )
    assert warning["command"] == "p2pstore add-folder ~/Vault --min-copies 1"


def test_enough_holders_need_no_word():
    assert holder_warnings([vault()], [nas(), nas(name="b")], NOW) == []
    assert holder_warnings([vault(min_copies=1)], [nas()], NOW) == []
    assert holder_warnings([], [], NOW) == []


def test_nothing_is_called_lonely_while_a_lost_catalog_is_rebuilt():
    (warning,) = holder_warnings([vault()], [absent()], NOW, rebuilding=True)
    assert warning["text"] == (
        "What attic (offline 3 min) holds is not known again yet. Start it there:"
    )


def absent(**more: Any) -> dict[str, Any]:
    return nas(name="attic", connected=False, holds_bytes=0, last_seen=NOW - 180, **more)


def test_device_that_joined_and_holds_nothing_is_no_holder_yet():
    (warning,) = holder_warnings([vault()], [nas(), absent()], NOW)
    assert warning["text"] == (
        "~/Vault needs 2 other holders, there is 1 (nas); attic (offline 3 min) holds nothing yet. "
        "Start it, invite another, or accept one copy:"
    )
    (warning,) = holder_warnings([vault()], [absent()], NOW)
    assert warning["text"] == (
        "attic (offline 3 min) holds nothing yet: nothing is freed, these files are on this disk "
        "alone. Start it there:"
    )
    assert warning["command"] == "p2pstore run"


def test_holder_that_is_away_is_still_one():
    assert holder_warnings([vault()], [nas(), nas(name="b", connected=False)], NOW) == []


def test_node_without_anything_is_described():
    lines = status_lines({}, NOW)
    assert "No folder yet. Give it one: p2pstore add-folder DIR" in lines


def test_mass_change_shows_both_ways_out():
    text = "\n".join(
        status_lines(said(folders=[vault(mass_change={"gone": 30, "total": 90})]), NOW)
    )
    assert "30 of 90 files are gone or changed at once" in text
    assert "resume ~/Vault --accept" in text
    assert "resume ~/Vault --undo" in text


def test_status_is_aligned_as_sketched():
    lines = status_lines(said(), NOW)
    assert lines[1:7] == [
        "~/Vault              4,812 files  61.2 GB  52.1 GB freed here",
        "  safe on 2+ others  4,602        58.9 GB",
        "  on 1 other           150         2.1 GB  waits for a second holder",
        "  this device only      22         200 MB  copying to nas, 1 min left",
        "  left as they are      35                 9 open, 7 in work",
        "  skipped                3                 (p2pstore status ~/Vault/PATH says why)",
    ]


def test_status_fits_a_terminal_of_80_columns():
    path = "/media/" + "long/" * 8 + "path"
    lines = status_lines(said(folders=[vault(path=path)]), NOW, width=80)
    assert max(map(len, lines)) <= 80
    assert lines[1:5] == [
        "  8080 reachable from outside · http://127.0.0.1:8081",
        path,
        "  all                4,812 files  61.2 GB  52.1 GB freed here",
        "  safe on 2+ others  4,602        58.9 GB",
    ]
    assert lines[-4:] == [
        f"Room   store 9.1 GB · trash 1.2 GB until {show.moment(NOW, NOW)} · for others 40.2 GB",
        "       disk 81.0 GB free (2.0 GB kept free)",
        " !  Recovery words not confirmed; a lost laptop would mean lost files:",
        "        p2pstore words confirm",
    ]


def test_words_are_cut_nowhere_and_stand_below_themselves():
    reasons = {f"reason number {n}": 10 - n for n in range(5)}
    lines = status_lines(
        said(folders=[vault(left={"files": 30, "reasons": reasons})]), NOW, width=80
    )
    at = next(n for n, line in enumerate(lines) if "left as they are" in line)
    start = lines[at].index("10 reason number 0")
    assert lines[at + 1].startswith(" " * start)
    assert lines[at + 1][start] != " "
    together = " ".join(" ".join(lines[at : at + 6]).split())
    assert "10 reason number 0, 9 reason number 1, 8 reason number 2" in together


def test_names_in_status_are_harmless():
    evil = "x\x1b[2J\n !  fake"
    text = "\n".join(
        status_lines(
            said(
                peers=[nas(name=evil)],
                folders=[vault(path=f"/{evil}", left={"files": 1, "reasons": {evil: 1}})],
                warnings=[{"text": evil, "command": evil}],
            ),
            NOW,
        )
    )
    assert "\x1b" not in text
    assert "\n !  fake" not in text


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({"warnings": [], "folders": []}, False),
        ({"warnings": [{"text": "x"}], "folders": []}, False),
        ({"warnings": [{"text": "x", "owner": True}], "folders": []}, True),
        ({"warnings": [], "folders": [vault(paused=True)]}, True),
        ({"warnings": [], "folders": [vault()]}, False),
    ],
)
def test_needs_owner(change, needs):
    assert needs_owner(change) is needs


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (
            {"path": "/v/a", "state": "placeholder", "size": 5_000, "copies": 2, "local": False},
            "/v/a  5.0 kB  placeholder, safe on 2 others, freed here",
        ),
        (
            {"path": "/v/a", "state": "protected", "size": 1, "copies": 0, "reason": "open"},
            "/v/a  1 B  protected, on this device only: open",
        ),
        (
            {"path": "/v/a", "type": "link", "state": "protected", "size": 6, "reason": "a link"},
            "/v/a  6 B  protected: a link",
        ),
        ({"path": "/v/\n", "state": "unknown"}, "/v/\\n    unknown"),
    ],
)
def test_file_line(one, expected):
    assert file_lines([one]) == [expected]


def test_status_command(line, served):
    served.answers["status"] = said()
    ran = line("status")
    assert ran.code == 0
    assert ran.out.startswith("laptop · p2pstore 0.1.0")
    assert served.asked("status") == [{"paths": [], "check": False}]


def test_status_json_is_the_nodes_document(line, served):
    served.answers["status"] = said()
    ran = line("status", "--json")
    assert json.loads(ran.out) == json.loads(json.dumps(said()))


def test_status_check_is_exit_1_when_the_owner_is_needed(line, served):
    served.answers["status"] = said()
    assert line("status", "--check").code == 1
    served.answers["status"] = said(warnings=[])
    assert line("status", "--check", "--json").code == 0


def test_status_of_paths(line, served, tmp_path):
    served.answers["status"] = said(
        files=[{"path": "/v/a", "state": "placeholder", "size": 5, "copies": 1, "local": True}]
    )
    ran = line("status", str(tmp_path / "a"), str(tmp_path / "b.f"))
    assert ran.out == "/v/a  5 B  placeholder, on 1 other\n"
    assert served.asked("status")[0]["paths"] == [str(tmp_path / "a"), str(tmp_path / "b.f")]


def loop(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": "waits", "doing": "", "failures": 0, **more}


def test_upkeep_is_one_line_for_who_asks_for_more():
    loops = [
        loop("index", last_run=NOW - 120),
        loop("scrub", state="works", doing="reads", done=1_200, total=5_000),
        loop("collect", state="works"),
        loop("audit", state="rests", failures=4, last_error="the disk sulks"),
        loop("tidy"),
    ]
    assert not [line for line in status_lines(said(maintenance=loops), NOW) if "scrub" in line]
    (line,) = [x for x in status_lines(said(maintenance=loops), NOW, upkeep=True) if "scrub" in x]
    assert line == (
        "Upkeep index 2 min ago · scrub now (1,200 of 5,000) · collect now"
        " · audit failed 4 times (the disk sulks) · tidy not yet"
    )


def test_a_place_says_how_much_of_folders_it_holds_and_nothing_where_that_is_nothing():
    album = {"name": "album", "kind": "png", "where": "/srv/album", "bytes": 0}
    disk = {"name": "usb", "kind": "folder", "where": "/media/usb", "bytes": 5_000, "proved": NOW}
    assert carrier_rows([album, disk], NOW + 60) == [
        ["album", "png", "/srv/album", "", ""],
        ["usb", "folder", "/media/usb", "holds 5.0 kB of folders", "read back 1 min ago"],
    ]
