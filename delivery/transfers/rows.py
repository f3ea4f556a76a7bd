"""Rows that every small message writes, in few and fixed statements.

The ORM composes a statement anew each time, which takes several times as long as running it. Here a statement is made
once, and its values are converted by the model's own fields. Runs in a thread; transactions are the caller's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper

# Their columns take every value as a plain parameter, and both know ON CONFLICT.
PLAIN_VENDORS = frozenset({"sqlite", "postgresql"})
PLAIN_FIELDS = frozenset(
    {
        models.CharField,
        models.BooleanField,
        models.PositiveIntegerField,
        models.PositiveBigIntegerField,
        models.BigIntegerField,
        models.AutoField,
        models.BigAutoField,
    }
)


def insert(
    model: type[models.Model], rows: Sequence[Any], *, unique: Sequence[str] = (), update: Sequence[str] = ()
) -> None:
    """Insert rows, as `bulk_create` does; keys that the database chooses are not read back.

    `update`: the fields that a row gets where one with the same `unique` fields exists. Raises `IntegrityError`.
    """
    if not rows:
        return
    connection = _connection(model)
    if connection.vendor not in PLAIN_VENDORS:
        model._default_manager.bulk_create(
            rows, update_conflicts=bool(update), unique_fields=unique or None, update_fields=update or None
        )
        return
    fields = _fields(model)
    values = [
        [
            getattr(row, field.attname) if plain else field.get_db_prep_save(field.pre_save(row, True), connection)
            for field, plain in fields
        ]
        for row in rows
    ]
    text = _insert_text(model, tuple(unique), tuple(update))
    with connection.cursor() as cursor:
        cursor.executemany(_quoted(model, connection.vendor, text), values)


class Statement:
    """SQL on one model's table: `{table}` and its fields' names in braces, `%s` for values of `fields`, in this order."""

    def __init__(self, model: type[models.Model], text: str, *fields: str) -> None:
        self._model = model
        self._text = text
        self._fields: list[Any] = [model._meta.get_field(name) for name in fields]

    def run(self, *values: Any) -> int:
        """Run it; return how many rows it changed."""
        connection = _connection(self._model)
        with connection.cursor() as cursor:
            self._execute(connection, cursor, values)
            return int(cursor.rowcount)

    def fetch(self, *values: Any, lock: bool = False) -> list[tuple[Any, ...]]:
        """Return the rows that it selects, as the database has them. `lock`: until the transaction ends."""
        connection = _connection(self._model)
        with connection.cursor() as cursor:
            locks = lock and connection.features.has_select_for_update
            self._execute(connection, cursor, values, " FOR UPDATE" if locks else "")
            return list(cursor.fetchall())

    def _execute(self, connection: BaseDatabaseWrapper, cursor: Any, values: Sequence[Any], more: str = "") -> None:
        converted = [
            field.get_db_prep_save(value, connection) for field, value in zip(self._fields, values, strict=True)
        ]
        cursor.execute(_quoted(self._model, connection.vendor, self._text) + more, converted)


def places(count: int) -> str:
    """Return `count` places for values, for an IN."""
    return ", ".join(["%s"] * count)


def _connection(model: type[models.Model]) -> BaseDatabaseWrapper:
    return connections[router.db_for_write(model)]


@functools.cache
def _fields(model: type[models.Model]) -> tuple[tuple[Any, bool], ...]:
    """Return the fields that an insert writes, each with whether its values go into the database as they are."""
    fields: list[Any] = [one for one in model._meta.local_concrete_fields if not isinstance(one, models.AutoField)]
    return tuple((field, type(getattr(field, "target_field", field)) in PLAIN_FIELDS) for field in fields)


@functools.cache
def _insert_text(model: type[models.Model], unique: tuple[str, ...], update: tuple[str, ...]) -> str:
    fields = _fields(model)
    names = ", ".join(f"{{{field.name}}}" for field, _ in fields)
    text = f"INSERT INTO {{table}} ({names}) VALUES ({places(len(fields))})"
    if not update:
        return text
    changes = ", ".join(f"{{{name}}} = EXCLUDED.{{{name}}}" for name in update)
    return f"{text} ON CONFLICT ({', '.join(f'{{{name}}}' for name in unique)}) DO UPDATE SET {changes}"


@functools.lru_cache(maxsize=512)
def _quoted(model: type[models.Model], vendor: str, text: str) -> str:
    quote = _connection(model).ops.quote_name
    columns = {field.name: quote(field.column or field.name) for field in model._meta.local_concrete_fields}
    return text.format(table=quote(model._meta.db_table), **columns)
