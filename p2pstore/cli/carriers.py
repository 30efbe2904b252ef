"""Commands about carriers: places that store bytes and know nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import click

from p2pstore.cli import show
from p2pstore.cli.shell import Shell, example, pass_shell
from p2pstore.cli.status import carrier_rows
from p2pstore.errors import UsageError


@click.group(epilog=example("p2pstore carriers add usb folder /media/usb/p2pstore"))
def carriers() -> None:
    """Places that store bytes: a disk, a bucket, a host of pictures.

    What lies there is sealed. A folder can keep copies of its bundles there (add-folder --carrier),
    and a single file can be put there (upload --carrier). A carrier proves nothing and may lose
    everything: all of them together count as one copy at most, and never as the only one.
    """


@carriers.command(
    short_help="Set a carrier up, and try it.",
    epilog=example(
        "p2pstore carriers add usb folder /media/usb/p2pstore",
        "p2pstore carriers add cloud s3 s3://bucket/prefix --endpoint https://s3.example.org",
        "p2pstore carriers add host png https://pictures.example.org/upload --field image",
        "p2pstore carriers add album png ~/Pictures/album",
    ),
)
@click.argument("name")
@click.argument("kind", type=click.Choice(["folder", "s3", "png"]))
@click.argument("where")
@click.option("--endpoint", help="s3: the service's address; default: Amazon's.")
@click.option("--region", help="s3: default us-east-1.")
@click.option("--access-key", help="s3: default: AWS_ACCESS_KEY_ID.")
@click.option("--allow-http", is_flag=True, help="s3: an endpoint that is not encrypted.")
@click.option("--field", help="png host: the form's field for the picture; default image.")
@click.option(
    "--address",
    help="png host: where its answer has the picture's address: json:data.url (the default), "
    "header:Location, text, or regex:PATTERN.",
)
@click.option("--header", "headers", metavar="NAME=VALUE", multiple=True, help="png host: sent.")
@click.option("--form", metavar="NAME=VALUE", multiple=True, help="png host: more form fields.")
@click.option("--width", type=click.IntRange(1), help="png: pixels; default 1024.")
@click.option("--height", type=click.IntRange(1), help="png: pixels; default 768.")
@pass_shell
def add(shell: Shell, /, name: str, kind: str, where: str, **options: Any) -> int:
    """Set a carrier up, and try it: WHERE is a directory, s3://BUCKET/PREFIX, or an address.

    The secret key of s3 comes from AWS_SECRET_ACCESS_KEY, or is asked for (from a pipe: a line).
    """
    config = {"folder": _folder, "s3": _s3, "png": _png}[kind](where, options, shell)
    node = shell.node()
    node.call("add_carrier", name=name, config=config)
    shell.result(f"{name} works: a piece was put there and came back.")
    if any(
        one["name"] == name and one.get("same_disk") for one in node.call("carriers")["carriers"]
    ):
        shell.say("It lies on the same disk as the store: what is there would be lost with it.")
    shell.say(f"Copies there, too:  p2pstore add-folder DIR --carrier {name}")
    return 0


def _folder(where: str, options: dict[str, Any], shell: Shell) -> dict[str, Any]:
    return {"kind": "folder", "path": _directory(where)}


def _directory(where: str) -> str:
    return os.path.realpath(os.path.expanduser(where))


def _s3(where: str, options: dict[str, Any], shell: Shell) -> dict[str, Any]:
    bucket, _, prefix = where.removeprefix("s3://").strip("/").partition("/")
    access = options["access_key"] or shell.env.get("AWS_ACCESS_KEY_ID")
    if not access:
        raise UsageError("The access key is missing: --access-key, or AWS_ACCESS_KEY_ID.")
    secret = shell.env.get("AWS_SECRET_ACCESS_KEY")
    if not secret and sys.stdin.isatty():
        secret = click.prompt("Secret key", hide_input=True, err=True)
    elif not secret:
        secret = sys.stdin.readline().strip()
    given = {name: options[name] for name in ("endpoint", "region") if options[name]}
    return {
        "kind": "s3",
        "bucket": bucket,
        "prefix": prefix,
        "access_key": access,
        "secret_key": secret,
        "allow_http": options["allow_http"],
        **given,
    }


def _png(where: str, options: dict[str, Any], shell: Shell) -> dict[str, Any]:
    sizes = {name: options[name] for name in ("width", "height") if options[name]}
    if urlsplit(where).scheme not in ("http", "https"):
        return {"kind": "picture-folder", "path": _directory(where), **sizes}
    given = {name: options[name] for name in ("field", "address") if options[name]}
    return {
        "kind": "picture-host",
        "url": where,
        "headers": _pairs("--header", options["headers"]),
        "form": _pairs("--form", options["form"]),
        **sizes,
        **given,
    }


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} is NAME=VALUE, not {one!r}.")
        pairs[name] = value
    return pairs


@carriers.command(
    "list", short_help="Say what lies where.", epilog=example("p2pstore carriers list")
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def list_(shell: Shell, as_json: bool) -> int:
    """Say what there is, what lies there, and since when it was read back."""
    said = shell.node().call("carriers")
    if as_json:
        shell.json(said)
        return 0
    rows = carrier_rows(said.get("carriers", []), time.time())
    for line in show.table(rows):
        shell.result(line)
    if not rows:
        shell.say("None yet:  p2pstore carriers add --help")
    return 0


@carriers.command(epilog=example("p2pstore carriers test usb"))
@click.argument("name")
@pass_shell
def test(shell: Shell, name: str) -> int:
    """Put a piece there, read it back and compare it."""
    done = shell.node().call("test_carrier", name=name)
    shell.result(f"{name} works ({done.get('seconds', 0):.1f} s).")
    return 0


@carriers.command(
    short_help="Forget a carrier; what lies there stays.",
    epilog=example("p2pstore carriers remove usb"),
)
@click.argument("name")
@pass_shell
def remove(shell: Shell, name: str) -> int:
    """Forget a carrier; what lies there stays, and is of use to nobody without your keys."""
    shell.node().call("remove_carrier", name=name)
    shell.result(f"{name} is forgotten.")
    return 0
