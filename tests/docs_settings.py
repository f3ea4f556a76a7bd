"""Writes docs/reference/settings.md from `delivery.conf`: `python -m tests.docs_settings`. A test keeps the two equal."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from delivery import conf

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"

HEAD = """\
# Settings

<!-- Written by `python -m tests.docs_settings` from delivery/conf.py: change the settings there. -->

All settings are keys of one dictionary in the site's settings module. Each has a default, so `DELIVERY = {}` is complete.
They are read live: `override_settings(DELIVERY={...})` in a test just works. A key that is unknown or a value that is
impossible fails a [system check](checks.md) with a hint.

```python
DELIVERY = {
    "PREFIX": "mysite",
    "STORAGE": "payloads",  # an alias in STORAGES
    "MAX_PAYLOAD": 4 * 1024**3,  # bytes
}
```

| setting | type | default | unit | range | what it is for |
|---|---|---|---|---|---|
"""

# The one default that differs between machines.
REDIS_URL = "`REDIS_URL` of the environment, else `'redis://127.0.0.1:6379/0'`"
_SIZES = (("GiB", conf.GIB), ("MiB", conf.MIB), ("KiB", conf.KIB))
_TIMES = (("days", 86400.0), ("h", 3600.0))


def render() -> str:
    """Return the page as it should be."""
    hints = typing.get_type_hints(conf.Settings)
    return HEAD + "".join(_row(name, field, hints[field.name]) for name, field in conf.FIELDS.items())


def _row(name: str, field: dataclasses.Field[Any], hint: Any) -> str:
    meta = field.metadata
    default = REDIS_URL if field.name == "redis_url" else _value(field.default, meta["unit"])
    cells = (f"`{name}`", _type(hint), default, meta["unit"] or "–", _range(meta), meta["why"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_type(one) for one in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return "list or tuple of str" if typing.get_origin(hint) is tuple else hint.__name__


def _value(value: Any, unit: str) -> str:
    scales = {"bytes": _SIZES, "seconds": _TIMES}.get(unit, ())
    for word, factor in scales:
        if value and value >= factor and value % factor == 0:
            return f"`{value!r}` ({value // factor:.0f} {word})"
    return f"`{value!r}`"


def _range(meta: Any) -> str:
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return "–"
    return f"from {low}" if high is None else f"{low} to {high}"


if __name__ == "__main__":
    PAGE.write_text(render())
    print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
