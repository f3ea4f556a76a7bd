"""Names and addresses as they come from outside: cleaned, canonical."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

from delivery import policy
from delivery.policy import GROUP, USER

MAX_NAME = 255
MOST_ADDRESSES = 1_000  # of one offer: each may be a query
_SEPARATORS = re.compile(r"[/\\]")


def clean(name: str) -> str:
    """Return a display name without path parts, control, format and bidirectional characters, at most 255 long."""
    last = _SEPARATORS.split(name)[-1] if "/" in name or "\\" in name else name
    if last.isascii() and last.isprintable():
        return last.strip()[:MAX_NAME]
    kept = "".join(
        character for character in last if unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    )
    return kept.strip()[:MAX_NAME]


def clean_type(content_type: str) -> str:
    """Return a content type without control characters."""
    if content_type.isprintable():
        return content_type.strip()[:MAX_NAME]
    kept = "".join(character for character in content_type if character.isprintable())
    return kept.strip()[:MAX_NAME]


class Finder(Protocol):
    """A policy, or what remembers its answers."""

    def find_user(self, name: str) -> Any | None: ...


def canonical(rules: Finder, to: Sequence[str]) -> list[str] | None:
    """Return addresses as the rows keep them (`user:<primary key>`, `group:<name>`), each once.

    None where any is malformed or names nobody, or there are too many: an unknown address and a forbidden one must
    look alike.
    """
    if len(to) > MOST_ADDRESSES:
        return None
    found: dict[str, None] = {}
    for address in to:
        one = _canonical(rules, address)
        if one is None:
            return None
        found[one] = None
    return list(found)


def _canonical(rules: Finder, address: str) -> str | None:
    if "\0" in address:  # control messages have none, URLs may; PostgreSQL raises where it meets one
        return None
    if address.startswith(USER):
        user = rules.find_user(address.removeprefix(USER))
        return None if user is None else policy.address_of(user)
    if address.startswith(GROUP) and 0 < len(address) - len(GROUP) <= 200:
        return address
    return None
