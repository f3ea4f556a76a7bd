"""Notices: signals that the site's own handlers are not through with. A list of those that fail is a list of bugs."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from delivery.admin import cells
from delivery.admin.base import OperatorAdmin, column, moment
from delivery.admin.filters import ErrorFilter, SignalFilter
from delivery.admin.text import plain
from delivery.models import Notice


@admin.register(Notice)
class NoticeAdmin(OperatorAdmin):
    signal_name = column(_("signal"), lambda notice: plain(notice.signal))
    payload_link = column(_("payload"), lambda notice: cells.link(notice.payload, cells.name(str(notice.payload))))
    last_error = column(_("last error"), lambda notice: plain(notice.error) or cells.NOTHING, order="error")
    through = column(
        _("handlers that are through"), lambda notice: plain(", ".join(map(str, notice.handled))) or cells.NOTHING
    )
    due = moment(_("due"), "due_at")

    list_display = ("signal_name", "payload_link", "attempts", "last_error", "due")
    list_filter = (SignalFilter, ErrorFilter)
    search_help_text = _("Id of a payload, or the name of an error's class")
    search_fields = ("error",)  # shows the box; `search` says what it finds
    ordering = ("due_at", "id")
    fields = ("signal_name", "payload_link", "attempts", "last_error", "through", "due")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("payload").defer("payload__inline", "payload__meta")

    def search(self, term: str) -> Q:
        return Q(error__icontains=term)

    def search_by_id(self, wanted: Any) -> Q:
        return Q(payload=wanted) | Q(transfer=wanted)
