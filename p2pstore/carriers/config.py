"""How a carrier is set up: one TOML file for each, readable by its owner alone (it has keys).

    kind = "folder"           path, mark
    kind = "s3"               bucket, prefix, endpoint, region, access_key, secret_key, allow_http
    kind = "picture-host"     url, field, address, width, height, headers, form
    kind = "picture-folder"   path, mark, width, height

Keys that do not exist are refused, as are values that cannot work: nobody notices an ignored typo
before the day on which the piece was needed. What is secret is left out of `repr`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import tomli_w

from p2pstore.carriers.address import check_rule
from p2pstore.carriers.carrier import MAX_KEY, MAX_NAME
from p2pstore.content import capacity
from p2pstore.durable import replace_file
from p2pstore.errors import UsageError

MAX_FILE: Final = 64 * 1024  # more than that is something else
MAX_PREFIX: Final = 512  # S3 allows 1,024 bytes for prefix and name together
MAX_FIELDS: Final = 32  # headers, or fields of the form, that a host may want
MAX_VALUE: Final = 4096  # characters of one of them: a token, never content
MIN_PICTURE: Final = 64  # pixels: a host may refuse less, and a piece would hold next to nothing

_HARMLESS = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?<!\.)")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_WORD = re.compile(r"[A-Za-z0-9._-]{1,256}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110, 5.6.2
_OURS = frozenset({"content-length", "content-type", "host", "transfer-encoding"})


class _Config(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What all of them have in common."""


class FolderConfig(_Config, frozen=True, tag="folder"):
    """A directory: a disk, a USB stick, a mounted share."""

    path: str  # absolute
    mark: str = ""  # of the very disk, as `prepare` told it; empty: any that was prepared


class S3Config(_Config, frozen=True, tag="s3"):
    """A bucket of Amazon S3 or of anything that speaks its protocol."""

    bucket: str
    access_key: str
    secret_key: str
    prefix: str = ""  # before each name, without slashes at its ends
    endpoint: str = ""  # empty: Amazon's in that region
    region: str = "us-east-1"
    allow_http: bool = False  # plain http shows the sealed pieces, and no keys, to the network

    def __repr__(self) -> str:
        return f"S3Config(bucket={self.bucket!r}, endpoint={self.endpoint!r}, ...)"


class PictureHostConfig(_Config, frozen=True, tag="picture-host"):
    """A host that takes pictures by HTTP upload (multipart/form-data)."""

    url: str  # to which pictures are posted
    field: str = "image"  # of the form, for the picture
    address: str = "json:data.url"  # where the picture's address stands in the answer
    width: int = 1024
    height: int = 768
    headers: dict[str, str] = {}  # of an upload, as Authorization; never sent with a download
    form: dict[str, str] = {}  # more fields of the form

    def __repr__(self) -> str:
        return f"PictureHostConfig(url={self.url!r}, ...)"


class PictureFolderConfig(_Config, frozen=True, tag="picture-folder"):
    """A directory of pictures: to be carried elsewhere by hand."""

    path: str
    mark: str = ""
    width: int = 1024
    height: int = 768


CarrierConfig = FolderConfig | S3Config | PictureHostConfig | PictureFolderConfig


def check_config(config: CarrierConfig) -> None:
    """UsageError, with one sentence, for what cannot work."""
    match config:
        case FolderConfig() | PictureFolderConfig():
            if not Path(config.path).is_absolute() or "\0" in config.path:
                raise UsageError(f"path: {config.path!r} is no absolute path.")
            if re.fullmatch(r"([0-9a-f]{32})?", config.mark) is None:
                raise UsageError("mark: it has 32 hexadecimal digits, or is empty.")
        case S3Config():
            _check_s3(config)
        case PictureHostConfig():
            _check_host(config)
    if isinstance(config, PictureHostConfig | PictureFolderConfig):
        capacity(config.width, config.height)
        if min(config.width, config.height) < MIN_PICTURE:
            raise UsageError(f"width and height are at least {MIN_PICTURE} pixels.")


