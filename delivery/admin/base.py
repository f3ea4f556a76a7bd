"""The base of every admin page: read-only, with few queries and no exact count of large tables."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from delivery.admin import cells
from delivery.admin.actions import ConfirmedAction
from delivery.admin.sections import Section
from delivery.admin.text import plain
from delivery.admin.words import Words

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[Model]
    _Paginator = Paginator[Model]
else:
    _Admin, _Paginator = admin.ModelAdmin, Paginator

COUNTED_ROWS = 10_000  # a list has no page beyond them: search and filters reach the rest
_READING_ROUTES = re.compile(r"_(changelist|change)$")


class BoundedPaginator(_Paginator):
    """Counts no further than `COUNTED_ROWS`: an exact count of a big table takes the database seconds."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[:COUNTED_ROWS].count())


class OperatorAdmin(_Admin):
    """A read-only list and detail page. Subclasses name columns, fields and `sections`; actions go through `actions.py`."""

    change_form_template = "admin/delivery/detail.html"
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # facets count every choice of every filter
    list_per_page = 50
    list_max_show_all = 200
    actions: Sequence[ConfirmedAction] = ()
    actions_on_bottom = False
    view_on_site = False

    class Media:
        css = {"all": ("delivery/admin.css",)}  # noqa: RUF012 - as Django documents it

    def sections(self, obj: Any) -> Sequence[Section]:
        """Return the tables below the fields of `obj`'s detail page."""
        return ()

    def describe(self, obj: Any) -> Sequence[object]:
        """Return the cells that tell an operator what `obj` is, beside its name, on a confirmation page."""
        return ()

    def is_over(self, obj: Any) -> bool:
        """Return whether `obj` has ended, so that its page offers nothing to do."""
        return False

    def offers(self, obj: Any, action: str) -> bool:
        """Return whether `obj`, which has not ended, has use for an action: its page shows a button for it then."""
        return True

    def search(self, term: str) -> Q:
        """Return the condition for what an operator typed; `term` is no uuid."""
        raise NotImplementedError

    def search_by_id(self, wanted: uuid.UUID) -> Q:
        """Return the condition for the rows that a uuid may mean; indexed columns only."""
        return Q(pk=wanted)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search by id where the term is one, which an index answers; by text otherwise."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            condition = self.search_by_id(uuid.UUID(term))
        except ValueError:
            condition = self.search(term)
        return queryset.filter(condition), False

    def action_checkbox(self, obj: Any) -> SafeString:
        """Return Django's checkbox, but with a name for screen readers that hides no control characters."""
        label = _("Select this object for an action - {}").format(plain(obj))
        return format_html(
            '<input type="checkbox" name="{}" value="{}" class="action-select" aria-label="{}">',
            ACTION_CHECKBOX_NAME,
            obj.pk,
            label,
        )

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing is deleted here; but whoever deletes a user elsewhere in the admin deletes its transfers with it."""
        route = request.resolver_match.url_name if request.resolver_match else None
        if route is None or route.startswith(f"{self.opts.app_label}_"):
            return False
        return bool(super().has_delete_permission(request, obj))

    def get_urls(self) -> list[URLPattern]:
        """Leave out the pages that add, delete, or show a history that nobody writes."""
        return [route for route in super().get_urls() if _READING_ROUTES.search(route.name or "")]

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        """Add the tables and the actions. Django has checked by now that the page may be seen."""
        name = plain(obj)
        context |= {"subtitle": name, "shown_name": name, "sections": self.sections(obj)}
        offered = {} if self.is_over(obj) else self.get_actions(request)
        context["buttons"] = [
            (action.__name__, action.button)
            for action in self.actions
            if action.__name__ in offered and self.offers(obj, action.__name__)
        ]
        return super().render_change_form(request, context, add, change, form_url, obj)


def column(title: Words, render: Callable[[Any], Any], *, order: str | None = None) -> Callable[..., Any]:
    """Return a column or field that `render` makes of a row; sorted by the field `order`, where there is one."""

    def shown(_admin: OperatorAdmin, obj: Any) -> Any:
        return render(obj)

    return admin.display(description=title, ordering=order)(shown)


def moment(title: Words, field: str) -> Callable[..., Any]:
    """Return a column that shows and sorts by a time."""
    return column(title, lambda obj: cells.time(getattr(obj, field)), order=field)
