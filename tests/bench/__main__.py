"""`make bench`, or `python -m tests.bench [--size small|full] [--rounds N] [--json FILE] ...`"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from p2pstore.filesystems import is_volatile
from tests.bench import carriers, corpora, serving, tools
from tests.bench.corpora import Corpus
from tests.bench.measure import CHECKOUT, Failed, Figure, phases
from tests.bench.table import Results, render
from tests.carriers.servers import make_bucket, s3_server

BLOCKS = {"1-MiB-blocks": 1 << 20, "4-KiB-blocks": 4 << 10}

Run = Callable[[Corpus, Path], dict[str, Figure]]


def _fresh(corpus: Corpus, work: Path) -> Path:
    """A copy that was just written and synced: the same state for every contender."""
    copy = work / "copy"
    shutil.copytree(corpus.path, copy, symlinks=True)
    os.sync()
    return copy


def _bare(corpus: Corpus, work: Path) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for how in ("protect", "replace"):
        place = work / how
        (place / "store").mkdir(parents=True)
        copy = _fresh(corpus, place)
        figures |= phases("tests.bench.bare", how, copy, place / "store")
    return figures


def _node(corpus: Corpus, work: Path) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for how in ("protect", "replace"):
        place = work / how
        place.mkdir()
        copy = _fresh(corpus, place)
        figures |= phases("tests.bench.node", how, copy, place / "home")
        if how == "replace":
            _compare(corpus.path, copy)
    return figures


def _compare(before: Path, after: Path) -> None:
    """Whatever came back is what went in, or there is no figure."""
    different = subprocess.run(
        ["diff", "-rq", "--exclude=.p2pstore", before, after], capture_output=True, check=False
    )
    if different.stdout or different.returncode:
        raise Failed(f"other bytes came back: {os.fsdecode(different.stdout)[:500]}")


def _tool(kind: type[tools.Tool]) -> Run:
    def run(corpus: Corpus, work: Path) -> dict[str, Figure]:
        tool = kind(work)
        copy = _fresh(corpus, work)
        tool.init()
        figures = {"protect": tool.backup(copy), "rescan": tool.backup(copy)}
        target = work / "out"
        target.mkdir()
        figures["restore"] = tool.restore(target)
        return figures

    return run


@contextlib.contextmanager
def _serving(module: str, *args: str | Path) -> Iterator[str]:
    """A node that serves in a process of its own, and the link by which another may join it."""
    server = subprocess.Popen(
        [sys.executable, "-m", module, "serve", *args],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": os.fspath(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            word, _, link = server.stdout.readline().strip().partition(" ")
            if word != "link":
                raise Failed("the serving node did not start")
            yield link
        finally:
            server.stdin.close()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _fetch(corpus: Corpus, work: Path) -> dict[str, Figure]:
    """One node serves what it protected, a second one of its group fetches it over TLS."""
    copy = _fresh(corpus, work)
    with _serving("tests.bench.node", copy, work / "home") as link:
        (placeholder,) = copy.glob("*.f")
        other = work / "other"
        other.mkdir()
        os.link(placeholder, other / placeholder.name)  # read, it would be brought back there
        figures = phases(
            "tests.bench.node", "fetch", other / placeholder.name, work / "second", link
        )
        _compare(corpus.path / placeholder.stem, other / placeholder.stem)
    return figures


def _blocks(size: int) -> Run:
    def run(_: Corpus, work: Path) -> dict[str, Figure]:
        listed = work / "blocks"
        with _serving("tests.bench.serving", work / "home", str(size), listed) as link:
            return phases("tests.bench.serving", "fetch", work / "second", link, listed)

    return run


def _pieces(kind: str, who: str, address: str) -> Run:
    def run(_: Corpus, work: Path) -> dict[str, Figure]:
        return phases("tests.bench.carriers", kind, who, work, address)

    return run


@contextlib.contextmanager
def _bucket(is_needed: bool) -> Iterator[str]:
    """An S3 server for all who carry pieces to it; its address."""
    if not is_needed:
        yield ""
        return
    with s3_server() as address:
        make_bucket(address)
        yield address


@contextlib.contextmanager
def _place(given: str | None) -> Iterator[Path]:
    """A directory on a disk, removed at the end."""
    parent = Path(given or os.environ.get("TMPDIR") or "/var/tmp")
    if is_volatile(parent):
        parent = CHECKOUT
    base = Path(tempfile.mkdtemp(prefix="p2pstore-bench-", dir=parent))
    try:
        # ext4 puts the children of such a directory into groups of their own. Where it has no
        # journal it searches long for an inode in a group in which many were just removed.
        if shutil.which("chattr"):
            subprocess.run(["chattr", "+T", base], capture_output=True, check=False)
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--size", choices=sorted(corpora.SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="all figures; - for stdout")
    parser.add_argument("--dir", help="where to work, on a disk (default: TMPDIR or /var/tmp)")
    names = " ".join((*BLOCKS, *carriers.SIZES))
    parser.add_argument("--only", nargs="*", help=f"compressible random tree {names}")
    args = parser.parse_args()
    # An end by signal cleans up like any other; children end with the pipes that they write to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    contenders: dict[str, Run] = {"bare": _bare, "p2pstore": _node}
    for kind in tools.TOOLS:
        if kind.is_installed():
            contenders[kind.name] = _tool(kind)
        else:
            print(f"{kind.name} is not installed: it is left out.", file=sys.stderr)
    results = Results()
    with _place(args.dir) as base:
        began = time.monotonic()
        built = corpora.build(base / "corpora", corpora.SIZES[args.size])
        built = [corpus for corpus in built if not args.only or corpus.name in args.only]
        served = [
            (Corpus(name, base, serving.count(size), serving.count(size) * size), size)
            for name, size in BLOCKS.items()
            if not args.only or name in args.only
        ]
        carried = [
            Corpus(kind, base, carriers.COUNTS[kind], carriers.COUNTS[kind] * size)
            for kind, size in carriers.SIZES.items()
            if not args.only or kind in args.only
        ]
        for number in range(args.rounds):
            for corpus in built:
                order = list(contenders) if number % 2 == 0 else list(reversed(contenders))
                for name in order:
                    _one(results, corpus, name, contenders[name], base / f"{number}-{name}")
                if number == 0 and corpus.files == 1:
                    _one(results, corpus, "p2pstore", _fetch, base / "fetch")
            for corpus, size in served:
                _one(results, corpus, "p2pstore", _blocks(size), base / f"{number}-serve")
            for corpus in carried:
                with _bucket(corpus.name == "s3") as address:
                    for name in ("bare", "p2pstore")[:: 1 if number % 2 == 0 else -1]:
                        run = _pieces(corpus.name, name, address)
                        _one(results, corpus, name, run, base / f"{number}-{name}")
        took = time.monotonic() - began
    built += [*(corpus for corpus, _ in served), *carried]
    print(render(built, results, list(contenders)))
    print(f"{args.size}, best of {args.rounds} rounds in one run of {took:.0f} s.")
    if args.json:
        text = json.dumps(results.as_json(built), indent=1)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n")
    return 1 if results.failures else 0


def _one(results: Results, corpus: Corpus, name: str, run: Run, work: Path) -> None:
    work = work.with_name(f"{work.name}-{corpus.name}")
    work.mkdir()
    print(f"{corpus.name}: {name} ...", file=sys.stderr, flush=True)
    try:
        for phase, figure in run(corpus, work).items():
            results.add(corpus.name, phase, name, figure)
    except Failed as exc:
        results.failures.append(f"{corpus.name}, {name}: {exc}")
        print(exc, file=sys.stderr)
    finally:
        # At once, so that a full run needs room for one contender only.
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
