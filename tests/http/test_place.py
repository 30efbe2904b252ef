from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from p2pstore.errors import HomeLocked, UsageError
from p2pstore.http.frontends import Frontends
from p2pstore.http.place import MAX_SOCKET_PATH, bind_socket, socket_path


def test_directory_is_private(tmp_path):
    path = socket_path(tmp_path / "home", {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert path.parent == tmp_path / "p2pstore"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_homes_have_two_sockets(tmp_path):
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert socket_path(tmp_path / "a", env) != socket_path(tmp_path / "b", env)
    assert socket_path(tmp_path / "a", env) == socket_path(tmp_path / "a", env)


def test_deep_runtime_directory_is_passed_over(tmp_path):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    short = socket_path(tmp_path / "home", {"XDG_RUNTIME_DIR": str(deep), "TMPDIR": "/tmp"})
    assert len(os.fsencode(short)) <= MAX_SOCKET_PATH
    assert short.parent == Path(f"/tmp/p2pstore-{os.getuid()}")


def test_link_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p2pstore").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        socket_path(tmp_path / "home", {"XDG_RUNTIME_DIR": str(tmp_path)})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_directory_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "p2pstore").mkdir()
    os.chown(tmp_path / "p2pstore", 12345, 12345)
    with pytest.raises(UsageError):
        socket_path(tmp_path / "home", {"XDG_RUNTIME_DIR": str(tmp_path)})


def test_open_directory_is_closed(tmp_path):
    (tmp_path / "p2pstore").mkdir(mode=0o755)
    path = socket_path(tmp_path / "home", {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_system_service_uses_its_runtime_directory(tmp_path):
    path = socket_path(tmp_path, {"RUNTIME_DIRECTORY": "/run/p2pstore"})
    assert path == Path("/run/p2pstore/control.sock")


def test_stale_socket_is_replaced(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with bind_socket(path) as listener:
        assert listener.getsockname() == str(path)


def test_living_socket_is_not_taken(tmp_path):
    path = tmp_path / "s"
    with bind_socket(path):
        with pytest.raises(HomeLocked):
            bind_socket(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_home_names_the_socket_while_it_runs(frontends, tmp_path):
    control_file = tmp_path / "home" / "control"
    assert control_file.read_text() == f"{frontends.socket}\n"
    path = frontends.socket
    await frontends.close()
    assert not control_file.exists()
    assert not path.exists()


async def test_second_node_leaves_the_first_alone(frontends, control, tmp_path):
    second = Frontends(control, tmp_path / "home")
    with pytest.raises(HomeLocked):
        await second.start(None, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert (tmp_path / "home" / "control").exists()
    assert frontends.socket.exists()
