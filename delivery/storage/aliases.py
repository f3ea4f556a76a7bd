"""Finds the alias in STORAGES of a storage object: rows keep aliases, model fields have objects."""

from __future__ import annotations

from django.conf import settings
from django.core.files.storage import Storage, storages

STATIC_ALIAS = "staticfiles"


def alias_of(storage: Storage) -> str | None:
    """Return the alias under which STORAGES names a storage, None where it does not."""
    for alias in settings.STORAGES:
        if alias == STATIC_ALIAS:
            continue
        if _same(storages[alias], storage):
            return alias
    return None


def _same(one: Storage, other: Storage) -> bool:
    """Return whether two storage objects are one place: a field's own object may have been made from the same options."""
    if one is other or one == other:  # `default_storage` is a lazy wrapper
        return True
    made = [getattr(storage, "deconstruct", None) for storage in (one, other)]
    return None not in made and made[0]() == made[1]()  # type: ignore[misc]
