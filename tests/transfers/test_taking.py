"""Accepts of many deliveries together are answered as each would be alone."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from delivery.errors import Refused
from delivery.models import ClientPosition, ClientState, Payload, PayloadState, Transfer, TransferState
from delivery.transfers import deliveries, outcomes
from delivery.transfers.deliveries import MOST_CLIENTS, AcceptedDelivery, accept
from delivery.transfers.holders import Holder

pytestmark = pytest.mark.django_db

GONE = uuid.uuid4()


@pytest.fixture
def bob() -> User:
    return User.objects.create_user("bob")


def delivery(bob: User, state: TransferState = TransferState.LIVE, **payload: Any) -> Transfer:
    complete = {"state": PayloadState.COMPLETE, "size": 5, "sha256": "0" * 64, "completed_at": timezone.now()}
    row = outcomes.delivery_of(Payload.objects.create(**complete | payload), bob.pk)
    row.state = state
    row.save(force_insert=True)
    return row


def holder(client: str = "laptop", order: int = 5, channel: str = "new") -> Holder:
    return Holder(0, client, "session", order, channel)


def held(row: Transfer, **fields: Any) -> None:
    usual = {"client": "laptop", "channel": "old", "session_order": 4, "updated_at": timezone.now()}
    ClientPosition.objects.create(transfer=row, **usual | fields)


def answers(batch: list[AcceptedDelivery]) -> list[str]:
    return [f"refused: {one.code}" if isinstance(one, Refused) else one for one in accept(batch)]


def test_each_is_answered_for_itself(bob: User) -> None:
    past = timezone.now() - datetime.timedelta(seconds=1)
    fresh, older, newer, declined = (delivery(bob) for _ in range(4))
    held(older)
    held(newer, session_order=6)
    held(declined, state=ClientState.DECLINED, channel="")
    rows = [
        (fresh, ""),
        (older, "old"),
        (newer, "refused: taken_over"),
        (declined, "refused: cancelled"),
        (delivery(bob, TransferState.EXPIRED), "refused: expired"),
        (delivery(bob, TransferState.CANCELLED), "refused: cancelled"),
        (delivery(bob, expires_at=past), "refused: expired"),
        (delivery(bob, TransferState.DONE), ""),
    ]
    batch = [AcceptedDelivery(row.pk, holder(), 3) for row, _ in rows] + [AcceptedDelivery(GONE, holder(), 0)]
    assert answers(batch) == [expected for _, expected in rows] + ["refused: expired"]
    mine = ClientPosition.objects.get(transfer=older)
    assert (mine.state, mine.position, mine.session_order, mine.channel) == (ClientState.OPEN, 3, 5, "new")
    assert ClientPosition.objects.get(transfer=newer).channel == "old"
    assert ClientPosition.objects.get(transfer=fresh).position == 3


def test_two_connections_of_one_client_in_one_batch(bob: User) -> None:
    row = delivery(bob)
    first, second = holder(order=1, channel="first"), holder(order=2, channel="second")
    assert answers([AcceptedDelivery(row.pk, first, 0), AcceptedDelivery(row.pk, second, 1)]) == ["", "first"]
    assert answers([AcceptedDelivery(row.pk, first, 2)]) == ["refused: taken_over"]
    mine = ClientPosition.objects.get(transfer=row)
    assert (mine.channel, mine.position) == ("second", 1)


def test_the_latest_clients_of_each_are_kept(bob: User) -> None:
    row, other = delivery(bob), delivery(bob)
    held(other)
    for number in range(MOST_CLIENTS + 3):
        accept(
            [
                AcceptedDelivery(row.pk, holder(client=f"c{number}", channel=f"c{number}"), 0),
                AcceptedDelivery(other.pk, holder(), 0),
            ]
        )
    kept = set(row.clients.values_list("client", flat=True))
    assert kept == {f"c{number}" for number in range(3, MOST_CLIENTS + 3)}
    assert other.clients.count() == 1


def test_clients_that_decline_or_finish_are_forgotten_as_well(bob: User) -> None:
    row = delivery(bob)
    for number in range(MOST_CLIENTS + 4):
        deliveries.decline(row.pk, f"declines-{number}")
    assert row.clients.count() == MOST_CLIENTS
    for number in range(MOST_CLIENTS + 4):
        deliveries.finish([deliveries.Received(row.pk, f"finishes-{number}", 5)])
    assert row.clients.count() == MOST_CLIENTS
