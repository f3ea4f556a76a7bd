"""Lists and detail pages: what they show, whom they let in, how many queries they take."""

from __future__ import annotations

import datetime
import uuid

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from delivery.admin import base
from delivery.models import (
    Address,
    ClientPosition,
    ClientState,
    Direction,
    Event,
    Notice,
    Payload,
    PayloadState,
    Segment,
    Transfer,
    TransferState,
    WaitingFor,
)
from tests.admin.rows import HOSTILE, MIB, RTL_OVERRIDE, make_payload, make_transfer, make_user

pytestmark = pytest.mark.django_db

LISTS = ["admin:delivery_payload_changelist", "admin:delivery_transfer_changelist", "admin:delivery_notice_changelist"]


def change(row):
    return reverse(f"admin:delivery_{row._meta.model_name}_change", args=(row.pk,))


@pytest.fixture
def upload(alice):
    payload = make_payload(owner=alice)
    return make_transfer(
        payload,
        alice,
        position=3 * MIB,
        waiting_for=WaitingFor.WORKER,
        last_close_code=1009,
        worker="celery@host",
        client="laptop",
        lease=2,
    )


@pytest.fixture
def delivered(alice, bob):
    payload = make_payload(owner=alice, state=PayloadState.COMPLETE, completed_at=timezone.now(), sha256="ab" * 32)
    return make_transfer(payload, bob, direction=Direction.DELIVERY, position=MIB)


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


def test_list_of_payloads_shows_owner_size_state_position_and_deliveries(admin_client, upload, delivered):
    text = text_of(admin_client.get(reverse(LISTS[0])))
    assert "alice" in text
    assert "4.0 MiB" in text
    assert '<span class="delivery-badge delivery-storing">being stored</span>' in text
    assert "75 % of 4.0 MiB" in text
    assert "100 % of 4.0 MiB" in text
    assert "0 of 1" in text


def test_list_of_transfers_shows_what_it_waits_for_and_why_the_connection_ended(admin_client, upload):
    text = text_of(admin_client.get(reverse(LISTS[1])))
    for shown in ("scan.tif", "alice", "75 % of 4.0 MiB", "a worker", "1009 message too big", "celery@host"):
        assert shown in text


def test_detail_of_a_payload_shows_recipients_transfers_storage_and_timeline(admin_client, upload, delivered):
    payload = delivered.payload
    Address.objects.create(payload=payload, address="group:ops")
    Segment.objects.create(payload=payload, storage="delivery", name="x", offset=0, length=MIB)
    Segment.objects.create(payload=payload, storage="delivery", name="y", offset=MIB, length=3 * MIB)
    Event.objects.create(at=timezone.now(), payload=payload, kind="complete", detail={"size": 4 * MIB})
    Event.objects.create(at=timezone.now(), transfer=delivered, kind="detached", detail={"code": 1001})
    text = text_of(admin_client.get(change(payload)))
    for shown in ("4.0 MiB (4,194,304 bytes)", "group:ops", "bob", "25 % of 4.0 MiB", "size 4.0 MiB"):
        assert shown in text
    assert "connection ended" in text
    assert "code 1001 going away" in text
    assert "ours: deleted with the payload" in text
    assert "<td>2</td>" in text


def test_detail_of_a_transfer_shows_the_close_code_with_its_meaning(admin_client, upload):
    Event.objects.create(at=timezone.now(), transfer=upload, payload=upload.payload, kind="begun", detail={})
    Event.objects.create(at=timezone.now(), payload=upload.payload, kind="storage_unavailable", detail={"offset": 0})
    text = text_of(admin_client.get(change(upload)))
    for shown in (
        "1009 message too big",
        "makes its chunks smaller",
        "laptop",
        "upload begun",
        "storage did not answer",
    ):
        assert shown in text


def test_detail_of_a_delivery_shows_each_client_with_its_position(admin_client, delivered):
    for client, position in (("phone", MIB), ("laptop", 4 * MIB)):
        ClientPosition.objects.create(
            transfer=delivered, client=client, position=position, state=ClientState.OPEN, updated_at=timezone.now()
        )
    text = text_of(admin_client.get(change(delivered)))
    for shown in ("phone", "25 % of 4.0 MiB", "laptop", "100 % of 4.0 MiB"):
        assert shown in text


def test_failures_are_told_in_words(admin_client, alice):
    payload = make_payload(state=PayloadState.FAILED, failure="digest")
    transfer = make_transfer(payload, alice, state=TransferState.FAILED, failure="digest")
    for row in (payload, transfer):
        assert "digest: the SHA-256 of what was stored differs" in text_of(admin_client.get(change(row)))


