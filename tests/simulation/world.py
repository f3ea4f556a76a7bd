"""A whole site in one loop: real clients, real sessions and transfers, real rows; Redis, workers, Storage and network
are models that a fault plan breaks.

What is real: `delivery.client`, `delivery.protocol`, `delivery.server.consumer` and `delivery.server`, `delivery.transfers` on
a SQLite in memory, `delivery.buffer` on a model of Redis. What is a model: the ASGI server, TCP, Redis itself, Celery's
queue and its workers, files.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from websockets.frames import Close

from delivery import auth, dispatch
from delivery.buffer import keys, registry
from delivery.client.client import Client
from delivery.client.dialing import NotNow
from delivery.errors import BufferUnavailable, StorageUnavailable
from delivery.server import web_process
from delivery.server.consumer import DeliveryConsumer
from delivery.server.ports import ConnectionClosed
from delivery.transfers import cleanup, digests, ranges, segments
from delivery.transfers.handover import Handover
from delivery.transfers.segments import StoreRequest
from tests.simulation import wire
from tests.simulation.fake_redis import AsyncClient, Store
from tests.simulation.fake_redis import Client as RedisClient
from tests.simulation.loop import Proc, SimulationLoop, running
from tests.simulation.wire import LOST, Wire

WORKERS = ("one", "two")


class World:
    """Everything but the clients. All randomness is `chance`'s."""

    def __init__(self, loop: SimulationLoop, chance: random.Random) -> None:
        self.loop = loop
        self.chance = chance
        self.pace = chance.choice((0.01, 0.05, 0.15))  # mean seconds that one message takes
        self.work = chance.choice((0.01, 0.1, 0.5))  # mean seconds that each half of a task takes
        self.most_message: int | None = None  # bytes that a proxy lets through
        self.swallowed = 0
        self.trouble = 1.0  # how likely what may be lost is lost: 0 once all is healed
        self.redis = Store(loop.time, chance, self.wake)
        self.client, self.aclient = RedisClient(self.redis), AsyncClient(self.redis)
        self.files: dict[str, bytes] = {}
        self.storage_fails = False
        self.workers = {name: Proc(name) for name in WORKERS}
        self.consumers: dict[str, Consumer] = {}
        self.wires: list[Wire] = []
        self.trace: list[str] = []
        self.web: Web | None = None
        self._channels = 0
        self._written = False  # by the task that runs: its commit comes later
        wire.EMPTY = contextvars.copy_context()

    def log(self, text: str) -> None:
        self.trace.append(f"{self.loop.now:.4f} {text}")

    def delay(self) -> float:
        """Return how long something takes on its way."""
        return self.chance.expovariate(1 / self.pace)

    def labour(self) -> float:
        """Return how long a worker takes."""
        return self.chance.expovariate(1 / self.work)

    def lost(self, share: float) -> bool:
        return self.chance.random() < share * self.trouble

    def later(self, seconds: float, work: Callable[..., Any], *args: Any, owner: Proc | None = None) -> None:
        context = owner.context if owner is not None else wire.EMPTY
        self.loop.call_later(seconds, work, *args, context=context)

    # -- the web process ---------------------------------------------------------------------------------------------

    def start_web(self) -> None:
        self.web = Web(self)
        self.log("web starts")

    def kill_web(self) -> None:
        if self.web is not None:
            self.log("web is killed")
            self.web.proc.kill()
            self.web = None
            for one in self.wires:
                if not one.gone:
                    self.later(self.delay(), one.cut)

    def passes(self, message: Any) -> bool:
        """Return whether a message arrives: a proxy between may swallow large ones."""
        large = not isinstance(message, str | Close) and len(message) > (self.most_message or len(message))
        self.swallowed += large
        return not large

    async def dial(self, url: str, token: str | None, *, closing: asyncio.Event) -> Any:
        """Stand where `delivery.client.dialing.dial` would."""
        await asyncio.sleep(self.delay())
        web = self.web
        if closing.is_set():
            return None
        if web is None:
            raise NotNow("connection refused")
        found = Wire(self.chance, self.delay, self.passes)
        self.wires.append(found)
        self._channels += 1
        web.proc.start(self.loop, web.serve(found, token, f"channel{self._channels}"))
        return found.client

    # -- what is told ------------------------------------------------------------------------------------------------

    async def send_control(self, kind: str, target: str, event: str, detail: dict[str, Any]) -> None:
        """Stand where the channel layer would."""
        for consumer in list(self.consumers.values()):
            wanted = target in consumer.groups_joined if kind == "group" else consumer.channel_name == target
            if wanted and not self.lost(0.15):
                message = {"type": f"delivery.{event}", **detail}
                self.later(self.delay(), consumer.inbox.put_nowait, message)

    def wake(self, channel: str, message: bytes) -> None:
        """Stand where Redis's pub/sub would."""
        topic = channel[len(keys.channel("")) :]
        if self.web is not None and not self.lost(0.15):
            self.later(self.delay(), self.web.subscriber.hear, topic, json.loads(message), owner=self.web.proc)

    # -- workers -----------------------------------------------------------------------------------------------------

    def start_worker(self, name: str) -> None:
        proc = self.workers[name] = Proc(name)
        proc.start(self.loop, self._heartbeat(name))

    async def _heartbeat(self, name: str) -> None:
        while True:
            try:
                registry.renew_worker(name)
            except BufferUnavailable:
                pass
            await asyncio.sleep(3.0)

    def publish(self, task: str, arguments: dict[str, Any]) -> None:
        """Stand where Celery would: a task runs late, twice, or never."""
        if self.redis.away:
            raise BufferUnavailable("away")
        if self.lost(0.1):
            return self.log(f"{task} is lost")
        for _ in range(2 if self.lost(0.15) else 1):
            late = self.chance.uniform(0, 8) if self.lost(0.15) else 0.0
            self.later(late + self.labour(), self._take, task, arguments)
        return None

    def _take(self, task: str, arguments: dict[str, Any]) -> None:
        alive = [name for name, proc in self.workers.items() if not proc.dead]
        if not alive:
            return self.later(0.5, self._take, task, arguments)
        name = self.chance.choice(alive)
        return self.later(self.labour(), self._run, task, arguments, name, owner=self.workers[name])

    def _run(self, task: str, arguments: dict[str, Any], name: str) -> None:
        self.log(f"{name} runs {task.rpartition('.')[2]} {arguments.get('start', '')}")
        if task == dispatch.STORE:
            for one in (arguments, *arguments.get("more", ())):
                self._store(StoreRequest.of(one), name)
        elif task == dispatch.STAGE:
            ranges.stage(UUID(arguments["payload"]), arguments["range"], worker=name, count=arguments["count"])
        elif task == dispatch.SEAL:
            digests.seal(UUID(arguments["payload"]), worker=name)

    def _store(self, order: StoreRequest, name: str) -> None:
        """Store a run, and later those that were handed over meanwhile, as one task does."""
        handover = Handover(order, quick=self.chance.random() < 0.5)
        self._written = False
        segments.store(order, worker=name, more=handover)
        if not self._written:
            self._go_on(handover, name)

    def _go_on(self, handover: Handover, name: str) -> None:
        for order in handover.take():
            self.later(self.labour(), self._store, order, name, owner=running())

    def commit_later(self, commit: Any) -> Any:
        """Between writing a file and committing its row anything may happen: the worker's death, a frozen hour."""

        def commit_and_go_on(order: Any, name: str, worker: str, handover: Handover) -> None:
            commit(order, name, worker, handover)
            self._go_on(handover, worker)

        def split(*args: Any) -> None:
            self._written = True
            self.later(self.labour(), commit_and_go_on, *args, owner=running())

        return split

    def complete_later(self, complete: Any) -> Any:
        """The same between reading the last byte of a payload and completing it."""

        def split(payload: Any, digest: str, *, sealer: str | None = None) -> bool:
            self.later(self.labour(), lambda: complete(payload, digest, sealer=sealer), owner=running())
            return True

        return split

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(30.0)
            cleanup.sweep()

    # -- Storage -----------------------------------------------------------------------------------------------------

    def write(self, alias: str, payload: UUID, offset: int, lease: int, pieces: Any, size: int) -> str:
        data = b"".join(pieces)
        if self.storage_fails:
            raise StorageUnavailable("no space")
        name = f"{payload}/{offset}-{lease}-{self.chance.getrandbits(32):08x}"
        self.files[name] = data
        return name

    @contextlib.contextmanager
    def opened(self, alias: str, name: str, offset: int) -> Iterator[io.BytesIO]:
        if self.storage_fails or name not in self.files:
            raise StorageUnavailable("cannot be read")
        yield io.BytesIO(self.files[name][offset:])

    def look(self, alias: str, name: str) -> str:
        if self.storage_fails or name not in self.files:
            raise StorageUnavailable("cannot be read")
        return name

    def delete(self, alias: str, name: str) -> bool:
        self.files.pop(name, None)
        return True

    def names(self, alias: str, payload: UUID) -> list[str]:
        return [name for name in self.files if name.startswith(f"{payload}/")]


