"""Codes and kinds of events in words that an operator understands.

The numbers and short phrases come from `delivery.protocol.codes`; here stands what each means for whoever runs the site.
A test keeps the tables complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.utils.formats import number_format
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from delivery.admin.text import plain
from delivery.protocol.codes import ABORT_CODES, CLOSE_CODES, REJECT_CODES

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

    Words = str | _StrPromise  # text, or text that is translated when it is shown
else:
    Words = str | Promise

# What came of a connection that ended with this code.
CLOSE_CODE_MEANINGS: dict[int, Words] = {
    1000: _("The client had nothing more to do."),
    1001: _(
        "The server or a worker was shutting down, or the browser's tab was closed. The transfer resumes by itself."
    ),
    1003: _("The client sent data before it introduced itself. It is broken and does not come back by itself."),
    1005: _("The client closed without giving a code. The transfer can be resumed."),
    1006: _("The connection was lost without a word: network, sleep or a crash. The client backs off and resumes."),
    1007: _("The client sent text that is not UTF-8. It is broken and does not come back by itself."),
    1008: _("The policy refused the connection. The client stops."),
    1009: _("A message was larger than the limit. The client makes its chunks smaller and resumes."),
    1011: _("An error inside the server: look into its log. The client backs off and resumes."),
    1012: _("The web server was restarted. The client comes back and resumes."),
    1013: _("The server had too much to do. The client waits and resumes."),
    4400: _("The client broke the protocol. It is broken and does not come back by itself."),
    4401: _("The login was missing, had expired or was revoked. A new login resumes."),
    4408: _("The client connected but did not introduce itself in time. It backs off and resumes."),
    4429: _("The user had too many connections or offers. The client waits and resumes."),
}
# The kinds that `delivery.transfers` notes.
EVENT_KINDS: dict[str, Words] = {
    "begun": _("upload begun"),
    "resumed": _("upload resumed"),
    "accepted": _("delivery accepted by a client"),
    "detached": _("connection ended"),
    "lost": _("buffered bytes were lost and are sent again"),
    "storage_unavailable": _("storage did not answer"),
    "damaged": _("stored bytes are damaged"),
    "missing": _("a stored file is missing"),
    "revived": _("checked again, since its files are back"),
    "attached": _("attached to a model"),
    "unsealed": _("checking was interrupted"),
    "complete": _("complete"),
    "delivered": _("delivered"),
    "declined": _("declined by a client"),
    "failed": _("failed"),
    "cancelled": _("cancelled"),
    "expired": _("expired"),
}
_STEPS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NOT_ON_THE_WIRE = {1005: "no code given"}


def close_code(code: int | None) -> str:
    """Return `1009 message too big` for 1009; an empty string for None."""
    if code is None:
        return ""
    known = CLOSE_CODES.get(code)
    reason = known.reason if known else _NOT_ON_THE_WIRE.get(code, "unknown code")
    return f"{code} {reason}"


def close_code_meaning(code: int | None) -> Words:
    """Return a sentence on what came of the connection; an empty string where nothing is known."""
    return CLOSE_CODE_MEANINGS.get(code, "") if code is not None else ""


def failure(code: str) -> str:
    """Return `digest: the SHA-256 of ...` for an abort or reject code; the code alone where it is unknown, nothing for none."""
    known = ABORT_CODES.get(code) or REJECT_CODES.get(code)
    return f"{code}: {known.text}" if known else plain(code)


def event_kind(kind: str) -> Words:
    """Return what happened; the kind itself where a newer process wrote it."""
    return EVENT_KINDS.get(kind) or plain(kind)


def event_detail(detail: Any) -> str:
    """Return an event's ids and numbers as one line, such as `code 1009 message too big, position 12.0 MiB`."""
    if not isinstance(detail, dict):
        return plain(detail, limit=500) if detail else ""
    return ", ".join(
        f"{plain(key, limit=40)} {_value(key, value)}" for key, value in detail.items() if value not in ("", None)
    )


def _value(key: str, value: Any) -> str:
    if type(value) is int and key in {"code", "close_code"}:
        return close_code(value)
    if type(value) is int and key in {"size", "position", "offset"}:
        return human_size(value)
    if isinstance(value, str) and key in {"code", "failure"}:
        return failure(value)
    return plain(value, limit=200)


def human_size(number: int) -> str:
    """Return bytes as an operator says them: `0 bytes`, `1.5 GiB`."""
    if number < 1024:
        return gettext("%(number)d bytes") % {"number": number}
    power = min((number.bit_length() - 1) // 10, len(_STEPS))
    value = number / 1024**power
    # Never rounded up to more than there is: 1023.99 KiB is not 1024.0 KiB.
    return f"{number_format(int(value * 10) / 10, 1)} {_STEPS[power - 1]}"
