"""Filters whose choices are known beforehand: nothing is scanned to offer them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from delivery import signals
from delivery.admin import words


class LastCloseCodeFilter(admin.SimpleListFilter):
    title = _("last close code")
    parameter_name = "close_code"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(code), words.close_code(code)) for code in words.CLOSE_CODE_MEANINGS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if chosen is None or not chosen.isdecimal():
            return queryset
        return queryset.filter(last_close_code=int(chosen))


class SignalFilter(admin.SimpleListFilter):
    title = _("signal")
    parameter_name = "signal"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in signals.BY_NAME]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(signal=self.value()) if self.value() else queryset


class ErrorFilter(admin.SimpleListFilter):
    title = _("last attempt")
    parameter_name = "attempt"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("failed", _("failed")), ("none", _("none yet"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "failed":
            return queryset.exclude(error="")
        return queryset.filter(error="") if self.value() == "none" else queryset