def test_handlers_that_fail_show_with_their_error(admin_client, delivered):
    for error in ("", "ZeroDivisionError"):
        notice = Notice.objects.create(
            signal="payload_stored",
            payload=delivered.payload,
            transfer=delivered,
            attempts=7,
            error=error,
            due_at=timezone.now(),
            handled=["site.handlers.first"],
        )
    for row in (delivered, delivered.payload):
        text = text_of(admin_client.get(change(row)))
        assert "ZeroDivisionError" in text
        assert "payload_stored" in text
    assert "site.handlers.first" in text_of(admin_client.get(change(notice)))
    failed = admin_client.get(reverse(LISTS[2]), {"attempt": "failed", "signal": "payload_stored"})
    assert [row.pk for row in failed.context["cl"].result_list] == [notice.pk]
    waiting = admin_client.get(reverse(LISTS[2]), {"attempt": "none"})
    assert [row.error for row in waiting.context["cl"].result_list] == [""]


def test_an_inline_payload_lies_in_its_row_and_is_not_loaded(admin_client):
    payload = make_payload(inline=b"\x00secret bytes", size=13, meta={"a": "1"}, state=PayloadState.COMPLETE)
    for url in (change(payload), reverse(LISTS[0])):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            text = text_of(admin_client.get(url))
        assert not [query for query in queries if '."inline",' in query["sql"]]
    text = text_of(admin_client.get(change(payload)))
    assert "in its database row" in text
    assert "secret bytes" not in text
    assert "{&quot;a&quot;: &quot;1&quot;}" in text


def test_a_payload_whose_owner_and_times_are_unknown_still_shows(admin_client):
    payload = make_payload(owner=None, name="", size=None)
    text = text_of(admin_client.get(change(payload)))
    assert str(payload.pk) in text
    assert "not known yet" in text
    assert "None: it is for the site itself." in text
    text_of(admin_client.get(reverse(LISTS[0])))


def test_hostile_text_is_escaped_and_made_visible_everywhere(admin_client):
    mallory = make_user("mallory")
    get_user_model().objects.filter(pk=mallory.pk).update(username=HOSTILE)
    payload = make_payload(
        owner=mallory, name=HOSTILE, content_type=HOSTILE, meta={HOSTILE: HOSTILE}, failure=HOSTILE[:64]
    )
    transfer = make_transfer(
        payload, mallory, direction=Direction.DELIVERY, worker=HOSTILE, client=HOSTILE[:64], failure=HOSTILE[:64],
        session=HOSTILE[:64],
    )  # fmt: skip
    now = timezone.now()
    Address.objects.create(payload=payload, address=f"group:{HOSTILE}")
    Segment.objects.create(payload=payload, storage=HOSTILE[:64], name=HOSTILE, offset=0, length=1)
    ClientPosition.objects.create(transfer=transfer, client=HOSTILE[:64], updated_at=now)
    Event.objects.create(at=now, transfer=transfer, payload=payload, kind=HOSTILE[:32], detail={HOSTILE: HOSTILE})
    notice = Notice.objects.create(
        signal=HOSTILE[:32], payload=payload, transfer=transfer, error=HOSTILE, due_at=now, handled=[HOSTILE]
    )
    pages = [*map(reverse, LISTS), change(payload), change(transfer), change(notice)]
    for text in [text_of(admin_client.get(page)) for page in pages]:
        assert "<script>alert" not in text
        assert RTL_OVERRIDE not in text
        assert "\r\nSet-Cookie" not in text
        assert "[U+202E]" in text


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_closed_to_staff_without_permission(log_in, name):
    assert log_in().get(reverse(name)).status_code == 403


def test_nothing_can_be_added_changed_or_deleted(admin_client, upload):
    url = change(upload)
    assert admin_client.post(url, {"state": "done"}).status_code == 403
    for page in ("add/", f"{upload.pk}/delete/", f"{upload.pk}/history/"):
        assert admin_client.get(reverse(LISTS[1]) + page).status_code == 404
    text = text_of(admin_client.get(url))
    assert 'name="_save"' not in text
    assert "deletelink" not in text
    assert "delete_selected" not in text_of(admin_client.get(reverse(LISTS[1])))
    upload.refresh_from_db()
    assert upload.state == TransferState.LIVE


def test_a_user_with_transfers_can_still_be_deleted(admin_client, settings, upload):
    """Django's admin asks for the permission to delete what goes along; a flat no would keep the user for ever."""
    from django.contrib.admin import site

    if not site.is_registered(get_user_model()):
        pytest.skip("the site has no admin of users")
    url = reverse("admin:auth_user_delete", args=(upload.user.pk,))
    assert "permission to delete the following" not in text_of(admin_client.get(url))
    assert admin_client.post(url, {"post": "yes"}).status_code == 302
    assert not Transfer.objects.filter(pk=upload.pk).exists()


def test_a_missing_row_leads_back_with_a_message(admin_client):
    url = reverse("admin:delivery_payload_change", args=(uuid.uuid4(),))
    assert admin_client.get(url).status_code == 302


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("scan", True),
        ("SCAN.t", True),
        ("other", False),
        ("alice", True),
        ("bob", False),
        ("group:ops", True),
        ("group:op", False),
        ("  ", True),
        ("'%_", False),
    ],
)
def test_payloads_are_searched_by_name_owner_and_address(admin_client, upload, what, found):
    Address.objects.create(payload=upload.payload, address="group:ops")
    results = admin_client.get(reverse(LISTS[0]), {"q": what}).context["cl"].result_list
    assert [row.pk for row in results] == ([upload.payload.pk] if found else [])


