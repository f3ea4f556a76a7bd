"""Why a connection cannot come back, in words that say what to do (PROTOCOL section 6)."""

from __future__ import annotations

from delivery.errors import ConnectionStopped
from delivery.protocol.codes import CLOSE_CODES
from delivery.protocol.frames import CHUNK_SIZE_MIN

_ADVICE = {
    1000: "the server said that all is done and closed",
    1003: "the server says we sent data before hello: this is a bug, please report it",
    1007: "the server says we sent text that is not UTF-8: this is a bug, please report it",
    1008: "the site's policy refuses this connection",
    4400: "the server says we broke the protocol: this is a bug, please report it",
    4401: "login refused: get a token with `manage.py delivery_token USER` and pass it as token, --token or DELIVERY_TOKEN",
}

_HTTP_ADVICE = {
    401: "login refused: get a token with `manage.py delivery_token USER`",
    403: "origin or login refused: check the token (`manage.py delivery_token USER`), and the site's allowed origins and hosts",
    404: "nothing at this path: is it the URL that the site's routing gives, such as /ws/delivery/ ?",
    426: "the server does not take WebSockets at this URL",
}


def stopped(
    code: int, reason: str, *, max_message: int | None = None, chunk_size: int | None = None
) -> ConnectionStopped:
    """Return the error for a close code after which reconnecting cannot help. Sizes in bytes."""
    if code == 1009:
        return ConnectionStopped(code, _too_big(max_message, chunk_size or CHUNK_SIZE_MIN))
    advice = _ADVICE.get(code, CLOSE_CODES[code].reason if code in CLOSE_CODES else "the server closed")
    return ConnectionStopped(code, f"{advice} ({reason})" if reason else advice)


def _too_big(max_message: int | None, chunk_size: int) -> str:
    said = f"although the server announces max_message {max_message:,}" if max_message else "before it said its limit"
    return (
        f"message too big: even chunks of {chunk_size:,} bytes are refused, {said}. Raise the message limit of the web "
        "server (uvicorn: ws_max_size) or of the proxy in front of it"
    )


def refused_by_http(status: int) -> ConnectionStopped | None:
    """Return the error for an HTTP answer to the handshake, None where trying again can help."""
    if status in _HTTP_ADVICE:
        return ConnectionStopped(status, _HTTP_ADVICE[status])
    if status in (408, 425, 429) or status >= 500:
        return None
    return ConnectionStopped(status, f"the server answered HTTP {status} instead of opening a WebSocket")
