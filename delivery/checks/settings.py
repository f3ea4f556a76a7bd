"""System checks of the values of `DELIVERY`: E001 to E005."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error

from delivery import conf
from delivery.protocol.frames import HEADER_BYTES, is_chunk_size


def register_all(tag: str) -> None:
    """Register every check of this module."""
    checks.register(check_settings, tag)


def check_settings(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check each value of `DELIVERY` by itself, then those that depend on each other."""
    given = getattr(django_settings, "DELIVERY", {})
    if not isinstance(given, dict):
        return [Error(f"DELIVERY is a {type(given).__name__}, expected a dictionary.", id="delivery.E001")]
    found = [message for key, value in given.items() for message in _check_value(key, value)]
    return found or list(_check_together(conf.current()))


def _check_value(key: str, value: Any) -> Iterable[CheckMessage]:
    field = conf.FIELDS.get(key)
    if field is None:
        near = difflib.get_close_matches(str(key), conf.FIELDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "See docs/reference/settings.md for all of them."
        yield Error(f"DELIVERY has no setting {key!r}.", hint=hint, id="delivery.E002")
        return
    expected = typing.get_type_hints(conf.Settings)[field.name]
    if not _fits(value, expected):
        name = getattr(expected, "__name__", None) if isinstance(expected, type) else str(expected)
        yield Error(
            f"DELIVERY[{key!r}] is a {type(value).__name__}, expected {name}.", hint=_hint(field), id="delivery.E003"
        )
        return
    low, high = field.metadata["low"], field.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"{low} to {high}"
        yield Error(f"DELIVERY[{key!r}] is {value}, expected {wanted}.", hint=_hint(field), id="delivery.E004")


def _hint(field: Any) -> str:
    unit = f" (in {field.metadata['unit']})" if field.metadata["unit"] else ""
    return f"{field.metadata['why']}{unit} Default: {field.default!r}."


def _fits(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(expected))
    if expected is type(None):
        return value is None
    if typing.get_origin(expected) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected


def _check_together(options: conf.Settings) -> Iterable[CheckMessage]:
    if not is_chunk_size(options.chunk_size):
        yield Error(
            f"DELIVERY['CHUNK_SIZE'] is {options.chunk_size}, expected a power of two.",
            hint="Powers of two from 4096 to 4194304 bytes.",
            id="delivery.E004",
        )
    if options.chunk_size + HEADER_BYTES > options.max_message:
        yield Error(
            "DELIVERY['CHUNK_SIZE'] and a header of 12 bytes do not fit into DELIVERY['MAX_MESSAGE'].",
            hint=f"Raise MAX_MESSAGE to {options.chunk_size + HEADER_BYTES} bytes or more.",
            id="delivery.E005",
        )
    if options.window < options.chunk_size:
        yield Error(
            "DELIVERY['WINDOW'] is smaller than DELIVERY['CHUNK_SIZE']: no chunk could ever be sent.",
            id="delivery.E005",
        )
    if options.storage not in django_settings.STORAGES:
        yield Error(
            f"DELIVERY['STORAGE'] is {options.storage!r}, which is not in STORAGES.",
            hint=f"STORAGES has {', '.join(sorted(django_settings.STORAGES))}.",
            id="delivery.E005",
        )
