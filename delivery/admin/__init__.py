"""The pages for operators in Django's admin: they read rows, and act only by calling `delivery.transfers`.

    text.py words.py   labels of stored values; escaping of untrusted text
    cells.py           one value as HTML: size, state, position, close code
    sections.py        a table below the fields of a detail page: timeline, recipients, segments, ...
    base.py            the base of every page: read-only, few queries
    actions.py         an action with a confirmation page and its own permission
    filters.py         list filters that do not scan tables
    payloads.py transfers.py notices.py   one module for each list with its detail page

A new table on a detail page is one more function that returns a `Section`; a new action is one more `ConfirmedAction`.
"""

from __future__ import annotations

from delivery.admin.notices import NoticeAdmin
from delivery.admin.payloads import PayloadAdmin
from delivery.admin.transfers import TransferAdmin

__all__ = ["NoticeAdmin", "PayloadAdmin", "TransferAdmin"]
