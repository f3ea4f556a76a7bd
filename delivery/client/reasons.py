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
    4401: "login refused: get a token with `manage.py delivery_token USER` and pass it as DELIVERY_TOKEN, --token or token",
}

_GET_A_TOKEN = "get one with `manage.py delivery_token USER` and pass it as DELIVERY_TOKEN"

_HTTP_ADVICE = {
    403: "the site refuses the login, this client's origin or the host in the URL: get a new token with "
    "`manage.py delivery_token USER`; if that does not help, the site's ALLOWED_HOSTS or a proxy in front of it may",
    404: "there is no WebSocket at this path: expected the one that the site's routing gives, such as /ws/delivery/",
    405: "there is no WebSocket at this path: expected the one that the site's routing gives, such as /ws/delivery/",
    426: "the server does not take WebSockets at this URL",
}


def stopped(
    code: int,
    reason: str,
    *,
    max_message: int | None = None,
    chunk_size: int | None = None,
    has_login: bool = True,
) -> ConnectionStopped:
    """Return the error for a close code after which reconnecting cannot help. Sizes in bytes."""
    if code == 1009:
        return ConnectionStopped(code, _too_big(max_message, chunk_size or CHUNK_SIZE_MIN))
    if code == 4401 and not has_login:
        return ConnectionStopped(code, f"login missing: there is no token; {_GET_A_TOKEN}")
    advice = _ADVICE.get(code, CLOSE_CODES[code].reason if code in CLOSE_CODES else "the server closed")
    return ConnectionStopped(code, f"{advice} ({reason})" if reason else advice)


def _too_big(max_message: int | None, chunk_size: int) -> str:
    said = f"although the server announces max_message {max_message:,}" if max_message else "before it said its limit"
    return (
        f"message too big: even chunks of {chunk_size:,} bytes are refused, {said}. Raise the message limit of the web "
        "server (uvicorn: ws_max_size) or of the proxy in front of it"
    )


def refused_by_http(status: int, url: str, *, has_login: bool) -> ConnectionStopped | None:
    """Return the error for an HTTP answer to the handshake with `url`, None where trying again can help."""
    if status in (408, 425, 429) or status >= 500:
        return None
    return ConnectionStopped(status, f"{url}: {_http_advice(status, has_login=has_login)}")


def _http_advice(status: int, *, has_login: bool) -> str:
    if status in (401, 403) and not has_login:
        return f"the site refuses this client: there is no token; {_GET_A_TOKEN}"
    if status == 401:
        return f"login refused: the token is wrong or expired; {_GET_A_TOKEN}"
    return _HTTP_ADVICE.get(status, f"the server answered HTTP {status} instead of opening a WebSocket")


def redirected(url: str) -> ConnectionStopped:
    """Return the error for a redirect to `url`, which is none of a WebSocket."""
    for http, socket in (("https://", "wss://"), ("http://", "ws://")):
        if url.startswith(http):
            url = f"{socket}{url.removeprefix(http)}"
    return ConnectionStopped(1002, f"the server redirects elsewhere: if that is meant, use {url} as the URL")
