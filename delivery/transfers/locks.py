"""Locks on rows, and the one order in which every transaction takes them.

    Payload, Transfer, what hangs on these (ClientPosition, Attachment and the site's own object), Usage, User;
    several rows of one kind in the order of their primary keys.

SQLite has one writer at a time. PostgreSQL has many: two transactions that lock the same two rows in opposite orders
wait for each other until it breaks one of them off. Runs in a thread; transactions are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper

from delivery.models import Payload, Transfer, TransferState

Row = TypeVar("Row", bound=models.Model)


def many_writers() -> bool:
    """Return whether several transactions may write at once, each locking rows; else they come one after the other."""
    return _connection(Transfer).features.has_select_for_update


def lock(rows: models.QuerySet[Row], *of: str) -> models.QuerySet[Row]:
    """Return `rows` so that they are locked when they are read; `of`: these tables of a join alone, in this order.

    Not against rows that only refer to a locked one (`FOR NO KEY UPDATE`): events of a payload need not wait for it.
    """
    features = _connection(rows.model).features
    return rows.select_for_update(
        of=of if features.has_select_for_update_of else (), no_key=features.has_select_for_no_key_update
    )


def clause(model: type[models.Model]) -> str:
    """Return what makes a SELECT from a model's table lock as `lock` does; an empty string where nothing can."""
    connection = _connection(model)
    if not connection.features.has_select_for_update:
        return ""
    return f" {connection.ops.for_update_sql(no_key=connection.features.has_select_for_no_key_update)}"


def with_payloads(rows: models.QuerySet[Transfer]) -> models.QuerySet[Transfer]:
    """Return transfers so that each is read, and locked, after its payload.

    Locked both: of what a statement joins without locking, it returns what was there before it had to wait.
    """
    return lock(rows.select_related("payload"), "payload", "self")


def hold(rows: models.QuerySet[Any]) -> None:
    """Lock rows in the order of their keys, and read nothing; the database may have no such locks, and need none."""
    if _connection(rows.model).features.has_select_for_update:
        list(lock(rows).order_by("pk").values_list("pk"))


def close(rows: models.QuerySet[Any]) -> None:
    """Lock rows that are to be deleted, in the order of their keys: against rows that refer to them, too."""
    if _connection(rows.model).features.has_select_for_update:
        list(rows.select_for_update().order_by("pk").values_list("pk"))


def keep(model: type[models.Model], keys: Sequence[Any]) -> list[Any]:
    """Return those of `keys` that exist, and keep them from being deleted until the transaction ends.

    Where one writes at a time, that is so once a transaction has begun; the keys come back as they are.
    """
    connection = _connection(model)
    if connection.vendor != "postgresql" or not keys:
        return list(keys)
    quote, key = connection.ops.quote_name, model._meta.pk
    places = ", ".join(["%s"] * len(keys))
    table, column = quote(model._meta.db_table), quote(key.column or key.name)
    with connection.cursor() as cursor:
        # Shared: many may refer to one user at once. Django has no name for this lock.
        cursor.execute(
            f"SELECT {column} FROM {table} WHERE {column} IN ({places}) ORDER BY {column} FOR KEY SHARE",
            [key.get_db_prep_value(one, connection) for one in keys],
        )
        found = {key.to_python(one) for (one,) in cursor.fetchall()}
    return [one for one in keys if one in found]


def hold_payloads(keys: Iterable[UUID]) -> list[UUID]:
    """Lock payloads with their live transfers, to end them all; return them in the order of their owners.

    In that order their quotas will be changed.
    """
    payloads = Payload.objects.filter(pk__in=set(keys))
    hold(payloads)
    hold(Transfer.objects.filter(payload__in=payloads.values("pk"), state=TransferState.LIVE))
    found = payloads.values_list("owner_id", "pk")
    return [pk for _, pk in sorted(found, key=lambda row: (row[0] is not None, row))]


def _connection(model: type[models.Model]) -> BaseDatabaseWrapper:
    return connections[router.db_for_write(model)]
