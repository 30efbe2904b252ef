from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore import config
from p2pstore.config import (
    Address,
    Config,
    FolderSettings,
    format_duration,
    format_size,
    load,
    parse_address,
    parse_duration,
    parse_size,
    save,
)
from p2pstore.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5),
        ("500ms", 0.5),
        ("10m", 600),
        ("24h", 86_400),
        ("30d", 2_592_000),
        ("0", 0),
        (" 1.5 h ", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("100MB", 100_000_000),
        ("2GiB", 2 << 30),
        ("2 gib", 2 << 30),
        ("1.5kB", 1500),
        ("0.1TB", 10**11),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "-5", "5x", "1e3", "5 10", "5m 3s", "٣", "999999d", "nan"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "GB", "-1", "100M", "1,000", "5m", "٣", "99999EB", "inf"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.integers(0, config.MAX_SIZE))
def test_an_exact_size_is_read_back(size: int) -> None:
    assert parse_size(format_size(size, exact=True)) == size


@given(st.integers(0, 10**10).map(lambda ms: ms / 1000))
def test_a_duration_is_read_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.integers(0, config.MAX_SIZE))
def test_a_size_for_people_is_near_and_short(size: int) -> None:
    text = format_size(size)
    assert len(text) <= 8
    assert parse_size(text) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (61_200_000_000, "61.2 GB"),
        (812_000_000, "812 MB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


def test_round_durations_are_short() -> None:
    shown = [format_duration(s) for s in (0, 0.5, 5, 90, 600, 86_400, 2_592_000)]
    assert shown == ["0s", "500ms", "5s", "90s", "10m", "1d", "30d"]


def test_addresses() -> None:
    assert parse_address("[::1]:0") == Address("::1", 0)
    assert str(Address("::1", 0)) == "[::1]:0"
    assert parse_address("nas.local:8080") == Address("nas.local", 8080)
    for bad in ("nas", ":1", "nas:", "nas:65536", "::1:80", "a b:1", "http://x:1", "nas:1\n2"):
        with pytest.raises(UsageError):
            parse_address(bad)


def test_an_empty_home_has_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, {}, {}) == Config()


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('settle = "1s"\nkeep = "1h"\nkeep-free = "1GB"\n')
    found = load(tmp_path, {"P2PSTORE_KEEP": "2h", "P2PSTORE_SETTLE": "2"}, {"settle": "3s"})
    assert (found.settle_s, found.keep_s, found.keep_free) == (3, 7200, 10**9)


def test_each_key_is_a_variable_and_survives_the_file(tmp_path: Path) -> None:
    given = {
        "name": "laptop",
        "network": "home",
        "listen": "127.0.0.1:0",
        "ui": "off",
        "webdav": "[::1]:1",
        "bootstrap": "a:1,b:2",
        "mdns": "no",
        "port_map": "no",
        "data": "/mnt/store",
        "allow_volatile_store": "true",
        "settle": "0.25",
        "keep": "12h",
        "trash_hold": "5m",
        "trash_hold_short": "20s",
        "copies": "5",
        "min_copies": "3",
        "lease": "100d",
        "lock": "11m",
        "fresh_proof": "9m",
        "vetting": "2d",
        "keep_free": "auto",
        "offer": "100GB",
        "offer_friends": "1GiB",
        "history": "60d",
        "scrub_period": "45d",
    }
    assert set(given) == set(config.KEYS)
    assert {k.field for k in config.KEYS.values()} == set(Config.__struct_fields__)
    env = {f"P2PSTORE_{key.upper()}": text for key, text in given.items()}
    from_env = load(tmp_path, env, {})
    save(tmp_path, given)
    assert load(tmp_path, {}, {}) == from_env
    assert from_env.bootstrap == (Address("a", 1), Address("b", 2))
    assert from_env.ui is None
    assert not from_env.mdns
    assert not from_env.port_map


def test_other_variables_are_none_of_ours(tmp_path: Path) -> None:
    assert load(tmp_path, {"P2PSTORE_HOME": "/x", "LISTEN": "x", "_P2PSTORE_COMPLETE": "y"}, {})


