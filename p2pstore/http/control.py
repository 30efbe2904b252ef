"""The control interface: what a node answers to its own frontends.

This module owns the contract and nothing else: the node implements `Control`, the servers of this
package carry it, the command line and the browser read it. Everything is JSON.

TRANSPORT
    POST /api/v1/METHOD with a JSON object of arguments. The answer is one JSON document a line:
    {"progress": {...}} any number of times, then {"result": ...} or
    {"error": {"code": EXIT_CODE, "message": SENTENCE}}.
    GET /api/v1/cat?path=PATH[&range=A-B][&password=P] streams raw bytes (A-B inclusive, "A-" to
    the end); PATH may be the key of a share.
    Errors before the first byte are HTTP 4xx/5xx with {"error": ...}; a later one cuts the body
    short, and GET /api/v1/cat/failure?id=ID tells which (ID: the request's X-Request-Id).
    A caller that goes away ends its waiting, not the work: only `WAITS` are cancelled with it.

NAMES
    Paths are absolute. A byte that is no UTF-8 travels as a lone surrogate (os.fsdecode), which
    JSON writes as \\udcXX. Times are seconds since the epoch, ids lower case hex, sizes bytes.
    "reasons" is always an object {short words: number of files}.

PROGRESS
    {"stage": "protect", "files": n, "files_total": N, "bytes": b, "bytes_total": B}; the counts may
    be absent or null. Stages: scan, rest, protect, replace, push, hydrate, evict, rebuild, lay,
    export, upload, download; check, repair and move count "bundles" in the place of "files". "note"
    is said behind the count.
    {"text": "..."} is a line to show once, whatever the stage.

RESULTS OF MANY (hydrate, dehydrate, free_up, pin, unpin, evict, undelete)
    {"results": [{"path", "to"?: new path, "bytes"?: n} or {"path", "error": {"code", "message"}}],
     "replaced_files"?, "replaced_bytes"?, "freed_bytes"?: by this call,
     "waiting"?: [{"reason", "bytes", "files"}],
     "leftover_bytes"?: of what no present file needs; it was not asked for, and goes by itself}
    All paths are tried. `waiting` is what did not come free though it was asked for (`free_up`,
    `evict`); empty or absent means that all did. hydrate, pin: `bytes` brought back.

METHODS (arguments -> result)
    status {paths: [..], check: bool}      see STATUS below
    folders {}                             {"folders": [FOLDER + {"settings": {name: value}}]}
    ls {path|null}                         {"path", "entries": [{"name", "path", "type": "file" |
                                           "folder" | "link", "size", "mtime", "state", "reason",
                                           "copies",
                                           "files"?: below a folder}]}
    preview {dir, settings, force}         settings: those given, by their FolderSettings names;
                                           {"path", "watched": already, "files", "bytes",
                                           "placeholders": ours already, not counted in "files",
                                           "replace" | "protect_only" | "skipped": {"files",
                                           "bytes", "reasons"}, "room_needed_bytes",
                                           "room_free_bytes",
                                           "keep_free_bytes", "holders": reachable now,
                                           "min_copies", "notes": [sentence]}
                                           a folder that is refused: error 2 with the reason
    add_folder {dir, settings, force}      {"path", "changed": was watched already}
    wait_folder {dir}                      {"files", "bytes", "replaced", "reasons", "left":
                                           [{"path", "reason"}] at most 1,000, "left_total"}
    remove_folder {dir, how}               how: "hydrate" | "leave" | null (null with placeholders
                                           left: error 2) -> {"path", "placeholders", "hydrated"}
    hydrate dehydrate free_up pin unpin evict {paths}     as above; evict with []: everything
    evict_why {paths}                      {"evictable_bytes", "bundles": [{"bundle", "bytes",
                                           "missing": [reason], "files": [path] at most 10}]}
    report {paths}                         a signed document: see maintenance/report.py
    check_report {text}                    {"report", "signer": name, "ours": of this group,
                                           "revoked"}; none: error 3, changed: 4
    open {path}                            {"path": the original, "hydrated": bool}; no manifest: 3
    inspect {path}                         {"name", "size", "mode", "mtime", "file_id", "hash",
                                           "blocks", "bundles": [hex], "stored_bytes", "device":
                                           name or short id, "signature": "valid" | "untrusted" |
                                           "wrong", "epoch", "local_blocks", "copies"}
    restore {path, to}                     {"path": written, "bytes"}
    upload {path, expires, once, password, carrier}  expires: seconds|null, password: words|null,
                                           carrier: name|null; progress stage "upload"; {"key",
                                           "name", "size", "expires": time|null}
    download {key, to, password, force, carrier}     to: a file or a directory; carrier: name|null
                                           (null: any); progress stage "download";
                                           {"path": written, "size"}. Not there, ended, or a wrong
                                           password: 5; no key: 2; mistyped: 3
    shares {}                              {"shares": [{"key", "name", "size", "created": time,
                                           "expires": time|null, "once", "password": bool,
                                           "copies": on others, the least of its bundles}]}
    unshare {key}                          {"name"}
    carriers {}                            {"carriers": [{"name", "kind": "folder" | "s3" | "png",
                                           "where", "bytes": of folders, uploads are not counted,
                                           "proved": time|null, "folders": [path], "trouble":
                                           sentence|"", "same_disk": as the store}]}
    add_carrier {name, config}             config: the fields of carriers/config.py, with "kind";
                                           prepared and tried; {"name"}
    test_carrier {name}                    {"name", "seconds"}
    remove_carrier {name}                  {}
    stat {path, password}                  path: also a key; {"name", "size"}
    undelete {path}                        results of many; "to": the placeholder that is back
    pause {dir}                            {"path"}
    resume {dir, how}                      how: null | "accept" | "undo" -> {"path", "restored"?}
    invite {role, confirm: bool}           {"invite": id, "link", "fingerprint": of this node,
                                           "expires_s", "network"}; confirm false: whoever shows the
                                           secret is let in without a question
    wait_invite {invite}                   {"name", "fingerprint": of the joiner} once it knocks
    confirm_invite {invite, accept}        {"id", "name", "role"}; refused: {"refused": true}
    withdraw_invite {invite}               {}; so does a caller of wait_invite that goes away
    join {link, offer: bytes|null, name}   progress {"text": "fingerprint ..."} while the inviter
                                           confirms, then {"id", "name", "group", "role"}. Also in
                                           an empty HOME, through `node.offline`
    peers {}                               {"peers": [PEER]}
    connect {address}                      PEER
    check {read_data, repair}              {"bundles", "blocks", "bytes", "problems": [{"text",
                                           "code", "remedy": a command or what helps, "healed":
                                           mended by this call}]}
    rebuild_catalog {}                     {"files", "bundles", "placeholders", "missing": n}
    doctor {}                              {"findings": [{"level": "ok" | "hint" | "problem",
                                           "text", "command"?}]}
    words_state {}                         {"confirmed": bool}
    words_confirm {words}                  {"confirmed": true}; other words: error 2
    leave {to|null, yes}                   {"left": bool, "reasons": [sentence] when not, "home",
                                           "exported"|null, "files", "bytes"}; after "left" the
                                           node ends by itself
    leave_cancel {}                        {"was_leaving": bool}: the node stays after all

STATUS
    {"node": {"id", "name", "listen", "ui", "group", "version",        fields kept for ever
              "home", "pid", "started": time, "reachable": "outside" | "network" | "no" |
              "unknown", "reachable_why": words,
              "words_confirmed": bool, "rebuilding": the catalog was rebuilt, and holders are
              still asked what it cannot know, "bundles_dir"?: when on another disk than a folder},
     "peers": [PEER],
     "carriers": as in the method of that name,
     "space": {"bundles_bytes", "trash_bytes", "offered_bytes", "held_for_others_bytes",
               "trash_until": time|null, "free_bytes", "keep_free_bytes",
               "waiting_files", "waiting_bytes": for room},
     "folders": [FOLDER],
     "maintenance": [{"name", "state": "stopped" | "waits" | "works" | "rests" after a failure,
               "doing": words, "done": n|null, "total": n|null, "period_s"|null, "last_run":
               time|null, "next_run": time|null, "failures": in a row, "last_error",
               "failed_at": time|null}],
     "warnings": [{"text", "command"|null, "owner": true when somebody has to act}],
     "files": only with paths: [{"path", "type": "file" | "link", which has no blocks, "state",
               "reason", "size", "local", "copies", "min_copies"}]}
    FOLDER {"path", "files", "pending", "protected", "placeholders", "skipped", "bytes",
            "stored_bytes", "paused": bool,                            fields kept for ever
            "freed_bytes", "min_copies", "carriers": [name], "missing_since": time|null,
            "mass_change": {"gone", "total"}|null, "obstacle": why nothing is replaced|null,
            "unwatched": why it is not watched although it is there|null,
            "safe" | "one" | "here": {"files", "bytes", "note": "copying to nas, 1 min left"},
            "left": {"files", "bytes", "reasons"}, "skips": reasons}
            safe: at least min_copies others; one: fewer, but some; here: this device only.
    PEER   {"id", "name", "address", "role",                           fields kept for ever
            "connected": bool, "through": name of the peer between|null,
            "since": time|null, "last_seen": time|null,
            "holds_bytes": for us, "held_bytes": by us for it, "offer_bytes": lent to it,
            "proved": time of the last whole proof|null, "holder": bool, may hold copies for us}
    Fields may be absent: a reader takes 0, false or null then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

Progress = Callable[[dict[str, Any]], None]

METHODS = frozenset(
    {
        "status",
        "folders",
        "ls",
        "preview",
        "add_folder",
        "wait_folder",
        "remove_folder",
        "hydrate",
        "dehydrate",
        "free_up",
        "pin",
        "unpin",
        "evict",
        "evict_why",
        "report",
        "check_report",
        "open",
        "inspect",
        "restore",
        "upload",
        "download",
        "shares",
        "unshare",
        "stat",
        "carriers",
        "add_carrier",
        "test_carrier",
        "remove_carrier",
        "undelete",
        "pause",
        "resume",
        "invite",
        "wait_invite",
        "confirm_invite",
        "withdraw_invite",
        "join",
        "peers",
        "connect",
        "check",
        "rebuild_catalog",
        "doctor",
        "words_state",
        "words_confirm",
        "leave",
        "leave_cancel",
    }
)

WAITS = frozenset(
    {"wait_folder", "wait_invite", "preview", "status", "ls", "doctor", "check", "stat"}
)
"""Methods that only look or wait: cancelled when their caller goes away."""


class Control(Protocol):
    """A node, as its frontends see it. All calls come from the node's event loop."""

    def dispatch(self, method: str, args: Mapping[str, Any], progress: Progress) -> Awaitable[Any]:
        """Run one of METHODS; P2PStoreError on failure. `progress` may be called at any rate."""

    def cat(
        self, path: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> AsyncIterator[bytes]:
        """Yield the content's bytes start..end (end exclusive, None: to its end), verified."""

    async def status(self) -> dict[str, Any]:
        """Return STATUS without files."""

    def metrics(self) -> bytes:
        """Return the Prometheus text format."""

    def healthz(self) -> str | None:
        """Return None while the node does its work, otherwise what keeps it from that."""
