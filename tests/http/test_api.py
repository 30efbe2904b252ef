from __future__ import annotations

import asyncio
import json
import os
from typing import Any
from urllib.parse import quote_from_bytes

import aiohttp
import pytest

from p2pstore.errors import IntegrityError, Unavailable, UsageError
from p2pstore.http.api import MAX_FAILURES, error_of, parse_range


async def lines_of(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await response.text()).splitlines()]


async def test_result_is_the_last_line(api, control):
    control.answers["folders"] = {"folders": []}
    async with api.post("/api/v1/folders", json={}) as response:
        assert await lines_of(response) == [{"result": {"folders": []}}]


async def test_arguments_arrive_with_bytes_that_are_no_utf8(api, control):
    path = os.fsdecode(b"/v/a\xff\n'\"")
    async with api.post("/api/v1/open", data=json.dumps({"path": path})) as response:
        await response.read()
    assert control.calls == [("open", {"path": path})]


async def test_result_keeps_bytes_that_are_no_utf8(api, control):
    control.answers["open"] = {"path": os.fsdecode(b"/v/\xfe")}
    async with api.post("/api/v1/open", json={}) as response:
        (line,) = await lines_of(response)
    assert os.fsencode(line["result"]["path"]) == b"/v/\xfe"


async def test_progress_comes_before_the_result(api, control):
    async def work(args: Any, progress: Any) -> str:
        progress({"stage": "protect", "files": 1})
        await asyncio.sleep(0)
        return "done"

    control.answers["hydrate"] = work
    async with api.post("/api/v1/hydrate", json={}) as response:
        lines = await lines_of(response)
    assert lines == [{"progress": {"stage": "protect", "files": 1}}, {"result": "done"}]


async def test_fast_progress_is_thinned_and_texts_are_not(api, control):
    async def work(args: Any, progress: Any) -> str:
        for number in range(5_000):
            progress({"stage": "protect", "files": number})
        progress({"text": "one"})
        progress({"text": "two"})
        return "done"

    control.answers["hydrate"] = work
    async with api.post("/api/v1/hydrate", json={}) as response:
        lines = await lines_of(response)
    assert len(lines) <= 4
    assert {"progress": {"text": "one"}} in lines
    assert {"progress": {"text": "two"}} in lines
    assert {"progress": {"stage": "protect", "files": 4_999}} in lines


@pytest.mark.parametrize(
    ("raised", "code"), [(UsageError("x"), 2), (IntegrityError("x"), 4), (Unavailable("x"), 5)]
)
async def test_error_carries_code_and_sentence(api, control, raised, code):
    control.answers["pause"] = raised
    async with api.post("/api/v1/pause", json={}) as response:
        assert await lines_of(response) == [{"error": {"code": code, "message": "x"}}]


async def test_bug_in_the_node_is_code_1(api, control, caplog):
    control.answers["pause"] = ZeroDivisionError("oh")
    async with api.post("/api/v1/pause", json={}) as response:
        (line,) = await lines_of(response)
    assert line["error"]["code"] == 1
    assert "oh" in line["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
async def test_bad_body_is_a_usage_error(api, control, body):
    async with api.post("/api/v1/pause", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == 2
    assert control.calls == []


async def test_unknown_method_is_refused(api, control):
    async with api.post("/api/v1/shutdown", json={}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == 2
    assert control.calls == []


async def test_get_does_not_call_methods(api, control):
    async with api.get("/api/v1/leave") as response:
        assert response.status in (404, 405)
    assert control.calls == []


async def leave_while_running(api: aiohttp.ClientSession, control: Any, method: str) -> str:
    """Call a method, go away while it runs, return how the method ended."""
    began, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    outcome = ""

    async def work(args: Any, progress: Any) -> None:
        nonlocal outcome
        began.set()
        try:
            await may_end.wait()
            outcome = "finished"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            ended.set()

    control.answers[method] = work
    request = asyncio.create_task(api.post(f"/api/v1/{method}", json={}).__aenter__())
    await began.wait()
    response = await request
    response.close()
    # The server sees the end of the connection within some turns of the loop.
    for _ in range(200):
        await asyncio.sleep(0)
        if ended.is_set():
            break
    may_end.set()
    await asyncio.wait_for(ended.wait(), 5)
    return outcome


async def test_work_outlives_its_caller(api, control):
    assert await leave_while_running(api, control, "hydrate") == "finished"


async def test_waiting_ends_with_its_caller(api, control):
    assert await leave_while_running(api, control, "wait_folder") == "cancelled"


async def test_close_ends_calls_in_flight(api, control, frontends):
    began = asyncio.Event()

    async def work(args: Any, progress: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    control.answers["hydrate"] = work

    async def ask() -> list[dict[str, Any]]:
        async with api.post("/api/v1/hydrate", json={}) as response:
            return await lines_of(response)

    asking = asyncio.create_task(ask())
    await began.wait()
    await frontends.close()
    assert (await asking)[-1]["error"]["code"] == 5


# -- cat


async def test_cat_streams_bytes(api, control):
    control.pieces = [b"abc", b"\x00\xff", b"z"]
    name = b"/v/a b&c\xff.f"
    async with api.get(_cat(name)) as response:
        assert response.status == 200
        assert await response.read() == b"abc\x00\xffz"
    assert control.cats == [(os.fsdecode(name), 0, None)]


def _cat(name: bytes, more: str = "") -> Any:
    from yarl import URL

    return URL(f"/api/v1/cat?path={quote_from_bytes(name)}{more}", encoded=True)


async def test_cat_of_an_empty_file_is_empty(api, control):
    control.pieces = []
    async with api.get(_cat(b"/v/empty")) as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_cat_range_is_inclusive(api, control):
    async with api.get(_cat(b"/v/a", "&range=10-19")) as response:
        await response.read()
    assert control.cats == [("/v/a", 10, 20)]


@pytest.mark.parametrize(
    ("text", "expected"), [("0-0", (0, 1)), ("5-", (5, None)), ("0-", (0, None))]
)
def test_parse_range(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "-", "-5", "5", "9-3", "a-b", "1-2,4-5", "1.5-2", "²-3"])
def test_bad_range_is_a_usage_error(text):
    with pytest.raises(UsageError):
        parse_range(text)


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [(UsageError("no"), 400, 2), (IntegrityError("no"), 422, 4), (Unavailable("no"), 503, 5)],
)
async def test_cat_error_before_the_first_byte_is_an_http_error(api, control, raised, status, code):
    control.pieces = [raised]
    async with api.get(_cat(b"/v/a")) as response:
        assert response.status == status
        assert await response.json() == {"error": {"code": code, "message": "no"}}


async def test_cat_error_in_the_middle_cuts_the_body_and_is_told_once(api, control):
    control.pieces = [b"first", IntegrityError("block 7 is wrong")]
    async with api.get(_cat(b"/v/a"), headers={"X-Request-Id": "r1"}) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    for expected in ({"code": 4, "message": "block 7 is wrong"}, None):
        async with api.get("/api/v1/cat/failure?id=r1") as response:
            assert await response.json() == {"error": expected}


def test_failures_that_nobody_asks_for_are_forgotten(control):
    from p2pstore.http.api import ControlApi

    server = ControlApi(control)
    for number in range(MAX_FAILURES + 5):
        server._remember(str(number), {})
    assert len(server._failures) == MAX_FAILURES


def test_error_of_a_foreign_exception_names_it():
    assert "KeyError" in error_of(KeyError("k"))["message"]
