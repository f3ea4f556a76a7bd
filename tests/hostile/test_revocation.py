"""Revoked access stops data within 10 s, in both directions, whatever revoked it; nothing is acked afterwards."""

from __future__ import annotations

import asyncio
import struct
import time
import uuid

import crc32c
import pytest
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.test import Client as Browser
from django.utils import timezone

from delivery import deliver, make_token
from delivery.models import Payload, Transfer
from delivery.transfers import cleanup
from tests.conformance.peer import Peer
from tests.hostile import policy
from tests.hostile.conftest import MIB, Open, Target
from tests.hostile.wire import BINARY, Wire, frame
from tests.launch.live import manage
from tests.stack import Person, Site

CHUNK = 65_536
CLOSED_SECONDS = 10.0


async def begin_upload(wire: Wire) -> str:
    """Offer 16 MiB and send one chunk; return the transfer."""
    transfer = str(uuid.uuid4())
    await wire.say("offer", transfer=transfer, handle=1, name="n", size=16 * MIB, chunk_size=CHUNK)
    await wire.hear("accept", handle=1)
    await send_chunk(wire, 0)
    await wire.hear("ack", handle=1, seq=1)
    return transfer


async def send_chunk(wire: Wire, seq: int) -> bool:
    data = bytes(CHUNK)
    return await wire.send(frame(BINARY, struct.pack(">III", 1, seq, crc32c.crc32c(data)) + data))


async def closes_while_sending(wire: Wire, reason: str = "login expired") -> None:
    """Go on sending until the server closes with 4401, in time; check that no ack came that late."""
    began = time.monotonic()
    seq = 1
    while wire.close is None:
        await send_chunk(wire, seq)
        seq += seq < 200
        assert time.monotonic() - began < CLOSED_SECONDS, "not closed"
        await asyncio.sleep(0.1)
    assert wire.close == (4401, reason)


def _change_password(pk: int) -> None:
    user = User.objects.get(pk=pk)
    user.set_password("another")
    user.save()


def _deactivate(pk: int) -> None:
    User.objects.filter(pk=pk).update(is_active=False)


def _bar(pk: int, group: str = policy.BARRED) -> None:
    User.objects.get(pk=pk).groups.add(Group.objects.get_or_create(name=group)[0])


def _delete(pk: int) -> None:
    User.objects.get(pk=pk).delete()


REVOKE = [_change_password, _deactivate, _bar, _delete]


@pytest.mark.usefixtures("unharmed")
async def test_an_upload_stops_whatever_revoked_its_login(open_wire: Open, site: Site) -> None:
    people = [await site.person() for _ in REVOKE]
    wires = [await open_wire(person) for person in people]
    transfers = await asyncio.gather(*map(begin_upload, wires))
    for person, revoke in zip(people, REVOKE, strict=True):
        await site.run(revoke, person.pk)
    await asyncio.gather(*map(closes_while_sending, wires))

    def position(transfer: str) -> int | None:
        return Transfer.objects.filter(key=transfer).values_list("position", flat=True).first()

    for wire, transfer in zip(wires, transfers, strict=True):
        heard = [message["seq"] for message in wire.heard if isinstance(message, dict) and message["type"] == "ack"]
        stored = await site.run(position, transfer)
        assert stored is None or max(heard, default=1) * CHUNK <= stored


async def test_a_policy_that_fails_over_one_user_lets_only_that_one_go(open_wire: Open, site: Site) -> None:
    barred, broken = await site.person(), await site.person()
    wires = [await open_wire(broken), await open_wire(barred)]
    await site.run(_bar, broken.pk, policy.BROKEN)
    await site.run(_bar, barred.pk)
    for wire in wires:
        assert (await wire.closes())[0] == 4401


async def test_an_expired_token_stops(open_wire: Open, site: Site) -> None:
    person = await site.person()
    token = await site.run(lambda: make_token(User.objects.get(pk=person.pk), expires=2))
    wire = await open_wire(Person(person.pk, token))
    await begin_upload(wire)
    await closes_while_sending(wire)


async def test_nothing_is_offered_or_completed_once_the_login_is_revoked(open_wire: Open, site: Site) -> None:
    """Both ask again, without waiting for the next look at all logins."""
    person = await site.person()
    offering, finishing = await open_wire(person), await open_wire(person)
    transfer = str(uuid.uuid4())
    await finishing.say("offer", transfer=transfer, handle=1, name="n", size=5, chunk_size=CHUNK)
    await finishing.hear("accept", handle=1)
    await asyncio.sleep(1.1)  # the second for which an answer holds
    await site.run(_change_password, person.pk)
    await offering.say("offer", transfer=str(uuid.uuid4()), handle=1, name="n", size=5, chunk_size=CHUNK)
    await finishing.send(frame(BINARY, struct.pack(">III", 1, 0, crc32c.crc32c(b"12345")) + b"12345"))
    await finishing.say("finish", handle=1, chunks=1, size=5)
    assert (await offering.closes())[0] == (await finishing.closes())[0] == 4401
    assert not [message for wire in (offering, finishing) for message in wire.heard if message["type"] == "done"]  # type: ignore[index]
    row = await site.upload_row(transfer)
    assert row.payload.state == "storing"


