"""Connections to Redis: one pool for threads per process, one asyncio pool per event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import weakref
from collections.abc import Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import redis
import redis.asyncio
import redis.asyncio.client
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from delivery import conf
from delivery.errors import BufferUnavailable

MAX_CONNECTIONS = 32
THREAD_CONNECTIONS = 256  # a worker's thread holds one as long as it writes to Storage; none is opened ahead
SOCKET_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 2.0
SEND_ROOM_BYTES = 524_288  # more is slower again: it does not stay in the processor's cache

P = ParamSpec("P")
T = TypeVar("T")

_OPTIONS: dict[str, Any] = {
    "socket_timeout": SOCKET_TIMEOUT_SECONDS,
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "health_check_interval": 25,
}


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Turn every failure of Redis into `BufferUnavailable`."""
    try:
        yield
    except (redis.RedisError, OSError, TimeoutError) as error:
        raise BufferUnavailable(f"Redis: {type(error).__name__}") from error


@functools.lru_cache(maxsize=8)
def _client(url: str, pid: int) -> redis.Redis:
    # Keyed by the process: a forked Celery child never shares a socket with its parent.
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=THREAD_CONNECTIONS,
        timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        **_OPTIONS,
    )
    return redis.Redis(connection_pool=pool)


def client() -> Any:
    """Return this process's client for threads.

    Typed as Any, as `aclient` is: redis-py types each reply as bytes or str, and we never let it decode.
    """
    return _client(conf.current().redis_url, os.getpid())


_by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, redis.asyncio.Redis]] = (
    weakref.WeakKeyDictionary()
)


def aclient() -> Any:
    """Return the running event loop's client."""
    url = conf.current().redis_url
    clients = _by_loop.setdefault(asyncio.get_running_loop(), {})
    if url not in clients:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=SOCKET_TIMEOUT_SECONDS,
            retry=AsyncRetry(ExponentialBackoff(cap=0.5, base=0.05), 2),
            **_OPTIONS,
        )
        clients[url] = _WholeClient(connection_pool=pool)
    return clients[url]


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await a command. Cancelling the caller leaves it running, within its timeouts.

    redis-py may mistake a cancellation for its own timeout and continue, so that the cancelled caller waits for ever. And
    a connection that is abandoned within a reply must be opened anew.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)


class _WholePipeline(redis.asyncio.client.Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        return await _to_the_end(super().execute(raise_on_error))


class _WholeClient(redis.asyncio.Redis):
    """A client whose commands continue when their caller is cancelled."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await _to_the_end(super().execute_command(*args, **options))  # type: ignore[no-untyped-call,unused-ignore]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _WholePipeline:
        return _WholePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


async def aclose() -> None:
    """Close the running loop's connections."""
    clients = list(_by_loop.pop(asyncio.get_running_loop(), {}).values())
    await asyncio.gather(*(_close(one) for one in clients), return_exceptions=True)


async def _close(one: redis.asyncio.Redis) -> None:
    try:
        await one.aclose()  # type: ignore[attr-defined,unused-ignore]
    finally:
        await one.connection_pool.disconnect()


def give_room(target: Any) -> None:
    """Enlarge the send buffer of a Unix socket to Redis; the system may grant less.

    Linux's default is 208 KiB, and each full buffer costs a switch between both processes: on two cores writing then takes
    half as much processor time again. TCP sizes its buffers itself.
    """
    if target.family == getattr(socket, "AF_UNIX", None):
        with contextlib.suppress(OSError):
            if target.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < SEND_ROOM_BYTES:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_ROOM_BYTES)


def new_subscriber_client() -> redis.asyncio.Redis:
    """Return a client of its own for one subscriber: it waits for messages without a time limit."""
    options = _OPTIONS | {"socket_timeout": None, "socket_keepalive": True}
    url = conf.current().redis_url
    if url.startswith("unix:"):
        options.pop("socket_keepalive")
    return redis.asyncio.Redis.from_url(url, retry=AsyncRetry(ExponentialBackoff(cap=0.5, base=0.05), 2), **options)


def url_fault(url: str) -> str | None:
    """Return why redis-py refuses a URL, None if it accepts it. Does not connect, and shows no part of it (a password)."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis", "rediss", "unix"):
        return "it begins with none of redis://, rediss:// and unix://"
    try:
        redis.ConnectionPool.from_url(url).make_connection()
    except (ValueError, TypeError):
        return "its host, port, number or options cannot be read (in a password, / : @ are %2F %3A %40)"
    number = urlsplit(url).path.strip("/")
    if scheme == "unix":
        return None if rest.partition("?")[0] else "it names no path"
    return None if not number or number.isdecimal() else f"the number of a database cannot be {number!r}"


def place() -> str:
    """Return where Redis is looked for, without the password: HOST:PORT/NUMBER or a path."""
    parts = urlsplit(conf.current().redis_url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def answers() -> bool:
    """Return whether Redis answers within 2 s, asked once, on a connection of its own."""
    options = {"socket_timeout": CONNECT_TIMEOUT_SECONDS, "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS}
    one = redis.Redis.from_url(conf.current().redis_url, retry=Retry(NoBackoff(), 0), **options)
    try:
        return bool(one.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        one.close()


async def aclock() -> int:
    """Return Redis's clock in microseconds, which all web processes share."""
    with reporting():
        seconds, micros = await aclient().time()
        return int(seconds) * 1_000_000 + int(micros)


async def amemory() -> tuple[int, int]:
    """Return (bytes used, bytes allowed) of Redis; allowed is 0 where it has no `maxmemory`."""
    with reporting():
        found = await aclient().info("memory")
    return int(found["used_memory"]), int(found.get("maxmemory", 0))
