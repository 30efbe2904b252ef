"""CHECKS: what is wrong here, and how to mend it (`doctor`).

A finding is a sentence for the owner and, where there is one, the command that mends it. `doctor`
looks at what is cheap to look at and changes nothing (`checking` reads what is stored); it works
while the node runs and while a stopped node is lent to one command.
"""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from p2pstore import syscalls
from p2pstore.config import format_size
from p2pstore.errors import P2PStoreError
from p2pstore.folders import Folder
from p2pstore.maintenance import rebuild_state
from p2pstore.node.build import Node
from p2pstore.node.status import carrier_lines
from p2pstore.placement import OWN
from p2pstore.sandbox import remedy
from p2pstore.store import BundleState, files
from p2pstore.text import plural
from p2pstore.threads import in_thread
from p2pstore.wire import verify_record

Json = dict[str, Any]
Progress = Callable[[Json], None]

SKEW_S: Final = 120.0  # leases last months and proofs ten minutes: less does no harm
EARLIEST: Final = 1_735_689_600.0  # 2025: a clock before this program was written is wrong
DESCRIPTORS: Final = 4096  # leases, bundles and 256 peers
WATCHES_PER_DIRECTORY: Final = 2  # one for changes, one for opens
WATCHES: Final = Path("/proc/sys/fs/inotify/max_user_watches")
SECRETS: Final = ("device.key", "admin.key", "group.state", "words.txt")


# -- doctor ----------------------------------------------------------------------------------------


async def doctor(node: Node) -> list[Json]:
    """All findings, problems first."""
    links = node.network.connections.links()  # asked in the loop, where they change
    skews = _skews(node)

    def look() -> list[Json]:
        found = [
            *_identity(node),
            *_home(node),
            *_port(node),
            *_clock(node, skews),
            *_room(node),
            *_store(node),
            *_limits(node),
            *_peers(node, len(links)),
            *_carriers(node),
        ]
        for folder in node.folders.all():
            found += _folder(folder)
        return found

    order = {"problem": 0, "hint": 1, "ok": 2}
    return sorted(await in_thread(node.pool, look), key=lambda one: order[one["level"]])


def _carriers(node: Node) -> Iterator[Json]:
    """As far as the last calls to them have told."""
    for line in carrier_lines(node):
        name = line["name"]
        if line["trouble"] and not line["kind"]:
            yield _problem(line["trouble"], f"p2pstore carriers remove {name}")
        elif line["trouble"]:
            yield _problem(f"{name}: {line['trouble']}", f"p2pstore carriers test {name}")
        elif line["same_disk"]:
            yield _hint(f"{name} lies on the same disk as the store: it would be lost with it.")
        else:
            yield _ok(f"{name}: {format_size(line['bytes'])} lie there.")


def _ok(text: str) -> Json:
    return {"level": "ok", "text": text}


def _hint(text: str, command: str | None = None) -> Json:
    return _with_command({"level": "hint", "text": text}, command)


def _problem(text: str, command: str | None = None) -> Json:
    return _with_command({"level": "problem", "text": text}, command)


def _with_command(finding: Json, command: str | None) -> Json:
    return finding if command is None else {**finding, "command": command}


def _identity(node: Node) -> Iterator[Json]:
    if node.group.is_expelled:
        yield _problem(
            "This device was revoked: it is no member of its group any more. It can bring its "
            "files back and leave.",
            "p2pstore leave",
        )
    if node.home.words_confirmed:
        yield _ok("The recovery words are confirmed.")
    elif node.home.words() is not None:
        yield _problem(
            "The recovery words are not confirmed: without them a lost disk means lost files.",
            "p2pstore words confirm",
        )
    trouble = node.trouble()
    if trouble is not None:
        yield _problem(trouble, "p2pstore run (after the disk was looked at)")


def _home(node: Node) -> Iterator[Json]:
    home = node.home.path
    open_to_others = stat.S_IMODE(home.stat().st_mode) & 0o077
    if open_to_others:
        yield _problem(f"Others on this computer can look into {home}.", f"chmod 700 {home}")
    loose = [
        name
        for name in SECRETS
        if (home / name).exists() and stat.S_IMODE((home / name).stat().st_mode) & 0o077
    ]
    for name in loose:
        yield _problem(
            f"Others on this computer can read {home / name}.", f"chmod 600 {home / name}"
        )
    if home.stat().st_uid != os.geteuid():
        yield _problem(f"{home} belongs to another user.")
    if not open_to_others and not loose:
        yield _ok(f"Only you can read the keys in {home}.")


