"""Notices: signals that the site's own handlers are not through with. A list of those that fail is a list of bugs."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from delivery.admin import cells
from delivery.admin.base import OperatorAdmin, column
from delivery.admin.filters import ErrorFilter, SignalFilter
from delivery.admin.text import plain
from delivery.models import Notice


@admin.register(Notice)
class NoticeAdmin(OperatorAdmin):
    list_display = ("shown_signal", "payload_link", "attempts", "shown_error", "due_at")
    list_filter = (SignalFilter, ErrorFilter)
    search_help_text = _("Id of a payload, or the name of an error's class")
    search_fields = ("error",)  # shows the field; `search` says what it does
    ordering = ("due_at", "id")
    fields = ("shown_signal", "payload_link", "attempts", "shown_error", "shown_handled", "due_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("payload").defer("payload__inline", "payload__meta")

    def search(self, term: str) -> Q:
        return Q(error__icontains=term)

    def search_by_id(self, wanted: Any) -> Q:
        return Q(payload=wanted) | Q(transfer=wanted)

    @column(_("signal"))
    def shown_signal(self, obj: Notice) -> str:
        return plain(obj.signal)

    @column(_("payload"))
    def payload_link(self, obj: Notice) -> str:
        return cells.link(obj.payload, cells.name(str(obj.payload)))

    @column(_("last error"), order="error")
    def shown_error(self, obj: Notice) -> str:
        return plain(obj.error) or cells.NOTHING

    @column(_("handlers that are through"))
    def shown_handled(self, obj: Notice) -> str:
        return plain(", ".join(map(str, obj.handled))) or cells.NOTHING
