"""The node as its frontends see it: each method of the control interface, handed to a service.

The contract (names, arguments, results) is the docstring of `p2pstore.http.control`. Nothing is
decided here: arguments become calls, results become JSON values.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from p2pstore.carriers import config_of
from p2pstore.config import Config
from p2pstore.content import looks_like_share_key
from p2pstore.errors import P2PStoreError, Unavailable, UsageError
from p2pstore.folders import Brought, Preview
from p2pstore.home import Home
from p2pstore.maintenance import Rebuilt, carrier_id
from p2pstore.members import confirm
from p2pstore.node import carrying, inviting
from p2pstore.node.build import Node
from p2pstore.node.checking import check
from p2pstore.node.checks import doctor
from p2pstore.node.leaving import Leaving
from p2pstore.node.reporting import checked, report
from p2pstore.node.status import carrier_lines, folder_lines, peer_lines, share_lines, status
from p2pstore.policy import Treatment
from p2pstore.shares import looks_like_upload_key

Args = Mapping[str, Any]
Progress = Callable[[dict[str, Any]], None]
Method = Callable[[Args, Progress], Awaitable[Any]]


class Life(Protocol):
    """What a command may ask of the process that it talks to."""

    def stop(self) -> None:
        """End, safely."""

    def restart(self) -> None:
        """Begin anew with what HOME says now."""

    async def rebuild(self, progress: Progress) -> Rebuilt:
        """Begin anew with a catalog that is made from everything else."""


class NodeControl:
    """`node` is None between two lives, and while HOME has no identity: then only `join` works."""

    def __init__(
        self,
        life: Life,
        home: Home,
        config: Config,
    ) -> None:
        self.node: Node | None = None
        self._life = life
        self._home = home
        self._config = config
        self._leaving = Leaving()

    @property
    def _node(self) -> Node:
        if self.node is not None:
            return self.node
        if self._home.exists:
            raise Unavailable("The node is starting; try again in a moment.")
        raise UsageError("Nothing lives in this HOME yet. Start with: p2pstore init")

    async def dispatch(self, method: str, args: Args, progress: Progress) -> Any:
        call: Method | None = getattr(self, f"do_{method}", None)
        if call is None:
            raise UsageError(f"There is no method {method!r}.")
        return await call(args, progress)

    async def cat(
        self, path: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> AsyncIterator[bytes]:
        if looks_like_share_key(path):
            content = self._node.downloads.read(path, start, end, password=password)
        elif looks_like_upload_key(path):
            content = self._node.uploads.read(path, start, end)
        else:
            content = self._node.vfs.read(path, start, end)
        async with aclosing(content) as pieces:
            async for piece in pieces:
                yield piece

    async def status(self) -> dict[str, Any]:
        return await asyncio.to_thread(status, self._node, ())

    def metrics(self) -> bytes:
        # Most nodes are never asked: its library is a tenth of what a start has to load.
        from p2pstore.node.metrics import metrics

        return metrics(self._node)

    def healthz(self) -> str | None:
        return self._node.trouble()

    # -- looking ----------------------------------------------------------------------------------

    async def do_status(self, args: Args, _: Progress) -> Any:
        return await asyncio.to_thread(status, self._node, tuple(args.get("paths") or ()))

    async def do_report(self, args: Args, _: Progress) -> Any:
        return await asyncio.to_thread(report, self._node, tuple(args.get("paths") or ()))

    async def do_check_report(self, args: Args, _: Progress) -> Any:
        return await asyncio.to_thread(checked, self._node, str(args["text"]).encode())

    async def do_folders(self, _: Args, __: Progress) -> Any:
        node = self._node
        watched = node.folders.all()  # others may come and go meanwhile
        lines = await asyncio.to_thread(folder_lines, node, of=watched)
        for line, folder in zip(lines, watched, strict=True):
            line["settings"] = msgspec.to_builtins(folder.settings)
        return {"folders": lines}

    async def do_ls(self, args: Args, _: Progress) -> Any:
        node, path = self._node, args.get("path")
        if path is None:
            return {"path": "", "entries": [_folder_entry(f) for f in folder_lines(node)]}
        entries = await asyncio.to_thread(node.vfs.entries, path)
        found = node.vfs.find(path)
        base = os.fsdecode(found[0].path) if found is not None else ""
        ids = [entry.id for entry in entries if entry.id]
        copies = await asyncio.to_thread(node.maintenance.copies_of_files, ids)
        return {
            "path": path,
            "entries": [
                {
                    "name": os.fsdecode(entry.path.rpartition(b"/")[2]),
                    "path": os.path.join(base, os.fsdecode(entry.path)),
                    "type": "folder" if entry.is_directory else entry.kind,
                    "size": entry.size,
                    "mtime": entry.mtime_ns / 1e9,
                    "state": entry.state,
                    "reason": entry.reason,
                    "copies": copies.get(entry.id, 0),
                    "files": entry.files,
                }
                for entry in entries
            ],
        }

    async def do_inspect(self, args: Args, _: Progress) -> Any:
        node = self._node
        seen = await node.vfs.inspect(args["path"])
        rows = await asyncio.to_thread(node.vfs.bundles, seen.wanted)
        bundles = {wanted.ref.bundle_id for wanted in seen.wanted}
        local = {b for b in bundles if b in rows and node.store.has(rows[b].bundle_id)}
        copies = await asyncio.to_thread(
            node.maintenance.copies_of_bundles, [row.id for row in rows.values()]
        )
        meta = seen.manifest.meta
        return {
            "name": os.fsdecode(meta.name),
            "size": meta.size,
            "mode": meta.mode & 0o7777,
            "mtime": meta.mtime_ns / 1e9,
            "file_id": seen.manifest.file_id.hex(),
            "hash": seen.manifest.hash.hex(),
            "blocks": len(seen.wanted),
            "bundles": sorted(bundle.hex() for bundle in bundles),
            "stored_bytes": seen.row.stored_bytes if seen.row is not None else None,
            "device": node.name_of_key(seen.opened.signer),
            "signature": "valid",
            "epoch": seen.opened.epoch.hex(),
            "local_blocks": sum(1 for w in seen.wanted if w.ref.bundle_id in local),
            "copies": min((copies.get(row.id, 0) for row in rows.values()), default=0),
        }

    async def do_peers(self, _: Args, __: Progress) -> Any:
        return {"peers": await asyncio.to_thread(peer_lines, self._node)}

    async def do_words_state(self, _: Args, __: Progress) -> Any:
        return {"confirmed": self._node.home.words_confirmed}

    async def do_doctor(self, _: Args, __: Progress) -> Any:
        return {"findings": await doctor(self._node)}

    async def do_check(self, args: Args, progress: Progress) -> Any:
        return await check(
            self._node,
            read_data=bool(args.get("read_data")),
            repair=bool(args.get("repair")),
            progress=progress,
        )

    # -- folders ----------------------------------------------------------------------------------

    async def do_preview(self, args: Args, _: Progress) -> Any:
        node = self._node
        given = _settings(args)
        self._check_carriers(given)
        carrying.check_folder(node, args["dir"])
        preview = await node.folders.preview(args["dir"], given, force=bool(args.get("force")))
        settings = node.folders.settings_for(Path(os.path.realpath(args["dir"])), given)
        return {**_preview_line(node, args["dir"], preview), "min_copies": settings.min_copies}

    async def do_add_folder(self, args: Args, _: Progress) -> Any:
        self._check_carriers(_settings(args))
        carrying.check_folder(self._node, args["dir"])
        changed = await self._node.folders.add(
            args["dir"], _settings(args), force=bool(args.get("force"))
        )
        self._node.maintenance.copy_soon()
        return {"path": os.path.realpath(args["dir"]), "changed": changed}

    def _check_carriers(self, settings: Mapping[str, Any]) -> None:
        for name in settings.get("carriers") or ():
            self._node.network.places.get(name)

    async def do_wait_folder(self, args: Args, progress: Progress) -> Any:
        return await self._node.folders.wait(args["dir"], progress)

    async def do_remove_folder(self, args: Args, progress: Progress) -> Any:
        return await self._node.folders.remove(args["dir"], args.get("how"), progress)

    async def do_pause(self, args: Args, _: Progress) -> Any:
        folder = await self._node.folders.pause(args["dir"])
        return {"path": os.fspath(folder.path)}

    async def do_resume(self, args: Args, _: Progress) -> Any:
        restored = await self._node.folders.resume(args["dir"], args.get("how"))
        return {"path": os.path.realpath(args["dir"]), "restored": restored}

    async def do_undelete(self, args: Args, _: Progress) -> Any:
        done = await self._node.folders.undelete(args["path"])
        return {
            "results": [
                {"path": path, "error": {"code": Unavailable.exit_code, "message": why}}
                if why
                else {"path": path, "to": f"{path}.f"}
                for path, why in done.items()
            ]
        }

    # -- contents ---------------------------------------------------------------------------------

    async def do_hydrate(self, args: Args, progress: Progress) -> Any:
        return await self._each(args["paths"], self._hydrate_one, progress)

    async def _hydrate_one(self, path: str, progress: Progress) -> list[dict[str, Any]]:
        return _brought_lines(path, await self._node.folders.hydrate([path], progress))

    async def do_pin(self, args: Args, progress: Progress) -> Any:
        return await self._each(args["paths"], self._pin_one, progress)

    async def _pin_one(self, path: str, progress: Progress) -> list[dict[str, Any]]:
        return _brought_lines(path, await self._node.folders.pin([path], True, progress))

    async def do_unpin(self, args: Args, progress: Progress) -> Any:
        async def one(path: str, progress: Progress) -> list[dict[str, Any]]:
            await self._node.folders.pin([path], False, progress)
            return [{"path": path}]

        return await self._each(args["paths"], one, progress)

    async def do_dehydrate(self, args: Args, progress: Progress) -> Any:
        return await self._replace(args["paths"], progress)

    async def _replace(self, paths: Sequence[str], progress: Progress) -> dict[str, Any]:
        """Replace now; what this call replaced is what is a placeholder now and was none before."""
        below = partial(self._node.maintenance.placeholders_below, self._inside(paths))
        before = await asyncio.to_thread(below)
        done = await self._each(paths, self._dehydrate_one, progress)
        sizes = [size for _, _, size in await asyncio.to_thread(below) - before]
        return {**done, "replaced_files": len(sizes), "replaced_bytes": sum(sizes)}

    def _inside(self, paths: Sequence[str]) -> list[str]:
        """Those that lie in watched folders."""
        return [path for path in paths if self._node.folders.of(path) is not None]

    async def _dehydrate_one(self, path: str, progress: Progress) -> list[dict[str, Any]]:
        stays = await self._node.folders.dehydrate([path], progress)
        return [
            {"path": name} if not why else {"path": name, "error": {"code": 5, "message": why}}
            for name, why in stays.items()
        ]

    async def do_free_up(self, args: Args, progress: Progress) -> Any:
        done = await self._replace(args["paths"], progress)
        return {**done, **await self._evict(args["paths"], progress)}

    async def do_evict(self, args: Args, progress: Progress) -> Any:
        paths = list(args.get("paths") or ())
        done = await self._each(paths, self._need_one, progress)
        return {**done, **await self._evict(paths, progress)}

    async def _need_one(self, path: str, _: Progress) -> list[dict[str, Any]]:
        self._node.folders.need(path)
        return []

    async def _evict(self, paths: Sequence[str], progress: Progress) -> dict[str, Any]:
        inside = self._inside(paths)
        if paths and not inside:
            return {}  # nothing was asked for that can be, and no path at all would mean all
        return await self._node.maintenance.evict(inside, progress)

    async def do_evict_why(self, args: Args, _: Progress) -> Any:
        return await asyncio.to_thread(self._node.maintenance.why, list(args.get("paths") or ()))

    async def do_open(self, args: Args, progress: Progress) -> Any:
        node, path = self._node, args["path"]
        await node.vfs.open(path)  # what is no manifest is said before anything is done
        brought = await node.folders.hydrate([path], progress)
        for entry in brought:
            if entry.error is not None:
                raise entry.error
            return {"path": os.fsdecode(entry.path), "hydrated": True}
        return {"path": path.removesuffix(".f"), "hydrated": False}

    def _check_target(self, path: str) -> None:
        if self._home.holds(path):
            raise UsageError(f"{path} lies in p2pstore's own store; choose another place.")

    async def do_restore(self, args: Args, _: Progress) -> Any:
        self._check_target(args["to"])
        path, size = await self._node.vfs.copy(args["path"], args["to"])
        return {"path": path, "bytes": size}

    # -- shares -----------------------------------------------------------------------------------

    async def do_upload(self, args: Args, progress: Progress) -> Any:
        node, told = self._node, _bytes_told("upload", progress)
        if carrier := args.get("carrier"):
            if args.get("once") or args.get("expires") is not None or args.get("password"):
                raise UsageError("A carrier looks at no time, no password, and counts nothing.")
            stored = await node.uploads.upload(args["path"], carrier, told)
            meta = stored.meta
            return {"key": stored.key, "name": meta.name, "size": meta.size, "expires": None}
        made = await node.shares.upload(
            args["path"],
            expires_s=args.get("expires"),
            once=bool(args.get("once")),
            password=args.get("password") or "",
            progress=told,
        )
        name = os.fsdecode(made.name)
        return {"key": made.key, "name": name, "size": made.size, "expires": made.ends}

    async def do_download(self, args: Args, progress: Progress) -> Any:
        node, told = self._node, _bytes_told("download", progress)
        key, to, force = args["key"], args["to"], bool(args.get("force"))
        self._check_target(to)
        carrier = args.get("carrier")
        if carrier or looks_like_upload_key(key):
            got = await node.uploads.download(key, to, carrier, force=force, progress=told)
            return {"path": os.fspath(got.path), "size": got.meta.size}
        password = args.get("password") or ""
        path, size = await node.downloads.copy(
            key, to, password=password, force=force, progress=told
        )
        return {"path": path, "size": size}

    async def do_shares(self, _: Args, __: Progress) -> Any:
        return {"shares": await asyncio.to_thread(share_lines, self._node)}

    async def do_unshare(self, args: Args, _: Progress) -> Any:
        return {"name": os.fsdecode((await self._node.shares.unshare(args["key"])).name)}

    # -- carriers ---------------------------------------------------------------------------------

    async def do_carriers(self, _: Args, __: Progress) -> Any:
        return {"carriers": await asyncio.to_thread(carrier_lines, self._node)}

    async def do_add_carrier(self, args: Args, _: Progress) -> Any:
        place = await carrying.add_carrier(self._node, args["name"], config_of(args["config"]))
        return {"name": place.name}

    async def do_test_carrier(self, args: Args, _: Progress) -> Any:
        clock = self._node.clock
        began = clock.monotonic()
        await self._node.network.places.test(args["name"])
        self._node.maintenance.linked(carrier_id(args["name"]))  # what waited for it may go there
        return {"name": args["name"], "seconds": clock.monotonic() - began}

    async def do_remove_carrier(self, args: Args, progress: Progress) -> Any:
        await carrying.remove_carrier(self._node, args["name"], progress)
        return {}

    async def do_stat(self, args: Args, _: Progress) -> Any:
        path = args["path"]
        if looks_like_upload_key(path):
            there = await self._node.uploads.meta(path)
            return {"name": there.name, "size": there.size}
        if looks_like_share_key(path):
            meta = await self._node.downloads.meta(path, args.get("password") or "")
        else:
            meta = (await self._node.vfs.open(path)).manifest.meta
        return {"name": os.fsdecode(meta.name), "size": meta.size}

    async def _each(
        self,
        paths: Sequence[str],
        one: Callable[[str, Progress], Awaitable[list[dict[str, Any]]]],
        progress: Progress,
    ) -> dict[str, Any]:
        """All paths are tried; what fails is listed."""
        results: list[dict[str, Any]] = []
        for path in paths:
            try:
                results.extend(await one(path, progress))
            except P2PStoreError as exc:
                results.append({"path": path, "error": _error(exc)})
        return {"results": results}

    # -- members ----------------------------------------------------------------------------------

    async def do_invite(self, args: Args, _: Progress) -> Any:
        role = args.get("role") or "device"
        return inviting.invite(self._node, role, confirm=bool(args.get("confirm")))

    async def do_wait_invite(self, args: Args, _: Progress) -> Any:
        return await inviting.wait_invite(self._node, args["invite"])

    async def do_withdraw_invite(self, args: Args, _: Progress) -> Any:
        return inviting.withdraw_invite(self._node, args["invite"])

    async def do_confirm_invite(self, args: Args, _: Progress) -> Any:
        accept = bool(args.get("accept"))
        return await inviting.confirm_invite(self._node, args["invite"], accept=accept)

    async def do_join(self, args: Args, progress: Progress) -> Any:
        joined = await inviting.join_group(self._home, self._config, args, progress)
        self._life.restart()  # a running node begins anew as a member of the group
        return joined

    async def do_connect(self, args: Args, _: Progress) -> Any:
        return await inviting.connect(self._node, args["address"])

    async def do_words_confirm(self, args: Args, _: Progress) -> Any:
        await asyncio.to_thread(confirm, self._node.home, args["words"])
        return {"confirmed": True}

    # -- upkeep -----------------------------------------------------------------------------------

    async def do_rebuild_catalog(self, _: Args, progress: Progress) -> Any:
        done = await self._life.rebuild(progress)
        return {
            "files": done.files,
            "bundles": done.bundles,
            "placeholders": done.placeholders,
            "missing": done.missing,
        }

    async def do_leave(self, args: Args, progress: Progress) -> Any:
        result = await self._leaving.leave(self._node, args.get("to"), progress)
        if result["left"]:
            self._life.stop()
        return result

    async def do_leave_cancel(self, _: Args, __: Progress) -> Any:
        return {"was_leaving": await self._leaving.cancel(self._node)}


def _bytes_told(stage: str, progress: Progress) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        progress({"stage": stage, "bytes": done, "bytes_total": total})

    return tell


def _settings(args: Args) -> dict[str, Any]:
    return {key: value for key, value in (args.get("settings") or {}).items() if value is not None}


def _error(exc: P2PStoreError) -> dict[str, Any]:
    return {"code": exc.exit_code, "message": str(exc)}


def _brought_lines(asked: str, brought: Sequence[Brought]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for entry in brought:
        name = os.fsdecode(entry.placeholder.name)
        if entry.error is not None:
            lines.append({"path": name, "error": _error(entry.error)})
        else:
            lines.append({"path": name, "to": os.fsdecode(entry.path), "bytes": entry.size})
    return lines or [{"path": asked, "bytes": 0}]


def _folder_entry(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": line["path"],
        "path": line["path"],
        "type": "folder",
        "size": line["bytes"],
        "mtime": 0,
        "state": "paused" if line["paused"] else "",
        "reason": "",
        "copies": 0,
        "files": line["files"],
    }


def _preview_line(node: Node, directory: str, preview: Preview) -> dict[str, Any]:
    def part(*treatments: Treatment) -> dict[str, Any]:
        found = {
            reason: counts
            for treatment in treatments
            for reason, counts in preview.classes.get(treatment, {}).items()
        }
        return {
            "files": sum(files for files, _ in found.values()),
            "bytes": sum(size for _, size in found.values()),
            "reasons": {reason: files for reason, (files, _) in found.items() if reason},
        }

    path = os.path.realpath(directory)
    free = node.room.free(node.home.path)
    return {
        "path": path,
        "watched": any(os.fspath(folder.path) == path for folder in node.folders.all()),
        "files": preview.files,
        "bytes": preview.bytes,
        "placeholders": preview.placeholders,
        "replace": part(Treatment.REPLACE),
        "protect_only": part(Treatment.PROTECT_ONLY, Treatment.LINK),
        "skipped": part(Treatment.SKIP),
        "room_needed_bytes": preview.bytes,
        "room_free_bytes": max(0, free),
        "keep_free_bytes": node.room.keep_free(),
        "holders": len(node.maintenance.holders_now()),
        "notes": preview.notes + ([node.volatile] if node.volatile else []),
    }
