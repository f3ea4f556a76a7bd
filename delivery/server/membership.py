"""Group membership: checked at each delivery, and every 5 s while one runs (docs/explanation/reliability.md, promise 10).

A user who leaves a group gets no more of its payloads. Their pending deliveries stay in the rows, in case they return.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from delivery import policy
from delivery.errors import Refused
from delivery.server.web_process import WebProcess
from delivery.transfers import deliveries, recipients
from delivery.transfers.deliveries import Waiting


async def join_groups(process: WebProcess, user: Any, names: Sequence[str]) -> list[str]:
    """Subscribe to groups at hello: return those that the policy allows, with their payloads made deliverable."""
    try:
        allowed = await process.policy.ask(user.pk, ("join", tuple(names)), lambda: recipients.joinable(user, names))
    except Refused:
        return []
    for name in allowed:
        await process.db(deliveries.catch_up, user.pk, policy.GROUP + name)
    return allowed


async def catch_up(process: WebProcess, user: Any, address: str) -> None:
    """Make what has arrived for a group deliverable to a subscriber (a primary key) who is a member still."""
    name = address.removeprefix(policy.GROUP)
    if name in (await groups_of(process, user, [name]) or ()):
        await process.db(deliveries.catch_up, user, address)


async def groups_of(process: WebProcess, user: Any, names: Iterable[str]) -> frozenset[str] | None:
    """Return those of the groups whose member a user (a primary key) is now, None where the policy does not answer."""
    if not (wanted := frozenset(names)):
        return wanted
    try:
        return await process.policy.ask(user, ("member", wanted), lambda: recipients.memberships(user, wanted))
    except Refused:
        return None


def may_have(waiting: Waiting, groups: frozenset[str]) -> bool:
    """Return whether a delivery may go to a member of `groups`."""
    return not waiting.groups or not groups.isdisjoint(waiting.groups)
