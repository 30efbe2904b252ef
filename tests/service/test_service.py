"""`service install`, `uninstall`, `allow` against a systemctl that only writes down its words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from p2pstore import sandbox
from p2pstore.cli import service
from p2pstore.config import FolderSettings
from p2pstore.errors import Unavailable, UsageError
from p2pstore.home import Home, WatchedFolder

NO_BUS = "Failed to connect to bus: No medium found"


@dataclass
class Machine:
    """A HOME, a PATH with fakes, the place of system units, and what was asked."""

    home: Path
    bin: Path
    units: Path
    log: Path

    def fake(self, tool: str, *, fails_at: str = "", says: str = "", answers: str = "") -> None:
        script = self.bin / tool
        script.write_text(
            "#!/bin/sh\n"
            f'echo "{tool} $*" >> "{self.log}"\n'
            'case " $* " in\n'
            f'    *" {fails_at or "never"} "*) echo "{says}" >&2; exit 1 ;;\n'
            "esac\n" + (f"echo '{answers}'\n" if answers else "")
        )
        script.chmod(0o755)

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def user_unit(self) -> Path:
        return self.home / ".config" / "systemd" / "user" / "p2pstore.service"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "home", tmp_path / "bin", tmp_path / "etc", tmp_path / "log")
    made.home.mkdir()
    made.bin.mkdir()
    made.fake("systemctl")
    made.fake("loginctl")
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.delenv("P2PSTORE_HOME", raising=False)
    monkeypatch.setattr(service, "SYSTEM_UNITS", made.units)
    monkeypatch.setattr(service, "BOOTED", made.bin)
    me = service.Owner("alice", os.getuid(), os.getgid(), made.home)
    monkeypatch.setattr(service, "_owner", lambda name: me)
    for module in (service, sandbox):
        monkeypatch.setattr(module, "program", lambda: ["/opt/my apps/p2pstore"])
    return made


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def values(path: Path, key: str) -> list[str]:
    lines = path.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def test_install_starts_the_users_service(machine: Machine) -> None:
    service.install()
    assert machine.asked() == [
        "systemctl --user show-environment",
        "systemctl --user daemon-reload",
        "systemctl --user enable p2pstore.service",
        "systemctl --user restart p2pstore.service",
        "loginctl show-user alice --property=Linger --value",
        "loginctl enable-linger alice",
    ]


def test_the_unit_starts_the_installed_program(machine: Machine) -> None:
    service.install()
    assert values(machine.user_unit, "ExecStart") == ['"/opt/my apps/p2pstore" "run"']


def test_install_twice_leaves_one_service(machine: Machine) -> None:
    service.install()
    first = machine.user_unit.read_text()
    service.install()
    assert machine.user_unit.read_text() == first


def test_another_store_stands_in_a_drop_in(machine: Machine) -> None:
    store = machine.home / "my store"
    service.install(home=store)
    drop_in = machine.user_unit.with_suffix(".service.d") / "home.conf"
    assert values(drop_in, "Environment") == [f'"P2PSTORE_HOME={store}"']
    assert values(drop_in, "ReadWritePaths") == []
    service.install()
    assert not drop_in.exists()


def test_the_chosen_store_of_the_environment_is_kept(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PSTORE_HOME", str(machine.home / "chosen"))
    service.install()
    drop_in = machine.user_unit.with_suffix(".service.d") / "home.conf"
    assert values(drop_in, "Environment") == [f'"P2PSTORE_HOME={machine.home}/chosen"']


def test_without_linger_a_word_is_said(machine: Machine) -> None:
    machine.fake("loginctl", fails_at="enable-linger", says="Access denied")
    said = service.install()
    assert "stops when you log out" in said
    assert "sudo loginctl enable-linger alice" in said
    assert "starts with the machine" not in said
    (machine.bin / "loginctl").unlink()
    machine.bin.joinpath("systemctl").write_text("#!/bin/sh\n")
    assert "log out" in service.install()


def test_with_linger_nothing_is_left_to_do(machine: Machine) -> None:
    assert "goes on when you log out, and starts with the machine" in service.install()


def test_linger_that_is_on_already_is_not_asked_for(machine: Machine) -> None:
    """It would be refused without an administrator, and the answer would be wrong."""
    machine.fake("loginctl", fails_at="enable-linger", says="Access denied")
    with (machine.bin / "loginctl").open("a") as script:
        script.write("echo yes\n")
    assert "goes on when you log out" in service.install()


def test_without_systemctl_nothing_is_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(machine.home))
    with pytest.raises(UsageError, match=r"not run by systemd.*p2pstore run"):
        service.install()
    assert not machine.user_unit.exists()


def test_where_something_else_runs_the_system_nothing_is_asked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BOOTED", machine.home / "nothing")
    with pytest.raises(UsageError, match=r"not run by systemd.*p2pstore run"):
        service.install()
    assert machine.asked() == []
    assert not machine.user_unit.exists()


def test_without_a_bus_nothing_is_written(machine: Machine) -> None:
    machine.fake("systemctl", fails_at="show-environment", says=NO_BUS)
    with pytest.raises(Unavailable, match="no service manager of your own") as caught:
        service.install()
    assert NO_BUS in str(caught.value)
    assert str(caught.value).endswith("p2pstore run")
    assert not machine.user_unit.exists()


def test_a_service_that_does_not_start_says_the_nodes_reason(machine: Machine) -> None:
    machine.fake("systemctl", fails_at="restart", says="Job for p2pstore.service failed.")
    machine.fake("journalctl", answers="Port 8080 is in use (nginx, pid 812).")
    with pytest.raises(Unavailable, match=r"does not start: Port 8080 is in use \(nginx") as caught:
        service.install()
    assert re.search(r"journalctl --user( -u|-unit) p2pstore\.service", str(caught.value))


def test_without_the_nodes_reason_systemctl_is_quoted(machine: Machine) -> None:
    machine.fake("systemctl", fails_at="restart", says="Job for p2pstore.service failed.")
    for broken in (lambda: machine.fake("journalctl"), (machine.bin / "journalctl").unlink):
        broken()
        with pytest.raises(Unavailable, match=r"does not start: Job for p2pstore\.service failed"):
            service.install()


def test_uninstall_stops_and_removes(machine: Machine) -> None:
    service.install(home=machine.home / "store")
    machine.log.unlink()
    service.uninstall()
    assert machine.asked() == [
        "systemctl --user disable --now p2pstore.service",
        "systemctl --user daemon-reload",
    ]
    assert list(machine.user_unit.parent.iterdir()) == []
    assert (machine.home / "store").is_dir()


def test_uninstall_of_nothing_asks_nobody(machine: Machine) -> None:
    assert service.uninstall() == "p2pstore.service is not installed."
    assert service.uninstall(system=True) == "p2pstore@alice.service is not installed."
    assert machine.asked() == []


@pytest.mark.usefixtures("as_root")
def test_the_system_service_may_write_into_its_store_only(machine: Machine) -> None:
    service.install(system=True)
    drop_in = machine.units / "p2pstore@alice.service.d" / "home.conf"
    store = machine.home / ".local" / "share" / "p2pstore"
    assert values(drop_in, "ReadWritePaths") == [f'"-{store}"']
    assert values(drop_in, "Environment") == [f'"P2PSTORE_HOME={store}"']
    assert (machine.units / "p2pstore@.service").exists()
    assert store.stat().st_mode & 0o777 == 0o700
    assert "systemctl enable p2pstore@alice.service" in machine.asked()


@pytest.mark.parametrize(
    "act",
    [
        lambda: service.install(system=True),
        lambda: service.allow(Path("/"), system=True),
    ],
)
def test_system_services_belong_to_root(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=r"sudo .* --system"):
        act()


@pytest.mark.usefixtures("as_root")
def test_allow_adds_one_directory_each(machine: Machine) -> None:
    service.install(system=True)
    machine.log.unlink()
    for name in ("Vault", 'odd "100%" name\\'):
        folder = machine.home / name
        folder.mkdir()
        service.allow(folder, system=True)
        service.allow(folder, system=True)
    drop_ins = sorted((machine.units / "p2pstore@alice.service.d").glob("allow-*.conf"))
    allowed = {value for path in drop_ins for value in values(path, "ReadWritePaths")}
    assert allowed == {
        f'"-{machine.home}/Vault"',
        f'"-{machine.home}/odd \\"100%%\\" name\\\\"',
    }
    assert machine.asked()[-2:] == [
        "systemctl daemon-reload",
        "systemctl try-restart p2pstore@alice.service",
    ]


@pytest.mark.usefixtures("as_root")
def test_what_the_node_watches_already_is_allowed_at_once(machine: Machine) -> None:
    """Somebody turns from a user's service to the system's, and every folder goes on."""
    store = machine.home / "store"
    store.mkdir()
    folder = WatchedFolder(
        folder_id=b"f" * 16, path="/srv/Vault", name="Vault", settings=FolderSettings()
    )
    former = msgspec.structs.replace(folder, path="/srv/Former", removed=True)
    Home(store).write_folders([folder, former])
    assert "into its own store, /srv/Vault only" in service.install(system=True, home=store)
    drop_ins = (machine.units / "p2pstore@alice.service.d").glob("allow-*.conf")
    assert [value for path in drop_ins for value in values(path, "ReadWritePaths")] == [
        '"-/srv/Vault"'
    ]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["two\nlines", os.fsdecode(b"latin-\xe9")])
def test_allow_refuses_what_a_unit_cannot_say(machine: Machine, name: str) -> None:
    service.install(system=True)
    folder = machine.home / name
    folder.mkdir()
    with pytest.raises(UsageError, match="no way to write the path"):
        service.allow(folder, system=True)


@pytest.mark.usefixtures("as_root")
def test_allow_before_install_says_what_is_missing(machine: Machine) -> None:
    with pytest.raises(UsageError, match="is not installed"):
        service.allow(machine.home, system=True)


def test_allow_finds_the_service_that_there_is(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        service.install(system=True)
        assert "may write" in service.allow(machine.home)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=r"sudo .*p2pstore' service allow /.* --system"):
        service.allow(machine.home)


def test_allow_of_the_users_service_has_nothing_to_do(machine: Machine) -> None:
    assert "Nothing to do" in service.allow(machine.home)
    with pytest.raises(UsageError, match="is no directory"):
        service.allow(machine.home / "absent")
    assert machine.asked() == []


@pytest.mark.usefixtures("as_root")
def test_the_template_stays_while_another_user_has_it(machine: Machine) -> None:
    service.install(system=True)
    other = machine.units / "p2pstore@bob.service.d"
    other.mkdir()
    service.uninstall(system=True)
    assert (machine.units / "p2pstore@.service").exists()
    assert not (machine.units / "p2pstore@alice.service.d").exists()
    other.rmdir()
    service.install(system=True)
    service.uninstall(system=True)
    assert list(machine.units.iterdir()) == []


@pytest.mark.usefixtures("as_root")
def test_one_user_has_one_service(machine: Machine) -> None:
    service.install()
    with pytest.raises(UsageError, match="has a service already"):
        service.install(system=True)
    service.uninstall()
    service.install(system=True)
    with pytest.raises(UsageError, match="runs for you already"):
        service.install()
    assert "sudo '/opt/my apps/p2pstore' service uninstall --system" in service.uninstall()
