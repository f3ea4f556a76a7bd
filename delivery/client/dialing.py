"""Opens a WebSocket to a delivery.v1 server; turns failures into errors that say what to do (PROTOCOL section 6)."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from http import HTTPStatus
from typing import cast
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from delivery.client.credentials import logger, without_credentials
from delivery.errors import ConnectionStopped, UsageError
from delivery.protocol.codes import CLOSE_CODES
from delivery.protocol.frames import CHUNK_SIZE_MIN
from delivery.websocket import tcp
from delivery.websocket.client import ClientSocket

SUBPROTOCOL = Subprotocol("delivery.v1")
MAX_MESSAGE_BYTES = 16_777_216  # that the server may send
OPEN_SECONDS = 10.0
QUEUED_MESSAGES = 32
WRITE_BUFFER_BYTES = 131_072
UNSENT_BYTES = 131_072  # that the kernel takes ahead of the network: no small message overtakes what is queued there
CLOSED_AT_ONCE = "the connection was closed before the server answered"


_ADVICE = {
    1000: "the server said that all is done and closed",
    1003: "the server says we sent data before hello: this is a bug, please report it",
    1007: "the server says we sent text that is not UTF-8: this is a bug, please report it",
    1008: "the site's policy refuses this connection",
    4400: "the server says we broke the protocol: this is a bug, please report it",
    4401: "login refused: the token is wrong, expired or revoked; get one with `manage.py delivery_token USER` and pass it as "
    "DELIVERY_TOKEN, --token or token",
}

_GET_A_TOKEN = "get one with `manage.py delivery_token USER` and pass it as DELIVERY_TOKEN"

_HTTP_ADVICE = {
    403: "the site refuses the login, this client's origin or the host in the URL: get a new token with "
    "`manage.py delivery_token USER`; if that does not help, the site's ALLOWED_HOSTS or a proxy in front of it may",
    404: "there is no WebSocket at this path: expected the one that the site's routing gives, such as /ws/delivery/",
    405: "there is no WebSocket at this path: expected the one that the site's routing gives, such as /ws/delivery/",
    426: "the server does not take WebSockets at this URL",
}


class NotNow(Exception):
    """There was no connection, but trying again may help; the message says why."""


def check_url(url: str, *, token: str | None) -> None:
    """Raise `UsageError`, which shows no credentials, where no WebSocket can be opened to `url` with `token`."""
    try:
        parsed = parse_uri(url)
        parsed.host.encode("idna")
    except websockets.InvalidURI as error:
        raise UsageError(f"expected a ws:// or wss:// URL, got {without_credentials(url)!r}: {error.msg}") from None
    except ValueError:  # a port out of range, brackets that don't close, a label of the host that is too long
        raise UsageError(f"the host or port of {without_credentials(url)!r} cannot be right") from None
    if parsed.user_info is not None and token is not None:
        raise UsageError("there is a login in the URL and a token beside it: give one of them")


async def dial(url: str, token: str | None, *, closing: asyncio.Event) -> ClientSocket | None:
    """Open a WebSocket; return None where `closing` is set meanwhile.

    Raises `NotNow`, `ConnectionStopped` where trying again cannot help, `UsageError` for an impossible proxy.
    """
    opening = asyncio.ensure_future(_handshake(url, token))
    stopping = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not opening.done():
            opening.cancel()
            await asyncio.wait([opening])
    if opening.cancelled():
        return None
    opened = opening.result()
    if closing.is_set():  # both happened at once: whoever closes found no connection
        await opened.close()
        return None
    if opened.subprotocol != SUBPROTOCOL:
        await opened.close()
        shown = without_credentials(url)
        raise ConnectionStopped(1002, f"{shown} does not speak {SUBPROTOCOL}: is it the URL of another socket?")
    return opened


async def _handshake(url: str, token: str | None) -> ClientSocket:
    """Open a WebSocket; raise what `dial` does for everything that websockets' `connect` can raise."""
    try:
        return await _connect(url, token)
    except ssl.SSLCertVerificationError as error:
        raise ConnectionStopped(1015, f"the server's certificate is not trusted: {error.verify_message}") from error
    except websockets.InvalidProxy as error:  # its text holds the proxy's password
        raise UsageError(f"the proxy that the environment names cannot be used: {error.msg}") from None
    except ImportError as error:
        raise UsageError(f"the environment names a SOCKS proxy: {error}") from error
    except websockets.InvalidURI as error:  # of a redirect: our own URL was checked
        raise _redirected(without_credentials(error.uri)) from None
    except websockets.InvalidStatus as error:
        status = error.response.status_code
        if (final := _refused_by_http(status, without_credentials(url), has_login=token is not None)) is not None:
            raise final from error
        raise NotNow(_answered(status)) from error
    except websockets.ConnectionClosed as error:  # accepted and closed at once: a balancer without a server behind it
        raise NotNow(CLOSED_AT_ONCE) from error
    except websockets.InvalidMessage as error:
        if isinstance(error.__cause__, EOFError):
            raise NotNow(CLOSED_AT_ONCE) from error
        raise NotNow("the answer is not HTTP; is it wss:// rather than ws://?") from error
    except (OSError, EOFError, websockets.WebSocketException) as error:
        raise NotNow(_reason(error)) from error


def _answered(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _reason(error: Exception) -> str:
    """Return why there was no connection, in words without the system's numbers and addresses."""
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "the server does not speak TLS there; is it ws:// rather than wss://?"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return CLOSED_AT_ONCE if isinstance(error, ConnectionError | EOFError) else str(error) or type(error).__name__


async def _connect(url: str, token: str | None) -> ClientSocket:
    host = urlsplit(url).hostname or ""
    connection = await connect(
        url,
        subprotocols=[SUBPROTOCOL],
        additional_headers={"Authorization": f"Bearer {token}"} if token else None,
        compression=None,
        proxy=None if host == "localhost" or host.startswith("127.") or host == "::1" else True,
        open_timeout=OPEN_SECONDS,
        close_timeout=2.0,
        ping_interval=None,  # the protocol has its own, which browsers can answer too
        max_size=MAX_MESSAGE_BYTES,
        max_queue=QUEUED_MESSAGES,
        write_limit=WRITE_BUFFER_BYTES,
        logger=logger,
        create_connection=ClientSocket,
    )
    tcp.queue_little(connection.transport, UNSENT_BYTES)
    tcp.pace_nothing_locally(connection.transport)
    return cast(ClientSocket, connection)


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


def _refused_by_http(status: int, url: str, *, has_login: bool) -> ConnectionStopped | None:
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


def _redirected(url: str) -> ConnectionStopped:
    """Return the error for a redirect to `url`, which is none of a WebSocket."""
    for http, scheme in (("https://", "wss://"), ("http://", "ws://")):
        if url.startswith(http):
            url = f"{scheme}{url.removeprefix(http)}"
    return ConnectionStopped(1002, f"the server redirects elsewhere: if that is meant, use {url} as the URL")
