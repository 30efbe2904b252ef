"""The tables of the catalog, and how an older catalog becomes a newer one.

The number of steps that a file has gone through is its `user_version`. A step, once released,
is never edited: a change of the schema is a new step at the end.

What the tables mean:

folders         watched folders; a removed one keeps its row, because its blocks stay roots
files           one row for each path that we know in a folder: a file, a link, or the mark of
                a deletion (kind). `ino`, `size`, `mtime_ns`, `ctime_ns` say what lies on the
                disk at that path now, a placeholder included; `file_size` is the size of the
                content that the manifest stands for
manifests       the sealed manifest of a file; apart from `files`, so that a walk over all
                identities reads few pages
bundles         the bundles of our group that we opened (own = 1) or know of
dedup           keyed hash of a plain chunk -> where its block lies; rows are appended and only
                the narrow index is in the order of the (random) keys, which halves what a
                commit writes
file_bundles    which bundles the current version of a file needs
history         earlier versions and deleted files; history_bundles is what they need
roots           bundles that something else than a file keeps alive: an open ingest
                ("journal:<id>"), a folder's index, an upload, a share, a merge under way
copies          a holder's proven copy of a bundle; the receipt is its signed word. `owed_since`:
                the first audit after the last good one that it did not answer (0: none)
holders         what audits of one holder came to, over all its copies
head_acks       the newest head of a folder and group state that a holder acknowledged
journal         what is being done and must be finished or rolled back after a crash
aliases         ids and tags of bundles that were merged into another one: see merged.py
kv              single values
examined, dying, unnamed, dead
                what nothing refers to any more, on its way out: see dying.py
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x70327073  # "p2ps"; tells our file from any other SQLite database

_FIRST = """
CREATE TABLE folders (
    id          INTEGER PRIMARY KEY,
    folder_id   BLOB NOT NULL UNIQUE,
    path        BLOB NOT NULL,
    name        TEXT NOT NULL,
    settings    BLOB NOT NULL,
    marker      BLOB NOT NULL,
    paused      TEXT NOT NULL DEFAULT '',
    state       TEXT NOT NULL DEFAULT 'watched'
);
CREATE UNIQUE INDEX folders_by_path ON folders (path) WHERE state <> 'removed';

CREATE TABLE files (
    id              INTEGER PRIMARY KEY,
    folder          INTEGER NOT NULL REFERENCES folders (id),
    path            BLOB NOT NULL,
    state           TEXT NOT NULL,
    reason          TEXT NOT NULL,
    kind            TEXT NOT NULL,
    file_id         BLOB NOT NULL,
    version         BLOB NOT NULL,
    hash            BLOB NOT NULL,
    file_size       INTEGER NOT NULL,
    size            INTEGER NOT NULL,
    ino             INTEGER NOT NULL,
    mtime_ns        INTEGER NOT NULL,
    ctime_ns        INTEGER NOT NULL,
    stored_bytes    INTEGER NOT NULL,
    replaced_before INTEGER NOT NULL,
    last_use        INTEGER NOT NULL,
    pinned          INTEGER NOT NULL,
    target          BLOB NOT NULL,
    manifest_ref    BLOB NOT NULL,
    UNIQUE (folder, path)
);

CREATE TABLE manifests (
    file INTEGER PRIMARY KEY REFERENCES files (id),
    raw  BLOB NOT NULL
);

CREATE TABLE bundles (
    id        INTEGER PRIMARY KEY,
    bundle_id BLOB NOT NULL UNIQUE,
    tag       BLOB NOT NULL,
    kind      INTEGER NOT NULL,
    folder    INTEGER REFERENCES folders (id),
    own       INTEGER NOT NULL,
    state     TEXT NOT NULL,
    bytes     INTEGER NOT NULL,
    blocks    INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    created   INTEGER NOT NULL
);
CREATE INDEX bundles_by_state ON bundles (state);
CREATE INDEX bundles_by_tag ON bundles (tag);

CREATE TABLE dedup (
    key       BLOB NOT NULL,
    bundle    INTEGER NOT NULL REFERENCES bundles (id),
    idx       INTEGER NOT NULL,
    block_id  BLOB NOT NULL,
    block_key BLOB NOT NULL,
    offset    INTEGER NOT NULL,
    length    INTEGER NOT NULL
);
CREATE UNIQUE INDEX dedup_by_key ON dedup (key);
CREATE INDEX dedup_by_bundle ON dedup (bundle);

