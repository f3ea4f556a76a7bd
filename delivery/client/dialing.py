"""Opening a WebSocket to a server of delivery.v1, and what an answer that is none means."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from delivery import sockets
from delivery.client.reading import LargeMessages
from delivery.client.reasons import refused_by_http
from delivery.client.traffic import MAX_MESSAGE_BYTES
from delivery.errors import ConnectionStopped, UsageError

SUBPROTOCOL = Subprotocol("delivery.v1")
OPEN_SECONDS = 10.0
QUEUED_MESSAGES = 32
WRITE_BUFFER_BYTES = 131_072
UNSENT_BYTES = 131_072  # that the kernel takes ahead of the network: no small message overtakes what is queued there


class NotNow(Exception):
    """There was no connection, but trying again may help; the message says why."""


async def dial(url: str, token: str | None, *, closing: asyncio.Event) -> LargeMessages | None:
    """Open a WebSocket; return None where `closing` is set meanwhile.

    Raises `NotNow`, `ConnectionStopped` where trying again cannot help, `UsageError` for an impossible URL.
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
    if opened.subprotocol != SUBPROTOCOL:
        await opened.close()
        raise ConnectionStopped(1002, f"{url} does not speak {SUBPROTOCOL}: is it the URL of another socket?")
    return opened


async def _handshake(url: str, token: str | None) -> LargeMessages:
    try:
        return await _connect(url, token)
    except ssl.SSLCertVerificationError as error:
        raise ConnectionStopped(1015, f"the server's certificate is not trusted: {error.verify_message}") from error
    except (websockets.InvalidURI, websockets.InvalidProxy) as error:
        raise UsageError(str(error)) from error
    except websockets.InvalidStatus as error:
        status = error.response.status_code
        if (final := refused_by_http(status)) is not None:
            raise final from error
        raise NotNow(f"HTTP {status} from {url} (is that the right path?)") from error
    except (OSError, TimeoutError, websockets.InvalidHandshake, EOFError) as error:
        raise NotNow(str(error) or type(error).__name__) from error


async def _connect(url: str, token: str | None) -> LargeMessages:
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
        create_connection=LargeMessages,
    )
    sockets.queue_little(connection.transport, UNSENT_BYTES)
    sockets.pace_nothing_locally(connection.transport)
    return cast(LargeMessages, connection)