def is_harmless(name: str) -> bool:
    """Nothing that a file system or an address could take for more than a name."""
    return len(name) <= MAX_NAME and _HARMLESS.fullmatch(name) is not None


def check_url(url: str, what: str) -> None:
    """UsageError for anything but a plain address of the web."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or len(url) > MAX_KEY or re.search(r"[^\x21-\x7e]", url):
        raise UsageError(f"{what}: {url[:80]!r} is no address that begins with http or https.")
    if "@" in parts.netloc:
        raise UsageError(f"{what}: an address must not hold a password; set a header instead.")


def encode_config(config: CarrierConfig) -> bytes:
    return tomli_w.dumps(msgspec.to_builtins(config)).encode()


def parse_config(raw: bytes) -> CarrierConfig:
    """The set-up that is written there, checked; UsageError."""
    if len(raw) > MAX_FILE:
        raise UsageError("The file is too large for a carrier's set-up.")
    try:
        values = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UsageError(f"A carrier's set-up is no TOML: {exc}.") from exc
    return config_of(values)


def config_of(values: Mapping[str, object]) -> CarrierConfig:
    """The set-up with these fields, checked; UsageError."""
    try:
        config: CarrierConfig = msgspec.convert(values, CarrierConfig)
    except msgspec.ValidationError as exc:
        raise UsageError(f"A carrier's set-up is not possible: {exc}.") from exc
    check_config(config)
    return config


def save_config(path: Path, config: CarrierConfig) -> None:
    """Durable when this returns, and readable by nobody else."""
    check_config(config)
    replace_file(path, encode_config(config), mode=0o600)


def load_config(path: Path) -> CarrierConfig:
    """UsageError, naming the file."""
    try:
        with open(path, "rb") as file:
            return parse_config(file.read(MAX_FILE + 1))
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}.") from exc
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}") from exc


def _check_s3(config: S3Config) -> None:
    if _BUCKET.fullmatch(config.bucket) is None:
        raise UsageError(f"bucket: {config.bucket!r} is no name of a bucket.")
    parts = config.prefix.split("/") if config.prefix else []
    if len(config.prefix) > MAX_PREFIX or not all(map(_HARMLESS.fullmatch, parts)):
        raise UsageError("prefix: names of letters, digits, - _ and . with / between them.")
    if config.endpoint:
        check_url(config.endpoint, "endpoint")
        if config.endpoint.startswith("http:") and not config.allow_http:
            raise UsageError(f"endpoint: {config.endpoint} is not encrypted; allow_http allows it.")
    if _WORD.fullmatch(config.region) is None:
        raise UsageError(f"region: {config.region!r} is no region.")
    for name, value in (("access_key", config.access_key), ("secret_key", config.secret_key)):
        if re.fullmatch(r"[\x21-\x7e]{1,512}", value) is None:
            raise UsageError(f"{name}: it is needed, as the provider shows it.")


def _check_host(config: PictureHostConfig) -> None:
    check_url(config.url, "url")
    check_rule(config.address)
    if len(config.headers) > MAX_FIELDS or len(config.form) > MAX_FIELDS:
        raise UsageError(f"headers and form have at most {MAX_FIELDS} fields each.")
    for name, value in config.headers.items():
        if _TOKEN.fullmatch(name) is None or name.lower() in _OURS:
            raise UsageError(f"headers: {name[:80]!r} cannot be set.")
        if re.fullmatch(rf"[\x20-\x7e]{{0,{MAX_VALUE}}}", value) is None:
            raise UsageError(f"headers: {name} has a value that no header can have.")
    for name, value in (("field", config.field), *config.form.items()):
        if name != "field" and _field(name) is None:
            raise UsageError(f"form: {name[:80]!r} is no name of a field.")
        if len(value) > MAX_VALUE:
            raise UsageError(f"form: {name} is longer than {MAX_VALUE} characters.")
    if _field(config.field) is None:
        raise UsageError(f"field: {config.field[:80]!r} is no name of a field.")


def _field(name: str) -> re.Match[str] | None:
    return re.fullmatch(r'[^"\\\x00-\x1f\x7f]{1,128}', name)
