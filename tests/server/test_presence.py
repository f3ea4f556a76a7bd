"""What arrives is handed to who is here, and told to other processes, whether or not any are known to live."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import UUID

import pytest

from delivery import notify
from delivery.server.presence import Presence
from delivery.transfers.deliveries import Waiting
from delivery.transfers.inline import Arrival

ALICE, BOB = "user:1", "user:2"


class Recipient:
    """A connection that notes for what it is to look."""

    client, over, receiving = "client", False, False

    def __init__(self) -> None:
        self.looked: list[str] = []

    def arrived(self, address: str, waiting: Waiting | None) -> None:
        self.looked.append(address)

    def staged(self, payload: UUID, worker: str) -> None:
        raise AssertionError("nothing is staged here")


class Database:
    """Finds that something has arrived for the addresses that are named."""

    def __init__(self, *addresses: str) -> None:
        self.found = set(addresses)

    async def db(self, function: Any, wanted: set[str], since: Any) -> set[str]:
        return self.found & wanted


class Alone:
    """Neighbours of a process that knows of none."""

    def alone(self, address: str) -> bool:
        return True


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    async def atell_group(address: str, event: str, /, **detail: Any) -> None:
        found.append(address)

    monkeypatch.setattr(notify, "atell_group", atell_group)
    return found


def presence(*found: str) -> Presence:
    return Presence(cast(Any, Database(*found)), "this process")


async def test_without_neighbours_other_processes_are_told_of_everything(told: list[str]) -> None:
    here, one = presence(), Recipient()
    here.join(cast(Any, one), [ALICE])
    await here.announced()  # there is nothing to wait for
    here.tell([Arrival(ALICE), Arrival(BOB)])
    await here.stop()
    assert (one.looked, told) == ([ALICE], [ALICE, BOB])


async def test_while_no_neighbour_lives_nobody_else_is_told(told: list[str]) -> None:
    here, one = presence(), Recipient()
    here.neighbours = cast(Any, Alone())
    here.join(cast(Any, one), [ALICE])
    here.tell([Arrival(ALICE), Arrival(BOB)])
    await here.stop()
    assert (one.looked, told) == ([ALICE], [])


async def test_what_nobody_was_told_of_is_found_in_the_rows() -> None:
    here, one, other, gone = presence(ALICE), Recipient(), Recipient(), Recipient()
    gone.over = True
    for recipient, address in ((one, ALICE), (other, BOB), (gone, ALICE)):
        here.join(cast(Any, recipient), [address])
    await here.look()
    assert (one.looked, other.looked, gone.looked) == ([ALICE], [], [])


async def test_an_event_of_this_very_process_is_no_news() -> None:
    here, one = presence(), Recipient()
    here.on_event(cast(Any, one), {"address": ALICE, "origin": "this process", "offers": []})
    here.on_event(cast(Any, one), {"address": ALICE, "origin": "another", "offers": []})
    assert one.looked == [ALICE]


async def test_who_left_is_handed_nothing(told: list[str]) -> None:
    here, one = presence(), Recipient()
    here.join(cast(Any, one), [ALICE])
    here.leave(cast(Any, one))
    here.tell([Arrival(ALICE)])
    await asyncio.sleep(0)
    await here.stop()
    assert one.looked == []