def _port(node: Node) -> Iterator[Json]:
    host, port = node.network.listening
    owner = syscalls.socket_owner(port) if port else None
    if owner is None:
        yield _hint(f"Nobody listens on port {port}: no other node can reach this one.")
    elif owner[1] != os.getpid():
        yield _problem(
            f"Port {port} belongs to {owner[0]} (pid {owner[1]}).",
            f"p2pstore run --listen {host}:{port + 10 if port < 65_000 else 8090}",
        )
    else:
        yield _reachable(node, port)


def _reachable(node: Node, port: int) -> Json:
    """What others could find out about our port."""
    verdict = node.network.presence.verdict
    mapping = node.network.presence.mapping
    at = f"Port {port}"
    if mapping is not None:
        outer = "" if mapping.port == port else f", there {mapping.port}"
        at += f" (opened at the router by {mapping.how}{outer})"
    if verdict.state == "outside":
        return _ok(f"{at} can be reached from outside: {verdict.why}.")
    if verdict.state == "network":
        return _ok(f"{at} can be reached in this network: {verdict.why}.")
    if verdict.state == "unknown":
        return _ok(f"Whether port {port} can be reached from outside is unknown: {verdict.why}.")
    return _hint(
        f"{at} cannot be reached from outside: {verdict.why.rstrip('.')}. Let the router pass TCP "
        f"and UDP {port} to this computer, and the firewall too. Until then this node dials the "
        "others, and two that cannot be reached need a third one that can."
    )


def _skews(node: Node) -> list[tuple[str, float]]:
    """(name, how far its clock is ahead) of each connected node: its HELLO carries the time."""
    skews: list[tuple[str, float]] = []
    for link in node.network.connections.links():
        if link.hello.record is None:
            continue
        try:
            issued = verify_record(link.hello.record).issued_ms / 1000
        except P2PStoreError:
            continue
        name = node.group.name_of(link.node_id) or link.hello.name
        skews.append((name, issued - link.connected_at))
    return skews


def _clock(node: Node, skews: list[tuple[str, float]]) -> Iterator[Json]:
    if node.clock.wall() < EARLIEST:
        yield _problem("The clock of this computer is years behind.", "timedatectl set-ntp true")
    wrong = [(name, skew) for name, skew in skews if abs(skew) > SKEW_S]
    for name, skew in wrong:
        way = "ahead of" if skew > 0 else "behind"
        level = _problem if len(wrong) * 2 > len(skews) and len(skews) > 1 else _hint
        yield level(
            f"The clock of {name} is {abs(skew) / 60:.0f} minutes {way} this one.",
            "timedatectl",
        )
    if skews and not wrong:
        yield _ok("The clocks of all connected nodes agree.")


def _room(node: Node) -> Iterator[Json]:
    _, free, keep_free = node.room.measures()
    if free < keep_free:
        yield _problem(
            f"The disk with {node.data} has {format_size(free)} free; nothing is written below "
            f"{format_size(keep_free)}.",
            "p2pstore free-up DIR",
        )
    else:
        yield _ok(f"{format_size(free - keep_free)} may still be written on the store's disk.")


def _store(node: Node) -> Iterator[Json]:
    if node.volatile is not None:
        yield _problem(
            f"Nothing is replaced: {node.volatile}. Name a lasting disk in "
            f'{node.home.path / "config.toml"}: data = "/DIR"'
        )
    damages = node.catalog.damages()
    if damages:
        yield _problem(f"The catalog is damaged: {damages[0]}", "p2pstore rebuild-catalog")
    sealed, lost = node.catalog.view(_bundles)
    gone = sum(1 for bundle_id in sealed if not node.store.has(bundle_id))
    if gone:
        yield _problem(
            f"{plural(gone, 'bundle')} recorded as here and missing.", "p2pstore check --repair"
        )
    damaged = len(node.upkeep.healer.damaged())
    if damaged:
        yield _problem(
            f"{plural(damaged, 'bundle')} damaged here, and no holder could be asked yet.",
            "p2pstore check --read-data --repair",
        )
    state = rebuild_state(node.catalog)
    if lost and state is not None and state.pending:
        yield _problem(f"{plural(lost, 'bundle')} not found again before holders are asked.")
    elif lost:
        yield _problem(f"{plural(lost, 'bundle')} needed and nowhere at the moment.")
    if node.held.lost:
        what = plural(len(node.held.lost), "bundle")
        yield _problem(f"{what} kept for others and gone from this disk.")
    if state is not None and state.pending:
        yield _hint("The catalog was rebuilt; what other devices hold is still to be asked for.")
    if state is not None and state.unread:
        yield _hint(
            f"{plural(state.unread, 'list')} could not be read when the catalog was rebuilt."
        )
    if not (damages or gone or lost):
        yield _ok(f"The store has its {plural(len(sealed), 'bundle')}; p2pstore check reads them.")


