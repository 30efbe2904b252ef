from __future__ import annotations

import json

import pytest

from p2pstore.carriers import MAX_KEY
from p2pstore.carriers.address import MAX_RULE, address_in, check_rule
from p2pstore.errors import Unavailable, UsageError

PAGE = b'<html><img src="/p/1.png"> <a href="https://h/2.png">'
JSON = json.dumps({"data": {"url": "u"}, "all": [{"link": "l"}], "a.b": 1, "0": "zero"}).encode()


@pytest.mark.parametrize(
    ("rule", "body", "address"),
    [
        ("json:data.url", JSON, "u"),
        ("json:all.0.link", JSON, "l"),
        ("json:0", JSON, "zero"),
        ("json:1", b'["x", "y"]', "y"),
        ("text", b" http://h/1.png\r\n", "http://h/1.png"),
        ('regex:src="([^"]+)"', PAGE, "/p/1.png"),
        (r"regex:https://[^\"]+", PAGE, "https://h/2.png"),
        ("header:Location", b"", "/there"),
        ("text", b"x" * MAX_KEY, "x" * MAX_KEY),
    ],
)
def test_the_address_is_found(rule: str, body: bytes, address: str) -> None:
    check_rule(rule)
    assert address_in(rule, {"Location": "/there"}, body) == address


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("json:data.url", b""),
        ("json:data.url", PAGE),
        ("json:data.url", b"\xff\xfe"),
        ("json:data.url", b"[" * 60_000),
        ("json:data.url", b'{"data": null}'),
        ("json:data.url", b'{"data": "url"}'),
        ("json:data.url", b'{"data": {"url": 1}}'),
        ("json:data.url", b'{"data": {"url": ""}}'),
        ("json:data", b'{"data": {"url": ""}}'),
        ("json:0", b"[]"),
        ("json:-1", b'["x"]'),
        ("header:Location", b"/there"),
        ("text", b" \n"),
        ("text", b"x" * (MAX_KEY + 1)),
        ("regex:href='(.*)'", PAGE),
        ("regex:(nothing)?", PAGE),
    ],
)
def test_an_answer_without_address_is_noticed(rule: str, body: bytes) -> None:
    check_rule(rule)
    with pytest.raises(Unavailable):
        address_in(rule, {}, body)


@pytest.mark.parametrize(
    "rule",
    ["", "json", "json:", "header:", "regex:(", "xml:a", "text:a", "regex:" + "a" * MAX_RULE],
)
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="address"):
        check_rule(rule)
