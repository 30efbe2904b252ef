"""The status page: one read-only HTML document made from STATUS (control.py).

Everything that comes from outside (names of files, folders, peers) passes through `_text`: made
visible where it is not printable, then escaped for HTML. The page has no inline style or script,
so the content security policy can forbid both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from p2pstore.config import format_size

Json = Mapping[str, Any]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/style.css">
<script src="/refresh.js" defer></script>
<noscript><meta http-equiv="refresh" content="10"></noscript>
</head>
<body>
<main id="status">
{body}
</main>
<footer><p>This page only shows; to change something: <code>p2pstore --help</code></p></footer>
</body>
</html>
"""


def render(status: Json, now: float) -> str:
    """Return the whole page; `now` in seconds since the epoch."""
    node = status.get("node") or {}
    peers = status.get("peers") or []
    folders = status.get("folders") or []
    body = "\n".join(
        [
            _head(node, now),
            _warnings(status.get("warnings") or []),
            "".join(_folder(folder, now) for folder in folders) or _no_folder(),
            _peers(peers, now),
            _room(status.get("space") or {}),
        ]
    )
    return _PAGE.format(title=f"{_text(node.get('name') or 'p2pstore')} · p2pstore", body=body)


def render_trouble(sentence: str) -> str:
    body = f'<header><h1>p2pstore</h1></header><ul class="warnings"><li>{_text(sentence)}</li></ul>'
    return _PAGE.format(title="p2pstore", body=body)


def _head(node: Json, now: float) -> str:
    facts = [f"p2pstore {node.get('version', '')}"]
    if node.get("started"):
        facts.append(f"up {_span(now - node['started'])}")
    facts.append(f"peers’ port {str(node.get('listen', '')).rpartition(':')[2]}")
    reach = {"outside": "reachable from outside", "no": "not reachable from outside"}
    if node.get("reachable") in reach:
        facts.append(reach[node["reachable"]])
    facts_html = "".join(f"<li>{_text(fact)}</li>" for fact in facts)
    return f'<header><h1>{_text(node.get("name"))}</h1><ul class="facts">{facts_html}</ul></header>'


def _warnings(warnings: Sequence[Json]) -> str:
    if not warnings:
        return ""
    lines = "".join(
        f"<li>{_text(warning.get('text'))}"
        + (f" <code>{_text(warning['command'])}</code>" if warning.get("command") else "")
        + "</li>"
        for warning in warnings
    )
    return f'<ul class="warnings">{lines}</ul>'


def _no_folder() -> str:
    return (
        '<section class="card"><h2>No folder yet</h2>'
        "<p>Give it one: <code>p2pstore add-folder DIR</code></p></section>"
    )


def _folder(folder: Json, now: float) -> str:
    if folder.get("missing_since"):
        since = _span(now - folder["missing_since"])
        return (
            f'<section class="card"><h2>{_text(folder.get("path"))}</h2>'
            f"<p>Not plugged in for {since}; goes on by itself.</p></section>"
        )
    files = folder.get("files") or 0
    summary = f"{files:,} files · {_size(folder.get('bytes'))}"
    if folder.get("freed_bytes"):
        summary += f" · {_size(folder['freed_bytes'])} freed here"
    others = folder.get("min_copies") or 2
    rows = [
        _row("safe", f"safe on {others}+ others", folder.get("safe")),
        _row("one", "on fewer others", folder.get("one")),
        _row("here", "this device only", folder.get("here")),
        _row("left", "left as they are", folder.get("left")),
    ]
    skipped = folder.get("skipped") or 0
    if skipped:
        skips = {"files": skipped, "reasons": folder.get("skips")}
        rows.append(_row("skipped", "skipped", skips))
    pending = folder.get("pending") or 0
    if pending:
        rows.append(_row("pending", "waiting for their turn", {"files": pending}))
    paused = ' <span class="tag">paused</span>' if folder.get("paused") else ""
    return (
        f'<section class="card"><h2>{_text(folder.get("path"))}{paused}</h2>'
        f"<p>{summary}</p>{_bar(folder)}<table><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _bar(folder: Json) -> str:
    """A picture of how much is safe; <meter> needs no style attribute, which the policy forbids."""
    total = folder.get("files") or 0
    safe = (folder.get("safe") or {}).get("files") or 0
    if not total:
        return ""
    share = 100 * safe // total
    return (
        f'<meter min="0" max="100" low="50" high="95" optimum="100" value="{share}">{share} %'
        f'</meter><p class="small">{share} % of the files are safe on other devices</p>'
    )


def _row(kind: str, words: str, count: Json | None) -> str:
    count = count or {}
    if not count.get("files"):
        return ""
    note = count.get("note") or ", ".join(
        f"{number:,} {reason}" for reason, number in (count.get("reasons") or {}).items()
    )
    size = _size(count["bytes"]) if count.get("bytes") is not None else ""
    return (
        f'<tr class="{kind}"><th scope="row">{_text(words)}</th><td>{count["files"]:,}</td>'
        f"<td>{size}</td><td>{_text(note)}</td></tr>"
    )


def _peers(peers: Iterable[Json], now: float) -> str:
    rows = "".join(_peer(peer, now) for peer in peers)
    if not rows:
        return (
            '<section class="card"><h2>No other node yet</h2><p>Nothing is freed, these files are '
            "on this disk alone. <code>p2pstore invite</code></p></section>"
        )
    return (
        '<section class="card"><h2>Peers</h2><table><thead><tr><th>name</th><th>role</th>'
        "<th>connection</th><th>holds for you</th><th>you hold</th><th>proved</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _peer(peer: Json, now: float) -> str:
    if peer.get("connected"):
        connection = "connected"
    elif peer.get("last_seen"):
        connection = f"offline {_span(now - peer['last_seen'])}"
    else:
        connection = "offline"
    proved = f"{_span(now - peer['proved'])} ago" if peer.get("proved") else "–"
    cells = [
        peer.get("role"),
        connection,
        _size(peer.get("holds_bytes")),
        _size(peer.get("held_bytes")),
        proved,
    ]
    name = _text(peer.get("name") or str(peer.get("id", ""))[:8])
    return (
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
    )


def _room(space: Json) -> str:
    facts = [
        ("store", "bundles_bytes"),
        ("trash", "trash_bytes"),
        ("for others", "held_for_others_bytes"),
        ("disk free", "free_bytes"),
        ("kept free", "keep_free_bytes"),
    ]
    cells = "".join(f"<div><dt>{word}</dt><dd>{_size(space.get(key))}</dd></div>"
                    for word, key in facts)  # fmt: skip
    return f'<section class="card"><h2>Room</h2><dl>{cells}</dl></section>'


def _text(value: object) -> str:
    """Return any value as visible, HTML-escaped text."""
    visible = "".join(
        ch if ch.isprintable() else ch.encode("unicode_escape", "surrogatepass").decode()
        for ch in str(value if value is not None else "")
    )
    return escape(visible, quote=True)


def _size(count: object) -> str:
    return format_size(int(count)) if isinstance(count, (int, float)) else "0 B"


def _span(seconds: float) -> str:
    for name, length in (("day", 86_400), ("hour", 3_600), ("min", 60)):
        number = int(seconds // length)
        if number:
            return f"{number} {name}{'s' if number > 1 and name != 'min' else ''}"
    return "less than a minute"
