"""One seed: who sends what, which faults come when, and what must hold meanwhile and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone

from delivery import dispatch, make_token, models, notify
from delivery.buffer import blocks, chunks, exchange, leases, pool, registry, stream
from delivery.client import client as client_module
from delivery.errors import DeliveryError
from delivery.server import web_process
from delivery.storage import files
from delivery.transfers import cleanup, digests, outcomes, segments, timeline
from tests.simulation.loop import Proc, SimulationLoop, Stuck, running
from tests.simulation.world import Subscriber, World, _webs, current_process, make_client

KIB = 1024
CALM_AT, END_AT = 12.0, 240.0  # seconds after the start: everything is healed; everything must have ended
SETTINGS = {
    "PREFIX": "delivery",
    "STORAGE": "default",
    "QUEUE": "delivery",
    "POLICY": "project.policy.DemoPolicy",
    "MAX_MESSAGE": 65_548,
    "CHUNK_SIZE": 16 * KIB,
    "WINDOW": 64 * KIB,
    "SEGMENT_SIZE": 24 * KIB,
    "INLINE_LIMIT": 3 * KIB,
    "HEARTBEAT": 4.0,
}
SIZES = (0, 1, 3 * KIB, 3 * KIB + 1, 16 * KIB, 40 * KIB + 77, 96 * KIB, 128 * KIB + 1, 160 * KIB)
EPOCH = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


@dataclass
class Outcome:
    problems: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    seconds: float = 0.0


def simulate(seed: int) -> Outcome:
    """Run one seed from an empty site to its end."""
    chance = random.Random(seed)
    loop = SimulationLoop(chance)
    outcome = Outcome()
    world = World(loop, chance)
    run = Run(world, outcome)
    try:
        with _in_place(world):
            _empty()
            try:
                loop.run_until_complete(run.run())
            except Stuck as stuck:
                outcome.problems.append(str(stuck))
            finally:
                loop.tidy()
                _webs.clear()
    finally:
        loop.close()
    outcome.trace = world.trace
    outcome.seconds = loop.now - 1000
    return outcome


def _empty() -> None:
    timeline._waiting.clear()
    with connection.cursor() as cursor:
        for model in (
            *(models.Event, models.Notice, models.Attachment, models.ClientPosition, models.Transfer),
            *(models.Segment, models.Address, models.Usage, models.Payload, User),
        ):
            cursor.execute(f"DELETE FROM {model._meta.db_table}")


@contextlib.contextmanager
def _in_place(world: World) -> Iterator[None]:
    """Put the models where the real parts would be, and virtual time and seeded bytes where the real ones would."""
    loop = world.loop
    seeded = random.Random(world.chance.random())
    random.seed(seeded.random())
    with contextlib.ExitStack() as stack:
        put = lambda target, name, value: stack.enter_context(patch.object(target, name, value))  # noqa: E731
        for module in (blocks, chunks, exchange, leases, pool, registry, stream):
            if hasattr(module, "client"):
                put(module, "client", lambda: world.client)
            if hasattr(module, "aclient"):
                put(module, "aclient", lambda: world.aclient)
        put(notify, "_send", world.send_control)
        put(
            notify,
            "tell_group",
            lambda address, event, /, **detail: _tell(world, "group", notify.group_of(address), event, detail),
        )
        put(notify, "tell_channel", lambda channel, event, /, **detail: _tell(world, "channel", channel, event, detail))
        put(dispatch, "publish", world.publish)
        for name in ("write", "opened", "delete", "names", "look"):
            put(files, name, getattr(world, name))
        put(files, "delete_folder", lambda alias, payload: None)
        put(segments, "MOST_LOOKS", 1)  # nothing else gets on while a task waits
        put(segments, "_commit", world.commit_later(segments._commit))
        put(digests.outcomes, "complete", world.complete_later(outcomes.complete))
        put(web_process, "current", current_process)
        put(web_process, "Subscriber", Subscriber)
        put(client_module, "dial", world.dial)
        put(time, "monotonic", loop.time)
        put(timezone, "now", lambda: EPOCH + datetime.timedelta(seconds=loop.now))
        put(time, "time_ns", lambda: int((EPOCH.timestamp() + loop.now) * 1e9))  # with the next one, ids of rows
        put(secrets, "randbits", seeded.getrandbits)
        put(os, "urandom", seeded.randbytes)
        stack.enter_context(
            override_settings(DELIVERY=SETTINGS, PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"])
        )
        yield


def _tell(world: World, kind: str, target: str, event: str, detail: dict[str, Any]) -> None:
    asyncio.get_running_loop().create_task(world.send_control(kind, target, event, detail))


class Run:
    """The people of one seed, and what they see."""

    def __init__(self, world: World, outcome: Outcome) -> None:
        self.world = world
        self.outcome = outcome
        self.open = 0  # transfers that have not ended
        self.acked: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        self.received: dict[str, str] = {}

    def problem(self, text: str) -> None:
        self.outcome.problems.append(text)
        self.world.log(f"PROBLEM {text}")

    async def run(self) -> None:
        world, chance = self.world, self.world.chance
        for name in list(world.workers):
            world.start_worker(name)
        world.start_web()
        sweeper = Proc("beat")
        sweeper.start(world.loop, world.sweep())
        people = [self._person(name) for name in ("alice", "bob")]
        payloads = [(number, chance.choice(SIZES)) for number in range(chance.choice((1, 1, 1, 2)))]
        everybody = Proc("clients")
        for number, size in payloads:
            data = chance.randbytes(size)
            everybody.start(world.loop, self._send(people[0], people[1], data, f"payload{number}"))
        everybody.start(world.loop, self._receive(people[1], len(payloads)))
        self.open = 2 * len(payloads)
        plan = asyncio.ensure_future(self._break())
        deadline = world.loop.now + END_AT
        while self.open and world.loop.now < deadline:
            await asyncio.sleep(0.5)
        if self.open:
            self.problem(f"{self.open} transfers have not ended: {self._rows()}")
        await plan
        await asyncio.sleep(12)  # what is late comes now
        self._check_end()

    def _person(self, name: str) -> tuple[User, str]:
        user = User(username=name, password="!")
        user.save()
        return user, make_token(user)

    # -- people ------------------------------------------------------------------------------------------------------

    async def _send(self, sender: tuple[User, str], recipient: tuple[User, str], data: bytes, name: str) -> None:
        await asyncio.sleep(self.world.chance.random() * 2)
        observer = self._observer(name)
        client = make_client(
            self.world,
            sender[1],
            client_id=name,
            receive=False,
            chunk_size=self.world.chance.choice((4 * KIB, 8 * KIB, 16 * KIB, 16 * KIB)),
            observer=observer,
        )

        def progress(seen: Any) -> None:
            self.world.log(f"{name} stored {seen.stored}")
            if seen.stored < self.acked.get(seen.transfer, 0):
                self.problem(f"{name}: acked {seen.stored} after {self.acked[seen.transfer]}")
            self.acked[seen.transfer] = seen.stored
            self._check_acked(seen.transfer, seen.stored)

        async with client:
            while True:
                try:
                    receipt = await client.send(
                        self._source(data), to=[f"user:{recipient[0].pk}"], name=name, progress=progress, transfer=None
                    )
                    break
                except Exception as error:  # noqa: BLE001 - nothing that happens may reach a sender
                    self.problem(f"{name}: {error!r}")
                    return
            self.world.log(f"{name} done")
            self._check_stored(receipt.payload, data)
            self.digests[name] = receipt.sha256
            self.open -= 1

    def _source(self, data: bytes) -> Any:
        """Return a payload: its bytes, or a producer of them that may pause for longer than a stall takes."""
        chance = self.world.chance
        if chance.random() < 0.7:
            return data
        pauses = [chance.choice((0.0, 1.0, 75.0)) for _ in range(2)]
        return self._produce(data, chance.randrange(len(data) + 1), pauses)

    async def _produce(self, data: bytes, half: int, pauses: list[float]) -> AsyncIterator[bytes]:
        for part, pause in zip((data[:half], data[half:]), pauses, strict=True):
            await asyncio.sleep(pause)
            yield part

    async def _receive(self, person: tuple[User, str], count: int) -> None:
        client = make_client(
            self.world,
            person[1],
            client_id="receiver",
            receive=True,
            chunk_size=4 * KIB,
            observer=self._observer("bob"),
        )
        reading = []
        async with client:
            async for incoming in client.deliveries():
                reading.append(asyncio.create_task(self._read(incoming)))
                if len(reading) > 20 * count:
                    self.problem("far too many offers")
                    return

    async def _read(self, incoming: Any) -> None:
        try:
            data = await incoming.read()
        except DeliveryError as error:
            self.problem(f"{incoming.name} not received: {error!r}")
            return
        self.world.log(f"{incoming.name} received")
        if incoming.name in self.received:
            self.problem(f"{incoming.name} was received twice")
        self.received[incoming.name] = hashlib.sha256(data).hexdigest()
        self.open -= 1

    def _observer(self, who: str) -> Any:
        def observe(event: str, details: dict[str, Any]) -> None:
            shown = {name: value for name, value in details.items() if name in ("code", "offset", "wait", "error")}
            self.world.log(f"{who} {event} {shown}")
            acked = self.acked.get(details.get("transfer", ""), 0)
            if event == "resumed" and details["role"] == "upload" and details["offset"] < acked:
                self.problem(f"{who}: resumed at {details['offset']}, acked were {acked}")
            wrong = {4400, 1003, 1007, 1008, 1009} - ({1009} if self.world.swallowed else set())
            if event == "closed" and details["code"] in wrong:
                self.problem(f"{who}: closed with {details['code']} {details['reason']}")

        return observe

    # -- faults ------------------------------------------------------------------------------------------------------

    async def _break(self) -> None:
        world, chance = self.world, self.world.chance
        world.trouble = chance.choice((0.0, 1.0, 1.0, 2.0))
        faults = [name for name in dir(self) if name.startswith("fault_")]
        if chance.random() < 0.5:
            faults = chance.sample(faults, 2)  # only these
        every = chance.choice((0.1, 0.4, 1.5))  # mean seconds between two
        calm_at = world.loop.now + CALM_AT
        while world.loop.now < calm_at and self.open:
            await asyncio.sleep(chance.expovariate(1 / every))
            name = chance.choice(faults)
            world.log(name)
            await getattr(self, name)()
        world.trouble = 0.0
        world.most_message = None
        world.redis.away = world.storage_fails = False
        world.loop.executor_faults = lambda function: None
        for name, proc in world.workers.items():
            proc.thaw(world.loop)
            if proc.dead:
                world.start_worker(name)
        if world.web is None:
            world.start_web()
        world.web.proc.thaw(world.loop)  # type: ignore[union-attr]
        for one in world.wires:
            one.up.flow()
            one.down.flow()
        world.log("healed")

    def _wires(self) -> list[Any]:
        return [one for one in self.world.wires[-6:] if not one.gone]

    async def fault_cut(self) -> None:
        if found := self._wires():
            self.world.chance.choice(found).cut()

    async def fault_black_hole(self) -> None:
        """The client comes back on a new connection; then what was stuck on the old one arrives."""
        if not (found := self._wires()):
            return
        one = self.world.chance.choice(found)
        one.up.stuck = True
        await asyncio.sleep(self.world.chance.random())
        one.cut(server_notices=False)
        await asyncio.sleep(self.world.chance.random() * 4)
        one.up.flow()
        self.world.later(self.world.chance.random() * 5, one.cut)

    async def fault_swallow(self) -> None:
        """A proxy that swallows large messages is on the way of everything, for a while."""
        self.world.most_message = self.world.chance.choice((5_000, 9_000, 13_000))
        await asyncio.sleep(self.world.chance.choice((1.0, 8.0)))
        self.world.most_message = None

    async def fault_kill_web(self) -> None:
        self.world.kill_web()
        await asyncio.sleep(self.world.chance.random() * 2)
        self.world.start_web()

    async def fault_freeze_web(self) -> None:
        web = self.world.web
        if web is not None:
            web.proc.freeze()
            await asyncio.sleep(self.world.chance.choice((0.5, 3.0, 12.0)))
            web.proc.thaw(self.world.loop)

    async def fault_kill_worker(self) -> None:
        name = self.world.chance.choice(list(self.world.workers))
        self.world.workers[name].kill()
        self.world.later(self.world.chance.random() * 3, self.world.start_worker, name)

    async def fault_freeze_worker(self) -> None:
        """It wakes up late, with what it had in its hands."""
        proc = self.world.chance.choice(list(self.world.workers.values()))
        proc.freeze()
        self.world.later(self.world.chance.random() * 15, proc.thaw, self.world.loop)

    async def fault_flush_redis(self) -> None:
        self.world.redis.flush()

    async def fault_evict(self) -> None:
        self.world.redis.evict(0.3)

    async def fault_redis_away(self) -> None:
        self.world.redis.away = True
        await asyncio.sleep(self.world.chance.random() * 3)
        self.world.redis.away = False
        if self.world.chance.random() < 0.7:
            self.world.redis.flush()

    async def fault_storage(self) -> None:
        self.world.storage_fails = True
        await asyncio.sleep(self.world.chance.random() * 4)
        self.world.storage_fails = False

    async def fault_database(self) -> None:
        """Some of what the web process asks of the database fails."""
        chance = self.world.chance

        def failing(function: Any) -> Exception | None:
            owner = running()
            asked = owner is not None and owner.name == "web"
            return OperationalError("database is locked") if asked and chance.random() < 0.3 else None

        self.world.loop.executor_faults = failing
        await asyncio.sleep(chance.random() * 2)
        self.world.loop.executor_faults = lambda function: None

    # -- what must hold ----------------------------------------------------------------------------------------------

    def _check_acked(self, key: str, stored: int) -> None:
        """What is acked is committed."""
        row = models.Transfer.objects.filter(key=key, direction="upload").values_list("position", flat=True).first()
        if row is None or row < stored:
            self.problem(f"acked {stored}, committed {row}")

    def _check_stored(self, payload: str, data: bytes) -> None:
        row = models.Payload.objects.get(pk=payload)
        held = bytes(row.inline) if row.inline is not None else b""
        for segment in row.segments.order_by("offset"):
            if segment.offset != len(held):
                self.problem(f"segments of {payload} do not join at {segment.offset}")
            held += self.world.files.get(segment.name, b"")[: segment.length]
        if row.state != "complete" or held != data:
            self.problem(f"done, but {payload} is {row.state} with {len(held)} of {len(data)} bytes")

    def _rows(self) -> list[Any]:
        fields = ("direction", "state", "position", "lease", "channel", "payload__state", "payload__name", "failure")
        return list(models.Transfer.objects.values_list(*fields))

    def _check_end(self) -> None:
        for name, digest in self.digests.items():
            if not self.outcome.problems and self.received.get(name) != digest:
                self.problem(f"{name} received as {self.received.get(name)}")
        if found := [row for row in self._rows() if row[1] != "done"]:
            self.problem(f"rows that do not move: {found}")
        for usage in models.Usage.objects.all():
            if usage.live != 0:
                self.problem(f"the quota counts {usage.live} live uploads")
        for pk in models.Payload.objects.values_list("pk", flat=True):
            cleanup.delete_orphans(pk)
        named = set(models.Segment.objects.values_list("name", flat=True))
        if orphans := set(self.world.files) - named:
            self.problem(f"orphan files: {sorted(orphans)}")
        if missing := named - set(self.world.files):
            self.problem(f"rows without files: {sorted(missing)}")
        if keys := self.world.redis.forever:
            self.problem(f"keys without TTL: {keys}")