CREATE TABLE file_bundles (
    file   INTEGER NOT NULL REFERENCES files (id),
    bundle INTEGER NOT NULL REFERENCES bundles (id),
    PRIMARY KEY (file, bundle)
) WITHOUT ROWID;
CREATE INDEX file_bundles_by_bundle ON file_bundles (bundle);

CREATE TABLE history (
    id        INTEGER PRIMARY KEY,
    folder    INTEGER NOT NULL REFERENCES folders (id),
    path      BLOB NOT NULL,
    file_id   BLOB NOT NULL,
    version   BLOB NOT NULL,
    manifest  BLOB NOT NULL,
    hash      BLOB NOT NULL,
    file_size INTEGER NOT NULL,
    mtime_ns  INTEGER NOT NULL,
    ended_at  INTEGER NOT NULL,
    why       TEXT NOT NULL
);
CREATE INDEX history_by_path ON history (folder, path, ended_at);
CREATE INDEX history_by_end ON history (ended_at);

CREATE TABLE history_bundles (
    history INTEGER NOT NULL REFERENCES history (id),
    bundle  INTEGER NOT NULL REFERENCES bundles (id),
    PRIMARY KEY (history, bundle)
) WITHOUT ROWID;
CREATE INDEX history_bundles_by_bundle ON history_bundles (bundle);

CREATE TABLE roots (
    root   TEXT NOT NULL,
    bundle INTEGER NOT NULL REFERENCES bundles (id),
    PRIMARY KEY (root, bundle)
) WITHOUT ROWID;
CREATE INDEX roots_by_bundle ON roots (bundle);

CREATE TABLE copies (
    bundle      INTEGER NOT NULL REFERENCES bundles (id),
    holder      BLOB NOT NULL,
    seq         INTEGER NOT NULL,
    proved_at   INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    receipt     BLOB NOT NULL,
    state       TEXT NOT NULL,
    PRIMARY KEY (bundle, holder)
) WITHOUT ROWID;
CREATE INDEX copies_by_holder ON copies (holder);

CREATE TABLE head_acks (
    holder      BLOB NOT NULL,
    folder      BLOB NOT NULL,
    incarnation INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    state_seq   INTEGER NOT NULL,
    PRIMARY KEY (holder, folder)
) WITHOUT ROWID;

CREATE TABLE journal (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    kind    TEXT NOT NULL,
    state   TEXT NOT NULL,
    body    BLOB NOT NULL,
    created INTEGER NOT NULL
);

CREATE TABLE aliases (
    alias  BLOB PRIMARY KEY,
    tag    BLOB NOT NULL,
    bundle INTEGER NOT NULL REFERENCES bundles (id)
) WITHOUT ROWID;
CREATE INDEX aliases_by_tag ON aliases (tag);

CREATE TABLE kv (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;
"""

_DYING = """
CREATE TABLE examined (
    bundle INTEGER PRIMARY KEY REFERENCES bundles (id),
    stamp  BLOB NOT NULL
);

CREATE TABLE dying (
    bundle INTEGER NOT NULL REFERENCES bundles (id),
    since  INTEGER NOT NULL,
    bits   BLOB NOT NULL,
    PRIMARY KEY (bundle, since)
) WITHOUT ROWID;

CREATE TABLE unnamed (
    bundle INTEGER PRIMARY KEY REFERENCES bundles (id)
);

CREATE TABLE dead (
    bundle INTEGER PRIMARY KEY REFERENCES bundles (id),
    since  INTEGER NOT NULL
);
"""

_AUDITS = """
ALTER TABLE copies ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copies ADD COLUMN audited_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copies ADD COLUMN tried_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copies ADD COLUMN owed_since INTEGER NOT NULL DEFAULT 0;
UPDATE copies SET since=proved_at;

CREATE TABLE holders (
    node      BLOB PRIMARY KEY,
    since     INTEGER NOT NULL DEFAULT 0,
    passed    INTEGER NOT NULL DEFAULT 0,
    failed_at INTEGER NOT NULL DEFAULT 0,
    lied_at   INTEGER NOT NULL DEFAULT 0,
    asked     INTEGER NOT NULL DEFAULT 0,
    answered  INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""

# What is looked for every minute and nearly never there; a scan reads all receipts on its way.
_ODD_COPIES = """
CREATE INDEX copies_moving ON copies (holder) WHERE state='moving';
CREATE INDEX copies_suspect ON copies (holder) WHERE state='suspect';
"""

_MERGES = """
CREATE INDEX aliases_by_bundle ON aliases (bundle);
"""

STEPS: list[str] = [_FIRST, _DYING, _AUDITS, _ODD_COPIES, _MERGES]
