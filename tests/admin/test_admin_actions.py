"""Cancel and expire: asked for, confirmed by POST, allowed by permissions of their own, done by the library alone."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse

from delivery import transfers
from delivery.admin import actions
from delivery.errors import BufferUnavailable
from delivery.models import Direction, Event, Payload, PayloadState, Transfer, TransferState
from tests.admin.rows import HOSTILE, RTL_OVERRIDE, make_payload, make_transfer, make_user

pytestmark = pytest.mark.django_db

PAYLOADS = "admin:delivery_payload_changelist"
TRANSFERS = "admin:delivery_transfer_changelist"


def post(client, name, action, *rows, confirmed=True, **more):
    data = {"action": action, ACTION_CHECKBOX_NAME: [str(row.pk) for row in rows], **more}
    if confirmed:
        data["confirmed"] = "yes"
    return client.post(reverse(name), data)


def said(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


@pytest.fixture
def payload(alice):
    payload = make_payload(owner=alice)
    make_transfer(payload, alice)
    return payload


def test_an_action_asks_before_it_does_anything(admin_client, payload):
    response = post(admin_client, PAYLOADS, "cancel_payloads", payload, confirmed=False)
    text = response.content.decode()
    assert response.status_code == 200
    assert "Cancel these payloads?" in text
    assert "scan.tif" in text
    assert f'name="{ACTION_CHECKBOX_NAME}" value="{payload.pk}"' in text
    payload.refresh_from_db()
    assert payload.state == PayloadState.STORING


def test_the_confirmation_page_posts_what_the_action_needs(admin_client, payload):
    """Its own hidden fields, sent back as a browser would, carry the action out."""
    text = post(admin_client, PAYLOADS, "cancel_payloads", payload, confirmed=False).content.decode()
    for field in ('name="action" value="cancel_payloads"', 'name="confirmed" value="yes"', "csrfmiddlewaretoken"):
        assert field in text


@pytest.mark.django_db(transaction=True)  # what happened is noted when it has committed
def test_cancelling_a_payload_ends_it_and_its_transfers(admin_client, admin_user, payload):
    response = post(admin_client, PAYLOADS, "cancel_payloads", payload)
    assert response.status_code == 302
    assert said(response) == ["1 payload cancelled."]
    payload.refresh_from_db()
    assert payload.state == PayloadState.CANCELLED
    assert payload.transfers.get().state == TransferState.CANCELLED
    event = Event.objects.get(payload=payload)
    assert (event.kind, event.detail["by"]) == ("cancelled", f"user:{admin_user.pk}")


def test_expiring_a_payload(admin_client, payload):
    response = post(admin_client, PAYLOADS, "expire_payloads", payload)
    assert said(response) == ["1 payload expired."]
    payload.refresh_from_db()
    assert payload.state == PayloadState.EXPIRED


def test_cancelling_a_delivery_leaves_the_payload_to_the_others(admin_client, alice, bob):
    payload = make_payload(state=PayloadState.COMPLETE)
    first = make_transfer(payload, alice, direction=Direction.DELIVERY)
    second = make_transfer(payload, bob, direction=Direction.DELIVERY)
    response = post(admin_client, TRANSFERS, "cancel_transfers", first)
    assert said(response) == ["1 transfer cancelled."]
    states = {row.pk: row.state for row in Transfer.objects.all()}
    assert states == {first.pk: TransferState.CANCELLED, second.pk: TransferState.LIVE}
    assert Payload.objects.get().state == PayloadState.COMPLETE


def test_messages_say_how_many_and_which_could_not(admin_client, payload):
    over = make_payload(name="old.bin", state=PayloadState.EXPIRED)
    response = post(admin_client, PAYLOADS, "cancel_payloads", payload, over)
    assert said(response) == ["1 payload cancelled.", f"1 had already ended: old.bin ({over.pk})"]


def test_messages_name_only_the_first_of_many(admin_client):
    over = [make_payload(name="", state=PayloadState.FAILED) for _ in range(12)]
    (message,) = said(post(admin_client, PAYLOADS, "cancel_payloads", *over))
    assert message.startswith("12 had already ended: ")
    assert message.endswith(", …")
    assert message.count("-") == 4 * actions.NAMED  # ids alone, where there are no names


def test_one_that_fails_does_not_keep_the_others(admin_client, payload, monkeypatch):
    broken = make_payload(name="broken.bin")

    def cancel(payload_id: uuid.UUID, *, by: str) -> bool:
        if payload_id == broken.pk:
            raise BufferUnavailable("Redis is away")
        return True

    monkeypatch.setattr(transfers, "cancel_payload", cancel)
    response = post(admin_client, PAYLOADS, "cancel_payloads", broken, payload)
    assert said(response) == ["1 payload cancelled.", f"1 failed, try again: broken.bin ({broken.pk})"]


@pytest.mark.parametrize(
    ("permissions", "offered"),
    [
        (["view_payload"], []),
        (["view_payload", "cancel_payload"], ["cancel_payloads"]),
        (["view_payload", "expire_payload"], ["expire_payloads"]),
        (["view_payload", "revive_payload"], ["revive_payloads"]),
        (["view_payload", "cancel_transfer"], []),
        (["view_payload", "change_payload", "delete_payload"], []),
    ],
)
def test_each_action_needs_its_own_permission(log_in, payload, permissions, offered):
    client = log_in(*permissions)
    text = client.get(reverse(PAYLOADS)).content.decode()
    detail = client.get(reverse("admin:delivery_payload_change", args=(payload.pk,))).content.decode()
    for action in ("cancel_payloads", "expire_payloads"):
        assert (f'value="{action}"' in text) is (action in offered)
        assert (f'value="{action}"' in detail) is (action in offered)
        if action not in offered:
            post(client, PAYLOADS, action, payload)
            payload.refresh_from_db()
            assert payload.state == PayloadState.STORING


def test_permission_to_act_is_no_permission_to_look(log_in, payload):
    client = log_in("cancel_payload")
    assert post(client, PAYLOADS, "cancel_payloads", payload).status_code == 403
    payload.refresh_from_db()
    assert payload.state == PayloadState.STORING


def test_cancelling_transfers_needs_its_own_permission(log_in, payload):
    row = payload.transfers.get()
    client = log_in("view_transfer", "cancel_payload")
    post(client, TRANSFERS, "cancel_transfers", row)
    row.refresh_from_db()
    assert row.state == TransferState.LIVE
    assert 'value="cancel_transfers"' not in client.get(reverse(TRANSFERS)).content.decode()


def test_an_action_is_never_done_by_get(admin_client, payload):
    query = {"action": "cancel_payloads", ACTION_CHECKBOX_NAME: str(payload.pk), "confirmed": "yes"}
    admin_client.get(reverse(PAYLOADS), query)
    payload.refresh_from_db()
    assert payload.state == PayloadState.STORING


def test_an_action_needs_the_csrf_token(admin_user, payload):
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert post(client, PAYLOADS, "cancel_payloads", payload).status_code == 403


def test_the_detail_page_leads_to_the_confirmation_page(admin_client, payload):
    row = payload.transfers.get()
    text = admin_client.get(reverse("admin:delivery_transfer_change", args=(row.pk,))).content.decode()
    assert f'<form method="post" action="{reverse(TRANSFERS)}">' in text
    assert 'name="action" value="cancel_transfers"' in text
    assert f'name="_selected_action" value="{row.pk}"' in text
    asked = post(admin_client, TRANSFERS, "cancel_transfers", row, confirmed=False)
    assert "Cancel these transfers?" in asked.content.decode()


def test_what_has_ended_offers_nothing_to_do(admin_client, payload):
    row = payload.transfers.get()
    post(admin_client, PAYLOADS, "cancel_payloads", payload)
    for kind, over in (("payload", payload), ("transfer", row)):
        text = admin_client.get(reverse(f"admin:delivery_{kind}_change", args=(over.pk,))).content.decode()
        assert "_selected_action" not in text


def test_only_so_many_at_once(admin_client, monkeypatch):
    monkeypatch.setattr(actions, "ROWS_AT_ONCE", 2)
    rows = [make_payload() for _ in range(3)]
    response = post(admin_client, PAYLOADS, "cancel_payloads", *rows[:1], index="0", select_across="1", confirmed=False)
    assert said(response) == ["Select at most 2 at once."]
    assert set(Payload.objects.values_list("state", flat=True)) == {PayloadState.STORING}


def test_hostile_names_are_harmless_in_questions_and_messages(admin_client):
    mallory = make_user("mallory")
    live = make_payload(name=HOSTILE, owner=mallory)
    over = make_payload(name=HOSTILE, owner=mallory, state=PayloadState.EXPIRED)
    asked = post(admin_client, PAYLOADS, "cancel_payloads", live, over, confirmed=False).content.decode()
    response = post(admin_client, PAYLOADS, "cancel_payloads", live, over)
    shown = admin_client.get(response.url).content.decode()
    for text in (asked, shown):
        assert "<script>alert" not in text
        assert RTL_OVERRIDE not in text
        assert "&lt;script&gt;" in text
