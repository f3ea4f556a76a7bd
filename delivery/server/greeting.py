"""Hello and welcome: who is there, whether there is room for them, what they are to be offered (PROTOCOL section 1)."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from delivery import conf, notify, policy
from delivery.auth import Login, Refusal, Request
from delivery.errors import BufferUnavailable, ProtocolViolation
from delivery.protocol import messages
from delivery.protocol.codes import CLOSE_CODES
from delivery.server import membership, message_limits
from delivery.transfers.holders import Holder

if TYPE_CHECKING:
    from delivery.server.connection import Session

MOST_GROUPS = 256  # of one hello: each is a question to the policy


async def greet(session: Session, hello: messages.Hello) -> None:
    """Answer a hello with a welcome, or close the connection."""
    if session.login is None:
        found = await _login_of(session, hello.token)
        if isinstance(found, Refusal):
            return session.close(4401, found.value)
        session.login = found
    session.quota = await session.process.questions.quota_of(session.user)
    if session.count() > session.quota.connections:
        return session.refuse(ProtocolViolation(CLOSE_CODES[4429].reason, 4429))
    try:
        order = await session.process.questions.order()
    except BufferUnavailable:
        away = messages.GoingAway(reason="overloaded", retry_after=conf.current().retry_max)
        return session.close(1013, CLOSE_CODES[1013].reason, going_away=away)
    session.client = hello.client
    channel = session.socket.channel_name
    session.holder = Holder(session.user.pk, hello.client, secrets.token_hex(8), order, channel)
    wanted = hello.groups[:MOST_GROUPS]
    groups = await membership.join(session, wanted) if wanted else []
    _welcome(session, session.holder, groups)
    if hello.receive:
        await _receive(session, groups)
    return None


async def _login_of(session: Session, token: str | None) -> Login | Refusal:
    if token is None:
        return Refusal.MISSING
    return await session.process.questions.login_of(Request.with_token(token))


def _welcome(session: Session, holder: Holder, groups: list[str]) -> None:
    options = conf.current()
    session.welcomed_at = time.monotonic()
    session.socket.limit_messages(options.max_message + message_limits.SLACK_BYTES)
    session.connection.welcome(
        messages.Welcome(
            session=holder.session,
            user=policy.address_of(session.user),
            groups=tuple(groups),
            max_message=options.max_message,
            chunk_size=options.chunk_size,
            window=options.window,
            early_data=session.connection.limits.early_data,
            heartbeat=options.heartbeat,
            retry={"initial": options.retry_initial, "max": options.retry_max},
        )
    )
    session.wake()


async def _receive(session: Session, groups: list[str]) -> None:
    """Offer what waits, and what arrives from now on."""
    addresses = [policy.address_of(session.user), *(policy.GROUP + name for name in groups)]
    for address in addresses:
        await session.socket.join(notify.group_of(address))
    session.process.lookout.join(session, addresses)
    session.spawn(session.offering.run(), "offering")
    session.offering.look()
