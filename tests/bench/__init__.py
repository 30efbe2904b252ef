"""How fast, and with what: `make bench`, or `python -m tests.bench --help`.

Not a test: pytest collects nothing here, and no figure of it passes or fails. It builds its corpora
from what lies on this machine, gives every contender the same ones in the same state (a fresh
copy, written and synced just before, thus in the page cache; a fresh repository or HOME),
alternates their order from round to round, and takes each one's best round.

    bare     the same libraries, syncs and read-back in a few dozen lines, without a node around
    p2pstore a whole node in a process of its own, with watcher, catalog, journal and network
    restic, borg   as they come, when they are installed

A contender runs in a process of its own, so that CPU seconds and peak memory are its own. The walls
of one run can be compared with each other only: machines, and other people's work on them, differ.
"""