def _bundles(db: sqlite3.Connection) -> tuple[list[Any], int]:
    sealed = db.execute("SELECT bundle_id FROM bundles WHERE state=?", (BundleState.SEALED,))
    ids = [bundle_id for (bundle_id,) in sealed.fetchall()]
    query = "SELECT count(DISTINCT b.id) FROM bundles b JOIN file_bundles r ON r.bundle=b.id"
    (lost,) = db.execute(f"{query} WHERE b.state=?", (BundleState.LOST,)).fetchone()
    return ids, int(lost)


def _limits(node: Node) -> Iterator[Json]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        command = f"ulimit -n {DESCRIPTORS}" if hard >= DESCRIPTORS else "LimitNOFILE=65536"
        yield _hint(f"Only {soft} files may be open at once; large batches get slower.", command)
    directories = sum(_directories(node, folder) for folder in node.folders.all())
    try:
        limit = int(WATCHES.read_text())
    except (OSError, ValueError):
        return
    wanted = directories * WATCHES_PER_DIRECTORY
    if wanted > limit * 9 // 10:
        yield _problem(
            f"{directories:,} directories want {wanted:,} inotify watches; the limit of this "
            f"system is {limit:,}.",
            f"sudo sysctl fs.inotify.max_user_watches={max(2 * wanted, 524_288)}",
        )
    else:
        watched = "1 directory is" if directories == 1 else f"{directories:,} directories are"
        yield _ok(f"{watched} watched; the system allows {limit:,} watches.")


def _directories(node: Node, folder: Folder) -> int:
    """Directories in which something is known, with those above them."""

    def look(db: sqlite3.Connection) -> int:
        found = {b""}
        for path, *_ in files.identities(db, folder.row):
            parent = path.rpartition(b"/")[0]
            while parent not in found:
                found.add(parent)
                parent = parent.rpartition(b"/")[0]
        return len(found)

    return node.catalog.view(look)


def _peers(node: Node, connected: int) -> Iterator[Json]:
    others = node.group.others()
    if not others:
        yield _hint(
            "This is the only device of its group: files have no copy anywhere else.",
            "p2pstore invite",
        )
        return
    there = len(node.network.devices())
    if there:
        yield _ok(f"{there} of {len(others)} other devices are connected.")
    else:
        yield _hint(
            f"None of the {len(others)} other devices is connected"
            + (f" (connected: {plural(connected, 'node')} of others)." if connected else "."),
            "p2pstore peers",
        )


def _folder(folder: Folder) -> Iterator[Json]:
    path = folder.path
    if folder.unwatched is not None:
        yield _problem(f"{folder.unwatched}; it is tried again by itself.")
        return
    if folder.root is None:
        yield _hint(f"{path} is not there; it goes on by itself when it is back.")
        return
    if folder.is_paused:
        yield _problem(f"{path} is paused: {folder.entry.paused}.", f"p2pstore resume {path}")
    why, command = (folder.obstacle, None) if folder.obstacle else _try_lease(path)
    if why is None:
        yield _ok(f"{path}: files can be locked while they are replaced.")
    else:
        yield _problem(f"{path}: files are protected there, but not replaced: {why}.", command)
    if folder.opens_unheard:
        yield _hint(f"{path}: opening a placeholder may go unnoticed: {folder.opens_unheard}")
    if folder.waiting_for_room is not None:
        yield _problem(f"{path}: waiting for room: {folder.waiting_for_room}.")
    for name, reason in folder.unread[:3]:
        yield _problem(f"{path}/{os.fsdecode(name)} cannot be read ({reason}).")


def _try_lease(path: Path) -> tuple[str | None, str | None]:
    """Why files of this folder cannot be locked (None: they can), and what helps. Tried on ours."""
    try:
        own = path / os.fsdecode(OWN) / "tmp"
        with tempfile.NamedTemporaryFile(dir=own, prefix="doctor-", delete=False) as file:
            name = Path(file.name)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.set_lease(fd)
                syscalls.unset_lease(fd)
            finally:
                os.close(fd)
        finally:
            name.unlink()
    except OSError as exc:
        if exc.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC):
            return f"it cannot be written ({exc.strerror})", remedy(path, exc)
        return "its file system has no leases", None
    except P2PStoreError as exc:
        return str(exc), None
    return None, None
