"""`doctor` says what is wrong and how to mend it; `check` answers as the contract says."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import pytest

from p2pstore import syscalls
from p2pstore.node import checks
from p2pstore.node.checks import doctor
from p2pstore.node.presence import Presence
from p2pstore.node.status import status
from p2pstore.swarm import Verdict
from tests.node.conftest import Place

MENDABLE = {"ok", "hint", "problem"}


def texts(findings: list[dict[str, Any]], level: str) -> str:
    return "\n".join(one["text"] for one in findings if one["level"] == level)


async def test_lonely_new_node_has_little_to_complain_of(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        findings = await doctor(node)
        assert all(one["level"] in MENDABLE and one["text"] for one in findings)
        assert [one["level"] for one in findings] == sorted(
            (one["level"] for one in findings), key=["problem", "hint", "ok"].index
        )
        assert texts(findings, "problem").splitlines() == [
            "The recovery words are not confirmed: without them a lost disk means lost files."
        ]
        assert findings[0]["command"] == "p2pstore words confirm"
        assert "only device of its group" in texts(findings, "hint")
        good = texts(findings, "ok")
        assert "can be reached from outside is unknown: this node listens on this machine" in good
        assert "files can be locked" in good
        assert not list((place.folder / ".p2pstore" / "tmp").iterdir()), "nothing is left behind"


async def test_confirmed_words_are_good(place: Place) -> None:
    async with place.running() as node:
        node.home.confirm_words()
        assert "words are confirmed" in texts(await doctor(node), "ok")


async def test_home_that_others_can_read_is_a_problem(place: Place) -> None:
    async with place.running() as node:
        place.home.path.chmod(0o755)
        (place.home.path / "device.key").chmod(0o644)
        problems = [one for one in await doctor(node) if one["level"] == "problem"]
        assert {one.get("command") for one in problems} >= {
            f"chmod 700 {place.home.path}",
            f"chmod 600 {place.home.path / 'device.key'}",
        }


async def test_folder_without_leases_is_a_problem(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running() as node:
        await place.filled(node)

        def refuse(_: int) -> None:
            raise OSError(errno.EINVAL, "no")

        monkeypatch.setattr(syscalls, "set_lease", refuse)
        assert "has no leases" in texts(await doctor(node), "problem")


async def test_folder_where_nothing_may_be_replaced_is_a_problem(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        node.folders.all()[0]._books.obstacle = "it lies on a network mount (NFS)"
        said = texts(await doctor(node), "problem")
        assert "files are protected there, but not replaced: it lies on a network mount" in said


async def test_folder_that_cannot_be_watched_is_a_problem(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        node.folders.all()[0].unwatched = "/x cannot be recovered yet (Read-only file system)"
        assert "cannot be recovered yet" in texts(await doctor(node), "problem")


async def test_folder_that_is_not_there_is_told(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        root = node.folders.all()[0].root
        node.folders.all()[0].root = None
        assert "is not there" in texts(await doctor(node), "hint")
        node.folders.all()[0].root = root


async def test_few_watches_are_a_problem_with_its_remedy(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "limit"
    limit.write_text("3\n")
    monkeypatch.setattr(checks, "WATCHES", limit)
    async with place.running() as node:
        await place.filled(node)
        (finding,) = [one for one in await doctor(node) if "inotify" in one["text"]]
        assert "2 directories want 4" in finding["text"]
        assert finding["command"].startswith("sudo sysctl fs.inotify.max_user_watches=")


async def test_few_descriptors_are_hinted_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.running() as node:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1 << 20))
        assert "Only 1024 files" in texts(await doctor(node), "hint")


async def test_missing_bundle_is_a_problem(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        node.store.path(node.store.list()[0]).unlink()
        assert "recorded as here and missing" in texts(await doctor(node), "problem")


async def test_clock_of_another_node_is_compared(place: Place) -> None:
    async with place.running() as node:
        found = list(checks._clock(node, [("nas", 1.0), ("phone", 3600.0)]))
        assert [one["level"] for one in found] == ["hint"]
        assert "phone is 60 minutes ahead" in found[0]["text"]
        # When most disagree it is this clock that is wrong.
        found = list(checks._clock(node, [("nas", -900.0), ("phone", -900.0)]))
        assert {one["level"] for one in found} == {"problem"}
        assert [one["level"] for one in checks._clock(node, [("nas", 0.1)])] == ["ok"]
        assert list(checks._clock(node, [])) == []


async def test_disk_within_keep_free_is_a_problem(place: Place) -> None:
    async with place.running(keep_free="900PB") as node:
        assert "nothing is written below" in texts(await doctor(node), "problem")


@pytest.mark.parametrize(
    ("verdict", "level", "said"),
    [
        (Verdict("outside", "a peer outside reaches it"), "ok", "can be reached from outside"),
        (Verdict("network", "nobody outside is connected"), "ok", "reached in this network"),
        (Verdict("no", "It does not answer."), "hint", "cannot be reached from outside: It does"),
        (Verdict("unknown", "nobody is connected"), "ok", "is unknown: nobody is connected"),
    ],
    ids=lambda value: value.state if isinstance(value, Verdict) else None,
)
async def test_doctor_says_whether_others_get_in(
    place: Place, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, level: str, said: str
) -> None:
    monkeypatch.setattr(Presence, "verdict", verdict)
    async with place.running() as node:
        [finding] = [one for one in await doctor(node) if said in one["text"]]
        assert finding["level"] == level
        assert status(node, [])["node"]["reachable"] == verdict.state
