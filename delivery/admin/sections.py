"""Tables below the fields of a detail page. Each is one bounded query; what does not fit is said, not counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, QuerySet, Sum
from django.utils.translation import gettext_lazy as _

from delivery.admin import cells, words
from delivery.admin.text import plain
from delivery.admin.words import Words
from delivery.models import Address, ClientPosition, Event, Notice, Payload, Segment, Transfer

ROWS = 100  # at most, of each table
EVENTS = 200


@dataclass(frozen=True)
class Section:
    """One table: every cell is text, escaped by the template, or HTML that `cells` made safe."""

    title: Words
    headings: Sequence[Words]
    rows: Sequence[Sequence[object]]
    more: Words = ""  # said below the table where rows were left out
    empty: Words = ""  # said in its place where there are none


def _table(
    rows: QuerySet[Any], render: Callable[[Any], Sequence[object]], *, limit: int = ROWS
) -> tuple[list[Sequence[object]], bool]:
    found = list(rows[: limit + 1])
    return [render(row) for row in found[:limit]], len(found) > limit


def timeline(events: QuerySet[Event]) -> Section:
    """Return the latest events, newest first."""
    rows, more = _table(
        events.order_by("-at", "-id"),
        lambda event: (cells.time(event.at), words.event_kind(event.kind), words.event_detail(event.detail)),
        limit=EVENTS,
    )
    return Section(
        title=_("Timeline"),
        headings=(_("when"), _("what"), _("details")),
        rows=rows,
        more=_("Older events are not shown.") if more else "",
        empty=_("No events yet, or they are older than events are kept."),
    )


def recipients(payload: Payload) -> Section:
    """Return the addresses that the payload is for."""
    rows, more = _table(
        Address.objects.filter(payload=payload).order_by("id"), lambda address: (cells.name(address.address),)
    )
    return Section(
        title=_("Recipients"),
        headings=(_("address"),),
        rows=rows,
        more=_("There are more addresses.") if more else "",
        empty=_("None: it is for the site itself."),
    )


def transfers(payload: Payload) -> Section:
    """Return the payload's upload and its deliveries, the latest progress first."""
    found = payload.transfers.select_related("user").order_by("-progressed_at", "-id")
    rows, more = _table(found, lambda transfer: _transfer(transfer, payload.size))
    return Section(
        title=_("Transfers"),
        headings=(
            _("transfer"), _("user"), _("state"), _("position"), _("waiting for"), _("last close code"), _("worker"),
            _("last progress"),
        ),
        rows=rows,
        more=_("There are more transfers: search the list of transfers for this payload's id.") if more else "",
        empty=_("None: the site itself stored it, and it has not been offered to anybody."),
    )  # fmt: skip


def _transfer(transfer: Transfer, whole: int | None) -> Sequence[object]:
    return (
        cells.link(transfer, f"{transfer.get_direction_display()} {str(transfer.pk)[:8]}"),
        cells.person(transfer.user),
        cells.badge(transfer.state, transfer.get_state_display()),
        cells.bar(transfer.position, whole),
        transfer.get_waiting_for_display() if transfer.waiting_for else cells.NOTHING,
        cells.close_code(transfer.last_close_code),
        plain(transfer.worker, limit=60) or cells.NOTHING,
        cells.time(transfer.progressed_at),
    )


def segments(payload: Payload, *, inline: bool) -> Section:
    """Return how much of the payload lies where, by storage; one row a storage, whatever the number of files."""
    by_storage = (
        Segment.objects.filter(payload=payload)
        .order_by("storage", "owned")
        .values("storage", "owned")
        .annotate(files=Count("pk"), stored=Sum("length"))
    )
    rows: list[Sequence[object]] = [
        (
            plain(row["storage"]),
            row["files"],
            cells.size(row["stored"]),
            _("ours: deleted with the payload") if row["owned"] else _("the site's: never deleted by us"),
        )
        for row in by_storage
    ]
    if inline:
        rows.append((_("in its database row"), cells.NOTHING, cells.size(payload.size), _("inline")))
    return Section(
        title=_("Stored"),
        headings=(_("storage"), _("segments"), _("size"), _("whose files")),
        rows=rows,
        empty=_("Nothing is stored."),
    )


def clients(transfer: Transfer) -> Section:
    """Return how far each client of the recipient is: telephone and laptop each receive the payload."""
    rows, more = _table(
        ClientPosition.objects.filter(transfer=transfer).order_by("-updated_at", "-id"),
        lambda client: (
            plain(client.client),
            cells.badge(client.state, client.get_state_display()),
            cells.bar(client.position, transfer.payload.size),
            cells.time(client.updated_at),
        ),
    )
    return Section(
        title=_("Clients"),
        headings=(_("client"), _("state"), _("position"), _("updated")),
        rows=rows,
        more=_("There are more clients.") if more else "",
        empty=_("No client of this recipient has begun."),
    )


def notices(found: QuerySet[Notice]) -> Section:
    """Return the signals that the site is still to get, with the error of the last attempt."""
    rows, more = _table(
        found.order_by("due_at", "id"),
        lambda notice: (
            plain(notice.signal),
            notice.attempts,
            plain(notice.error) or cells.NOTHING,
            cells.time(notice.due_at),
        ),
    )
    return Section(
        title=_("Notices to the site that are not through yet"),
        headings=(_("signal"), _("attempts"), _("last error"), _("due")),
        rows=rows,
        more=_("There are more notices.") if more else "",
    )
