"""What a control message may contain: the strict JSON of PROTOCOL section 1, and a rule for each kind of member.

A rule takes a parsed value and returns it (lists as tuples), or raises `ValueError` with a fixed phrase that never
repeats the value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from delivery.errors import ProtocolViolation
from delivery.protocol.codes import NACK_CODES
from delivery.protocol.frames import MAX_SEQ, is_chunk_size

MAX_DEPTH = 8
MAX_INTEGER = 2**53 - 1
MAX_HANDLE = 2**32 - 1
MIN_MAX_MESSAGE = 65_548
MAX_META_STRINGS = 32
MAX_META_BYTES = 8_192
MAX_LOG_CHARACTERS = 1_024

Rule = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a message: its rule, whether it must be there, and the field that holds it if named otherwise."""

    rule: Rule
    required: bool
    field: str | None = None
    when_none: Literal["null", "omit"] = "null"


def required(rule: Rule) -> Member:
    return Member(rule, required=True)


def optional(rule: Rule, *, field: str | None = None, when_none: Literal["null", "omit"] = "null") -> Member:
    return Member(rule, required=False, field=field, when_none=when_none)


# -- strict JSON ---------------------------------------------------------------------------------------------------

# Always matches where a string begins, even one that never ends: linear in the length of a hostile text.
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)', re.DOTALL)


def parse_object(text: str, max_bytes: int) -> dict[str, Any]:
    """Return the one JSON object that `text` holds.

    Raises `ProtocolViolation` where the text is longer than `max_bytes` of UTF-8, nests deeper than 8, repeats a
    member, or holds a number or string that section 1 forbids.
    """
    try:
        length = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise ProtocolViolation("lone surrogate") from None
    if length > max_bytes:
        raise ProtocolViolation("control message too long")
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ProtocolViolation("control message too deep")
    try:
        value = _decode_json(text)
    except ProtocolViolation:
        raise
    except ValueError:
        raise ProtocolViolation("control message is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolViolation("control message is not an object")
    if "\\u" in text or "\0" in text:
        check_strings(value)
    return value


def _depth(text: str) -> int:
    """Return how deep brackets nest outside strings, looking no further than where it is too deep.

    Before parsing, because the parser itself recurses.
    """
    depth = deepest = 0
    for character in _STRINGS.sub("", text):
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
            if depth > MAX_DEPTH:
                break
        elif character in "}]":
            depth -= 1
    return deepest


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ProtocolViolation("duplicate member")
    return members


def _integer(digits: str) -> int:
    # Longer digit strings would cost time to convert, and Python refuses to convert very long ones.
    if len(digits) > 16 or not 0 <= (value := int(digits)) <= MAX_INTEGER:
        raise ProtocolViolation("integer out of range")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ProtocolViolation("number is not finite")
    return value


def _constant(name: str) -> Any:
    raise ProtocolViolation("number is not finite")


# Made once: making one takes longer than decoding a short message with it.
_decode_json = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_float, parse_constant=_constant
).decode


def check_strings(value: Any) -> None:
    """Raise `ProtocolViolation` for a string that section 1 forbids, anywhere in a parsed value."""
    if isinstance(value, str):
        if "\0" in value:
            raise ProtocolViolation("NUL in a string")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ProtocolViolation("lone surrogate")
    elif isinstance(value, dict):
        for name, member in value.items():
            check_strings(name)
            check_strings(member)
    elif isinstance(value, list):
        for item in value:
            check_strings(item)


# -- rules for members ---------------------------------------------------------------------------------------------


def integer(low: int = 0, high: int = MAX_INTEGER) -> Rule:
    def rule(value: Any) -> Any:
        if type(value) is not int:
            raise ValueError("expected an integer")
        if not low <= value <= high:
            raise ValueError("out of range")
        return value

    return rule


handle = integer(1, MAX_HANDLE)
seq = integer(0, MAX_SEQ)


def boolean(value: Any) -> Any:
    if type(value) is not bool:
        raise ValueError("expected true or false")
    return value


def seconds(value: Any) -> Any:
    if type(value) not in (int, float):
        raise ValueError("expected a number")
    if value < 0:
        raise ValueError("out of range")
    return float(value)


def positive_seconds(value: Any) -> Any:
    if seconds(value) == 0:
        raise ValueError("out of range")
    return float(value)


def text(low: int, high: int) -> Rule:
    def rule(value: Any) -> Any:
        if type(value) is not str:
            raise ValueError("expected a string")
        if not low <= len(value) <= high:
            raise ValueError("out of range")
        return value

    return rule


def texts(value: Any) -> Any:
    """A list of strings; how many is bounded by the message's length alone."""
    if type(value) is not list or any(type(item) is not str for item in value):
        raise ValueError("expected a list of strings")
    return tuple(value)


def log_text(value: Any) -> Any:
    """Text for logs: as long as it likes on the wire, cut to what a log wants."""
    if type(value) is not str:
        raise ValueError("expected a string")
    return value[:MAX_LOG_CHARACTERS]


def nullable(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def _matching(pattern: str, phrase: str) -> Rule:
    compiled = re.compile(pattern)

    def rule(value: Any) -> Any:
        if type(value) is not str:
            raise ValueError("expected a string")
        if compiled.fullmatch(value) is None:
            raise ValueError(phrase)
        return value

    return rule


identifier = _matching(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", "expected a UUID")
digest = _matching(r"[0-9a-f]{64}", "expected 64 lower-case hex digits")


def chunk_size(value: Any) -> Any:
    if type(value) is not int:
        raise ValueError("expected an integer")
    if not is_chunk_size(value):
        raise ValueError("expected a power of two from 4096 to 4194304")
    return value


def nack_code(value: Any) -> Any:
    if type(value) is not str or value not in NACK_CODES:
        raise ValueError("expected checksum or lost")
    return value


def meta(value: Any) -> Any:
    if type(value) is not dict or any(type(item) is not str for item in value.values()):
        raise ValueError("expected a flat object of strings")
    if len(value) > MAX_META_STRINGS or sum(len((k + v).encode()) for k, v in value.items()) > MAX_META_BYTES:
        raise ValueError("out of range")
    return value


def retry(value: Any) -> Any:
    if type(value) is not dict or not {"initial", "max"} <= value.keys():
        raise ValueError("expected initial and max")
    return {"initial": seconds(value["initial"]), "max": seconds(value["max"])}
