"""The operators' place in Django's admin: it reads rows, and acts only by calling `delivery.transfers`.

    text.py words.py   what a stored value is called and how hostile text is made harmless
    cells.py           one value as HTML: size, state, position, close code
    sections.py        a table below the fields of a detail page: timeline, recipients, segments, ...
    base.py            what every page here has in common: read-only, few queries
    actions.py         an action behind a confirmation page and a permission of its own
    filters.py         lists narrowed down without scanning tables
    payloads.py transfers.py notices.py   one module for each list with its detail page

A new table on a detail page is one more function that returns a `Section`; a new action is one more `ConfirmedAction`.
"""

from __future__ import annotations

from delivery.admin.notices import NoticeAdmin
from delivery.admin.payloads import PayloadAdmin
from delivery.admin.transfers import TransferAdmin

__all__ = ["NoticeAdmin", "PayloadAdmin", "TransferAdmin"]
