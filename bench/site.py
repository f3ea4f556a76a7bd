"""The Django side of a stack, in a process of its own: prepares users and payloads, and reads what is stored.

One JSON object a line on standard input, `{"do": name, ...}`; one on standard output, `{"value": ...}`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

PIECE_BYTES = 1024 * 1024


def tokens(count: int) -> list[str]:
    from django.contrib.auth import get_user_model

    from delivery import make_token

    users = get_user_model()._default_manager
    names = [f"bench{number}" for number in range(count)]
    known = set(users.filter(username__in=names).values_list("username", flat=True))
    users.bulk_create(users.model(username=name, password="!") for name in names if name not in known)
    rows = {user.username: user for user in users.filter(username__in=names)}
    return [make_token(rows[name]) for name in names]


def deliver(path: str, to: list[str]) -> str:
    import delivery

    return str(delivery.deliver(Path(path), to=to).pk)


def digest(payload: str) -> str:
    from delivery.models import Payload

    found = hashlib.sha256()
    buffer = bytearray(PIECE_BYTES)
    with Payload.objects.get(pk=payload).open() as file:
        while count := file.readinto(buffer):
            found.update(memoryview(buffer)[:count])
    return found.hexdigest()


def drop(payload: str) -> None:
    from delivery.transfers import expire_payload

    expire_payload(UUID(payload), by="")


def segments() -> int:
    from delivery.models import Segment

    return Segment.objects.count()


FUNCTIONS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (tokens, deliver, digest, drop, segments)}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from django.db import connections

    try:
        return {"value": FUNCTIONS[request.pop("do")](**request)}
    except Exception as error:  # noqa: BLE001 - whatever it is, who asked is told
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        connections.close_all()


def main() -> None:
    import django

    django.setup()
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