async def test_a_browser_that_logs_out_stops(open_wire: Open, site: Site, target: Target) -> None:
    person = await site.person()

    def log_in() -> Browser:
        browser = Browser()
        browser.force_login(User.objects.get(pk=person.pk))
        return browser

    browser = await site.run(log_in)
    cookie = browser.cookies[settings.SESSION_COOKIE_NAME].value
    headers = {"Origin": f"http://127.0.0.1:{target.port}", "Cookie": f"{settings.SESSION_COOKIE_NAME}={cookie}"}
    wire = await open_wire(None, hello=False, headers=headers)
    assert (await wire.hello())["user"] == person.address
    await begin_upload(wire)
    await site.run(browser.logout)
    await closes_while_sending(wire, "logged out")
    again = await open_wire(None, hello=False, headers=headers)
    await again.say("hello", client="c", max_message=65_548)
    assert await again.closes() == (4401, "login missing")


async def test_a_session_that_expires_is_not_called_logged_out(open_wire: Open, site: Site, target: Target) -> None:
    person = await site.person()

    def log_in() -> Browser:
        browser = Browser()
        browser.force_login(User.objects.get(pk=person.pk))
        return browser

    browser = await site.run(log_in)
    cookie = browser.cookies[settings.SESSION_COOKIE_NAME].value
    headers = {"Origin": f"http://127.0.0.1:{target.port}", "Cookie": f"{settings.SESSION_COOKIE_NAME}={cookie}"}
    wire = await open_wire(None, hello=False, headers=headers)
    await wire.hello()
    await site.run(Session.objects.filter(session_key=cookie).update, expire_date=timezone.now())
    assert await wire.closes() == (4401, "login expired")


async def test_deliveries_and_plain_sockets_stop_and_others_stay(open_wire: Open, site: Site, target: Target) -> None:
    person, stays = await site.person(), await open_wire(await site.person())
    payload = await site.run(_deliver, person.pk, 64 * MIB)
    wire = await open_wire(person, hello=False)
    await wire.hello(receive=True)
    found = await wire.hear("offer")
    answer = {"transfer": found["transfer"], "handle": found["handle"], "chunk_size": found["chunk_size"]}
    await wire.say("accept", **answer, seq=0, limit=2)
    async with Peer.open(target.ws_url, token=person.token, subprotocols=None) as plain:
        await plain.say_text("x")
        await plain.hear("stored")
        await site.run(_change_password, person.pk)
        assert (await plain.closes())[0] == (await wire.closes())[0] == 4401
    assert sum(isinstance(message, bytes) for message in wire.heard) <= 2
    await stays.settle()
    await site.run(payload.discard)


# -- forgetting --------------------------------------------------------------------------------------------------------


def _deliver(user: int, size: int, *more: int, owner: int | None = None) -> Payload:
    payload = deliver(bytes(size), to=list(User.objects.filter(pk__in=(user, *more))))
    if owner is not None:
        Payload.objects.filter(pk=payload.pk).update(owner=owner)
    return payload


@pytest.mark.parametrize("how", ["delete", "command"])
async def test_a_user_is_forgotten_and_others_keep_theirs(
    open_wire: Open, site: Site, target: Target, how: str
) -> None:
    person, other = await site.person(), await site.person()
    wire = await open_wire(person)
    transfer = await begin_upload(wire)
    uploading = (await site.upload_row(transfer)).payload_id
    theirs = await site.run(_deliver, person.pk, MIB)  # only for them: goes
    shared = await site.run(_deliver, person.pk, MIB, other.pk)  # for somebody else, too: stays
    sent = await site.run(_deliver, other.pk, MIB, owner=person.pk)  # from them, not yet received: goes
    assert target.stack.files_of(uploading)

    def forget() -> None:
        if how == "delete":
            User.objects.get(pk=person.pk).delete()
        else:
            _deactivate(person.pk)  # who is, may be forgotten all the same
            name = User.objects.get(pk=person.pk).username
            done = manage("delivery_forget", name, DELIVERY_VAR=str(target.stack.var))
            assert done.returncode == 0, done.stderr

    await site.run(forget)
    for gone in (uploading, theirs.pk, sent.pk):
        await site.until(lambda gone=gone: target.stack.files_of(gone) == [], what=f"end of the files of {gone}")
    assert target.stack.files_of(shared.pk)
    assert (await wire.closes())[0] == 4401
    receiver = await open_wire(other, hello=False)
    await receiver.hello(receive=True)
    assert (await receiver.hear("offer"))["payload"] == str(shared.pk)
    await site.run(shared.discard)


async def test_files_stay_where_forgetting_is_rolled_back(site: Site, target: Target) -> None:
    from django.db import transaction

    person = await site.person()
    payload = await site.run(_deliver, person.pk, MIB)

    def forget_and_fail() -> None:
        with transaction.atomic():
            cleanup.forget_user(person.pk, everything=True)
            transaction.set_rollback(True)

    await site.run(forget_and_fail)
    assert target.stack.files_of(payload.pk)
    assert (await site.payload(payload.pk)).state == "complete"
    await site.run(payload.discard)
