"""Consumers of a site that takes large messages: they tell what they took, and send what they are told to."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
from typing import Any

from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer

from delivery import LargeMessageMixin


def described(payload: Any) -> dict[str, Any]:
    with payload.open() as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "large": str(payload.pk),
        "size": payload.size,
        "sha256": digest,
        "content_type": payload.content_type,
    }


class EchoJson(LargeMessageMixin, AsyncJsonWebsocketConsumer):
    """`{"send": n}`: send JSON of n bytes. `{"binary": n}`: send n bytes. Everything else comes back."""

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        if "send" in content:
            await self.send_large("x" * (content["send"] - 2))
        elif "binary" in content:
            await self.send_large(b"x" * content["binary"])
        elif "slow" in content:
            await asyncio.sleep(content["slow"])
        else:
            await self.send_json({"small": content})

    async def receive_large(self, payload: Any) -> None:
        await self.send_json(await sync_to_async(described, thread_sensitive=False)(payload))


class Lenient(EchoJson):
    """Tells what was refused instead of closing; has a limit of its own."""

    large_limit = 1000
    large_expires = datetime.timedelta(hours=1)

    async def large_refused(self, code: str) -> None:
        await self.send_json({"refused": code})


class Linking(EchoJson):
    """Says in its pointers where to fetch over HTTP."""

    large_links = True


class EchoText(LargeMessageMixin, AsyncWebsocketConsumer):
    """Text and binary come back as they are. `send n`, `binary n`: as above."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        words = (text_data or "").split()
        if words[:1] == ["send"]:
            await self.send_large("x" * int(words[1]))
        elif words[:1] == ["binary"]:
            await self.send_large(b"x" * int(words[1]))
        else:
            await self.send(text_data=text_data, bytes_data=bytes_data)

    async def receive_large(self, payload: Any) -> None:
        await self.send(text_data=json.dumps(await sync_to_async(described, thread_sensitive=False)(payload)))


class Hooks:
    """A base of the site's own between the mixin and the consumer."""

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        self.seen = ["connect"]
        await super().websocket_connect(message)  # type: ignore[misc]

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        self.seen.append("receive")
        await super().websocket_receive(message)  # type: ignore[misc]

    @classmethod
    async def encode_json(cls, content: Any) -> str:
        return json.dumps(content, default=str, indent=1)


class Hooked(LargeMessageMixin, Hooks, AsyncJsonWebsocketConsumer):
    """Answers with what its hooks saw; `{"send": n}` sends something that plain JSON cannot hold."""

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        if "send" in content:
            at = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
            await self.send_large({"at": at, "text": "x" * content["send"]})
        else:
            await self.send_json(self.seen)

    async def receive_large(self, payload: Any) -> None:
        self.seen.append("large")
        await self.send_json(self.seen)
