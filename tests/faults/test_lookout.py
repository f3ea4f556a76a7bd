"""A control event that the channel layer loses delays a delivery, and no more."""

from __future__ import annotations

import asyncio

import pytest

from delivery import deliver, notify
from delivery.client import connect
from tests.stack import Site, Stack


async def test_what_nobody_was_told_of_is_offered_all_the_same(
    site: Site, shipped: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation found recipients that stayed connected, and were offered nothing until they came again."""
    person = await site.person()

    def in_silence() -> None:
        from django.contrib.auth.models import User

        with monkeypatch.context() as patched:
            patched.setattr(notify, "tell_group", lambda *_args, **_detail: None)
            deliver(b"told to nobody", to=User.objects.get(pk=person.pk), name="silent.txt")

    async with connect(shipped.ws_url, person.token, receive=True) as client, asyncio.timeout(25):
        await site.run(in_silence)
        async for incoming in client.deliveries():
            assert await incoming.read() == b"told to nobody"
            break