class Subscriber:
    """The wake-ups of one web process."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Any]] = {}

    def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def add(self, topic: str, listener: Any) -> None:
        self._listeners.setdefault(topic, []).append(listener)

    async def remove(self, topic: str, listener: Any) -> None:
        if listener in self._listeners.get(topic, []):
            self._listeners[topic].remove(listener)

    def hear(self, topic: str, message: dict[str, Any]) -> None:
        for listener in list(self._listeners.get(topic, ())):
            listener(dict(message))


class Web:
    """A web process: its shared parts and its connections."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.proc = Proc("web")
        self.shared: web_process.WebProcess = self.proc.context.run(web_process.WebProcess)
        self.subscriber: Any = self.shared.subscriber
        self.proc.context.run(self.shared.start)
        _webs[self.proc] = self

    async def serve(self, found: Wire, token: str | None, channel: str) -> None:
        """Do what an ASGI server and Channels do for one connection: one message after the other."""
        consumer = Consumer(found, channel)
        self.world.consumers[channel] = consumer
        try:
            await consumer._begin(await self.shared.db(auth.login_of_token, token))
        except Exception:
            found.cut()
            raise
        reading = asyncio.create_task(consumer.read())
        try:
            while (message := await consumer.inbox.get()) is not LOST:
                await consumer.dispatch(message)
        finally:
            reading.cancel()
            del self.world.consumers[channel]
            self.world.later(3.0, found.cut)  # an ASGI server ends what its application has left
            await consumer._clean_up()


