"""Payloads: what somebody wants moved, where it lies, and who has it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Count, IntegerField, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from delivery import transfers
from delivery.admin import cells, sections, words
from delivery.admin.actions import ConfirmedAction, Wording
from delivery.admin.base import OperatorAdmin, column
from delivery.admin.text import plain
from delivery.models import Direction, Event, Notice, Payload, PayloadState, Transfer, TransferState
from delivery.policy import GROUP, USER


def _cancel(payload_id: uuid.UUID, *, by: str) -> bool:
    return transfers.cancel_payload(payload_id, by=by)


def _expire(payload_id: uuid.UUID, *, by: str) -> bool:
    return transfers.expire_payload(payload_id, by=by)


CANCEL = ConfirmedAction(
    "cancel_payloads",
    permission="cancel",
    call=_cancel,
    wording=Wording(
        title=_("Cancel selected payloads"),
        question=_("Cancel these payloads?"),
        consequence=_(
            "Their transfers end for good: senders and recipients that are connected are told now. "
            "What is stored of them is deleted. This cannot be undone."
        ),
        confirm=_("Yes, cancel them"),
        done=lambda count: ngettext("%d payload cancelled.", "%d payloads cancelled.", count) % count,
    ),
)
EXPIRE = ConfirmedAction(
    "expire_payloads",
    permission="expire",
    call=_expire,
    wording=Wording(
        title=_("Expire selected payloads"),
        question=_("Expire these payloads now?"),
        consequence=_(
            "Their time is up at once, as if it had run out by itself: nobody can receive them any more, the site is "
            "told, and what is stored of them is deleted. This cannot be undone."
        ),
        confirm=_("Yes, expire them"),
        done=lambda count: ngettext("%d payload expired.", "%d payloads expired.", count) % count,
    ),
)


def _deliveries(**conditions: Any) -> Coalesce:
    """Return the number of a payload's deliveries, asked for each shown row alone: a join would count all of them."""
    of_payload = Transfer.objects.filter(payload=OuterRef("pk"), direction=Direction.DELIVERY, **conditions).order_by()
    return Coalesce(
        Subquery(of_payload.values("payload").annotate(n=Count("pk")).values("n")), 0, output_field=IntegerField()
    )


@admin.register(Payload)
class PayloadAdmin(OperatorAdmin):
    list_display = (
        "shown_name", "shown_owner", "shown_size", "shown_state", "shown_position", "shown_deliveries", "created_at",
        "expires_at",
    )  # fmt: skip
    list_filter = ("state", "in_place", "keep")
    search_help_text = _("Id of a payload, part of its name, its owner's user name, or an address such as group:ops")
    search_fields = ("name",)  # shows the field; `search` says what it does
    date_hierarchy = "created_at"
    list_select_related = ("owner",)
    actions = (CANCEL, EXPIRE)
    fieldsets = (
        (None, {"fields": ("id", "shown_name", "shown_owner", "shown_state", "shown_failure", "shown_position")}),
        (_("Content"), {"fields": ("exact_size", "content_type_shown", "sha256", "expected_sha256", "shown_meta")}),
        (_("Time"), {"fields": ("created_at", "completed_at", "expires_at", "keep", "sealing_at", "sealer")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Never load the bytes of inline payloads."""
        uploads = Transfer.objects.filter(payload=OuterRef("pk"), direction=Direction.UPLOAD).order_by("-created_at")
        rows: QuerySet[Any] = super().get_queryset(request).defer("inline")
        rows = rows.annotate(
            is_inline=Q(inline__isnull=False),
            uploaded=Subquery(uploads.values("position")[:1]),
            deliveries_count=_deliveries(),
            delivered_count=_deliveries(state=TransferState.DONE),
        )
        return rows

    def search(self, term: str) -> Q:
        if term.startswith((USER, GROUP)):
            return Q(addresses__address=term)
        return Q(name__icontains=term) | Q(**{f"owner__{get_user_model().USERNAME_FIELD}__iexact": term})

    def search_by_id(self, wanted: uuid.UUID) -> Q:
        return Q(pk=wanted) | Q(pk__in=Transfer.objects.filter(Q(pk=wanted) | Q(key=wanted)).values("payload"))

    def describe(self, obj: Payload) -> Sequence[object]:
        return cells.person(obj.owner), cells.size(obj.size), self.shown_state(obj)

    def sections(self, obj: Any) -> Sequence[sections.Section]:
        notices = sections.notices(Notice.objects.filter(payload=obj))
        of_transfers = Q(transfer__in=Transfer.objects.filter(payload=obj))
        return [
            *([notices] if notices.rows else []),
            sections.recipients(obj),
            sections.transfers(obj),
            sections.segments(obj, inline=obj.is_inline),
            sections.timeline(Event.objects.filter(Q(payload=obj) | of_transfers)),
        ]

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.cancel_payload")

    def has_expire_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.expire_payload")

    @column(_("name"), order="name")
    def shown_name(self, obj: Payload) -> str:
        return cells.name(str(obj))

    @column(_("owner"))
    def shown_owner(self, obj: Payload) -> str:
        return cells.person(obj.owner)

    @column(_("size"), order="size")
    def shown_size(self, obj: Payload) -> str:
        return cells.size(obj.size)

    @column(_("size"))
    def exact_size(self, obj: Payload) -> str:
        return cells.exact_size(obj.size)

    @column(_("state"), order="state")
    def shown_state(self, obj: Payload) -> str:
        return cells.badge(obj.state, obj.get_state_display())

    @column(_("failure"))
    def shown_failure(self, obj: Payload) -> str:
        return words.failure(obj.failure) if obj.failure else cells.NOTHING

    @column(_("stored"))
    def shown_position(self, obj: Any) -> str:
        """How much of it is safe with us; what has ended early holds nothing any more."""
        if obj.state == PayloadState.COMPLETE:
            return cells.bar(obj.size or 0, obj.size)
        if obj.state in (PayloadState.STORING, PayloadState.SEALING) and obj.uploaded is not None:
            return cells.bar(obj.uploaded, obj.size)
        return cells.NOTHING

    @column(_("delivered"))
    def shown_deliveries(self, obj: Any) -> str:
        if not obj.deliveries_count:
            return cells.NOTHING
        return _("%(done)d of %(all)d") % {"done": obj.delivered_count, "all": obj.deliveries_count}

    @column(_("content type"))
    def content_type_shown(self, obj: Payload) -> str:
        return cells.name(obj.content_type, limit=255)

    @column(_("meta"))
    def shown_meta(self, obj: Payload) -> str:
        if not obj.meta:
            return cells.NOTHING
        return format_html('<code class="delivery-meta">{}</code>', plain(json.dumps(obj.meta, ensure_ascii=False)))
