"""The contenders that are not ours, as their users run them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.bench.measure import Figure, command


class Tool:
    """A backup program with a fresh repository in `work`."""

    name: str

    def __init__(self, work: Path) -> None:
        self.work = work
        self.repository = work / "repository"
        self._count = 0

    @classmethod
    def is_installed(cls) -> bool:
        return shutil.which(cls.name) is not None

    def env(self) -> Mapping[str, str]:
        raise NotImplementedError

    def init(self) -> None:
        raise NotImplementedError

    def backup(self, source: Path) -> Figure:
        """The first time a backup, the second time a re-scan."""
        raise NotImplementedError

    def restore(self, target: Path) -> Figure:
        raise NotImplementedError

    def _run(self, *args: str | Path, cwd: Path | None = None) -> Figure:
        return command([self.name, *args], env=self.env(), cwd=cwd or self.work)


class Restic(Tool):
    name = "restic"

    def env(self) -> Mapping[str, str]:
        return {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(self.work / "cache")}

    def init(self) -> None:
        self._run("init", "-q", "-r", self.repository)

    def backup(self, source: Path) -> Figure:
        return self._run("backup", "-q", "-r", self.repository, source)

    def restore(self, target: Path) -> Figure:
        return self._run("restore", "-q", "-r", self.repository, "latest", "--target", target)


class Borg(Tool):
    name = "borg"

    def env(self) -> Mapping[str, str]:
        return {
            "BORG_PASSPHRASE": "bench",
            "BORG_BASE_DIR": str(self.work / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def init(self) -> None:
        self._run("init", "-e", "repokey-blake2", self.repository)

    def backup(self, source: Path) -> Figure:
        self._count += 1
        return self._run("create", f"{self.repository}::{self._count}", source)

    def restore(self, target: Path) -> Figure:
        return self._run("extract", f"{self.repository}::1", cwd=target)


TOOLS: tuple[type[Tool], ...] = (Restic, Borg)
