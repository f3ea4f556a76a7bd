"""One value as HTML for a list or a detail page. Everything that goes in is escaped here, by `format_html`.

No inline styles and no scripts: a site's Content-Security-Policy may forbid both.
"""

from __future__ import annotations

import datetime
from typing import Any

from django.db.models import Model
from django.urls import reverse
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext as _

from delivery.admin import words
from delivery.admin.text import plain

NAME_LIMIT = 80  # characters of a name that a list shows
NOTHING = "–"


def size(number: int | None) -> str:
    """Return bytes as an operator says them; a dash where the size is not known yet."""
    if number is None:
        return NOTHING
    return words.human_size(number)


def size_cell(number: int | None) -> SafeString:
    """Return a size that does not break between number and unit."""
    return format_html('<span class="delivery-fixed">{}</span>', size(number))


def time(value: datetime.datetime | None) -> SafeString | str:
    """Return a time to the second, in the admin's time zone; a dash where there is none."""
    if value is None:
        return NOTHING
    shown = localtime(value) if is_aware(value) else value
    return format_html(
        '<time class="delivery-fixed" datetime="{}">{}</time>', shown.isoformat(), f"{shown:%Y-%m-%d %H:%M:%S}"
    )


def exact_size(number: int | None) -> str:
    """Return bytes both ways, for detail pages."""
    if number is None:
        return _("not known yet")
    if number < 1024:
        return size(number)
    return _("%(size)s (%(number)s bytes)") % {
        "size": size(number),
        "number": number_format(number, force_grouping=True),
    }


def name(text: str, *, limit: int = NAME_LIMIT) -> SafeString:
    """Return somebody's text, isolated so that its writing direction stays its own."""
    return format_html('<bdi class="delivery-name">{}</bdi>', plain(text, limit=limit) or NOTHING)


def link(to: Model, text: str) -> SafeString:
    """Return a link to the detail page of `to`."""
    url = reverse(f"admin:{to._meta.app_label}_{to._meta.model_name}_change", args=(to.pk,))
    return format_html('<a href="{}">{}</a>', url, text)


def person(user: Any) -> SafeString | str:
    """Return a user's name as it is used to log in; a dash where the user is gone."""
    return name(user.get_username()) if user is not None else NOTHING


def badge(state: str, label: words.Words) -> SafeString:
    """Return a state as a badge; its colour is decoration, its text says it."""
    return format_html('<span class="delivery-badge delivery-{}">{}</span>', state, label)


def bar(position: int, whole: int | None) -> SafeString:
    """Return how far `position` bytes of `whole` are, as a bar and in words. An unknown whole has no bar."""
    if whole is None:
        return format_html(
            '<span class="delivery-bar">{}</span>', _("%(position)s so far") % {"position": size(position)}
        )
    percent = 100 * position // whole if whole else 100
    text = _("%(percent)d %% of %(whole)s") % {"percent": percent, "whole": size(whole)}
    return format_html(
        '<span class="delivery-bar"><progress role="progressbar" max="100" value="{}" aria-label="{}"></progress>'
        " <span>{}</span></span>",
        min(percent, 100),
        _("position"),
        text,
    )


def close_code(code: int | None) -> SafeString | str:
    """Return a close code with its phrase, and what it means as a tooltip; a dash where there was none."""
    if code is None:
        return NOTHING
    return format_html('<span title="{}">{}</span>', words.close_code_meaning(code), words.close_code(code))


def close_code_with_meaning(code: int | None) -> SafeString | str:
    """Return a close code with its phrase and a sentence on what it means, for detail pages."""
    if code is None:
        return NOTHING
    return format_html("{}<br><small>{}</small>", words.close_code(code), words.close_code_meaning(code))
