"""A Redis for one simulation: strings, one sorted set, TTLs by virtual time; it can be away, lose all, or evict."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
import redis


class Store:
    """What it holds. `away`: nobody reaches it. Every key must have a TTL: `forever` names those that have none.

    `hear`: what is published, with its channel.
    """

    def __init__(self, now: Callable[[], float], chance: random.Random, hear: Callable[[str, bytes], None]) -> None:
        self.hear = hear
        self.away = False
        self.now = now
        self.chance = chance
        self.values: dict[str, tuple[Any, float | None]] = {}

    def flush(self) -> None:
        self.values.clear()

    def evict(self, share: float) -> None:
        for key in [key for key in self.values if self.chance.random() < share]:
            del self.values[key]

    @property
    def forever(self) -> list[str]:
        return [key for key, (_, until) in self.values.items() if until is None]

    def _live(self, key: str) -> Any:
        value, until = self.values.get(key, (None, None))
        if until is not None and until <= self.now():
            del self.values[key]
            return None
        return value

    def do(self, command: str, *args: Any, **options: Any) -> Any:
        if self.away:
            raise redis.ConnectionError("away")
        return getattr(self, f"_{command}")(*args, **options)

    def _set(
        self,
        key: str,
        value: Any,
        *,
        ex: float | None = None,
        px: float | None = None,
        nx: bool = False,
        get: bool = False,
    ) -> Any:
        before = self._live(key)
        if nx and before is not None:
            return None
        life = ex if ex is not None else (px / 1000 if px is not None else None)
        data = value.encode() if isinstance(value, str) else bytes(value)
        self.values[key] = (data, None if life is None else self.now() + life)
        return before if get else True

    def _get(self, key: str) -> Any:
        return self._live(key)

    def _mget(self, keys: Iterable[str]) -> list[Any]:
        return [self._live(key) for key in keys]

    def _exists(self, *keys: str) -> int:
        return sum(self._live(key) is not None for key in keys)

    def _unlink(self, *keys: str) -> int:
        return sum(self.values.pop(key, None) is not None for key in keys)

    def _rpush(self, key: str, *entries: bytes) -> int:
        found = self._live(key) or []
        self.values[key] = ([*found, *map(bytes, entries)], self.values.get(key, (None, None))[1])
        return len(found) + len(entries)

    def _rpushx(self, key: str, *entries: bytes) -> int:
        return self._rpush(key, *entries) if self._live(key) is not None else 0

    def _lpop(self, key: str, count: Any) -> list[bytes] | None:
        found = self._live(key)
        if found is None:
            return None
        taken, left = found[: int(count)], found[int(count) :]
        if left:
            self.values[key] = (left, self.values[key][1])
        else:
            del self.values[key]
        return list(taken)

    def _expire(self, key: str, seconds: Any) -> bool:
        value = self._live(key)
        if value is None:
            return False
        self.values[key] = (value, self.now() + float(seconds))
        return True

    def _time(self) -> tuple[int, int]:
        return int(self.now()), int(self.now() % 1 * 1e6)

    def _info(self, section: str) -> dict[str, int]:
        return {"used_memory": 1, "maxmemory": 0}

    def _publish(self, channel: str, message: bytes) -> int:
        self.hear(channel, message)
        return 1

    def _zadd(self, key: str, members: dict[str, float]) -> int:
        found = self._live(key) or {}
        self.values[key] = ({**found, **members}, self.values.get(key, (None, None))[1])
        return 1

    def _zrem(self, key: str, member: str) -> int:
        return int((self._live(key) or {}).pop(member, None) is not None)

    def _zremrangebyscore(self, key: str, low: float, high: float) -> int:
        members = self._live(key) or {}
        old = [member for member, score in members.items() if low <= score <= high]
        for member in old:
            del members[member]
        return len(old)

    def _zrangebyscore(self, key: str, low: float, high: Any) -> list[bytes]:
        return [member.encode() for member, score in (self._live(key) or {}).items() if score >= low]


class Client:
    """For threads: answers at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, command: str) -> Any:
        return lambda *args, **options: self._store.do(command, *args, **options)

    def pipeline(self, **_: Any) -> Pipeline:
        return Pipeline(self._store)

    @property
    def connection_pool(self) -> Client:
        return self

    def get_connection(self) -> Connection:
        return Connection(self._store)

    def release(self, connection: Connection) -> None:
        return None


