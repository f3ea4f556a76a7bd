"""The client's side of large messages on a site's own sockets (PROTOCOL section 8).

Such a socket keeps its own protocol. A message that is too large for it goes as a payload beside it, over a `Client`, and
the socket carries a pointer. `pack` makes the text to send there, `unpack` the content of a text that came from there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

from delivery.errors import UsageError

if TYPE_CHECKING:
    from delivery.client.client import Client

POINTER = "delivery.large"
JSON_TYPE = "application/json"
LIMIT_BYTES = 65_536
READ_LIMIT_BYTES = 67_108_864


async def pack(client: Client, content: Any, *, limit: int = LIMIT_BYTES) -> str:
    """Return the text message that stands for JSON `content`; bytes or more than `limit` bytes of JSON are sent first.

    `limit`: the largest message in bytes that the site's socket takes. Raises as `Client.send` does.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        kind, data = "application/octet-stream", bytes(content)
    else:
        kind, data = JSON_TYPE, json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
        if len(data) <= limit:
            return data.decode()
    receipt = await client.send(data, name="", content_type=kind)
    return json.dumps({"type": POINTER, "payload": receipt.payload, "size": receipt.size, "content_type": kind})


async def unpack(client: Client, text: str, *, limit: int = READ_LIMIT_BYTES) -> Any:
    """Return the content of a text message: JSON as it is, or what it points to, JSON decoded and else as bytes.

    `client` must be connected with `receive=True`. Waits for the payload for as long as the client lives. Raises
    `UsageError` for a pointer to more than `limit` bytes, and as `Incoming.read` does.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("type") != POINTER:
        return content
    try:
        payload = str(UUID(content["payload"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError("a delivery.large message without the id of a payload") from None
    incoming = await client.expect(payload)
    data = await incoming.read(limit)
    return json.loads(data) if incoming.content_type == JSON_TYPE else data
