"""Who may have what is addressed to a group: asked at each delivery, and every 5 s while one runs (DESIGN, promise 10).

Whoever leaves a group gets nothing more of it; what waits for them stays in the rows, for their return.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from delivery import policy
from delivery.errors import Refused
from delivery.server import download_offers
from delivery.transfers import deliveries, recipients
from delivery.transfers.deliveries import Waiting

if TYPE_CHECKING:
    from delivery.server.connection import Session
    from delivery.server.web_process import Process


async def join(session: Session, names: Sequence[str]) -> list[str]:
    """Subscribe to groups at hello: return those that the policy allows, with their payloads made deliverable."""
    user = session.user
    try:
        allowed = await session.process.policy.ask(
            user.pk, ("join", tuple(names)), lambda: recipients.joinable(user, names)
        )
    except Refused:
        return []
    for name in allowed:
        await session.db(deliveries.catch_up, user.pk, policy.GROUP + name)
    return allowed


async def catch_up(session: Session, address: str) -> None:
    """Make what has arrived for a group deliverable to a subscriber who is a member still."""
    name = address.removeprefix(policy.GROUP)
    if name in (await _groups_of(session.process, session.user.pk, [name]) or ()):
        await session.db(deliveries.catch_up, session.user.pk, address)


async def allowed(session: Session, found: Sequence[Waiting]) -> list[Waiting]:
    """Return those of `found` that the user may have now."""
    names = {name for waiting in found for name in waiting.groups}
    groups = await _groups_of(session.process, session.user.pk, names) or frozenset()
    return [waiting for waiting in found if _may_have(waiting, groups)]


async def check(session: Session) -> None:
    """End every delivery through a group that its user has left since, as `forbidden`.

    Where the policy does not answer, they end for now alone.
    """
    held = [outflow for outflow in session.outflows.values() if outflow.waiting.groups]
    if not held:
        return
    names = {name for outflow in held for name in outflow.waiting.groups}
    groups = await _groups_of(session.process, session.user.pk, names)
    for outflow in held:
        if session.over or session.outflows.get(outflow.sender.handle) is not outflow:
            continue
        if groups is None:
            download_offers.drop(session, outflow, "busy", final=False)
        elif not _may_have(outflow.waiting, groups):
            download_offers.withdraw(session, outflow)


def _may_have(waiting: Waiting, groups: frozenset[str]) -> bool:
    return not waiting.groups or not groups.isdisjoint(waiting.groups)


async def _groups_of(process: Process, user: Any, names: Iterable[str]) -> frozenset[str] | None:
    """Return those of the groups whose member a user (a primary key) is now, None where the policy does not answer."""
    if not (wanted := frozenset(names)):
        return wanted
    try:
        return await process.policy.ask(user, ("member", wanted), lambda: recipients.memberships(user, wanted))
    except Refused:
        return None
