"""Large payloads over WebSockets, for Django: nothing is lost on the way.

The public surface is what this module exports. Names are imported on first use, so that `import delivery` needs no
Django settings and `delivery.client` no Django.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delivery.api import adeliver as adeliver
    from delivery.api import deliver as deliver
    from delivery.auth import make_token as make_token
    from delivery.policy import DefaultPolicy as DefaultPolicy
    from delivery.policy import group as group
    from delivery.server.large_messages import LargeMessageMixin as LargeMessageMixin

__version__ = "0.1.0"

_HOMES = {
    "deliver": "delivery.api",
    "adeliver": "delivery.api",
    "group": "delivery.policy",
    "DefaultPolicy": "delivery.policy",
    "LargeMessageMixin": "delivery.server.large_messages",
    "make_token": "delivery.auth",
}

__all__ = ["DefaultPolicy", "LargeMessageMixin", "adeliver", "deliver", "group", "make_token"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'delivery' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