def test_an_unknown_key_is_named_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("setle = 5\n")
    with pytest.raises(UsageError) as caught:
        load(tmp_path, {}, {})
    assert "setle" in str(caught.value)
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(UsageError, match="P2PSTORE_SETLE"):
        load(tmp_path, {"P2PSTORE_SETLE": "5"}, {})
    with pytest.raises(UsageError, match="command line"):
        load(tmp_path, {}, {"setle": 5})


@pytest.mark.parametrize(
    "line",
    [
        'settle = "soon"',
        "settle = true",
        "settle = -1",
        "settle = nan",
        "settle = inf",
        "listen = 8080",
        "bootstrap = 5",
        "bootstrap = [5]",
        'mdns = "maybe"',
        "min_copies = 0",
        "min_copies = 2.5",
        "copies = 65",
        'lock = "1m"',
        'lease = "10d"',
        'data = "relative"',
        'network = ""',
        'name = "a\\nb"',
        "[listen]",
    ],
)
def test_a_bad_value_is_named_with_key_and_file(tmp_path: Path, line: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(line + "\n")
    with pytest.raises(UsageError) as caught:
        load(tmp_path, {}, {})
    assert str(file) in str(caught.value)
    assert line.strip("[]").split(" ")[0] in str(caught.value)


@pytest.mark.parametrize("content", [b"settle = ", b"\xff", b"[" * 100_000, b"a" * (2 << 20)])
def test_what_is_no_toml_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.toml"):
        load(tmp_path, {}, {})


def test_more_needed_copies_raise_the_target(tmp_path: Path) -> None:
    assert load(tmp_path, {}, {"min_copies": 6}).copies == 6
    with pytest.raises(UsageError):
        load(tmp_path, {}, {"min_copies": 3, "copies": 2})


def test_save_changes_some_keys_and_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('keep-free = "3GB"\nsettle = 7\n')
    save(tmp_path, {"offer": "1TB", "settle": None})
    found = load(tmp_path, {}, {})
    assert (found.offer, found.keep_free, found.settle_s) == (10**12, 3 * 10**9, 5)
    assert os.stat(tmp_path / "config.toml").st_mode & 0o777 == 0o600


def test_save_refuses_what_load_would_refuse_and_keeps_the_file(tmp_path: Path) -> None:
    save(tmp_path, {"offer": "1TB"})
    with pytest.raises(UsageError):
        save(tmp_path, {"offer": "much"})
    assert load(tmp_path, {}, {}).offer == 10**12


def test_room_kept_free_and_lent() -> None:
    gib = 1 << 30
    assert Config().keep_free_of(10 * gib) == 2 * gib
    assert Config().keep_free_of(100 * gib) == 5 * gib
    assert Config(keep_free=1).keep_free_of(100 * gib) == 1
    assert Config().offer_of(total=100 * gib, free=25 * gib, held=0) == 10 * gib
    assert Config().offer_of(total=100 * gib, free=15 * gib, held=10 * gib) == 10 * gib
    assert Config().offer_of(total=100 * gib, free=1, held=0) == 0
    assert Config(offer=7).offer_of(total=100, free=0, held=0) == 7


def test_folder_settings_take_the_given_ones_only() -> None:
    old = FolderSettings(exclude=("*.iso",), settle_s=1)
    new = old.changed({"keep_s": 60, "replace": ["*.db"], "min_copies": 5, "pin": True})
    assert new == FolderSettings(
        exclude=("*.iso",),
        settle_s=1,
        keep_s=60,
        replace=("*.db",),
        min_copies=5,
        copies=5,
        pin=True,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"settle": 5},
        {"settle_s": -1},
        {"settle_s": float("nan")},
        {"settle_s": "5"},
        {"min_copies": 0},
        {"copies": 1},
        {"min_size": -1},
        {"exclude": [""]},
        {"exclude": ["\udcff"]},
        {"exclude": "*.iso"},
        {"replace": ["x" * 5000]},
    ],
)
def test_folder_settings_refuse_what_cannot_be(given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        FolderSettings().changed(given)


def test_folder_settings_survive_json_and_messagepack() -> None:
    settings = FolderSettings(exclude=("ä*",), min_size=5)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=FolderSettings) == settings
    packed = msgspec.msgpack.encode(settings)
    assert msgspec.msgpack.decode(packed, type=FolderSettings) == settings
    assert Config(settle_s=1, min_copies=3).folder_defaults().min_copies == 3
