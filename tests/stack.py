"""The shipped stack, its site seen from inside the test process, and people who use it.

`Stack` is what `manage.py up` started. `Site` points this process's Django at the stack's database, Storage, Redis and
broker, so that a test calls `deliver(...)` or reads rows as the site's own code would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import kombu.pools
import redis
from celery import current_app
from channels.layers import channel_layers
from django.conf import settings
from django.db import connections
from django.test import override_settings

from project.redis_urls import broker_url
from tests import databases
from tests.launch.live import ROOT, LiveStack, clean_environment, free_port, wait_until

P = ParamSpec("P")
T = TypeVar("T")

LAYOUT_PREFIX = "delivery:"


class Stack(LiveStack):
    """A running stack: its addresses, its processes, what it keeps."""

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    @property
    def redis_url(self) -> str:
        return (self.var / "redis.url").read_text().strip()

    @property
    def payload_folder(self) -> Path:
        return self.var / "payloads"

    def redis(self) -> redis.Redis:
        """Return a client of the chunk buffer's database. Close it."""
        return redis.Redis.from_url(self.redis_url)

    def keys_without_ttl(self) -> list[str]:
        """Return every key of ours that would stay for ever."""
        with contextlib.closing(self.redis()) as client:
            return [key.decode() for key in client.scan_iter(f"{LAYOUT_PREFIX}*", count=1000) if client.ttl(key) == -1]

    def flush_redis(self) -> None:
        with contextlib.closing(self.redis()) as client:
            client.flushdb()

    def files_of(self, payload: object) -> list[Path]:
        """Return the files in Storage of a payload, given by its id."""
        folder = self.payload_folder / str(uuid.UUID(str(payload)))
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def buffered(self, payload: object) -> int:
        """Return how many chunks of a payload are in Redis."""
        pattern = f"{LAYOUT_PREFIX}*:c:{uuid.UUID(str(payload)).hex}:*"
        with contextlib.closing(self.redis()) as client:
            return sum(1 for _ in client.scan_iter(pattern, count=1000))

    def kill(self, kind: str) -> None:
        """SIGKILL the only part of a kind, and wait until another one is there."""
        (pid,) = self.pids()[kind]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self.wait_replaced(kind, pid)


class WebProcess:
    """One more `manage.py delivery_web` on the state of a stack, with settings of its own."""

    def __init__(self, stack: Stack, settings_module: str) -> None:
        self.port = free_port()
        self._log = stack.var.parent / f"web-{self.port}.log"
        self._variables = {"DELIVERY_VAR": str(stack.var), "DJANGO_SETTINGS_MODULE": settings_module}
        self.start()

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), "delivery_web", f"--port={self.port}"],
                cwd=ROOT,
                env=clean_environment(**self._variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: "Uvicorn running" in self.log(), what="web process")

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@dataclass(frozen=True)
class Person:
    """A user of the stack who has a token."""

    pk: int
    token: str

    @property
    def address(self) -> str:
        return f"user:{self.pk}"


