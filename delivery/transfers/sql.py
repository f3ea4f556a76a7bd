"""Our statements: transactions, locks on rows and their one order, and fixed statements for what runs often.

Transactions. A site's router may have put our tables into another database than the default: every transaction of ours,
and what is to happen once it has committed, names it. All our tables are in one database, with the table of users.

Locks. Every transaction takes them in this order:

    Payload, Transfer, what hangs on these (ClientPosition, Attachment and the site's own object), Usage, User;
    several rows of one kind in the order of their primary keys.

SQLite has one writer at a time. PostgreSQL has many: two transactions that lock the same two rows in opposite orders
wait for each other until it breaks one of them off.

Fixed statements (`Insert`, `Statement`) are there only for speed: each is made once, rows are plain tuples, and their
values are converted as the model's own fields do it. The ORM makes an object of each row and composes a statement anew
each time, which takes several times as long as running it. Without them a small message and a segment cost a process
several times the work; nothing else changes.

Runs in a thread. Only `atomic` and `atomic_with` begin transactions; the others run in the caller's.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from django.db import connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from delivery.models import Payload, Transfer, TransferState

Row = TypeVar("Row", bound=models.Model)
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


# -- transactions ------------------------------------------------------------------------------------------------------


def alias() -> str:
    """Return the name of our database in DATABASES."""
    return router.db_for_write(Payload)


def connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to our database."""
    return connections[alias()]


def atomic() -> transaction.Atomic:
    """Return a transaction in our database, as a context manager."""
    return transaction.atomic(using=alias())


def on_commit(function: Callable[[], Any]) -> None:
    """Call `function` once the transaction in our database has committed; at once where there is none."""
    transaction.on_commit(function, using=alias())


@contextmanager
def atomic_with(model: type[models.Model]) -> Iterator[None]:
    """Begin a transaction in our database and in the one of a model of the site's, which commits after ours."""
    with transaction.atomic(using=router.db_for_write(model)), atomic():
        yield


# -- locks -------------------------------------------------------------------------------------------------------------


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


def lock_clause(model: type[models.Model]) -> str:
    """Return what makes a SELECT from a model's table lock as `lock` does; an empty string where nothing can."""
    connection = _connection(model)
    if not connection.features.has_select_for_update:
        return ""
    return f" {connection.ops.for_update_sql(no_key=connection.features.has_select_for_no_key_update)}"


def lock_with_payloads(rows: models.QuerySet[Transfer]) -> models.QuerySet[Transfer]:
    """Return transfers so that each is read, and locked, after its payload.

    Locked both: of what a statement joins without locking, it returns what was there before it had to wait.
    """
    return lock(rows.select_related("payload"), "payload", "self")


def lock_in_order(rows: models.QuerySet[Any]) -> None:
    """Lock rows in the order of their keys, and read nothing; the database may have no such locks, and need none."""
    if _connection(rows.model).features.has_select_for_update:
        list(lock(rows).order_by("pk").values_list("pk"))


def lock_for_deletion(rows: models.QuerySet[Any]) -> None:
    """Lock rows that are to be deleted, in the order of their keys: against rows that refer to them, too."""
    if _connection(rows.model).features.has_select_for_update:
        list(rows.select_for_update().order_by("pk").values_list("pk"))


def keep_rows(model: type[models.Model], keys: Sequence[Any]) -> list[Any]:
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


def lock_payloads(keys: Iterable[UUID]) -> list[UUID]:
    """Lock payloads with their live transfers, to end them all; return them in the order of their owners.

    In that order their quotas will be changed.
    """
    payloads = Payload.objects.filter(pk__in=set(keys))
    lock_in_order(payloads)
    lock_in_order(Transfer.objects.filter(payload__in=payloads.values("pk"), state=TransferState.LIVE))
    found = payloads.values_list("owner_id", "pk")
    return [pk for _, pk in sorted(found, key=lambda row: (row[0] is not None, row))]


def _connection(model: type[models.Model]) -> BaseDatabaseWrapper:
    return connections[router.db_for_write(model)]


# -- fixed statements --------------------------------------------------------------------------------------------------


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
        clause = lock_clause(self._model) if lock else ""
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
