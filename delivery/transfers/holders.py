"""Who holds a transfer: one connection of one client, newest first (PROTOCOL section 2, take-over)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Holder:
    """A connection as the rows know it.

    `order` rises with each welcome (microseconds of Redis's clock); `channel` reaches its consumer through the channel
    layer.
    """

    user: Any  # the primary key
    client: str
    session: str
    order: int
    channel: str
