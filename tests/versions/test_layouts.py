"""Processes of the version before beside those of this one, as a rolling deploy has them for a while."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from celery import current_app

from delivery import dispatch, notify
from delivery.buffer import keys
from tests.conformance.peer import Peer, sha256
from tests.going_away.conftest import Connect
from tests.going_away.crowd import DATA
from tests.going_away.rig import Rig
from tests.stack import Site

RECORDED = json.loads((Path(__file__).parent / "layout0.json").read_text())
SIZE = 262_144
NEWER = {"v": 99, "priority": "low", "hints": {"tier": [1, 2]}}


class Earlier:
    """What the version before leaves behind of one upload."""

    def __init__(self, rig: Rig, row: Any) -> None:
        self._rig = rig
        self._names = {"{payload}": row.payload_id.hex, "{transfer}": row.id.hex, "{lease}": str(row.lease)}

    def _filled(self, value: Any) -> Any:
        if value == "{lease}":
            return int(self._names[value])
        if isinstance(value, str):
            for name, real in self._names.items():
                value = value.replace(name, real)
            return value
        if isinstance(value, dict):
            return {name: self._filled(one) for name, one in value.items()}
        return [self._filled(one) for one in value] if isinstance(value, list) else value

    def leave_keys(self) -> list[str]:
        with contextlib.closing(redis_of(self._rig)) as redis:
            for kind, name, value in self._filled(RECORDED["keys"]):
                if kind == "set":
                    redis.set(name, value, ex=600)
                else:
                    redis.zadd(name, {value: 1.0})
                    redis.expire(name, 600)
        return [name for _, name, _ in self._filled(RECORDED["keys"])]

    def send_tasks(self) -> None:
        for name, arguments in self._filled(RECORDED["tasks"]):
            current_app.send_task(name, kwargs=arguments, queue="delivery", serializer="json", ignore_result=True)

    async def send_events(self) -> None:
        from channels.layers import get_channel_layer

        for event in self._filled(RECORDED["events"]):
            await get_channel_layer().group_send(notify.group_of(notify.WORKERS), event)

    def send_wake_ups(self) -> None:
        with contextlib.closing(redis_of(self._rig)) as redis:
            for message in RECORDED["wake_ups"]:
                redis.publish(keys.channel(self._names["{payload}"]), json.dumps(message))
            redis.publish(keys.channel(self._names["{payload}"]), b"\xff not JSON")


def redis_of(rig: Rig) -> Any:
    from redis import Redis

    return Redis.from_url(rig.redis_url)


async def begin(peer: Peer, chunks: int) -> tuple[int, str]:
    handle, transfer = await peer.offer(size=len(DATA))
    await peer.hear("accept", handle=handle)
    for seq in range(chunks):
        await peer.chunk(handle, seq, DATA[seq * SIZE : (seq + 1) * SIZE])
    await peer.hear_ack(handle, chunks)
    return handle, transfer


async def finish(peer: Peer, transfer: str) -> int:
    """Resume on this connection and complete; return where it went on."""
    handle, _ = await peer.offer(transfer=transfer, size=len(DATA))
    accept = await peer.hear("accept", handle=handle)
    await peer.send_from(DATA, accept)
    done = await peer.hear("done", handle=handle, seconds=30)
    assert done["sha256"] == sha256(DATA)
    return int(accept["seq"])


@pytest.fixture
async def parts(rig: Rig) -> Any:
    web, worker = rig.web(), rig.worker()
    web.wait_ready()
    worker.wait_ready()
    return web, worker


async def test_an_upload_of_the_version_before_is_completed(rig: Rig, site: Site, connect: Connect, parts: Any) -> None:
    """Its keys and tasks are there, its web process is gone: nothing of them does harm, and nothing stored is lost."""
    first = await connect()
    _, transfer = await begin(first, 32)
    await first.cut()
    earlier = Earlier(rig, await site.upload_row(transfer))
    left = await site.run(earlier.leave_keys)
    await site.run(earlier.send_tasks)
    second = await connect()
    assert await finish(second, transfer) == 32
    await site.run(earlier.send_tasks)  # late ones
    assert await second.upload(DATA[: 3 * SIZE])  # who is behind them in the queue is served
    row = await site.upload_row(transfer)
    assert await site.content(row.payload_id) == DATA
    with contextlib.closing(redis_of(rig)) as redis:
        assert redis.exists(*left) == len(left)  # not ours to touch: they expire


async def test_tasks_with_newer_arguments_are_done(rig: Rig, site: Site, connect: Connect, parts: Any) -> None:
    """A worker of the version before gets tasks of this one: it does them, and ignores what it does not know."""
    rows = []
    for name, more in ((dispatch.SWEEP, {}), (dispatch.ANNOUNCE, {"notice": 0}), (dispatch.ATTACH, {"attachment": 0})):
        rows.append((name, more))
    for name, arguments in rows:
        await site.run(dispatch.publish, name, arguments | NEWER)
    peer = await connect()
    await begin(peer, 32)
    assert await peer.upload(DATA)
    _, worker = parts
    log = await asyncio.to_thread(worker.log)
    assert "Traceback" not in log
    assert "TypeError" not in log


async def test_control_events_of_other_versions_are_ignored(rig: Rig, site: Site, connect: Connect, parts: Any) -> None:
    peer = await connect()
    handle, transfer = await begin(peer, 32)
    earlier = Earlier(rig, await site.upload_row(transfer))
    await earlier.send_events()
    await site.run(earlier.send_wake_ups)
    await asyncio.sleep(0.3)
    for seq in range(32, 96):
        await peer.chunk(handle, seq, DATA[seq * SIZE : (seq + 1) * SIZE])
    await peer.hear_ack(handle, 64, seconds=1.5)  # wake-ups still come: looking for itself takes 2 s
    web, _ = parts
    log = web.log()
    assert "unknown event delivery.no_longer_there" in log
    assert "not understood" in log
    assert "Traceback" not in log
