from __future__ import annotations

import stat
from pathlib import Path

import pytest

from p2pstore.carriers import (
    CarrierConfig,
    FolderConfig,
    PictureFolderConfig,
    PictureHostConfig,
    S3Config,
    encode_config,
    load_config,
    make_carrier,
    parse_config,
    save_config,
)
from p2pstore.carriers.config import MAX_FILE
from p2pstore.errors import UsageError

S3 = S3Config(bucket="pieces", access_key="AKIA1", secret_key="s3cr3t/+=", prefix="a/b-c")
HOST = PictureHostConfig(
    url="https://example.org/upload?x=1",
    field="file",
    address="regex:src=(.+?)>",
    headers={"Authorization": "Bearer s3cr3t"},
    form={"album": "größer"},
)
CONFIGS: list[CarrierConfig] = [
    FolderConfig(path="/media/usb", mark="0" * 32),
    PictureFolderConfig(path="/media/usb", width=600, height=600),
    S3,
    HOST,
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_what_is_written_is_read(tmp_path: Path, config: CarrierConfig) -> None:
    path = tmp_path / "carrier.toml"
    save_config(path, config)
    assert load_config(path) == config == parse_config(encode_config(config))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_what_is_needed_has_to_be_written() -> None:
    config = parse_config(b'kind = "picture-host"\nurl = "http://h/u"\n')
    assert config == PictureHostConfig(url="http://h/u")


@pytest.mark.parametrize("config", [S3, HOST], ids=["s3", "host"])
def test_secrets_are_not_shown(config: CarrierConfig) -> None:
    assert "s3cr3t" not in f"{config!r} {config}"


@pytest.mark.slow
def test_making_one_touches_nothing(tmp_path: Path) -> None:
    for config in CONFIGS:
        make_carrier("one", config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "kind"),
        ("kind = 1", "kind"),
        ('kind = "tape"', "tape"),
        ('kind = "folder"', "path"),
        ('kind = "folder"\npath = 1', "path"),
        ('kind = "folder"\npath = "/a"\nmrak = ""', "mrak"),
        ('kind = "folder', "TOML"),
        ("\xff", "TOML"),
        ("a = " + "[" * 5000, "TOML"),
        (" " * (MAX_FILE + 1), "too large"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "carrier.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=f"(?s)carrier.toml: .*{said}"):
        load_config(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


FOLDER = 'kind = "folder"\n'
ALBUM = 'kind = "picture-folder"\npath = "/a"\n'
BUCKET = 'kind = "s3"\naccess_key = "a"\nsecret_key = "s"\n'
WEB = 'kind = "picture-host"\n'
URL = 'url = "http://h/"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FOLDER + 'path = "relative"', "path"),
        (FOLDER + 'path = "/a\\u0000b"', "path"),
        (FOLDER + 'path = "/a"\nmark = "../../x"', "mark"),
        (ALBUM + "width = 0", "pixels"),
        (ALBUM + "width = 20000", "pixels"),
        (ALBUM + "width = 8000\nheight = 8000", "pixels"),
        (ALBUM + "height = 63", "64"),
        (BUCKET + 'bucket = "a/b"', "bucket"),
        (BUCKET + 'bucket = ""', "bucket"),
        (BUCKET + 'bucket = "abc"\nprefix = "/a"', "prefix"),
        (BUCKET + 'bucket = "abc"\nprefix = "a/../b"', "prefix"),
        (BUCKET + f'bucket = "abc"\nprefix = "{"a" * 513}"', "prefix"),
        (BUCKET + 'bucket = "abc"\nendpoint = "s3.example.org"', "endpoint"),
        (BUCKET + 'bucket = "abc"\nendpoint = "http://h"', "allow_http"),
        (BUCKET + 'bucket = "abc"\nregion = "eu west"', "region"),
        ('kind = "s3"\nbucket = "abc"\naccess_key = "a"\nsecret_key = ""', "secret_key"),
        ('kind = "s3"\nbucket = "abc"\naccess_key = "a b"\nsecret_key = "s"', "access_key"),
        (WEB + 'url = "ftp://h/"', "url"),
        (WEB + 'url = "http://"', "url"),
        (WEB + 'url = "http://h:99999/"', "url"),
        (WEB + 'url = "http://[::1/"', "url"),
        (WEB + 'url = "http://h/a b"', "url"),
        (WEB + f'url = "http://h/{"a" * 2048}"', "url"),
        (WEB + 'url = "http://me:secret@h/"', "password"),
        (WEB + URL + 'field = ""', "field"),
        (WEB + URL + "field = 'a\"b'", "field"),
        (WEB + URL + 'address = "xpath:a"', "address"),
        (WEB + URL + "width = 10", "64"),
        (WEB + URL + '[headers]\n"a b" = "x"', "headers"),
        (WEB + URL + '[headers]\nHost = "x"', "headers"),
        (WEB + URL + '[headers]\nX = "a\\r\\nEvil: 1"', "headers"),
        (WEB + URL + '[form]\n"a\\n" = "x"', "form"),
        (WEB + URL + f'[form]\na = "{"x" * 4097}"', "form"),
        (WEB + URL + "[form]\n" + "\n".join(f'a{n} = ""' for n in range(33)), "at most 32"),
    ],
)
def test_a_value_that_cannot_work_is_told_by_its_name(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_config(text.encode())
