"""The reference of the Python API names everything that is public, and nothing that is not there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import delivery
from delivery import client, signals
from delivery.models import Payload
from delivery.policy import DefaultPolicy
from delivery.server.large_messages import LargeMessageMixin

PAGE = (Path(__file__).parent.parent / "docs" / "reference" / "python.md").read_text()


def own(found: type) -> list[str]:
    """Return the public names that a class itself defines."""
    return [name for name in vars(found) if not name.startswith("_")]


def named(name: str) -> bool:
    return re.search(rf"\b{name}\b", PAGE) is not None


@pytest.mark.parametrize(
    "names",
    [
        delivery.__all__,
        client.__all__,
        list(signals.BY_NAME),
        own(DefaultPolicy),
        [name for name in own(LargeMessageMixin) if "large" in name or "pointer" in name if "delivery" not in name],
        ["open", "url", "attach", "discard", "deliveries"],
        list(inspect.signature(client.connect).parameters),
        list(inspect.signature(client.Client.send).parameters)[1:],
        [name for name in own(client.Receipt) if name != "transfer"],
    ],
    ids=["delivery", "client", "signals", "policy", "mixin", "payload", "connect", "send", "receipt"],
)
def test_everything_public_is_named(names):
    assert [name for name in names if not named(name)] == []


@pytest.mark.parametrize(
    ("pattern", "owner"),
    [
        (r"`payload\.(\w+)", Payload),
        (r"`(?:await )?client\.(\w+)\(", client.Client),
        (r"`(?:await )?incoming\.(\w+)\(", client.Incoming),
        (r"^\| `(may_\w+|group_members|max_payload|quota|find_user)\(", DefaultPolicy),
        (r"`((?:send|receive)_\w+|large_\w+)", LargeMessageMixin),
    ],
    ids=["payload", "client", "incoming", "policy", "mixin"],
)
def test_everything_named_is_there(pattern, owner):
    names = set(re.findall(pattern, PAGE, flags=re.M)) - {"meta"}
    assert names
    assert [name for name in names if not hasattr(owner, name)] == []
