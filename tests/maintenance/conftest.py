from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .nodes import Group


@pytest.fixture
async def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Group]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no power is cut here: see tests/faults
    before = asyncio.all_tasks()
    made = Group(tmp_path)
    yield made
    await made.close()
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}, "a task outlived close()"
