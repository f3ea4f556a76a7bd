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
from delivery.admin.base import OperatorAdmin, column
from delivery.admin.filters import LastCloseCodeFilter
from delivery.models import Direction, Event, Notice, Transfer


def _cancel(transfer_id: uuid.UUID, *, by: str) -> bool:
    return transfers.cancel_transfer(transfer_id, by=by)


CANCEL = ConfirmedAction(
    "cancel_transfers",
    permission="cancel",
    call=_cancel,
    wording=Wording(
        title=_("Cancel selected transfers"),
        question=_("Cancel these transfers?"),
        consequence=_(
            "A delivery ends for its user alone. An upload ends with its payload: what is stored of it is deleted and "
            "nobody can receive it. Clients that are connected are told now. This cannot be undone."
        ),
        confirm=_("Yes, cancel them"),
        done=lambda count: ngettext("%d transfer cancelled.", "%d transfers cancelled.", count) % count,
    ),
)


@admin.register(Transfer)
class TransferAdmin(OperatorAdmin):
    list_display = (
        "shown_name", "direction", "shown_user", "shown_size", "shown_state", "shown_position", "shown_waiting_for",
        "shown_close_code", "shown_worker", "progressed_at", "created_at",
    )  # fmt: skip
    list_filter = ("state", "direction", "waiting_for", LastCloseCodeFilter)
    search_help_text = _("Id of a transfer or payload, part of a payload's name, or a user name")
    search_fields = ("payload__name",)  # shows the field; `search` says what it does
    date_hierarchy = "created_at"
    list_select_related = ("payload", "user")
    actions = (CANCEL,)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "id", "direction", "payload_link", "shown_user", "shown_state", "shown_failure", "shown_position",
                )
            },
        ),
        (
            _("Connection"),
            {
                "fields": (
                    "shown_waiting_for", "close_code_with_meaning", "shown_worker", "shown_client", "shown_session", "lease",
                    "key",
                )
            },
        ),
        (_("Time"), {"fields": ("created_at", "progressed_at", "ended_at", "expires_at")}),
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Load the payloads' names and sizes along, but never the bytes of inline ones."""
        return super().get_queryset(request).select_related("payload", "user").defer("payload__inline", "payload__meta")

    def search(self, term: str) -> Q:
        return Q(payload__name__icontains=term) | Q(**{f"user__{get_user_model().USERNAME_FIELD}__iexact": term})

    def search_by_id(self, wanted: uuid.UUID) -> Q:
        return Q(pk=wanted) | Q(key=wanted) | Q(payload=wanted)

    def describe(self, obj: Transfer) -> Sequence[object]:
        return obj.get_direction_display(), cells.name(str(obj.payload)), cells.person(obj.user), self.shown_state(obj)

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

    @column(_("payload"))
    def shown_name(self, obj: Transfer) -> str:
        return cells.name(str(obj.payload))

    @column(_("payload"))
    def payload_link(self, obj: Transfer) -> str:
        return cells.link(obj.payload, cells.name(str(obj.payload), limit=255))

    @column(_("user"))
    def shown_user(self, obj: Transfer) -> str:
        return cells.person(obj.user)

    @column(_("size"))
    def shown_size(self, obj: Transfer) -> str:
        return cells.size(obj.payload.size)

    @column(_("state"), order="state")
    def shown_state(self, obj: Transfer) -> str:
        return cells.badge(obj.state, obj.get_state_display())

    @column(_("failure"))
    def shown_failure(self, obj: Transfer) -> str:
        return words.failure(obj.failure) if obj.failure else cells.NOTHING

    @column(_("position"))
    def shown_position(self, obj: Transfer) -> str:
        return cells.bar(obj.position, obj.payload.size)

    @column(_("waiting for"))
    def shown_waiting_for(self, obj: Transfer) -> Any:
        return obj.get_waiting_for_display() if obj.waiting_for else cells.NOTHING

    @column(_("last close code"))
    def shown_close_code(self, obj: Transfer) -> str:
        return cells.close_code(obj.last_close_code)

    @column(_("last close code"))
    def close_code_with_meaning(self, obj: Transfer) -> str:
        return cells.close_code_with_meaning(obj.last_close_code)

    @column(_("worker"))
    def shown_worker(self, obj: Transfer) -> str:
        return cells.name(obj.worker)

    @column(_("session"))
    def shown_session(self, obj: Transfer) -> str:
        return cells.name(obj.session)

    @column(_("client that holds it"))
    def shown_client(self, obj: Transfer) -> str:
        return cells.name(obj.client)
