from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from delivery.client import connect
from delivery.client.large import pack, unpack
from delivery.errors import ConnectionStopped, UsageError
from tests.client.server import CoreServer

LARGE = {"text": "x" * 200_000}


def pointer(waiting: Any) -> str:
    return json.dumps({"type": "delivery.large", "payload": waiting.offer.payload, "size": len(waiting.data)})


async def test_small_content_stays_on_the_socket(server: CoreServer) -> None:
    async with connect(server.url, receive=True) as client:
        text = await pack(client, {"a": 1})
        assert await unpack(client, text) == {"a": 1}
    assert not server.uploads


async def test_large_content_goes_as_a_payload(server: CoreServer) -> None:
    async with connect(server.url) as client:
        sent = json.loads(await pack(client, LARGE))
    (stored,) = server.uploads.values()
    assert sent["type"] == "delivery.large"
    assert sent["payload"] == stored.payload
    assert json.loads(stored.data) == LARGE


@pytest.mark.parametrize("pointer_first", [True, False])
async def test_a_pointer_is_followed(server: CoreServer, *, pointer_first: bool) -> None:
    async with connect(server.url, receive=True) as client:
        other = server.offer(b"another")
        data = json.dumps(LARGE).encode()
        if pointer_first:
            waiting = server.offer(data, content_type="application/json")
            following = asyncio.ensure_future(unpack(client, pointer(waiting)))
        else:
            waiting = server.offer(data, content_type="application/json")
            await client.send(b"a round trip")
            following = asyncio.ensure_future(unpack(client, pointer(waiting)))
        assert await following == LARGE
        async for incoming in client.deliveries():
            assert incoming.payload == other.offer.payload
            break


async def test_waiting_for_a_pointer_ends_with_the_client(server: CoreServer) -> None:
    async with connect(server.url, receive=True) as client:
        waiting = asyncio.ensure_future(client.expect("00000000-0000-0000-0000-000000000000"))
        await client.send(b"a round trip")
    with pytest.raises(ConnectionStopped):
        await waiting


async def test_a_pointer_to_nothing_is_refused(server: CoreServer) -> None:
    async with connect(server.url, receive=True) as client:
        with pytest.raises(UsageError):
            await unpack(client, '{"type": "delivery.large", "payload": 7}')
