"""How far a transfer is, and what a client counts: closes, resumes, bytes that went twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is, in bytes: `stored` is safe with the receiver, `received` taken in. `size` may be None."""

    transfer: str
    stored: int
    received: int
    size: int | None


@dataclass(slots=True)
class Statistics:
    """Counters of one client, over all its connections.

    `closes`: connections that ended without our asking, by close code (1006: lost). `resumes`: transfers that went on
    on a later connection or in a later process. The `*_again_bytes` were on the wire before, in this process.
    """

    closes: Counter[int] = field(default_factory=Counter)
    connections: int = 0
    resumes: int = 0
    sent_bytes: int = 0
    resent_bytes: int = 0
    received_bytes: int = 0
    received_again_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that go into JSON; the codes of `closes` become strings."""
        return {
            "closes": {str(code): count for code, count in sorted(self.closes.items())},
            "connections": self.connections,
            "resumes": self.resumes,
            "sent_bytes": self.sent_bytes,
            "resent_bytes": self.resent_bytes,
            "received_bytes": self.received_bytes,
            "received_again_bytes": self.received_again_bytes,
        }
