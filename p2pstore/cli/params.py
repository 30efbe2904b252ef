"""Types of arguments: paths as the node wants them, and the grammar of durations and sizes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from p2pstore.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class NodePath(click.ParamType):  # type: ignore[type-arg]  # generic only in newest click
    """An absolute path. The parent is resolved, the last part is not: a link is itself."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("an empty path names nothing.", param, ctx)
        if is_key(str(value)):
            # Not repeated: it is a secret. A file of such a name is ./p2p:...
            self.fail("that is the key of a file: p2pstore download KEY", param, ctx)
        text = os.path.abspath(os.path.expanduser(os.fsdecode(value)))
        if os.path.isdir(text):
            return os.path.realpath(text)
        parent, last = os.path.split(text)
        return os.path.join(os.path.realpath(parent), last)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class Destination(NodePath):
    """Where a copy is to be written; what ends with a slash is a directory that must be there."""

    name = "destination"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = super().convert(value, param, ctx)
        if os.fsdecode(value).endswith("/") and not os.path.isdir(text):
            self.fail(f"there is no directory {text}.", param, ctx)
        return text


class KeyOrPath(NodePath):
    """The key of a shared file as it is, `-` where one comes from standard input, or a path."""

    name = "key or path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "-" or is_key(str(value)):
            return str(value)
        return super().convert(value, param, ctx)


def is_key(text: str) -> bool:
    """Whether somebody means the key of a shared file by it."""
    return text.lstrip().lower().startswith(("p2p:", "p2pc:"))


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newest click
    """`5`, `10m`, `24h`, `30d` as seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from p2pstore.config import parse_duration

        try:
            return float(parse_duration(str(value)))
        except (UsageError, ValueError) as exc:
            self.fail(str(exc), param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in newest click
    """`100MB`, `2GiB` as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from p2pstore.config import parse_size

        try:
            return int(parse_size(str(value)))
        except (UsageError, ValueError) as exc:
            self.fail(str(exc), param, ctx)


class ByteRange(click.ParamType):  # type: ignore[type-arg]  # generic only in newest click
    """`A-B`, both inclusive, or `A-`: as (start, end exclusive or None)."""

    name = "A-B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        first, dash, last = str(value).partition("-")
        if not dash or not first.isdecimal() or not (last == "" or last.isdecimal()):
            self.fail(f"{value!r} is no range; two byte offsets: --range 0-99", param, ctx)
        if last and int(last) < int(first):
            self.fail(f"{value!r} ends before it begins.", param, ctx)
        return int(first), int(last) + 1 if last else None


PATH = NodePath()
DESTINATION = Destination()
KEY_OR_PATH = KeyOrPath()
DURATION = Duration()
SIZE = Size()
BYTE_RANGE = ByteRange()
