"""An action with a confirmation page: requested, shown, confirmed by POST, applied row by row by `delivery.transfers`.

Only `delivery.transfers` writes rows. The page posts the ids that it showed, so exactly the confirmed rows are changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from delivery.admin.text import plain
from delivery.admin.words import Words
from delivery.errors import DeliveryError
from delivery.transfers import timeline

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 500  # Django takes 1,000 fields in one form; and somebody waits for the answer
NAMED = 10  # of those that could not be, in the message


def _had_ended(count: int) -> str:
    return ngettext("%d had already ended", "%d had already ended", count) % count


@dataclass(frozen=True)
class Wording:
    """What the action is called, asks and says."""

    title: Words  # in the list of actions, such as "Cancel selected payloads"
    button: Words  # on a detail page, such as "Cancel this payload"
    question: Words
    consequence: Words
    confirm: Words  # on the button
    done: Callable[[int], str]  # takes how many
    idle: Callable[[int], str] = _had_ended  # of how many there was nothing to do


class Page(Protocol):
    """What an action asks of the list that it belongs to."""

    admin_site: AdminSite
    opts: Any

    @property
    def media(self) -> Any: ...

    def describe(self, obj: Any) -> Sequence[object]:
        """Return the cells that tell an operator what `obj` is."""

    def message_user(self, request: HttpRequest, message: Any, level: int | str = ...) -> None:
        """Show a message on the page that follows."""


class ConfirmedAction:
    """One entry in a list's actions. `call` takes an id and `by`, and returns whether there was anything to do."""

    def __init__(self, name: str, *, permission: str, wording: Wording, call: Callable[..., bool]) -> None:
        self.__name__ = name
        self.allowed_permissions = (permission,)
        self.short_description = wording.title
        self.button = wording.button
        self._wording = wording
        self._call = call

    def __call__(self, model_admin: Page, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask, or do it where the question was answered; None leads back to the list."""
        rows = list(queryset[: ROWS_AT_ONCE + 1])
        if len(rows) > ROWS_AT_ONCE:
            text = _("Select at most %(number)d at once.") % {"number": ROWS_AT_ONCE}
            model_admin.message_user(request, text, messages.ERROR)
            return None
        if request.POST.get("confirmed") != "yes":
            return self._ask(model_admin, request, rows)
        self._carry_out(model_admin, request, rows)
        return None

    def _ask(self, model_admin: Page, request: HttpRequest, rows: list[Any]) -> HttpResponse:
        context = {
            **model_admin.admin_site.each_context(request),
            "title": self._wording.question,
            "subtitle": None,
            "consequence": self._wording.consequence,
            "confirm": self._wording.confirm,
            "action": self.__name__,
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "rows": [(row, plain(row), model_admin.describe(row)) for row in rows],
            "opts": model_admin.opts,
            "media": model_admin.media,
        }
        request.current_app = model_admin.admin_site.name
        return TemplateResponse(request, "admin/delivery/confirm.html", context)

    def _carry_out(self, model_admin: Page, request: HttpRequest, rows: list[Any]) -> None:
        by = f"user:{request.user.pk}"
        done, over, failed = 0, list[Any](), list[Any]()
        for row in rows:
            try:
                if self._call(row.pk, by=by):
                    done += 1
                else:
                    over.append(row)
            except DeliveryError as error:
                # A failed row must not stop the others; the operator is told below.
                logger.warning("%s of %s failed: %s", self.__name__, row.pk, error)
                failed.append(row)
        timeline.write()  # so that the timeline shows it on the page that follows
        if done:
            model_admin.message_user(request, self._wording.done(done), messages.SUCCESS)
        if over:
            model_admin.message_user(request, f"{self._wording.idle(len(over))}: {_names(over)}", messages.WARNING)
        if failed:
            model_admin.message_user(request, _failed(failed), messages.ERROR)


def _failed(rows: list[Any]) -> str:
    text = ngettext("%(count)d failed, try again: %(names)s", "%(count)d failed, try again: %(names)s", len(rows))
    return text % {"count": len(rows), "names": _names(rows)}


def _names(rows: list[Any]) -> str:
    named = ", ".join(_identified(row.pk, row) for row in rows[:NAMED])
    return named + (", …" if len(rows) > NAMED else "")


def _identified(pk: UUID, row: Any) -> str:
    name = plain(row, limit=60)
    return name if name == str(pk) else f"{name} ({pk})"
