"""How far clients are, noted for many at once: it moves what is on its way, and nothing that has ended."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from delivery.models import ClientPosition, ClientState, TransferState
from delivery.transfers import deliveries
from tests.transfers.test_taking import delivery

pytestmark = pytest.mark.django_db


@pytest.fixture
def bob() -> User:
    return User.objects.create_user("bob")


def test_positions_of_all_are_noted_and_those_of_their_transfers_only_rise(bob: User) -> None:
    ahead, behind = delivery(bob), delivery(bob)
    for row in (ahead, behind):
        for client in ("laptop", "phone"):
            ClientPosition.objects.create(transfer=row, client=client, updated_at=timezone.now())
    deliveries.note_positions({(ahead.pk, "laptop"): 4, (ahead.pk, "phone"): 2, (behind.pk, "phone"): 1})
    noted = ClientPosition.objects.values_list("transfer", "client", "position")
    expected = {(ahead.pk, "laptop", 4), (ahead.pk, "phone", 2), (behind.pk, "laptop", 0), (behind.pk, "phone", 1)}
    assert set(noted) == expected
    ahead.refresh_from_db()
    behind.refresh_from_db()
    assert (ahead.position, behind.position) == (4, 1)


@pytest.mark.parametrize("state", [ClientState.DONE, ClientState.DECLINED])
def test_a_client_that_has_ended_stays_where_it_was(bob: User, state: ClientState) -> None:
    row = delivery(bob, TransferState.DONE)
    ClientPosition.objects.create(transfer=row, client="laptop", state=state, position=5, updated_at=timezone.now())
    deliveries.note_positions({(row.pk, "laptop"): 3})
    assert ClientPosition.objects.get(transfer=row).position == 5
    row.refresh_from_db()
    assert (row.state, row.position) == ("done", 0)
