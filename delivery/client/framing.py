"""A chunk as it goes on the wire: its WebSocket frame, masked (RFC 6455 sections 5.2 and 5.3).

Made in whichever thread read the chunk, in one pass over its bytes: the loop only writes what comes out.
"""

from __future__ import annotations

import secrets

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # the one in C, where that was built

from delivery import websocket

ROOM_BYTES = 14  # for the longest head of a frame, in front of its message


def masked_frame(buffer: bytearray, end: int) -> bytes:
    """Return the frame of the binary message `buffer[ROOM_BYTES:end]`. What is in front of it is overwritten."""
    key = secrets.token_bytes(websocket.MASK_BYTES)
    head = websocket.head(websocket.FINAL_BINARY, end - ROOM_BYTES, key)
    # Head and message are masked in one go, which makes one piece of them without a copy more. So the head is masked
    # before, to come out clear, and the key is turned, as it applies from the message's first byte on.
    turn = -len(head) % websocket.MASK_BYTES
    turned = key[turn:] + key[:turn]
    begin = ROOM_BYTES - len(head)
    buffer[begin:ROOM_BYTES] = apply_mask(head, turned)
    return apply_mask(memoryview(buffer)[begin:end], turned)