_webs: dict[Proc | None, Web] = {}


def current_process() -> web_process.WebProcess:
    """Stand where `delivery.server.web_process.current` would."""
    return _webs[running()].shared


class Consumer(DeliveryConsumer):
    """The real consumer, on a wire instead of an ASGI server."""

    def __init__(self, found: Wire, channel: str) -> None:
        super().__init__()
        self.scope: dict[str, Any] = {}
        self.channel_name = channel
        self.groups_joined: set[str] = set()
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._joined = set()
        self._wire = found
        self._closed = False

    async def read(self) -> None:
        while (message := await self._wire.to_server.get()) is not LOST:
            kind = "text" if isinstance(message, str) else "bytes"
            self.inbox.put_nowait({"type": "websocket.receive", kind: message})
        self._close_code = 1006
        self.inbox.put_nowait(LOST)

    async def _send(self, message: dict[str, Any]) -> None:
        if self._wire.gone or self._closed:
            raise ConnectionClosed
        if message["type"] == "websocket.close":
            self._closed = True
            self._wire.down.put(Close(message["code"], message["reason"]))
            asyncio.get_running_loop().call_later(2.0, self._wire.to_server.put_nowait, LOST)
            return
        data = message.get("text")
        await self._wire.down.send(message["bytes"] if data is None else data)

    async def join(self, group: str) -> None:
        self.groups_joined.add(group)

    def abandon(self) -> None:
        self._wire.to_server.put_nowait(LOST)


def make_client(world: World, token: str, *, client_id: str, receive: bool, chunk_size: int, observer: Any) -> Client:
    """Return a real client whose connections go through the world's wires."""
    return Client(
        "ws://simulation/",
        token,
        client_id=client_id,
        receive=receive,
        groups=(),
        chunk_size=chunk_size,
        window=32_768,
        open_timeout=None,
        observer=observer,
        ceilings=_NoCeilings(),  # type: ignore[arg-type]
    )


class _NoCeilings:
    def get(self, url: str) -> int | None:
        return None

    def remember(self, url: str, chunk_size: int) -> None:
        pass
