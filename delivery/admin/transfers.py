"""Transfers: one payload over one leg, how far it is and what it waits for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from delivery import transfers
from delivery.admin import cells, sections, words
from delivery.admin.actions import ConfirmedAction, Wording
from delivery.admin.base import OperatorAdmin, column, moment
from delivery.admin.filters import LastCloseCodeFilter
from delivery.models import Direction, Event, Notice, Transfer, TransferState


def _cancel(transfer_id: uuid.UUID, *, by: str) -> bool:
    return transfers.cancel_transfer(transfer_id, by=by)


CANCEL = ConfirmedAction(
    "cancel_transfers",
    permission="cancel",
    call=_cancel,
    wording=Wording(
        title=_("Cancel selected transfers"),
        button=_("Cancel this transfer"),
        question=_("Cancel these transfers?"),
        consequence=_(
            "A delivery ends for its user alone. An upload ends with its payload: what is stored of it is deleted and "
            "nobody can receive it. Clients that are connected are told now. This cannot be undone."
        ),
        confirm=_("Yes, cancel them"),
        done=lambda count: ngettext("%d transfer cancelled.", "%d transfers cancelled.", count) % count,
    ),
)


def _state(transfer: Transfer) -> str:
    return cells.badge(transfer.state, transfer.get_state_display())


def _waiting_for(transfer: Transfer) -> Any:
    return transfer.get_waiting_for_display() if transfer.waiting_for else cells.NOTHING


def _payload_link(transfer: Transfer) -> str:
    return cells.link(transfer.payload, cells.name(str(transfer.payload), limit=255))


@admin.register(Transfer)
class TransferAdmin(OperatorAdmin):
    payload_name = column(_("payload"), lambda transfer: cells.name(str(transfer.payload)))
    payload_link = column(_("payload"), _payload_link)
    user_name = column(_("user"), lambda transfer: cells.person(transfer.user))
    size = column(_("size"), lambda transfer: cells.exact_size(transfer.payload.size))
    state_badge = column(_("state"), _state, order="state")
    failure_text = column(_("failure"), lambda transfer: words.failure(transfer.failure) or cells.NOTHING)
    position_bar = column(_("position"), lambda transfer: cells.bar(transfer.position, transfer.payload.size))
    waits_for = column(_("waiting for"), _waiting_for)
    close_code = column(_("last close code"), lambda transfer: cells.close_code(transfer.last_close_code))
    close_code_explained = column(
        _("last close code"), lambda transfer: cells.close_code_with_meaning(transfer.last_close_code)
    )
    moved_by = column(_("worker"), lambda transfer: cells.name(transfer.worker))
    held_by = column(_("held by client"), lambda transfer: cells.name(transfer.client))
    session_name = column(_("session"), lambda transfer: cells.name(transfer.session))
    wire_id = column(_("id on the wire"), lambda transfer: str(transfer.key))
    writer = column(_("lease"), lambda transfer: str(transfer.lease))
    created = moment(_("created"), "created_at")
    progressed = moment(_("last progress"), "progressed_at")
    ended = moment(_("ended"), "ended_at")
    expires = moment(_("expires"), "expires_at")

    # The size stands beside the bar.
    list_display = (
        "payload_name", "state_badge", "position_bar", "direction", "user_name", "waits_for", "close_code", "moved_by",
        "progressed",
    )  # fmt: skip
    list_filter = ("state", "direction", "waiting_for", LastCloseCodeFilter)
    search_help_text = _("Id of a transfer or payload, part of a payload's name, or a user name")
    search_fields = ("payload__name",)  # shows the box; `search` says what it finds
    date_hierarchy = "created_at"
    list_select_related = ("payload", "user")
    actions = (CANCEL,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "id",
                    "direction",
                    "payload_link",
                    "size",
                    "user_name",
                    "state_badge",
                    "failure_text",
                    "position_bar",
                )
            },
        ),
        (
            _("Connection"),
            {
                "fields": (
                    "waits_for",
                    "close_code_explained",
                    "moved_by",
                    "held_by",
                    "session_name",
                    "writer",
                    "wire_id",
                )
            },
        ),
        (_("Time"), {"fields": ("created", "progressed", "ended", "expires")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Load the payloads' names and sizes along, but never the bytes of inline ones."""
        return super().get_queryset(request).select_related("payload", "user").defer("payload__inline", "payload__meta")

    def search(self, term: str) -> Q:
        return Q(payload__name__icontains=term) | Q(**{f"user__{get_user_model().USERNAME_FIELD}__iexact": term})

    def search_by_id(self, wanted: uuid.UUID) -> Q:
        return Q(pk=wanted) | Q(key=wanted) | Q(payload=wanted)

    def describe(self, obj: Transfer) -> Sequence[object]:
        return obj.get_direction_display(), cells.name(str(obj.payload)), cells.person(obj.user), _state(obj)

    def is_over(self, obj: Transfer) -> bool:
        return obj.state != TransferState.LIVE

    def sections(self, obj: Any) -> Sequence[sections.Section]:
        notices = sections.notices(Notice.objects.filter(transfer=obj))
        of_payload = Q(payload=obj.payload_id, transfer=None)
        return [
            *([notices] if notices.rows else []),
            *([sections.clients(obj)] if obj.direction == Direction.DELIVERY else []),
            sections.timeline(Event.objects.filter(Q(transfer=obj) | of_payload)),
        ]

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.cancel_transfer")
