"""The embedded Valkey: where its socket lies, and that all three libraries find it there."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from channels_redis.pubsub import RedisPubSubChannelLayer
from kombu import Connection
from redis import Redis

from delivery.launch import valkey
from delivery.launch.state import StateDirectory
from project.redis_urls import broker_url


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[valkey.Valkey]:
    # Letters that URLs use for themselves, and one that is two bytes long.
    server = valkey.prepare(StateDirectory.at(tmp_path / "a dir? ü%20"))
    with subprocess.Popen(server.command(), stdout=subprocess.DEVNULL) as process:  # noqa: ASYNC220  # takes a millisecond
        try:
            await asyncio.wait_for(server.wait_ready(), 10)
            yield server
        finally:
            process.terminate()


async def test_redis_py_finds_the_socket(server: valkey.Valkey) -> None:
    with Redis.from_url(server.url) as client:
        assert client.ping()
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
        assert server.socket.stat().st_mode & 0o777 == 0o700


async def test_celery_finds_the_socket_and_uses_the_next_database(server: valkey.Valkey) -> None:
    with Connection(broker_url(server.url)) as connection:
        queue = connection.SimpleQueue("letters")
        queue.put({"seq": 1})
        message = queue.get(timeout=5)
        assert message.payload == {"seq": 1}
        message.ack()
        queue.close()
    with Redis.from_url(server.url) as client:
        assert client.dbsize() == 0


async def test_channel_layer_finds_the_socket(server: valkey.Valkey) -> None:
    layer = RedisPubSubChannelLayer(hosts=[{"address": server.url}])
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "hello"})
    assert await asyncio.wait_for(layer.receive(channel), 5) == {"type": "hello"}
    await layer.flush()


def test_short_path_stays_in_the_directory(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    server = valkey.prepare(state)
    assert server.socket == tmp_path / "valkey.sock"
    assert state.redis_url.read_text() == f"{server.url}\n"
    assert state.redis_url.stat().st_mode & 0o777 == 0o600


def test_longest_path_that_fits_is_used(tmp_path: Path) -> None:
    room = valkey.SOCKET_PATH_BYTES - len(str(tmp_path / "valkey.sock").encode()) - 1
    fits, too_long = (StateDirectory.at(tmp_path / ("x" * length)) for length in (room, room + 1))
    assert valkey.prepare(fits).socket.parent == fits.root
    moved = valkey.prepare(too_long).socket
    assert moved.parent != too_long.root
    valkey.remove_temporary(too_long)
    assert not moved.parent.exists()


def test_removing_leaves_other_directories_alone(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.redis_url.write_text(f"unix://{tmp_path}/precious/valkey.sock?db=0\n")
    (tmp_path / "precious").mkdir()
    valkey.remove_temporary(state)
    assert (tmp_path / "precious").exists()
    assert not state.redis_url.exists()
