"""What the stack's site says: users and logins, rows, and what Storage holds.

The one module with Django in it: this process becomes one of the site, as its own code would be. All functions block;
`ask` calls them in a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from rig.environment import own_environment

P = ParamSpec("P")
T = TypeVar("T")


def open_site(var: Path) -> None:
    """Make this process one of the site whose state is in `var`. Once, with the stack up, before any other call."""
    import django

    environment = own_environment(DELIVERY_VAR=str(var), DJANGO_SETTINGS_MODULE="project.settings", LOG_LEVEL="ERROR")
    os.environ.clear()
    os.environ.update(environment)
    django.setup()


def use_database(url: str | None) -> None:
    """Ask the database of `url` from now on, None: the one that the project's settings name."""
    import dj_database_url
    from django.conf import settings
    from django.db import connections

    options = dict(dj_database_url.parse(url)) if url else settings.DATABASES["default"]
    connections.settings = connections.configure_settings({"default": options})


async def ask(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread; its connections are closed afterwards, and forgotten."""

    def asked() -> T:
        from django.db import connections

        try:
            return function(*args, **kwargs)
        finally:
            connections.close_all()
            for connection in connections.all(initialized_only=True):
                del connections[connection.alias]

    return await asyncio.to_thread(asked)


@dataclass(frozen=True)
class Person:
    """A user with a login."""

    pk: int
    token: str

    @property
    def address(self) -> str:
        return f"user:{self.pk}"


def make_people(count: int) -> list[Person]:
    """Make users for whom nothing waits."""
    from django.contrib.auth.models import User

    from delivery import make_token

    people = []
    for _ in range(count):
        user = User(username=f"person-{uuid.uuid4().hex[:12]}")
        user.set_unusable_password()
        user.save()
        people.append(Person(user.pk, make_token(user)))
    return people


def deliver_to(data: bytes, people: list[int], *, name: str) -> str:
    """Deliver bytes to users from the server's side; return the payload's id."""
    from django.contrib.auth.models import User

    from delivery import deliver

    return str(deliver(data, to=User.objects.filter(pk__in=people), name=name).pk)


def deliver_in_place(path: Path, people: list[int], *, name: str) -> str:
    """Deliver a file of the site's own Storage where it lies; return the payload's id."""
    from django.contrib.auth.models import User
    from django.core.files.base import File
    from django.core.files.storage import default_storage
    from django.db.models import FileField
    from django.db.models.fields.files import FieldFile

    from delivery import deliver

    with path.open("rb") as file:
        saved = default_storage.save(name, File(file))
    placed = FieldFile(None, FileField(storage=default_storage), saved)  # type: ignore[arg-type]
    return str(deliver(placed, to=User.objects.filter(pk__in=people), name=name).pk)


def stored_digest(payload: str) -> str:
    """Read a complete payload back from Storage; return its SHA-256."""
    from delivery.models import Payload

    digest = hashlib.sha256()
    with Payload.objects.get(pk=payload).open() as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def payloads_of(people: list[int]) -> list[str]:
    """Return every payload that these users own or are to get."""
    from django.db.models import Q

    from delivery.models import Payload

    found = Payload.objects.filter(Q(owner__in=people) | Q(transfers__user__in=people)).distinct()
    return [str(pk) for pk in found.values_list("pk", flat=True)]


def payload_state(payload: str) -> tuple[str, str]:
    """Return the state and failure of a payload."""
    from delivery.models import Payload

    row = Payload.objects.get(pk=payload)
    return row.state, row.failure


def try_missing() -> int:
    """Look for missing files as often as it takes until a payload fails, as if ten minutes had gone by.

    Returns how many payloads miss a file.
    """
    from django.utils import timezone

    from delivery.models import MissingFile
    from delivery.transfers import missing_files

    for _ in range(missing_files.LEAST_TRIES):
        now = timezone.now()
        MissingFile.objects.update(since=now - missing_files.LEAST_DURATION, tried_at=now - missing_files.BETWEEN_TRIES)
        missing_files.try_due()
    return MissingFile.objects.count()


def revive(payload: str) -> bool:
    """Do what the admin's button does."""
    from delivery.transfers import revive_payload

    return revive_payload(uuid.UUID(payload), by="")


def segments_of(payload: str) -> list[tuple[str, int, int]]:
    """Return (file name, offset, length) of each segment."""
    from delivery.models import Segment

    return list(Segment.objects.filter(payload=payload).order_by("offset").values_list("name", "offset", "length"))


def live_segments(people: list[int]) -> list[tuple[str, int, int]]:
    """Return the segments of these users' unfinished uploads."""
    from delivery.models import PayloadState, Segment

    rows = Segment.objects.filter(payload__owner__in=people, payload__state=PayloadState.STORING)
    return list(rows.order_by("offset").values_list("name", "offset", "length"))


def unsettled(people: list[int], *, failures: bool) -> list[str]:
    """Return what is still on its way, in words: empty once nothing of these users' moves or waits any more.

    `failures`: payloads that failed are an end as any other.
    """
    from delivery.models import Notice, Payload, PayloadState, Transfer, TransferState

    found = []
    for row in Payload.objects.filter(pk__in=payloads_of(people)):
        over = row.state == PayloadState.COMPLETE or (failures and row.state in ("failed", "cancelled"))
        if not over:
            found.append(f"payload {row.pk} is {row.state} {row.failure}")
    for row in Transfer.objects.filter(user__in=people):
        if row.state not in (
            TransferState.DONE,
            *((TransferState.FAILED, TransferState.CANCELLED) if failures else ()),
        ):
            found.append(f"{row.direction} {row.pk} is {row.state}, at {row.position}, waits for {row.waiting_for!r}")
    found += [f"notice {row} waits" for row in Notice.objects.filter(payload__in=payloads_of(people))]
    return found


def wrong_rows(people: list[int]) -> list[str]:
    """Return what contradicts itself in the rows of these users."""
    from django.db.models import F, Sum
    from django.db.models.functions import Coalesce

    from delivery.models import Payload, PayloadState, Usage

    found = []
    for row in Payload.objects.filter(pk__in=payloads_of(people), state=PayloadState.COMPLETE, inline=None):
        at = 0
        for segment in row.segments.order_by("offset"):
            if segment.offset != at:
                found.append(f"payload {row.pk}: a segment begins at {segment.offset}, expected {at}")
            at = segment.offset + segment.length
        if at != row.size:
            found.append(f"payload {row.pk}: segments hold {at} of {row.size} bytes")
    for usage in Usage.objects.filter(user__in=people):
        charged = Payload.objects.filter(owner=usage.user_id, state=PayloadState.COMPLETE).aggregate(
            sum=Sum(F("reserved") + Coalesce(F("overhead"), 0))
        )
        if usage.live != 0 or usage.stored != (charged["sum"] or 0):
            found.append(
                f"quota of {usage.user_id}: {usage.live} live, {usage.stored} bytes, expected {charged['sum']}"
            )
    return found


def orphans(people: list[int], folder: Path) -> list[str]:
    """Return the files of these users' payloads that no row names."""
    from delivery.models import Segment

    found = []
    for payload in payloads_of(people):
        named = set(Segment.objects.filter(payload=payload).values_list("name", flat=True))
        where = folder / payload
        names = [f"{payload}/{entry.name}" for entry in where.iterdir()] if where.is_dir() else []
        found += [name for name in names if name not in named]
    return found


def nameless(folder: Path) -> list[str]:
    """Return the folders of payloads that have files and no row. A task that comes too late leaves an empty one."""
    from delivery.models import Payload

    found = [path.name for path in folder.iterdir() if any(path.iterdir())] if folder.is_dir() else []
    known = {str(pk) for pk in Payload.objects.filter(pk__in=found).values_list("pk", flat=True)}
    return [name for name in found if name not in known]


def sweep_orphans(people: list[int]) -> None:
    """Do what the sweep does a while after a payload ended."""
    from delivery.transfers.cleanup import delete_orphans

    for payload in payloads_of(people):
        delete_orphans(uuid.UUID(payload))


def discard(people: list[int]) -> None:
    """Let go of everything of these users, and of the users."""
    from django.contrib.auth.models import User

    from delivery.models import Payload
    from delivery.transfers import outcomes

    for payload in payloads_of(people):
        outcomes.cancel_payload(uuid.UUID(payload), by="")
    Payload.objects.filter(pk__in=payloads_of(people)).delete()
    User.objects.filter(pk__in=people).delete()


def dump(people: list[int]) -> list[str]:
    """Return rows and events of these users in words, for a failing trial."""
    from delivery.models import Event, Payload, Transfer

    lines = []
    ids = payloads_of(people)
    for row in Payload.objects.filter(pk__in=ids):
        lines.append(f"payload {row.pk} {row.name} {row.state} {row.failure} size {row.size} sealing {row.sealing_at}")
    for row in Transfer.objects.filter(payload__in=ids):
        lines.append(
            f"{row.direction} {row.pk} of {row.payload_id} {row.state} {row.failure} lease {row.lease} position "
            f"{row.position} client {row.client[:8]} channel {bool(row.channel)} waits for {row.waiting_for!r}"
        )
    for event in Event.objects.filter(payload__in=ids).order_by("at", "id"):
        lines.append(f"  {event.at:%H:%M:%S.%f} {event.kind} {str(event.payload_id)[:8]} {event.detail}")
    return lines
