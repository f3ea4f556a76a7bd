"""What is wrong with one upload, or with the program's code for it, ends that one: the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delivery.client import connect
from delivery.client.progress import Progress
from delivery.errors import UsageError
from tests.client.conftest import eventually
from tests.client.server import CoreServer

CHUNK = 4096

WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "33 values in meta": (b"x", {"meta": {str(number): "x" for number in range(33)}}),
    "meta of 9 kB": (b"x", {"meta": {"key": "x" * 9_000}}),
    "a number in meta": (b"x", {"meta": {"key": 5}}),
    "a number as a key of meta": (b"x", {"meta": {5: "x"}}),
    "meta that is no dict": (b"x", {"meta": "text"}),
    "a NUL in the name": (b"x", {"name": "a\0b"}),
    "a surrogate in the name": (b"x", {"name": "b\udcff.txt"}),
    "a name that is no text": (b"x", {"name": 5}),
    "a surrogate in meta": (b"x", {"meta": {"key": "\ud800"}}),
    "a content type that is no text": (b"x", {"content_type": 5}),
    "a transfer that is no UUID": (b"x", {"transfer": "mine"}),
    "a transfer with a line feed": (b"x", {"transfer": "5f1b2a34-9c1d-4f57-8a52-0a2c2b5c3d4e\n"}),
    "too many addresses": (b"x", {"to": [f"user:{number}" for number in range(9_000)]}),
    "an address that is no text": (b"x", {"to": [5]}),
    "to that is no list": (b"x", {"to": 5}),
    "progress that cannot be called": (b"x", {"progress": "print"}),
    "text that is half a pair": ("\ud800", {}),
    "JSON that is none": ({"key": object()}, {}),
    "JSON without an end": ([float("nan")], {}),
    "a number": (5, {}),
    "no such file": (Path("/no/such/file"), {}),
    "a folder": (Path("/"), {}),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_argument_is_refused_at_once(server: CoreServer, wrong: str) -> None:
    payload, arguments = WRONG[wrong]
    server.window = 4 * CHUNK
    async with connect(server.url, chunk_size=CHUNK) as client:
        other = client.start(b"x" * 40 * CHUNK)
        with pytest.raises(UsageError):
            client.start(payload, **arguments)
        assert (await asyncio.wait_for(other, 10)).size == 40 * CHUNK
    assert len(server.offers) == 1


async def test_addresses_that_just_fit_are_offered(server: CoreServer) -> None:
    """What `start` lets pass can be offered with any handle, and with the size that a stream turns out to have."""
    async with connect(server.url) as client:
        low, high = 0, 10_000
        while high - low > 1:
            middle = (low + high) // 2
            try:
                client.start(iter([b"x"]), to=["user:1"] * middle).cancel()
                low = middle
            except UsageError:
                high = middle
        for payload in (b"x", iter([b"x"])):
            receipt = await asyncio.wait_for(client.send(payload, to=["user:1"] * low), 10)
            assert len(server.uploads[receipt.transfer].offer.to) == low


async def test_a_wrong_deadline_leaves_no_upload_behind(server: CoreServer) -> None:
    async with connect(server.url) as client:
        with pytest.raises(TypeError):
            await client.send(b"x", deadline="soon")  # type: ignore[arg-type]
        assert (await client.send(b"fine")).size == 4
    assert [bytes(stored.data) for stored in server.uploads.values() if stored.sha256] == [b"fine"]


async def test_an_iterator_can_be_sent_after_its_arguments_were_put_right(server: CoreServer) -> None:
    def produce() -> Any:
        yield b"all of it"

    blocks = produce()
    async with connect(server.url) as client:
        with pytest.raises(UsageError):
            client.start(blocks, name="a\0b")
        assert (await client.send(blocks, name="ab")).size == 9


# -- the program's callback --------------------------------------------------------------------------------------------


def raising(error: BaseException, when: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    def progress(progress: Progress) -> None:
        if when(progress):
            raise error

    return progress


@pytest.mark.parametrize("when", ["accepted", "moving", "done"])
@pytest.mark.parametrize("error", [ValueError("mine"), BrokenPipeError("mine"), TimeoutError("mine")])
async def test_a_progress_callback_that_raises_fails_its_transfer_only(
    server: CoreServer, when: str, error: Exception
) -> None:
    size = 40 * CHUNK
    server.window = server.segment = 4 * CHUNK
    at = {"accepted": lambda _: True, "moving": lambda one: one.stored > CHUNK, "done": lambda one: one.stored == size}
    async with connect(server.url, chunk_size=CHUNK) as client:
        other = client.start(b"y" * 10 * size)
        upload = client.start(b"x" * size, progress=raising(error, at[when]))
        with pytest.raises(type(error), match="mine"):
            await asyncio.wait_for(upload, 10)
        assert (await asyncio.wait_for(other, 10)).size == 10 * size
        assert client.statistics.connections == 1
        stored = server.uploads[upload.transfer]
        assert not stored.cancelled  # the server keeps what it has
        again = await asyncio.wait_for(client.send(b"x" * size, transfer=upload.transfer), 10)
        assert (again.size, bytes(stored.data)) == (size, b"x" * size)


@pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError()])
async def test_what_a_callback_raises_is_not_taken_for_something_else(server: CoreServer, error: BaseException) -> None:
    """StopIteration cannot be set on a future, and whoever awaits the upload was not cancelled."""
    async with connect(server.url) as client:
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await asyncio.wait_for(client.send(b"x", progress=raising(error, lambda _: True)), 10)
        assert (await client.send(b"fine")).size == 4


async def test_a_callback_may_end_its_own_transfer(server: CoreServer) -> None:
    uploads: list[Any] = []
    async with connect(server.url, chunk_size=CHUNK) as client:
        uploads.append(client.start(b"x" * 40 * CHUNK, progress=lambda _: uploads[0].cancel()))
        await eventually(lambda: uploads[0].done)
        assert (await client.send(b"fine")).size == 4
