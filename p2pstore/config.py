"""Settings: HOME/config.toml, then P2PSTORE_* variables, then options of the command line.

The later source wins. A key is written the same in all three, but for case and dashes: `keep-free`
or `keep_free` in the file, P2PSTORE_KEEP_FREE, `--keep-free`. `KEYS` is the one list of them. A key
that does not exist or a value that makes no sense is a UsageError that names both and the place:
nobody notices an ignored typo before the day on which the setting was needed.

Durations are `5` (seconds), `500ms`, `10m`, `24h`, `30d`; sizes are `1000` (bytes), `100MB` (10^6),
`2GiB` (2^30). Addresses are HOST:PORT, with an IPv6 host in brackets; port 0 means any free one.
In a variable, lists are separated by commas.

`Config` is what a node runs with, `FolderSettings` what one watched folder does. `save` writes the
file whole and durably; comments in it do not survive, which the file itself says.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import tomli_w

from p2pstore.durable import replace_file
from p2pstore.errors import UsageError

FILE = "config.toml"
PREFIX = "P2PSTORE_"
NOT_SETTINGS = frozenset({"home"})  # variables of ours that choose the file instead of a setting
MAX_FILE = 1 << 20  # a settings file above this is something else
HEADER = (
    "# Settings of p2pstore. `p2pstore run --help` explains them; comments here are not kept.\n"
)

DAY = 86_400.0
GIB = 1 << 30
MAX_DURATION_S = 100 * 366 * DAY
MAX_SIZE = (1 << 63) - 1
MAX_COPIES = 64
MAX_NAME = 64  # as on the wire
MAX_GLOBS = 1000
MAX_GLOB = 4096  # no path is longer


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class FolderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one watched folder is treated. Kept in HOME/folders.json and in the catalog."""

    exclude: tuple[str, ...] = ()
    protect_only: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    settle_s: float = 5.0
    keep_s: float = DAY
    copies: int = 4
    min_copies: int = 2
    min_size: int = 0
    pin: bool = False
    carriers: tuple[str, ...] = ()  # places that store bytes, which get a copy too

    def changed(self, given: Mapping[str, object]) -> FolderSettings:
        """These settings with those in `given` (names and types of the fields); UsageError."""
        unknown = sorted(set(given) - set(self.__struct_fields__))
        if unknown:
            raise UsageError(f"A folder has no setting {unknown[0]!r}.")
        try:
            new = msgspec.convert(
                {**msgspec.structs.asdict(self), **given}, FolderSettings, strict=True
            )
        except msgspec.ValidationError as exc:
            raise UsageError(f"A setting of the folder is not possible: {exc}.") from exc
        if new.copies < new.min_copies and "copies" not in given:
            new = msgspec.structs.replace(new, copies=new.min_copies)
        new.check()
        return new

    def check(self) -> None:
        """UsageError for values that no folder can have."""
        for name in ("exclude", "protect_only", "replace"):
            _check_globs(name, getattr(self, name))
        for name in ("settle_s", "keep_s"):
            if not 0 <= getattr(self, name) <= MAX_DURATION_S:
                raise UsageError(f"{name} must be between 0 and 100 years.")
        _check_copies(self.copies, self.min_copies)
        if not 0 <= self.min_size <= MAX_SIZE:
            raise UsageError("min_size cannot be negative.")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set for a node. Times are seconds, sizes bytes."""

    name: str = ""  # empty: the host's name
    network: str = "main"
    listen: Address = Address("0.0.0.0", 8080)
    ui: Address | None = Address("127.0.0.1", 8081)  # None: off
    webdav: Address | None = Address("127.0.0.1", 8082)
    bootstrap: tuple[Address, ...] = ()
    mdns: bool = True
    port_map: bool = True  # ask the router to let others through to `listen`
    data: Path | None = None  # where bundles lie; None: in HOME
    allow_volatile_store: bool = False  # only for demo and tests: replacing needs a durable store
    settle_s: float = 5.0
    keep_s: float = DAY
    trash_hold_s: float = 600.0
    trash_hold_short_s: float = 30.0  # when room is short
    copies: int = 4
    min_copies: int = 2
    lease_s: float = 180 * DAY
    lock_s: float = 600.0
    fresh_proof_s: float = 600.0
    vetting_s: float = DAY  # for how long a friend keeps copies before they count
    keep_free: int | None = None  # None: max(2 GiB, 5 % of the file system)
    offer: int | None = None  # to own devices; None: half of the room above keep-free
    offer_friends: int = 0
    history_s: float = 30 * DAY
    scrub_period_s: float = 30 * DAY  # in which everything on the own disk is read again

    def keep_free_of(self, total: int) -> int:
        """Bytes never written into, on a file system of `total` bytes."""
        return max(2 * GIB, total // 20) if self.keep_free is None else self.keep_free

    def offer_of(self, *, total: int, free: int, held: int) -> int:
        """Bytes lent to own devices; `held` of them are in use already and thus not free."""
        if self.offer is not None:
            return self.offer
        return max(0, free + held - self.keep_free_of(total)) // 2

    def folder_defaults(self) -> FolderSettings:
        return FolderSettings(
            settle_s=self.settle_s,
            keep_s=self.keep_s,
            copies=self.copies,
            min_copies=self.min_copies,
        )


# -- grammar --------------------------------------------------------------------------------------

_DURATIONS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_SIZES: Final = {"b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgtpe", start=1)
    for unit, base in ((f"{letter}b", 1000), (f"{letter}ib", 1024))
}
# ASCII digits only: `\d` would take those of every script.
_QUANTITY = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?\s*([a-zA-Z]*)")


def parse_duration(text: str) -> float:
    """Seconds; UsageError."""
    match = _QUANTITY.fullmatch(text.strip())
    factor = _DURATIONS.get(match[3].lower() or "s") if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is no duration; write it as 5, 10m, 24h or 30d.")
    seconds = float(f"{match[1]}.{match[2] or 0}") * factor
    if seconds > MAX_DURATION_S:
        raise UsageError(f"{text!r} is more than 100 years.")
    return seconds


def parse_size(text: str) -> int:
    """Bytes; a fraction of a byte is dropped. UsageError."""
    match = _QUANTITY.fullmatch(text.strip())
    factor = _SIZES.get(match[3].lower() or "b") if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is no size; write it as 100MB or 2GiB.")
    digits = match[2] or ""
    size: int = int(match[1] + digits) * factor // 10 ** len(digits)
    if size > MAX_SIZE:
        raise UsageError(f"{text!r} is more than any disk holds.")
    return size


def format_duration(seconds: float) -> str:
    """The shortest form that `parse_duration` reads back as the same."""
    for unit in ("d", "h", "m", "s", "ms"):
        count = round(seconds / _DURATIONS[unit])
        text = f"{count}{unit}"
        if count and parse_duration(text) == seconds:
            return text
    return "0s" if not seconds else f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def format_size(size: int, *, exact: bool = False) -> str:
    """For people (`61.2 GB`), or exactly, as `parse_size` reads it back (`2GiB`)."""
    if exact:
        fitting = [(f, unit) for unit, f in _SIZES.items() if size and size % f == 0]
        factor, unit = max(fitting, default=(1, "b"))
        return f"{size // factor}{_shown(unit)}"
    factor, unit = 1, "b"
    for letter in "kmgtpe":
        if size < factor * 999.5:  # from here on three digits would be rounded to four
            break
        factor, unit = factor * 1000, f"{letter}b"
    if factor == 1:
        return f"{size} B"
    count = size / factor
    return f"{count:.0f} {_shown(unit)}" if count >= 99.95 else f"{count:.1f} {_shown(unit)}"


def _shown(unit: str) -> str:
    letters = {"b": "B", "kb": "kB"}
    return letters.get(unit) or unit.upper().replace("I", "i")


def parse_address(text: str) -> Address:
    """`HOST:PORT` or `[IPV6]:PORT`, port 0 to 65535; UsageError."""
    match = re.fullmatch(
        r"(?:\[([0-9a-fA-F:.%]{2,60})\]|([^\s\[\]:,/@]{1,253})):([0-9]{1,5})", text.strip()
    )
    if match is None or int(match[3]) > 65_535:
        raise UsageError(f"{text!r} is no address; write it as HOST:PORT.")
    return Address(match[1] or match[2], int(match[3]))


# -- values, as they come from a file, a variable or an option ----------------------------------


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True}
    known |= {"0": False, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.strip().lower() in known:
        return known[value.strip().lower()]
    raise UsageError(f"{value!r} is neither true nor false.")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is no text.")
    return value


def _number(value: object) -> str:
    """A number of the file, or a text, as text for the grammar."""
    if isinstance(value, float):
        return format(value, ".9f")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"{value!r} is no number.")
    return str(value)


def _duration(value: object) -> float:
    return parse_duration(_number(value))


def _size(value: object) -> int:
    return parse_size(_number(value))


def _size_or_auto(value: object) -> int | None:
    return None if value == "auto" else _size(value)


def _count(value: object) -> int:
    text = _number(value)
    if re.fullmatch(r"[0-9]{1,4}", text.strip()) is None:
        raise UsageError(f"{value!r} is no whole number.")
    return int(text)


def _address(value: object) -> Address:
    return value if isinstance(value, Address) else parse_address(_text(value))


def _address_or_off(value: object) -> Address | None:
    return None if value is None or value is False or value == "off" else _address(value)


def _addresses(value: object) -> tuple[Address, ...]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, Sequence):
        raise UsageError(f"{value!r} is no list of addresses.")
    return tuple(_address(part) for part in value)


def _name(value: object) -> str:
    text = _text(value).strip()
    if len(text) > MAX_NAME or not text.isprintable():
        raise UsageError(f"{value!r} is no name: at most {MAX_NAME} printable characters.")
    return text


def _network(value: object) -> str:
    text = _name(value)
    if not text:
        raise UsageError("A network needs a name.")
    return text


def _path(value: object) -> Path | None:
    if value is None or value == "":
        return None
    path = Path(value if isinstance(value, Path) else _text(value)).expanduser()
    if not path.is_absolute() or "\0" in str(path):
        raise UsageError(f"{value!r} is no absolute path.")
    return path


class _Key(NamedTuple):
    field: str
    read: Callable[[object], Any]
    write: Callable[[Any], Any]
    low: float | None = (
        None  # the least value that makes sense, and why it is the least stands below
    )
    high: float | None = None


def _exact(size: int | None) -> str:
    return "auto" if size is None else format_size(size, exact=True)


def _off(address: Address | None) -> str:
    return "off" if address is None else str(address)


def _same(value: Any) -> Any:
    return value


# A lock shorter than 2 min leaves nothing after the evictor's 60 s margin; holders grant locks only
# with 60 days of lease left, and refuse leases above 400.
KEYS: Final[Mapping[str, _Key]] = {
    "name": _Key("name", _name, str),
    "network": _Key("network", _network, str),
    "listen": _Key("listen", _address, str),
    "ui": _Key("ui", _address_or_off, _off),
    "webdav": _Key("webdav", _address_or_off, _off),
    "bootstrap": _Key("bootstrap", _addresses, lambda value: [str(a) for a in value]),
    "mdns": _Key("mdns", _bool, _same),
    "port_map": _Key("port_map", _bool, _same),
    "data": _Key("data", _path, lambda value: str(value or "")),
    "allow_volatile_store": _Key("allow_volatile_store", _bool, _same),
    "settle": _Key("settle_s", _duration, format_duration),
    "keep": _Key("keep_s", _duration, format_duration),
    "trash_hold": _Key("trash_hold_s", _duration, format_duration, low=1),
    "trash_hold_short": _Key("trash_hold_short_s", _duration, format_duration, low=1),
    "copies": _Key("copies", _count, _same, low=1, high=MAX_COPIES),
    "min_copies": _Key("min_copies", _count, _same, low=1, high=MAX_COPIES),
    "lease": _Key("lease_s", _duration, format_duration, low=90 * DAY, high=400 * DAY),
    "lock": _Key("lock_s", _duration, format_duration, low=120, high=3600),
    "fresh_proof": _Key("fresh_proof_s", _duration, format_duration, low=60, high=3600),
    "vetting": _Key("vetting_s", _duration, format_duration, high=365 * DAY),
    "keep_free": _Key("keep_free", _size_or_auto, _exact),
    "offer": _Key("offer", _size_or_auto, _exact),
    "offer_friends": _Key("offer_friends", _size, _exact),
    "history": _Key("history_s", _duration, format_duration),
    "scrub_period": _Key("scrub_period_s", _duration, format_duration, low=DAY),
}


def load(home: Path, env: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """The settings of a node whose HOME is `home`. Reads the file; a missing one is empty."""
    fields: dict[str, Any] = {}
    path = home / FILE
    for key, value in _read(path).items():
        _take(fields, key, value, str(path))
    for variable, text in sorted(env.items()):
        key = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and key not in NOT_SETTINGS:
            _take(fields, key, text, f"the environment ({variable})")
    for key, value in overrides.items():
        _take(fields, key, value, "the command line")
    return _finish(fields)


def save(home: Path, changes: Mapping[str, object]) -> None:
    """Set these keys in the file (None: take the key out), durably; the others stay."""
    path = home / FILE
    table = {_normal(key): value for key, value in _read(path).items()}
    for key, value in changes.items():
        name = _normal(key)
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value
    fields: dict[str, Any] = {}
    for name, value in table.items():
        _take(fields, name, value, str(path))
    _finish(fields)
    written = {name: KEYS[name].write(fields[KEYS[name].field]) for name in table}
    replace_file(path, (HEADER + tomli_w.dumps(written)).encode(), mode=0o600)


def _read(path: Path) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}.") from exc
    if len(content) > MAX_FILE:
        raise UsageError(f"{path} is too large for a file of settings.")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UsageError(f"{path} is no TOML: {exc}.") from exc


def _normal(key: str) -> str:
    return key.replace("-", "_")


def _take(fields: dict[str, Any], key: str, value: object, place: str) -> None:
    known = KEYS.get(_normal(key))
    if known is None:
        raise UsageError(f"There is no setting {key!r}, which is in {place}.")
    try:
        parsed = known.read(value)
    except UsageError as exc:
        raise UsageError(f"{key} in {place}: {exc}") from exc
    low, high = known.low, known.high
    if (low is not None and parsed < low) or (high is not None and parsed > high):
        limits = " and ".join(
            f"{word} {known.write(type(parsed)(limit))}"
            for word, limit in (("at least", low), ("at most", high))
            if limit is not None
        )
        raise UsageError(f"{key} in {place}: {value!r} is out of bounds; it is {limits}.")
    fields[known.field] = parsed


def _finish(fields: dict[str, Any]) -> Config:
    # Whoever asks for more needed copies than the usual target means both.
    if "min_copies" in fields and "copies" not in fields:
        fields["copies"] = max(Config().copies, fields["min_copies"])
    config = Config(**fields)
    _check_copies(config.copies, config.min_copies)
    return config


def _check_copies(copies: int, min_copies: int) -> None:
    if not 1 <= min_copies <= MAX_COPIES or copies > MAX_COPIES:
        raise UsageError(f"min_copies is at least 1 and copies at most {MAX_COPIES}.")
    if copies < min_copies:
        raise UsageError(f"copies ({copies}) cannot be fewer than min_copies ({min_copies}).")


def _check_globs(name: str, globs: Sequence[str]) -> None:
    if len(globs) > MAX_GLOBS:
        raise UsageError(f"{name} has more than {MAX_GLOBS} patterns.")
    for glob in globs:
        try:
            raw = glob.encode()
        except UnicodeEncodeError as exc:
            raise UsageError(f"{name}: the pattern {glob!r} is not UTF-8; use ? there.") from exc
        if not raw or len(raw) > MAX_GLOB or b"\0" in raw:
            raise UsageError(f"{name}: {glob[:40]!r} is no pattern.")
