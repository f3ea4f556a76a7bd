"""Every code on the wire, once: its text, whether trying again can help, and what a client does about it.

Implements the tables of PROTOCOL sections 2, 3, 5 and 6. The JavaScript client's table is checked against this one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Reaction(enum.StrEnum):
    """What a client does when its connection closed (PROTOCOL section 6, last column)."""

    STOP = "stop"  # reconnecting by itself cannot help
    RETURN = "return"  # wait `retry_after`, reconnect, resume
    BACKOFF = "backoff"  # wait by exponential backoff, reconnect, resume
    SHRINK = "shrink"  # halve the chunk size, reconnect, resume
    WAIT = "wait"  # wait `retry_after`, 5 s where none was given, resume


@dataclass(frozen=True, slots=True)
class CloseCode:
    """One WebSocket close code: its number, its fixed reason phrase, and the client's reaction."""

    code: int
    reason: str
    reaction: Reaction


CLOSE_CODES: dict[int, CloseCode] = {
    entry.code: entry
    for entry in (
        CloseCode(1000, "done", Reaction.STOP),
        CloseCode(1001, "going away", Reaction.RETURN),
        CloseCode(1003, "binary message before hello", Reaction.STOP),
        CloseCode(1006, "connection lost", Reaction.BACKOFF),
        CloseCode(1007, "text is not UTF-8", Reaction.STOP),
        CloseCode(1008, "policy", Reaction.STOP),
        CloseCode(1009, "message too big", Reaction.SHRINK),
        CloseCode(1011, "internal error", Reaction.BACKOFF),
        CloseCode(1012, "service restart", Reaction.RETURN),
        CloseCode(1013, "overloaded, try again later", Reaction.WAIT),
        CloseCode(4400, "protocol violation", Reaction.STOP),
        CloseCode(4401, "login expired", Reaction.STOP),
        CloseCode(4408, "no hello in time", Reaction.BACKOFF),
        CloseCode(4429, "too many connections or offers", Reaction.WAIT),
    )
}

MAX_REASON_BYTES = 123  # RFC 6455 section 5.5: a control frame carries 125 bytes, two of them the code


def reaction_to(code: int) -> Reaction:
    """Return a client's reaction to `code`; for an unknown code it backs off, as after a lost connection."""
    known = CLOSE_CODES.get(code)
    return known.reaction if known else Reaction.BACKOFF


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reject or abort code: its English text for logs, and whether offering again can help."""

    code: str
    text: str
    retryable: bool = False


def _table(*entries: Verdict) -> dict[str, Verdict]:
    return {entry.code: entry for entry in entries}


REJECT_CODES = _table(
    Verdict("forbidden", "not allowed, or no such address"),
    Verdict("too_large", "the payload is larger than allowed"),
    Verdict("quota", "the user's quota is used up"),
    Verdict("rate", "too many offers, try again later", retryable=True),
    Verdict("busy", "nobody can take this now, try again later", retryable=True),
    Verdict("mismatch", "size or digest contradict the stored transfer"),
    Verdict("expired", "the transfer has expired"),
    Verdict("cancelled", "the transfer was cancelled"),
    Verdict("declined", "the receiver does not want it"),
    Verdict("unsupported", "the receiver cannot take this kind of payload"),
    Verdict("taken_over", "a newer connection holds the transfer"),
    Verdict("draining", "the server is going away", retryable=True),
)

ABORT_CODES = _table(
    Verdict("cancelled", "the transfer was cancelled"),
    Verdict("digest", "the SHA-256 of what was stored differs from the sender's"),
    Verdict("too_large", "the payload is larger than allowed"),
    Verdict("expired", "the transfer has expired"),
    Verdict("forbidden", "no longer allowed"),
    Verdict("taken_over", "a newer connection holds the transfer"),
    Verdict("paused", "paused by the other side"),
    Verdict("stalled", "no progress for too long", retryable=True),
    Verdict("integrity", "bytes arrived damaged three times", retryable=True),
    Verdict("storage_unavailable", "storage does not take or give bytes", retryable=True),
    Verdict("busy", "nobody can take this now, try again later", retryable=True),
)

FINAL_ABORT_CODES = frozenset({"cancelled", "digest", "too_large", "expired", "forbidden"})

NACK_CODES = frozenset({"checksum", "lost"})

# Why the server goes away, and the close code that follows (PROTOCOL section 6).
GOING_AWAY_CODES: dict[str, int] = {
    "worker_draining": 1001,
    "server_draining": 1001,
    "overloaded": 1013,
    "rate": 4429,
}
