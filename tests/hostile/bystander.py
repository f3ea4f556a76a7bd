"""Somebody who uses the server while others attack it, in a process of its own, so that only the server can delay it.

    python -m tests.hostile.bystander PORT TOKEN

uploads without pause over one socket and pings over another. Each line on standard input is answered by one line of
JSON: uploads done and the longest waits since the last one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import sys
import time
import uuid

import crc32c

from tests.hostile.wire import BINARY, Wire, frame

DATA = bytes(range(256)) * 1200  # 300 KiB: more than goes inline
CHUNK = 262_144
SECONDS = 120.0
PAUSE_SECONDS = 0.05


class Bystander:
    def __init__(self) -> None:
        self.uploads = 0
        self.longest_upload = 0.0
        self.longest_ping = 0.0
        self._handle = 0
        self._since: dict[str, float] = {}

    def report(self) -> str:
        now = time.monotonic()
        waiting = {kind: now - since for kind, since in self._since.items()}  # what has not come back yet counts, too
        answer = {
            "uploads": self.uploads,
            "upload_seconds": max(self.longest_upload, waiting.get("upload", 0.0)),
            "ping_seconds": max(self.longest_ping, waiting.get("ping", 0.0)),
        }
        self.uploads, self.longest_upload, self.longest_ping = 0, 0.0, 0.0
        return json.dumps(answer)

    async def ping(self, wire: Wire) -> None:
        while True:
            self._since["ping"] = began = time.monotonic()
            await wire.settle(seconds=SECONDS)
            del self._since["ping"]
            self.longest_ping = max(self.longest_ping, time.monotonic() - began)
            await asyncio.sleep(PAUSE_SECONDS)

    async def upload(self, wire: Wire) -> None:
        while True:
            self._since["upload"] = began = time.monotonic()
            done = await self._upload_once(wire)
            del self._since["upload"]
            if not done:
                continue
            self.uploads += 1
            self.longest_upload = max(self.longest_upload, time.monotonic() - began)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _upload_once(self, wire: Wire) -> bool:
        """Return False where the server is busy: a test has filled Redis."""
        self._handle += 1
        handle = self._handle
        digest = hashlib.sha256(DATA).hexdigest()
        offer = {"transfer": str(uuid.uuid4()), "handle": handle, "name": "b", "size": len(DATA), "chunk_size": CHUNK}
        await wire.say("offer", **offer, sha256=digest)
        answer = await wire.answer(handle, seconds=SECONDS)
        if answer["type"] == "reject":
            await asyncio.sleep(answer["retry_after"])
            return False
        limit = answer["limit"]
        for seq in range(2):
            while seq >= limit:
                limit = (await wire.hear("ack", handle=handle, seconds=SECONDS))["limit"]
            data = DATA[seq * CHUNK : (seq + 1) * CHUNK]
            await wire.send(frame(BINARY, struct.pack(">III", handle, seq, crc32c.crc32c(data)) + data))
        await wire.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=digest)
        assert (await wire.hear("done", handle=handle, seconds=SECONDS))["sha256"] == digest
        wire.heard.clear()  # acks
        return True


async def main(port: int, token: str) -> None:
    bystander = Bystander()
    async with Wire.open(port, token) as first, Wire.open(port, token) as second, asyncio.TaskGroup() as group:
        await first.hello()
        await second.hello()
        tasks = [group.create_task(bystander.ping(first)), group.create_task(bystander.upload(second))]
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(bystander.report(), flush=True)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
