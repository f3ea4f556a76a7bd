"""Rows that every small message writes, in few and fixed statements.

The ORM makes an object of each row and composes a statement anew each time, which takes several times as long as running
it. Here a statement is made once, rows are plain tuples, and their values are converted as the model's own fields do it.
Runs in a thread; transactions are the caller's.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper

from delivery.transfers import locks

# Their columns take every value as a plain parameter, and both know ON CONFLICT.
PLAIN_VENDORS = frozenset({"sqlite", "postgresql"})
PLAIN_FIELDS = frozenset(
    {
        models.CharField,
        models.BooleanField,
        models.BinaryField,
        models.PositiveIntegerField,
        models.PositiveBigIntegerField,
        models.IntegerField,
        models.BigIntegerField,
        models.AutoField,
        models.BigAutoField,
    }
)
Convert = Callable[[Any, BaseDatabaseWrapper], Any]


class Insert:
    """Inserts rows of `model`: `fields` are given, in this order, and foreign keys by value. Others get their default.

    `update`: the fields that a row gets where one with the same `unique` fields exists.
    """

    def __init__(
        self, model: type[models.Model], *fields: str, unique: Sequence[str] = (), update: Sequence[str] = ()
    ) -> None:
        self._model = model
        self._given: list[Any] = [model._meta.get_field(name) for name in fields]
        self._unique, self._update = tuple(unique), tuple(update)
        others = [one for one in model._meta.local_concrete_fields if one not in self._given and not _automatic(one)]
        # What may be null, is, unless it has a default: then its column need not be named.
        self._others: list[Any] = [one for one in others if one.has_default() or not one.null]
        self._text = _insert_text([*self._given, *self._others], self._unique, self._update)

    def run(self, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows; keys that the database chooses are not read back. Raises `IntegrityError`."""
        if not rows:
            return
        connection = _connection(self._model)
        if connection.vendor not in PLAIN_VENDORS:
            self._create(rows)
            return
        converts = _converts(self._given, connection.vendor)
        others = [one.get_db_prep_save(one.get_default(), connection) for one in self._others]
        values = [
            [
                *(
                    value if convert is None else convert(value, connection)
                    for value, convert in zip(row, converts, strict=True)
                ),
                *others,
            ]
            for row in rows
        ]
        with connection.cursor() as cursor:
            cursor.executemany(_quoted(self._model, connection.vendor, self._text), values)

    def _create(self, rows: Sequence[Sequence[Any]]) -> None:
        names = [field.attname for field in self._given]
        self._model._default_manager.bulk_create(
            [self._model(**dict(zip(names, row, strict=True))) for row in rows],
            update_conflicts=bool(self._update),
            unique_fields=self._unique or None,
            update_fields=self._update or None,
        )


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
            cursor.execute(self._sql(connection), self._converted(connection, values))
            return int(cursor.rowcount)

    def run_each(self, rows: Sequence[Sequence[Any]]) -> None:
        """Run it once for each row of values."""
        if rows:
            connection = _connection(self._model)
            with connection.cursor() as cursor:
                cursor.executemany(self._sql(connection), [self._converted(connection, values) for values in rows])

    def fetch(self, *values: Any, lock: bool = False) -> list[tuple[Any, ...]]:
        """Return the rows that it selects, as the database has them. `lock`: until the transaction ends."""
        connection = _connection(self._model)
        clause = locks.clause(self._model) if lock else ""
        with connection.cursor() as cursor:
            cursor.execute(self._sql(connection) + clause, self._converted(connection, values))
            return list(cursor.fetchall())

    def _sql(self, connection: BaseDatabaseWrapper) -> str:
        return _quoted(self._model, connection.vendor, self._text)

    def _converted(self, connection: BaseDatabaseWrapper, values: Sequence[Any]) -> list[Any]:
        return [
            value if convert is None else convert(value, connection)
            for value, convert in zip(values, _converts(self._fields, connection.vendor), strict=True)
        ]


def places(count: int) -> str:
    """Return `count` places for values, for an IN."""
    return ", ".join(["%s"] * count)


def _connection(model: type[models.Model]) -> BaseDatabaseWrapper:
    return connections[router.db_for_write(model)]


def _automatic(field: Any) -> bool:
    return isinstance(field, models.AutoField)


def _insert_text(fields: Sequence[Any], unique: tuple[str, ...], update: tuple[str, ...]) -> str:
    names = ", ".join(f"{{{field.name}}}" for field in fields)
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


# -- values --------------------------------------------------------------------------------------------------------


def _converts(fields: Sequence[Any], vendor: str) -> list[Convert | None]:
    """Return what makes parameters of the values of fields, None for those that are parameters as they are."""
    return [_convert(field, vendor) for field in fields]


@functools.lru_cache(maxsize=256)
def _convert(field: Any, vendor: str) -> Convert | None:
    kind = type(getattr(field, "target_field", field))
    if kind in PLAIN_FIELDS:
        return None
    convert: Convert = field.get_db_prep_save
    shorter = _TEXTS.get(kind) if vendor == "sqlite" else None
    return convert if shorter is None else functools.partial(shorter, convert)


def _uuid_text(convert: Convert, value: Any, connection: BaseDatabaseWrapper) -> Any:
    return value.hex if type(value) is UUID else convert(value, connection)


def _moment_text(convert: Convert, value: Any, connection: BaseDatabaseWrapper) -> Any:
    """Do what the field does, in a tenth of its time where the moment and the database are in UTC."""
    utc = datetime.UTC
    if isinstance(value, datetime.datetime) and value.tzinfo is utc and connection.timezone is utc:
        return value.replace(tzinfo=None).isoformat(" ")
    return convert(value, connection)


def _json_text(convert: Convert, value: Any, connection: BaseDatabaseWrapper) -> Any:
    return json.dumps(value) if type(value) is dict else convert(value, connection)


_TEXTS = {models.UUIDField: _uuid_text, models.DateTimeField: _moment_text, models.JSONField: _json_text}
