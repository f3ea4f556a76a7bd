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
from delivery.admin.base import OperatorAdmin, column, moment
from delivery.admin.text import plain
from delivery.models import Direction, Event, MissingFile, Notice, Payload, PayloadState, Transfer, TransferState
from delivery.policy import GROUP, USER


def _cancel(payload_id: uuid.UUID, *, by: str) -> bool:
    return transfers.cancel_payload(payload_id, by=by)


def _expire(payload_id: uuid.UUID, *, by: str) -> bool:
    return transfers.expire_payload(payload_id, by=by)


def _revive(payload_id: uuid.UUID, *, by: str) -> bool:
    return transfers.revive_payload(payload_id, by=by)


CANCEL = ConfirmedAction(
    "cancel_payloads",
    permission="cancel",
    call=_cancel,
    wording=Wording(
        title=_("Cancel selected payloads"),
        button=_("Cancel this payload"),
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
        button=_("Expire this payload"),
        question=_("Expire these payloads now?"),
        consequence=_(
            "Their time is up at once, as if it had run out by itself: nobody can receive them any more, the site is "
            "told, and what is stored of them is deleted. This cannot be undone."
        ),
        confirm=_("Yes, expire them"),
        done=lambda count: ngettext("%d payload expired.", "%d payloads expired.", count) % count,
    ),
)


REVIVE = ConfirmedAction(
    "revive_payloads",
    permission="revive",
    call=_revive,
    wording=Wording(
        title=_("Revive selected payloads"),
        button=_("Revive this payload"),
        question=_("Revive these payloads?"),
        consequence=_(
            "They failed because a stored file was missing. Bring the files back first. The SHA-256 of what is stored "
            "is computed once more; where it is right, those who have not received the payload are offered it again."
        ),
        confirm=_("Yes, revive them"),
        done=lambda count: ngettext("%d payload is checked again.", "%d payloads are checked again.", count) % count,
        idle=lambda count: ngettext("%d cannot be revived", "%d cannot be revived", count) % count,
    ),
)


def _deliveries(**conditions: Any) -> Coalesce:
    """Return the number of a payload's deliveries, asked for each shown row alone: a join would count all of them."""
    of_payload = Transfer.objects.filter(payload=OuterRef("pk"), direction=Direction.DELIVERY, **conditions).order_by()
    return Coalesce(
        Subquery(of_payload.values("payload").annotate(n=Count("pk")).values("n")), 0, output_field=IntegerField()
    )


def _stored(payload: Any) -> str:
    """Return how much of it is safe with us; what has ended early holds nothing any more."""
    if payload.state == PayloadState.COMPLETE:
        return cells.bar(payload.size or 0, payload.size)
    if payload.state in (PayloadState.STORING, PayloadState.SEALING) and payload.uploaded is not None:
        return cells.bar(payload.uploaded, payload.size)
    return cells.NOTHING


def _delivered(payload: Any) -> str:
    if not payload.deliveries_count:
        return cells.NOTHING
    return _("%(done)d of %(all)d") % {"done": payload.delivered_count, "all": payload.deliveries_count}


def _state(payload: Payload) -> str:
    return cells.badge(payload.state, payload.get_state_display())


def _may_be_revived(payload: Any) -> bool:
    misses: bool = payload.missing_since is not None
    return misses and payload.state == PayloadState.FAILED


def _failure(payload: Any) -> Any:
    if _may_be_revived(payload):
        return _("A stored file is missing. Bring it back, then revive the payload.")
    return words.failure(payload.failure) or cells.NOTHING


def _meta(payload: Payload) -> str:
    if not payload.meta:
        return cells.NOTHING
    return format_html('<code class="delivery-meta">{}</code>', plain(json.dumps(payload.meta, ensure_ascii=False)))


@admin.register(Payload)
class PayloadAdmin(OperatorAdmin):
    name_cell = column(_("name"), lambda payload: cells.name(str(payload)), order="name")
    owner_cell = column(_("owner"), lambda payload: cells.person(payload.owner))
    size_cell = column(_("size"), lambda payload: cells.size_cell(payload.size), order="size")
    exact_size = column(_("size"), lambda payload: cells.exact_size(payload.size))
    state_badge = column(_("state"), _state, order="state")
    failure_text = column(_("failure"), _failure)
    stored = column(_("stored"), _stored)
    delivered = column(_("delivered"), _delivered)
    content_type_cell = column(_("content type"), lambda payload: cells.name(payload.content_type, limit=255))
    digest = column(_("SHA-256"), lambda payload: plain(payload.sha256) or cells.NOTHING)
    announced = column(_("SHA-256 announced"), lambda payload: plain(payload.expected_sha256) or cells.NOTHING)
    meta_cell = column(_("meta"), _meta)
    created = moment(_("created"), "created_at")
    completed = moment(_("completed"), "completed_at")
    expires = column(
        _("expires"), lambda payload: _("never") if payload.keep else cells.time(payload.expires_at), order="expires_at"
    )
    missing = column(_("stored file missing since"), lambda payload: cells.time(payload.missing_since))
    checking = moment(_("checking, last sign of life"), "sealing_at")
    checked_by = column(_("checked by"), lambda payload: cells.name(payload.sealer))

    list_display = ("name_cell", "state_badge", "stored", "delivered", "owner_cell", "size_cell", "created", "expires")
    list_filter = ("state",)
    search_help_text = _("Id of a payload, part of its name, its owner's user name, or an address such as group:ops")
    search_fields = ("name",)  # shows the box; `search` says what it finds
    date_hierarchy = "created_at"
    list_select_related = ("owner",)
    actions = (CANCEL, EXPIRE, REVIVE)
    fieldsets = (
        (None, {"fields": ("id", "name_cell", "owner_cell", "state_badge", "failure_text", "stored", "delivered")}),
        (_("Content"), {"fields": ("exact_size", "content_type_cell", "digest", "announced", "meta_cell")}),
        (_("Time"), {"fields": ("created", "completed", "expires", "checking", "checked_by", "missing")}),
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
            missing_since=Subquery(MissingFile.objects.filter(payload=OuterRef("pk")).values("since")),
        )
        return rows

    def search(self, term: str) -> Q:
        if term.startswith((USER, GROUP)):
            return Q(addresses__address=term)
        return Q(name__icontains=term) | Q(**{f"owner__{get_user_model().USERNAME_FIELD}__iexact": term})

    def search_by_id(self, wanted: uuid.UUID) -> Q:
        return Q(pk=wanted) | Q(pk__in=Transfer.objects.filter(Q(pk=wanted) | Q(key=wanted)).values("payload"))

    def describe(self, obj: Payload) -> Sequence[object]:
        return cells.person(obj.owner), cells.size(obj.size), _state(obj)

    def is_over(self, obj: Payload) -> bool:
        over = obj.state in (PayloadState.FAILED, PayloadState.CANCELLED, PayloadState.EXPIRED)
        return over and not _may_be_revived(obj)

    def offers(self, obj: Payload, action: str) -> bool:
        return action != REVIVE.__name__ or _may_be_revived(obj)

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

    def has_revive_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.revive_payload")

    def has_expire_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.expire_payload")
