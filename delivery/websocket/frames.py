"""Heads and masks of WebSocket frames (RFC 6455 sections 5.2 and 5.3). Pure: bytes in, bytes out."""

from __future__ import annotations

import secrets
import struct

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # the one in C, where that was built

FINAL_TEXT, FINAL_BINARY = 0x81, 0x82
MASKED = 0x80
MASK_BYTES = 4
HEAD_BYTES = {126: 4, 127: 10}  # by what the second byte says, and 2 otherwise; a mask comes behind
ROOM_BYTES = 14  # for the longest head of a frame, in front of its message


def head(kind: int, length: int, mask: bytes = b"") -> bytes:
    """Return what stands before an unfragmented message of `length` bytes. `mask`: of a client's, 4 bytes."""
    bit = MASKED if mask else 0
    if length < 126:
        return struct.pack("!BB", kind, bit | length) + mask
    if length < 65_536:
        return struct.pack("!BBH", kind, bit | 126, length) + mask
    return struct.pack("!BBQ", kind, bit | 127, length) + mask


def head_bytes(view: memoryview, mask_bytes: int) -> int:
    """Return how long the head of a frame is, as far as what is here of it tells. `mask_bytes`: behind it, if masked."""
    if len(view) < 2:
        return 2
    return HEAD_BYTES.get(view[1] & 0x7F, 2) + (mask_bytes if view[1] & MASKED else 0)


def data_bytes(view: memoryview) -> int:
    """Return how long the data of the frame is whose head begins the view."""
    short = view[1] & 0x7F
    if short < 126:
        return short
    return int.from_bytes(view[2:4] if short == 126 else view[2:10], "big")


def masked_frame(buffer: bytearray, end: int) -> bytes:
    """Return the frame of the binary message `buffer[ROOM_BYTES:end]`. What is in front of it is overwritten.

    Call it in whichever thread read the chunk: one pass over its bytes, and the loop only writes what comes out.
    """
    key = secrets.token_bytes(MASK_BYTES)
    begun = head(FINAL_BINARY, end - ROOM_BYTES, key)
    # Head and message are masked in one go, which makes one piece of them without a copy more. So the head is masked
    # before, to come out clear, and the key is turned, as it applies from the message's first byte on.
    turn = -len(begun) % MASK_BYTES
    turned = key[turn:] + key[:turn]
    begin = ROOM_BYTES - len(begun)
    buffer[begin:ROOM_BYTES] = apply_mask(begun, turned)
    return apply_mask(memoryview(buffer)[begin:end], turned)


def unmasked(view: memoryview, head: int) -> bytes:
    """Return the data of the masked frame that is the view. `head`: how long its head is, the mask included."""
    data: bytes = apply_mask(view[head:], bytes(view[head - MASK_BYTES : head]))
    return data