class Connection(io.RawIOBase):
    """For bulk exchanges: what is sent and what the socket gives is what a server would read and write there (RESP)."""

    family = None  # no socket of the system's, which could be given room

    def __init__(self, store: Store) -> None:
        self._store = store
        self._commands = hiredis.Reader()
        self._replies = io.BytesIO()

    def check_health(self) -> None:
        return None

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> list[bytes]:
        return [hiredis.pack_command(command) for command in commands]

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        at = self._replies.tell()
        self._replies.seek(0, io.SEEK_END)
        for buffer in buffers:
            self._commands.feed(bytes(buffer))
            while command := self._commands.gets():
                self._replies.write(_written(self._run(*command)))
        self._replies.seek(at)
        return sum(map(len, buffers))

    def _run(self, name: bytes, *args: bytes) -> Any:
        command = name.decode().lower()
        if command == "publish":
            return self._store.do(command, args[0].decode(), args[1])
        if command == "set":
            return self._store.do(command, args[0].decode(), args[1], **_options(args[2:]))
        if command == "rpush":
            return self._store.do(command, args[0].decode(), *args[1:])
        names = [one.decode() for one in args]
        return self._store.do(command, names) if command == "mget" else self._store.do(command, *names)

    @property
    def _sock(self) -> Connection:
        return self

    def makefile(self, mode: str, buffering: int) -> io.BufferedReader:
        return io.BufferedReader(self, buffering)

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        return self._replies.readinto(memoryview(view)[: self._store.chance.randint(1, len(view))])

    def disconnect(self) -> None:
        return None


def _options(words: Sequence[bytes]) -> dict[str, Any]:
    """Return the options behind the value of a SET."""
    options: dict[str, Any] = {}
    left = [word.decode().lower() for word in reversed(words)]
    while left:
        word = left.pop()
        options[word] = float(left.pop()) if word in ("ex", "px") else True
    return options


def _written(reply: Any) -> bytes:
    """Return a reply as a server writes it."""
    if reply is True:
        return b"+OK\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(_written, reply)))
    return b"$%d\r\n%b\r\n" % (len(reply), reply)


class Pipeline:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._commands: list[tuple[str, Any, Any]] = []

    def __getattr__(self, command: str) -> Any:
        return lambda *args, **options: self._commands.append((command, args, options))

    def execute(self) -> list[Any]:
        return [self._store.do(command, *args, **options) for command, args, options in self._commands]


class AsyncClient:
    """For the loop: each call takes a moment before and after, in which anything may happen."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, command: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            return await _slowly(self._store, lambda: self._store.do(command, *args, **options))

        return call

    def pipeline(self, **_: Any) -> AsyncPipeline:
        return AsyncPipeline(self._store)

    @property
    def connection_pool(self) -> AsyncClient:
        return self

    def make_connection(self) -> AsyncConnection:
        return AsyncConnection(self._store)


class AsyncConnection:
    """For one command behind the other: replies come when they come, in any cut, and end when nobody is there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer = self

    @property
    def transport(self) -> Transport:
        return Transport(self._store)

    async def connect(self) -> None:
        await _slowly(self._store, lambda: self._store.do("time"))

    async def disconnect(self, *, nowait: bool) -> None:
        return None


class Transport:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._server = Connection(store)
        self._loop = asyncio.get_running_loop()
        self._protocol: Any = None
        self._closed = False
        self._ready_at = 0.0

    def get_extra_info(self, name: str) -> Connection:
        return self._server

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def pause_reading(self) -> None:
        return None

    resume_reading = pause_reading

    def is_closing(self) -> bool:
        return self._closed

    def abort(self) -> None:
        self._closed = True

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self._later(self._take, b"".join(pieces))

    def _later(self, step: Callable[..., None], *args: Any) -> None:
        """Take a step in a moment, and after those that were to be taken before."""
        self._ready_at = max(self._ready_at + 1e-6, self._loop.time() + self._store.chance.expovariate(2000))
        self._loop.call_at(self._ready_at, step, *args)

    def _take(self, sent: bytes) -> None:
        if self._closed:
            return
        try:
            self._server.sendmsg([sent])
        except redis.ConnectionError:
            self._closed = True
            self._protocol.connection_lost(None)
            return
        self._later(self._give)

    def _give(self) -> None:
        if not self._closed and (count := self._server.readinto(self._protocol.get_buffer(-1))):
            self._protocol.buffer_updated(count)
            self._later(self._give)


class AsyncPipeline(Pipeline):
    async def execute(self) -> list[Any]:  # type: ignore[override]
        return await _slowly(self._store, super().execute)


async def _slowly(store: Store, work: Callable[[], Any]) -> Any:
    await asyncio.sleep(store.chance.expovariate(2000))
    result = work()
    if store.chance.random() < 0.3:
        await asyncio.sleep(store.chance.expovariate(2000))
    return result
