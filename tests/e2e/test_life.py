"""A node begins, runs, is stopped, is killed, and begins again."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, names, some_bytes, until, write

# -- init and words ---


@pytest.fixture(scope="module")
def founded(nodes: NewNode) -> tuple[Node, str]:
    """A HOME with unconfirmed words, and these words."""
    node = nodes("founded")
    return node, node.ok("init", "--name", "attic").out.strip()


def test_init_prints_24_words_alone_on_a_pipe(founded: tuple[Node, str]) -> None:
    assert len(founded[1].split()) == 24


def test_init_refuses_a_home_that_has_an_identity(founded: tuple[Node, str]) -> None:
    done = founded[0].type("init", "--yes")
    assert done.code == 2
    assert is_one_sentence(done)


def test_keys_and_words_are_readable_by_the_owner_alone(founded: tuple[Node, str]) -> None:
    home = founded[0].home
    for name in ("device.key", "admin.key", "words.txt"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) & 0o077 == 0


def test_home_says_why_it_must_not_be_deleted(founded: tuple[Node, str]) -> None:
    assert "p2pstore leave" in (founded[0].home / "DO-NOT-DELETE.txt").read_text()


def test_words_show_prints_them_until_they_are_confirmed(founded: tuple[Node, str]) -> None:
    assert founded[0].ok("words", "show").out.split() == founded[1].split()


def test_wrong_words_are_not_confirmed(founded: tuple[Node, str]) -> None:
    node, words = founded
    swapped = words.split()[::-1]
    done = node.type("words", "confirm", "-", stdin=" ".join(swapped))
    assert done.code == 2
    assert (node.home / "words.txt").exists()


def test_too_few_words_are_counted(founded: tuple[Node, str]) -> None:
    done = founded[0].type("words", "confirm", "-", stdin="one two three")
    assert (done.code, "3" in done.err) == (2, True)
    assert is_one_sentence(done)


def test_confirmed_words_leave_the_disk(new_node: NewNode) -> None:
    node = new_node()
    words = node.ok("init").out
    node.ok("words", "confirm", "-", stdin=words)
    assert not (node.home / "words.txt").exists()
    shown = node.type("words", "show")
    assert shown.code == 2
    assert "note" in shown.err


def test_init_with_yes_counts_as_confirmed(new_node: NewNode) -> None:
    node = new_node()
    node.ok("init", "--yes")
    assert not (node.home / "words.txt").exists()


# -- run ---


def test_run_in_an_empty_home_makes_a_node_and_says_where_the_words_are(
    new_node: NewNode,
) -> None:
    node = new_node().start()
    assert os.fspath(node.home) in node.log
    assert len((node.home / "words.txt").read_text().split()) == 24
    status = node.ok("status").out
    assert "words confirm" in status


def test_run_does_not_make_a_new_identity_where_one_was(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    (node.home / "device.key").unlink()
    (node.home / "group.state").unlink()
    done = node.type("run", "--listen", "127.0.0.1:0", "--ui", "off")
    assert done.code == 2
    assert "identity" in done.err
    assert not (node.home / "device.key").exists()


def test_sigterm_ends_the_node_within_ten_seconds(new_node: NewNode, tmp_path: Path) -> None:
    node = new_node()
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    write(folder, [(f"{n}.bin", some_bytes(100_000, n)) for n in range(40)])
    node.ok("add-folder", folder, "--yes")
    began = time.monotonic()
    assert node.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 10
    assert node.type("status").code == 6


def test_ctrl_c_ends_the_node_cleanly(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    node.start()
    assert node.stop(signal.SIGINT) == 0


def test_a_busy_port_is_said_in_one_sentence_with_exit_5(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = node.type("run", "--listen", f"127.0.0.1:{port}", "--ui", "off", "--no-mdns")
    assert done.code == 5
    assert f"Port {port} is in use" in done.err
    assert "--listen" in done.err
    assert "Traceback" not in done.err


def test_a_busy_ui_port_moves_on(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node.ui = f"127.0.0.1:{port}"
        node.start()
    assert f":{port}" not in node.access


def test_listening_on_any_port_takes_the_same_for_tcp_and_udp(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    node.start()
    port = node.port()
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        with pytest.raises(OSError, match="in use"):
            udp.bind(("127.0.0.1", port))


def test_a_second_node_on_one_home_is_refused(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    node.start()
    done = node.type("run", "--listen", "127.0.0.1:0", "--ui", "off", "--no-mdns")
    assert done.code != 0
    assert "Another p2pstore" in done.err
    assert is_one_sentence(done)
    assert node.ok("status").code == 0


def test_a_setting_that_does_not_exist_is_named(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    (node.home / "config.toml").write_text("setle = '5s'\n")
    done = node.type("run", "--listen", "127.0.0.1:0")
    assert done.code == 2
    assert "setle" in done.err
    assert is_one_sentence(done)


def test_a_damaged_config_is_said_and_nothing_starts(new_node: NewNode) -> None:
    node = new_node()
    node.init()
    (node.home / "config.toml").write_bytes(b"\xff\x00[[[")
    done = node.type("run", "--listen", "127.0.0.1:0")
    assert done.code == 2
    assert "config.toml" in done.err
    assert is_one_sentence(done)


def test_a_low_descriptor_limit_is_enough(new_node: NewNode, tmp_path: Path) -> None:
    import resource

    node = new_node()
    node.init()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        node.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    folder = tmp_path / "Vault"
    write(folder, [(f"{n}.txt", b"%d" % n) for n in range(400)])
    node.add(folder)
    assert len(names(folder)) == 400
    assert all(name.endswith(".f") for name in names(folder))


def test_a_hard_descriptor_limit_is_lived_with(new_node: NewNode, tmp_path: Path) -> None:
    """Where even root's limit cannot be raised, batches are smaller, nothing else."""
    node = new_node()
    node.init()
    plain = node.command

    def limited(*args: str | bytes | Path) -> list[str | bytes | Path]:
        return ["/bin/sh", "-c", 'ulimit -n 700; exec "$@"', "sh", *plain(*args)]

    node.command = limited  # type: ignore[method-assign]
    node.start()
    node.command = plain  # type: ignore[method-assign]
    folder = tmp_path / "Vault"
    write(folder, [(f"{n}.txt", b"%d" % n) for n in range(400)])
    node.add(folder)
    assert all(name.endswith(".f") for name in names(folder))


