"""What a client's frame says, as a server reads it."""

from __future__ import annotations

from collections.abc import Generator

from websockets.frames import Frame


def unframed(data: bytes) -> Frame:
    """Return the one masked frame that `data` is, read by `websockets`."""
    rest = bytearray(data)

    def read_exact(count: int) -> Generator[None, None, bytes]:
        taken = bytes(rest[:count])
        del rest[:count]
        return taken
        yield

    try:
        next(Frame.parse(read_exact, mask=True))
    except StopIteration as parsed:
        if rest:
            raise ValueError(f"{len(rest)} bytes follow the frame") from None
        return parsed.value
    raise ValueError("the frame is not whole")