class Site:
    """This process as a process of the stack's site. `run` does ORM work from a coroutine."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread that may query the database."""

        def call() -> T:
            try:
                return function(*args, **kwargs)
            finally:
                connections.close_all()

        return await asyncio.to_thread(call)

    async def person(self, *groups: str) -> Person:
        """Make a user for whom nothing waits, a member of `groups`."""
        return await self.run(_make_person, groups)

    async def named(self, username: str) -> Person:
        """Return one of the demo's users."""
        return await self.run(_named_person, username)

    async def payload(self, pk: object) -> Any:
        """Return a payload's row."""
        from delivery.models import Payload

        return await self.run(Payload.objects.get, pk=pk)

    async def upload_row(self, key: object) -> Any:
        """Return the row of the upload that a client calls `key`, with its payload."""
        from delivery.models import Transfer

        return await self.run(Transfer.objects.select_related("payload").get, key=key, direction="upload")

    async def let_go(self, key: object) -> None:
        """Wait until no connection holds the upload that a client calls `key`: what it had taken in is stored."""
        from delivery.models import Transfer

        rows = Transfer.objects.filter(key=key, direction="upload")
        await self.until(lambda: rows.get().channel == "", what="upload without a holder")

    async def content(self, pk: object) -> bytes:
        """Return the stored bytes of a complete payload."""
        from delivery.models import Payload

        def read() -> bytes:
            with Payload.objects.get(pk=pk).open() as file:
                return file.read()

        return await self.run(read)

    async def until(self, look: Callable[[], T], *, what: str, seconds: float = 20.0) -> T:
        """Return what `look`, which may query the database, returns as soon as that is true; fail after the deadline."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (seen := await self.run(look)):
            assert asyncio.get_running_loop().time() < deadline, f"no {what} within {seconds} s"
            await asyncio.sleep(0.03)
        return seen


def _make_person(groups: Sequence[str]) -> Person:
    from django.contrib.auth.models import Group, User

    from delivery import make_token

    user = User(username=f"person-{uuid.uuid4().hex[:12]}")
    user.set_unusable_password()
    user.save()
    for name in groups:
        user.groups.add(Group.objects.get_or_create(name=name)[0])
    return Person(user.pk, make_token(user))


def _named_person(username: str) -> Person:
    from django.contrib.auth.models import User

    from delivery import make_token

    user = User.objects.get(username=username)
    return Person(user.pk, make_token(user))


@contextlib.contextmanager
def site_of(stack: Stack) -> Iterator[Site]:
    """Have this process's Django work on the stack's state. Nothing that was open before is used meanwhile."""
    with services_of(stack), _database_of(stack):
        yield Site(stack)


@contextlib.contextmanager
def services_of(stack: Stack) -> Iterator[None]:
    """Use the stack's Redis, broker and Storage, but a database of the test's own, of which no worker knows."""
    with _settings_of(stack), _broker_of(stack):
        yield


@contextlib.contextmanager
def _settings_of(stack: Stack) -> Iterator[None]:
    layers = {name: {**layer, "CONFIG": {**layer["CONFIG"]}} for name, layer in settings.CHANNEL_LAYERS.items()}
    (host,) = layers["default"]["CONFIG"]["hosts"]
    layers["default"]["CONFIG"]["hosts"] = [{**host, "address": stack.redis_url}]
    storages = {name: {**storage} for name, storage in settings.STORAGES.items()}
    storages["default"]["OPTIONS"] = {"location": stack.var / "media"}
    storages["delivery"]["OPTIONS"] = {**storages["delivery"]["OPTIONS"], "location": stack.payload_folder}
    with override_settings(
        SECRET_KEY=(stack.var / "secret_key").read_text().strip(),
        DELIVERY={**settings.DELIVERY, "REDIS_URL": stack.redis_url},
        CHANNEL_LAYERS=layers,
        STORAGES=storages,
    ):
        try:
            yield
        finally:
            _close_layers()


def _close_layers() -> None:
    """Close what `delivery.notify` opened in its own thread: the layer object is about to go."""
    layer = channel_layers.backends.get("default")
    for loop, inner in list(getattr(layer, "_layers", {}).items()):
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(inner.flush(), loop).result(10)


@contextlib.contextmanager
def _database_of(stack: Stack) -> Iterator[None]:
    options = connections.settings["default"]
    before = options["NAME"]
    connections.close_all()
    options["NAME"] = databases.name_of(stack.var)
    try:
        yield
    finally:
        connections.close_all()
        options["NAME"] = before


@contextlib.contextmanager
def _broker_of(stack: Stack) -> Iterator[None]:
    before = current_app.conf.broker_url
    _use_broker(broker_url(stack.redis_url))
    try:
        yield
    finally:
        _use_broker(before)


def _use_broker(url: str) -> None:
    kombu.pools.reset()
    current_app._pool = None
    current_app.amqp._producer_pool = None
    current_app.conf.broker_url = current_app.conf.broker_write_url = url
