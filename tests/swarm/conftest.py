from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    before = asyncio.all_tasks()
    made = World(tmp_path)
    yield made
    await made.close()
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}, "a task outlived close()"


@pytest.fixture
async def tls_world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, "tls")
    yield made
    await made.close()
