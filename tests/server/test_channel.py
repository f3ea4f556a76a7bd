"""One channel of the channel layer for a whole process: everybody hears what is meant for them, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer

from delivery import notify
from delivery.server import channel as module
from delivery.server.channel import ControlChannel

SECONDS = 5.0


class Layer(InMemoryChannelLayer):  # type: ignore[misc]
    """A channel layer that notes what is asked of it. `away`: it raises; `slow`: it takes a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.away = False
        self.slow = False

    async def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.slow:
            await asyncio.sleep(0.01)
        if self.away:
            raise ConnectionError("away")

    async def new_channel(self, prefix: str = "specific.") -> Any:
        await self._ask("new")
        return await super().new_channel(prefix)

    async def group_add(self, group: str, channel: str) -> None:
        await self._ask(f"add {group}")
        await super().group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        await self._ask(f"discard {group}")
        await super().group_discard(group, channel)

    async def receive(self, channel: str) -> Any:
        if self.away:
            await self._ask("receive")
        return await super().receive(channel)


class Ear:
    """A connection that notes what it hears."""

    def __init__(self, *, fails: bool = False) -> None:
        self.heard: list[str] = []
        self.name = ""
        self._fails = fails

    async def hear(self, message: dict[str, Any]) -> None:
        self.heard.append(message["type"].removeprefix("delivery."))
        if self._fails:
            raise LookupError("this one fails")


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Layer:
    found = Layer()
    for where in (module, notify):
        monkeypatch.setattr(where, "get_channel_layer", lambda: found)
    return found


@pytest.fixture
async def hearing(layer: Layer) -> AsyncIterator[ControlChannel]:
    found = ControlChannel()
    yield found
    layer.away = False
    await found.stop()


async def listen(hearing: ControlChannel, *addresses: str, **options: bool) -> Ear:
    ear = Ear(**options)
    ear.name = await hearing.open(ear.hear)
    for address in addresses:
        await hearing.join(ear.name, notify.group_of(address))
    return ear


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():
            await asyncio.sleep(0.001)


async def test_who_is_told_hears_and_nobody_else(hearing: ControlChannel) -> None:
    alice, bob, both = [await listen(hearing, *names) for names in (["alice"], ["bob"], ["alice", "bob"])]
    await notify.atell_group("alice", "first")
    await notify.atell_channel(bob.name, "second")
    await notify.atell_group("bob", "third")
    await until(lambda: len(both.heard) == 2)
    assert (alice.heard, bob.heard, both.heard) == (["first"], ["second", "third"], ["first", "third"])


async def test_a_thousand_need_one_channel_and_one_group(hearing: ControlChannel, layer: Layer) -> None:
    ears = await asyncio.gather(*(listen(hearing, "workers") for _ in range(1000)))
    assert layer.asked == ["new", f"add {notify.group_of('workers')}"]
    await notify.atell_group("workers", "draining")
    await until(lambda: all(ear.heard for ear in ears))


async def test_a_group_is_left_by_the_last_of_it(hearing: ControlChannel, layer: Layer) -> None:
    first, second = await listen(hearing, "ops"), await listen(hearing, "ops")
    hearing.close(first.name)
    await notify.atell_group("ops", "event")
    await until(lambda: second.heard == ["event"])
    hearing.close(second.name)
    await until(lambda: layer.asked[-1].startswith("discard"))
    assert first.heard == []
    await until(lambda: not layer.groups)


async def test_joining_while_the_last_one_leaves(hearing: ControlChannel, layer: Layer) -> None:
    layer.slow = True
    first = await listen(hearing, "ops")
    hearing.close(first.name)
    await until(lambda: layer.asked[-1].startswith("discard"))  # under way
    second = await listen(hearing, "ops")
    await notify.atell_group("ops", "event")
    await until(lambda: second.heard == ["event"])


async def test_leaving_and_joining_in_the_same_moment(hearing: ControlChannel) -> None:
    first = await listen(hearing, "ops")
    hearing.close(first.name)
    second = await listen(hearing, "ops")
    await asyncio.sleep(0.01)
    await notify.atell_group("ops", "event")
    await until(lambda: second.heard == ["event"])


async def test_a_layer_that_is_away_fails_who_comes_and_no_one_later(hearing: ControlChannel, layer: Layer) -> None:
    layer.away = True
    with pytest.raises(ConnectionError):
        await hearing.open(Ear().hear)
    layer.away = False
    ear = await listen(hearing)
    layer.away = True
    with pytest.raises(ConnectionError):
        await hearing.join(ear.name, notify.group_of("ops"))
    layer.away = False
    await hearing.join(ear.name, notify.group_of("ops"))
    await notify.atell_group("ops", "event")
    await until(lambda: ear.heard == ["event"])


async def test_it_hears_again_when_the_layer_is_back(
    hearing: ControlChannel, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    ear = await listen(hearing, "ops")
    layer.away = True
    await notify.atell_group("ops", "event")
    await until(lambda: layer.asked.count("receive") > 1)
    layer.away = False
    await notify.atell_group("ops", "later")
    await until(lambda: ear.heard == ["event", "later"])


async def test_one_that_fails_keeps_nobody_from_hearing(hearing: ControlChannel) -> None:
    await listen(hearing, "ops", fails=True)
    ear = await listen(hearing, "ops")
    for event in ("first", "second"):
        await notify.atell_group("ops", event)
    await until(lambda: ear.heard == ["first", "second"])


async def test_an_event_of_the_version_before_reaches_everybody(hearing: ControlChannel, layer: Layer) -> None:
    first, second = await listen(hearing, "workers"), await listen(hearing, "workers")
    await layer.group_send(notify.group_of("workers"), {"type": "delivery.worker_ready", "worker": "w"})
    await until(lambda: bool(first.heard and second.heard))


async def test_a_channel_of_the_version_before_is_told_as_it_is(layer: Layer) -> None:
    channel = await layer.new_channel()
    await notify.atell_channel(channel, "taken_over", lease=3)
    assert (await layer.receive(channel))["lease"] == 3


async def test_a_group_is_joined_again_after_a_while(
    hearing: ControlChannel, layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listen(hearing, "ops")
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.0)
    await listen(hearing, "ops")
    assert layer.asked.count(f"add {notify.group_of('ops')}") == 2


@pytest.mark.parametrize("slow", [False, True])
async def test_stopping_leaves_every_group(layer: Layer, *, slow: bool) -> None:
    hearing = ControlChannel()
    for number in range(100):
        await listen(hearing, f"user:{number}")
    layer.slow = slow
    await hearing.stop()
    assert not layer.groups


async def test_stopping_waits_for_no_layer_that_does_not_answer(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_group: str, _channel: str) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)
    hearing = ControlChannel()
    await listen(hearing, "ops")
    monkeypatch.setattr(layer, "group_discard", never)
    async with asyncio.timeout(SECONDS):
        await hearing.stop()
