"""What each side of a connection announces about itself, and which chunks fit into it (PROTOCOL section 1)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from delivery.errors import ProtocolViolation
from delivery.protocol.frames import HEADER_BYTES
from delivery.protocol.messages import Hello, Welcome

MAX_UNANSWERED_OFFERS = 16


class Side(enum.Enum):
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side announces, in bytes: largest message, preferred chunk, largest payload that may come early."""

    max_message: int
    chunk_size: int
    early_data: int = 0

    def fitting(self) -> int:
        """Return the largest chunk size that fits `chunk_size` and a header into `max_message`."""
        room = self.max_message - HEADER_BYTES
        return min(self.chunk_size, 1 << (room.bit_length() - 1))


def announced(message: Hello | Welcome) -> Limits:
    """Return the limits of the peer that said `message`.

    Raises `ProtocolViolation` where its chunks and their header would not fit into its largest message.
    """
    if message.chunk_size + HEADER_BYTES > message.max_message:
        raise ProtocolViolation("chunk_size does not fit into max_message")
    return Limits(max_message=message.max_message, chunk_size=message.chunk_size, early_data=message.early_data)
