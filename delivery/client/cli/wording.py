"""Events and sizes in words for people. Escaped: names, addresses, reasons and messages are chosen by strangers."""

from __future__ import annotations

from typing import Any

from delivery.escaping import printable
from delivery.protocol.codes import ABORT_CODES, CLOSE_CODES, REJECT_CODES

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def size_text(size: float) -> str:
    """Return a number of bytes for people: `812 bytes`, `8.0 MiB`."""
    if size < 1024:
        return f"{size:.0f} byte{'' if round(size) == 1 else 's'}"
    for unit in _UNITS:
        size /= 1024
        if size < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{size:.1f} {unit}"


def sentence(name: str, details: dict[str, Any]) -> str:
    """Return one line of English about an event, escaped."""
    return printable(_sentence(name, details))


def _sentence(name: str, details: dict[str, Any]) -> str:
    match name:
        case "closed":
            code = details["code"]
            meaning = details["reason"] or (CLOSE_CODES[code].reason if code in CLOSE_CODES else "closed")
            return f"connection closed: {code} {meaning}{_again('connecting again', details)}"
        case "refused":
            return f"cannot connect to {details['url']}: {details['error']}{_again('trying again', details)}"
        case "resumed":
            return f"resumed at {size_text(details['offset'])}"
        case "waiting":
            known = REJECT_CODES.get(details["code"]) or ABORT_CODES.get(details["code"])
            meaning = f"{details['code']}: {known.text}" if known else details["code"]
            return f"the server says {meaning}{_again('offered again', details)}"
        case "done":
            where = f" -> {details['path']}" if details.get("path") else ""
            return f"done: {details['name']}{where}  {size_text(details['size'])}  sha256 {details['sha256']}"
        case "failed":
            return f"failed: {details['name'] + ': ' if details.get('name') else ''}{details['error']}"
    return f"{name}: {details}"


def _again(what: str, details: dict[str, Any]) -> str:
    return "" if details["wait"] is None else f"; {what} in {details['wait']:.1f} s"
