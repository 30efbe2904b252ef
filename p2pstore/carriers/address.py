"""Where the address of a picture stands in what its host answers. A rule is one of

    json:PATH.TO.FIELD   in JSON; a number in the path counts from 0 in a list
    header:NAME          a header of the answer
    text                 the whole body, but for white space around it
    regex:EXPRESSION     its first group in the body, else all that it matches

The user chose the rule; the answer is anybody's. So the body is bounded by the caller, and what is
found is bounded here; whether it is an address is for the caller to check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from p2pstore.carriers.carrier import MAX_KEY
from p2pstore.errors import Unavailable, UsageError

MAX_RULE: Final = 512
MAX_ANSWER: Final = 64 * 1024  # bytes of an answer to an upload: an address and some words


def check_rule(rule: str) -> None:
    """UsageError when it is none."""
    kind, _, rest = rule.partition(":")
    if kind == "regex":
        try:
            re.compile(rest)
        except (re.error, OverflowError, RecursionError) as exc:
            raise UsageError(f"address: {rest!r} is no regular expression: {exc}.") from exc
    is_known = rule == "text" or (kind in ("json", "header", "regex") and rest)
    if not is_known or len(rule) > MAX_RULE:
        raise UsageError(
            f"address: {rule[:80]!r} is none of json:PATH.TO.FIELD, header:NAME, text and "
            "regex:EXPRESSION."
        )


def address_in(rule: str, headers: Mapping[str, str], body: bytes) -> str:
    """What the rule finds; Unavailable when there is nothing, as in an error page."""
    kind, _, rest = rule.partition(":")
    found: Any
    if kind == "header":
        found = headers.get(rest)
    else:
        text = body.decode("utf-8", "replace")
        found = {"json": _in_json, "text": _in_text, "regex": _by_regex}[kind](rest, text)
    if not isinstance(found, str) or not 0 < len(found) <= MAX_KEY:
        raise Unavailable(f"answered without an address of a picture at {rule}")
    return found


def _in_json(path: str, text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for step in path.split("."):
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and re.fullmatch(r"[0-9]{1,4}", step):
            found = found[int(step)] if int(step) < len(found) else None
        else:
            return None
    return found


def _in_text(_: str, text: str) -> str:
    return text.strip()


def _by_regex(expression: str, text: str) -> str | None:
    match = re.search(expression, text)
    return match and match[1 if match.re.groups else 0]