def test_every_id_that_an_operator_may_have_at_hand_finds_its_row(admin_client, upload):
    make_transfer(make_payload(), upload.user)
    for wanted in (upload.pk, upload.key, upload.payload.pk, str(upload.pk).upper()):
        for name, row in ((LISTS[0], upload.payload), (LISTS[1], upload)):
            results = admin_client.get(reverse(name), {"q": str(wanted)}).context["cl"].result_list
            assert [found.pk for found in results] == [row.pk]


def test_transfers_are_searched_by_name_and_user(admin_client, upload):
    for what, count in (("scan", 1), ("alice", 1), ("bob", 0)):
        assert len(admin_client.get(reverse(LISTS[1]), {"q": what}).context["cl"].result_list) == count


def test_notices_are_searched_by_error_and_payload(admin_client, upload):
    Notice.objects.create(signal="payload_stored", payload=upload.payload, error="KeyError", due_at=timezone.now())
    for what, count in (("keyerror", 1), ("ValueError", 0), (str(upload.payload.pk), 1), (str(uuid.uuid4()), 0)):
        assert len(admin_client.get(reverse(LISTS[2]), {"q": what}).context["cl"].result_list) == count


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"state__exact": "live"}, 1),
        ({"state__exact": "done"}, 0),
        ({"direction__exact": "upload"}, 1),
        ({"direction__exact": "delivery"}, 0),
        ({"waiting_for__exact": "worker"}, 1),
        ({"close_code": "1009"}, 1),
        ({"close_code": "1001"}, 0),
        ({"close_code": "x"}, 1),
    ],
)
def test_transfers_are_filtered(admin_client, upload, query, count):
    assert len(admin_client.get(reverse(LISTS[1]), query).context["cl"].result_list) == count


def test_lists_are_narrowed_down_by_date(admin_client, upload):
    Payload.objects.update(created_at=datetime.datetime(2020, 2, 3, tzinfo=datetime.UTC))
    for year, count in ((2020, 1), (2021, 0)):
        results = admin_client.get(reverse(LISTS[0]), {"created_at__year": year}).context["cl"].result_list
        assert len(results) == count


def many(alice, count):
    for number in range(count):
        payload = make_payload(owner=make_user(f"user{number}-{uuid.uuid4()}"), name=f"{number}.bin")
        make_transfer(payload, alice)
        recipient = make_user(f"to{number}-{uuid.uuid4()}")
        delivery = make_transfer(payload, recipient, direction=Direction.DELIVERY)
        now = timezone.now()
        ClientPosition.objects.create(transfer=delivery, client="c", updated_at=now)
        Notice.objects.create(signal="payload_stored", payload=payload, due_at=now)


@pytest.mark.parametrize("name", LISTS)
def test_a_longer_list_takes_no_more_queries(admin_client, alice, name):
    many(alice, 1)
    with CaptureQueriesContext(connection) as few:
        admin_client.get(reverse(name))
    many(alice, 12)
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(reverse(name))
    assert len(queries) == len(few)
    # Session, user, count, rows; two more for the span of dates, where the list has dates.
    assert len(queries) <= 6


def test_a_payload_with_many_recipients_takes_no_more_queries(admin_client, delivered):
    payload = delivered.payload
    with CaptureQueriesContext(connection) as few:
        admin_client.get(change(payload))
    for number in range(150):
        user = make_user(f"r{number}") if number < 30 else None
        if user:
            make_transfer(payload, user, direction=Direction.DELIVERY)
        Address.objects.create(payload=payload, address=f"group:{number}")
        Segment.objects.create(payload=payload, storage="delivery", name="x", offset=number, length=1)
        Event.objects.create(at=timezone.now(), payload=payload, kind="resumed", detail={"position": number})
    with CaptureQueriesContext(connection) as queries:
        text = text_of(admin_client.get(change(payload)))
    assert len(queries) == len(few)
    assert len(queries) <= 9  # session, user, row, notices, addresses, transfers, segments, events
    assert "There are more addresses." in text


def test_a_long_timeline_is_cut_and_says_so(admin_client, upload):
    Event.objects.bulk_create(
        Event(at=timezone.now(), transfer=upload, kind="resumed", detail={"lease": number}) for number in range(205)
    )
    text = text_of(admin_client.get(change(upload)))
    assert "Older events are not shown." in text
    assert "lease 204<" in text
    assert "lease 0<" not in text


def test_a_huge_table_is_not_counted_to_its_end(admin_client, alice, monkeypatch):
    monkeypatch.setattr(base, "COUNTED_ROWS", 3)
    many(alice, 5)
    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(reverse(LISTS[0]))
    assert response.context["cl"].result_count == 3
    counts = [
        query["sql"] for query in queries if "COUNT(*)" in query["sql"] and "AS" not in query["sql"].split("COUNT")[0]
    ]
    assert counts
    assert all("LIMIT 3" in sql for sql in counts)
