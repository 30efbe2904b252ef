from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .nodes import Group


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    before = asyncio.all_tasks()
    made = Group(tmp_path)
    yield made
    await made.close()
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}, "a task outlived close()"
