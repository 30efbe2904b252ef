"""The node as a systemd service: unit files, drop-ins, and what systemctl is asked.

The units themselves are package data (p2pstore/data); this module puts them where systemd looks,
with the path of the installed program, and writes two kinds of drop-ins beside them:

    home.conf           which HOME of p2pstore the service works on
    allow-<hash>.conf   one directory that the sandboxed system service may write into

The user's service is not sandboxed by mounts (its unit file says why), so `allow` has nothing to
widen there. Each function does its work and returns what to tell the user, a sentence a line;
failures are `UsageError` (this system cannot) or `Unavailable` (not now).
"""

from __future__ import annotations

import getpass
import hashlib
import os
import pwd
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from p2pstore.errors import Unavailable, UsageError
from p2pstore.home import Home
from p2pstore.sandbox import as_root, program

SYSTEM_UNITS = Path("/etc/systemd/system")
BOOTED = Path("/run/systemd/system")  # there where systemd runs the system: sd_booted(3)
SYSTEMCTL_TIMEOUT_S = (
    90  # longer than TimeoutStopSec of the units: a restart waits for the old node
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files the service works on."""

    name: str
    uid: int
    gid: int
    home: Path  # the user's home directory


@dataclass(frozen=True, slots=True)
class Unit:
    """One of the two units, for one user."""

    owner: Owner
    system: bool
    directory: Path  # where unit files of this kind lie

    @property
    def source(self) -> str:
        """The file's name; for the template the part that all instances share."""
        return "p2pstore@.service" if self.system else "p2pstore.service"

    @property
    def name(self) -> str:
        return f"p2pstore@{self.owner.name}.service" if self.system else "p2pstore.service"

    @property
    def file(self) -> Path:
        return self.directory / self.source

    @property
    def drop_ins(self) -> Path:
        return self.directory / f"{self.name}.d"

    @property
    def is_installed(self) -> bool:
        return self.file.exists() and (not self.system or self.drop_ins.exists())

    @property
    def journal(self) -> str:
        # `--user` means users' journals, where lines of root's own services are not.
        users = "--user -u" if self.owner.uid else "--user-unit"
        return f"journalctl {'-u' if self.system else users} {self.name}"

    def systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        scope = [] if self.system else ["--user"]
        try:
            return subprocess.run(
                ["systemctl", *scope, *words],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SYSTEMCTL_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as exc:
            raise _no_systemd() from exc
        except subprocess.TimeoutExpired as exc:
            raise Unavailable(
                f"systemctl {' '.join(words)} did not come back; see: {self.journal}"
            ) from exc

    def ask(self, *words: str) -> None:
        """Run systemctl; Unavailable with its own words when it fails."""
        done = self.systemctl(*words)
        if done.returncode:
            raise Unavailable(
                f"systemctl {' '.join(words)} failed ({_first_line(done.stderr)}); see:"
                f" {self.journal}"
            )

    def restart(self) -> None:
        """Start the node anew and wait until it is ready; Unavailable with its own last words."""
        began = time.time()
        done = self.systemctl("restart", self.name)
        if done.returncode:
            # systemctl only knows that it failed; what the node said last is the reason.
            why = self._last_words(began) or _first_line(done.stderr)
            raise Unavailable(
                f"The service is installed, but the node does not start: {why.rstrip('.')}."
                f" Its log: {self.journal}"
            )

    def _last_words(self, since: float) -> str:
        """The last line that the node itself wrote to the journal; empty when none is found."""
        command = [*self.journal.split(), "_TRANSPORT=stdout", "-n", "1", "-o", "cat"]
        try:
            done = subprocess.run(
                [*command, "--no-pager", "-q", "--since", f"@{int(since)}"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SYSTEMCTL_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""  # told by systemctl's words instead
        return "" if done.returncode else _first_line(done.stdout, "")


def unit(*, system: bool = False, user: str | None = None) -> Unit:
    """The unit that the caller means: its own user's, or the system's instance for `user`."""
    owner = _owner(user or (os.environ.get("SUDO_USER") if system else None))
    if system:
        return Unit(owner, True, SYSTEM_UNITS)
    if user is not None and owner.uid != os.getuid():
        raise UsageError(f"The service of {owner.name} is installed by {owner.name}, or: --system")
    config = os.environ.get("XDG_CONFIG_HOME") or os.fspath(Path.home() / ".config")
    return Unit(owner, False, Path(config) / "systemd" / "user")


def install(system: bool = False, *, user: str | None = None, home: Path | None = None) -> str:
    """Write the unit, enable it and start it; what was installed before is brought up to date.

    `home`: another HOME of p2pstore than the user's default one; else P2PSTORE_HOME, as everywhere.
    """
    target = unit(system=system, user=user)
    _check_manager(target)
    _must_be_root(target, "install")
    _refuse_second_service(target)
    said = [f"Wrote {target.file}"]
    target.directory.mkdir(parents=True, exist_ok=True)
    target.file.write_text(unit_text(target, program()), encoding="utf-8")
    store = home or _chosen_home() or (_default_home(target.owner) if target.system else None)
    if store is not None:
        _own_directory(store, target)
        lines = [f"Environment={_quoted(f'P2PSTORE_HOME={store}')}"]
        if target.system:
            lines.append(f"ReadWritePaths={_quoted(f'-{store}')}")
        _write_drop_in(target, "home.conf", "Where this node's store lies.", lines)
    else:
        (target.drop_ins / "home.conf").unlink(missing_ok=True)
    allowed = _allow_watched(store, target) if target.system and store is not None else []
    target.ask("daemon-reload")
    target.ask("enable", target.name)
    target.restart()
    said.append(f"The node runs. Its log: {target.journal} -f")
    if target.system:
        said.append("It goes on when you log out, and starts with the machine.")
        where = ", ".join(["its own store", *map(os.fspath, allowed)])
        said.append(
            f"It may write into {where} only; for each other folder:"
            f" {as_root()} service allow DIR --system"
        )
    else:
        said.append(_linger(target.owner.name))
    return "\n".join(said)


def uninstall(system: bool = False, *, user: str | None = None) -> str:
    """Stop the service and remove its files; nothing of the store is touched."""
    target = unit(system=system, user=user)
    if not target.is_installed:
        instance = unit(system=True, user=user)
        if not system and instance.is_installed:
            return (
                f"{target.name} is not installed, but {instance.name} is; to remove that:"
                f" {as_root()} service uninstall --system"
            )
        return f"{target.name} is not installed."
    _must_be_root(target, "uninstall")
    # A unit that is not running or not enabled is no reason to leave its file behind.
    stopped = target.systemctl("disable", "--now", target.name)
    shutil.rmtree(target.drop_ins, ignore_errors=True)
    others = list(target.directory.glob("p2pstore@?*.service.d")) if target.system else []
    if not others:  # the template serves every user of this machine
        target.file.unlink(missing_ok=True)
    target.systemctl("daemon-reload")
    said = [f"{target.name} is removed; the store and every .f file are untouched."]
    if stopped.returncode:
        said.append(f"systemctl could not stop it ({_first_line(stopped.stderr)}).")
    return "\n".join(said)


def allow(directory: str | Path, system: bool = False, *, user: str | None = None) -> str:
    """Let the service write into `directory`, from now on and after a restart of the node."""
    place = _existing_directory(Path(directory))
    target = unit(system=system, user=user)
    if not target.is_installed and (instance := unit(system=True, user=user)).is_installed:
        target = instance  # the node that could not write names this command without an option
    if not target.system:
        if not os.access(place, os.W_OK | os.X_OK):
            raise UsageError(f"You may not write into {place}; change its owner or its mode first.")
        return (
            f"Nothing to do: the user service writes wherever you may, {place} included.\n"
            f"A node installed with --system needs: {as_root()} service allow DIR --system"
        )
    _check_manager(target)
    _must_be_root(target, f"allow {shlex.quote(os.fspath(place))}")
    if not target.is_installed:
        raise UsageError(f"{target.name} is not installed: p2pstore service install --system")
    _allow(place, target)
    target.ask("daemon-reload")
    # The list of writable paths is made when the service starts.
    target.ask("try-restart", target.name)
    following = f"p2pstore add-folder {shlex.quote(os.fspath(place))}"
    return f"The service may write into {place} now; next: {following}"


def _allow(place: Path, target: Unit) -> None:
    _write_drop_in(
        target,
        f"allow-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}.conf",
        "Written by `p2pstore service allow`; remove the file to take it back.",
        [f"ReadWritePaths={_quoted(f'-{place}')}"],
    )


def _allow_watched(store: Path, target: Unit) -> list[Path]:
    """Allow the folders that the node watches already, as when it was a user's service before."""
    watched = [Path(folder.path) for folder in Home(store).folders() if not folder.removed]
    for place in watched:
        _allow(place, target)
    return watched


def unit_text(target: Unit, start: Sequence[str]) -> str:
    """The unit file with the program's real path in ExecStart."""
    text = resources.files("p2pstore").joinpath("data", target.source).read_text("utf-8")
    command = " ".join(_quoted(word) for word in [*start, "run"])
    lines = [f"ExecStart={command}" if x.startswith("ExecStart=") else x for x in text.splitlines()]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """One word of a unit file (systemd.syntax(7)), quoted and free of specifiers."""
    if any(not sign.isprintable() for sign in word):
        raise UsageError(f"systemd has no way to write the path {word!r}; rename the directory.")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _owner(name: str | None) -> Owner:
    try:
        found = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
    except KeyError as exc:
        raise UsageError(f"There is no user {name or os.getuid()} on this system.") from exc
    return Owner(found.pw_name, found.pw_uid, found.pw_gid, Path(found.pw_dir))


def _chosen_home() -> Path | None:
    chosen = os.environ.get("P2PSTORE_HOME")
    return Path(chosen).expanduser().absolute() if chosen else None


def _default_home(owner: Owner) -> Path:
    return owner.home / ".local" / "share" / "p2pstore"


def _existing_directory(directory: Path) -> Path:
    place = directory.expanduser().resolve()
    if not place.is_dir():
        raise UsageError(f"{directory} is no directory.")
    return place


def _must_be_root(target: Unit, words: str) -> None:
    if target.system and os.geteuid() != 0:
        raise UsageError(
            f"The system's services belong to root: {as_root()} service {words} --system"
        )


def _check_manager(target: Unit) -> None:
    """Fail before anything is written when there is no service manager to talk to."""
    if not BOOTED.is_dir():
        raise _no_systemd()
    done = target.systemctl("show-environment")
    if done.returncode == 0:
        return
    if target.system:
        raise Unavailable(
            f"systemd does not answer ({_first_line(done.stderr)}). Without it: p2pstore run"
        )
    raise Unavailable(
        f"You have no service manager of your own here ({_first_line(done.stderr)}). Log in as"
        f" {getpass.getuser()} directly, not by su or sudo, or use the system's:"
        f" {as_root()} service install --system, or none: p2pstore run"
    )


def _no_systemd() -> UsageError:
    return UsageError(
        "This system is not run by systemd. Start the node by whatever starts programs here:"
        " p2pstore run"
    )


def _refuse_second_service(target: Unit) -> None:
    """Two services on one HOME would fight for its lock at every start."""
    owner = target.owner
    users_own = owner.home / ".config" / "systemd" / "user" / "p2pstore.service"
    if target.system and users_own.exists():
        raise UsageError(
            f"{owner.name} has a service already ({users_own}); first, as {owner.name}:"
            " p2pstore service uninstall"
        )
    instance = Unit(owner, True, SYSTEM_UNITS)
    if not target.system and instance.is_installed:
        raise UsageError(
            f"{instance.name} runs for you already; first: {as_root()} service uninstall --system"
        )


def _own_directory(store: Path, target: Unit) -> None:
    """Make `store` and what is missing above it, owned by the user: root must not keep it."""
    missing = [path for path in (store, *store.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700)
        if target.system:
            os.chown(path, target.owner.uid, target.owner.gid)


def _write_drop_in(target: Unit, name: str, comment: str, lines: Sequence[str]) -> None:
    target.drop_ins.mkdir(parents=True, exist_ok=True)
    text = "\n".join([f"# {comment}", "[Service]", *lines, ""])
    (target.drop_ins / name).write_text(text, encoding="utf-8")


def _linger(user: str) -> str:
    """Ask that the user's services go on after logout; the sentence tells whether they will."""
    # Asking is refused without an administrator, also where it is so already.
    lingers = _loginctl("show-user", user, "--property=Linger", "--value") == "yes"
    if lingers or _loginctl("enable-linger", user) is not None:
        return "It goes on when you log out, and starts with the machine."
    return (
        "It stops when you log out, and starts when you log in again; to keep it running:"
        f" sudo loginctl enable-linger {user}"
    )


def _loginctl(*words: str) -> str | None:
    """What loginctl answers; None when it refuses or is not there."""
    try:
        done = subprocess.run(
            ["loginctl", *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=SYSTEMCTL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def _first_line(text: str, otherwise: str = "it gave no reason") -> str:
    lines = text.strip().splitlines()
    return lines[0].rstrip(".") if lines else otherwise
