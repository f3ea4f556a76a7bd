"""Which alias of STORAGES a storage object is: rows keep aliases, model fields have objects."""

from __future__ import annotations

from django.conf import settings
from django.core.files.storage import Storage, storages

STATIC_ALIAS = "staticfiles"


def alias_of(storage: Storage) -> str | None:
    """Return the alias under which STORAGES names a storage, None where it does not."""
    for alias in settings.STORAGES:
        if alias == STATIC_ALIAS:
            continue
        candidate = storages[alias]
        # Equality as well: `default_storage` is a lazy wrapper, and deconstructible storages compare by their options.
        if candidate is storage or candidate == storage:
            return alias
    return None