# -- the page ---


def test_the_ui_port_serves_a_page_metrics_and_health(node: Node) -> None:
    for path in ("/", "/metrics", "/healthz"):
        with urllib.request.urlopen(node.access + path, timeout=10) as response:
            assert response.status == 200
            assert response.read()


# -- kill -9 ---


def test_after_kill_9_the_node_starts_and_every_file_is_there(
    new_node: NewNode, tmp_path: Path
) -> None:
    node = new_node()
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    files = write(folder, [(f"{n}.bin", some_bytes(150_000, n)) for n in range(60)])
    node.ok("add-folder", folder, "--yes")
    # In the middle of the work: some are replaced, some are not.
    until(lambda: any(name.endswith(".f") for name in names(folder)), "the first placeholder")
    node.kill()
    assert node.type("status").code == 6
    node.start()
    node.ok("add-folder", folder, "--yes", "--wait")
    node.ok("hydrate", folder)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert names(folder) == sorted(files)


def test_killed_again_and_again_nothing_is_lost(new_node: NewNode, tmp_path: Path) -> None:
    node = new_node()
    node.init()
    folder = tmp_path / "Vault"
    files = write(folder, [(f"{n}.bin", some_bytes(80_000, n)) for n in range(30)])
    node.start()
    node.ok("add-folder", folder, "--yes")
    for stem in ("3", "14", "27"):
        node.kill()
        for name in files:
            assert (
                (folder / name).exists()
                or (folder / f"{name}.f").exists()
                or list((folder / ".p2pstore" / "trash").rglob(name))
            )
        node.start()
        until(
            lambda stem=stem: (folder / f"{stem}.bin.f").exists(),  # type: ignore[misc]
            "work goes on",
            tell=lambda: [node.call("status", paths=[str(folder)])["files"], names(folder)],
        )
    node.ok("add-folder", folder, "--yes", "--wait")
    node.ok("hydrate", folder)
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_after_a_restart_placeholders_still_come_back(new_node: NewNode, tmp_path: Path) -> None:
    node = new_node()
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    files = write(folder, [("a.txt", b"alpha"), ("deep/b.bin", some_bytes(300_000))])
    node.add(folder)
    node.restart()
    (folder / "a.txt.f").read_bytes()  # once: who says that it is ready hears of it
    until((folder / "a.txt").exists, "the original")
    assert (folder / "a.txt").read_bytes() == files["a.txt"]
