"""A PostgreSQL server of our own, and a proxy in front of it that cuts connections at their commits.

The proxy knows so much of PostgreSQL's protocol (its documentation, chapter "Frontend/Backend Protocol"): messages are
a type, a length and a body; a client says `COMMIT`, or a change outside of a transaction, in a simple query; the server
answers with `CommandComplete` once that is durable, and `ReadyForQuery` says whether a transaction is open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from rig import postgres
from rig.proxy import Forwarder, reset

CHANGES = (b"INSERT", b"UPDATE", b"DELETE")
IDLE = b"I"
QUERY, COMPLETE, FAILED, READY = b"Q", b"C", b"E", b"Z"


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[int]:
    """Run a new, empty server on 127.0.0.1; give its port."""
    server = await asyncio.to_thread(postgres.Server)
    try:
        yield server.port
    finally:
        await asyncio.to_thread(server.stop)


# -- the proxy -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Session:
    """One client's connection. `hides`: the server's next `CommandComplete` is the last thing, and is not passed on."""

    port: int  # the client's
    status: bytes = IDLE
    hides: bool = False


class Commits(Forwarder):
    """A port on 127.0.0.1 that leads to the server. `async with`. `owner_of` names whose connection it is by its port."""

    def __init__(self, server_port: int, owner_of: Callable[[int, int], str]) -> None:
        super().__init__(server_port)
        self.seen: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self._owner_of = owner_of
        self._strikes: Callable[[str], bool] | None = None
        self._early = False

    def break_some(self, strikes: Callable[[str], bool], *, early: bool) -> None:
        """Cut at the commits for which `strikes`, given whose they are, is true.

        `early`: before the server sees them. Else after it has committed, before the client hears of it.
        """
        self.seen.clear()
        self.cut.clear()
        self._strikes, self._early = strikes, early

    def break_none(self) -> None:
        self._strikes = None

    async def _forward(
        self,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        session = _Session(to_client.get_extra_info("peername")[1])
        pumps = [
            asyncio.create_task(self._up(session, from_client, to_server)),
            asyncio.create_task(self._down(session, from_server, to_client)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            reset(to_server)

    async def _up(self, session: _Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readexactly(4)  # the first message has no type
            writer.write(head + await reader.readexactly(int.from_bytes(head) - 4))
            while True:
                kind, message = await _read(reader)
                if kind == QUERY and _commits(session, message) and self._strike(session):
                    if self._early:
                        return
                    session.hides = True
                writer.write(message)
                await writer.drain()

    async def _down(self, session: _Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                kind, message = await _read(reader)
                if kind == READY:
                    session.status = message[5:6]
                elif kind == FAILED:
                    session.hides = False  # it is not committed, and the client may know
                elif kind == COMPLETE and session.hides:
                    return
                writer.write(message)
                await writer.drain()

    def _strike(self, session: _Session) -> bool:
        if self._strikes is None:
            return False
        owner = self._owner_of(session.port, self.port)
        self.seen[owner] += 1
        if not self._strikes(owner):
            return False
        self.cut[owner] += 1
        return True


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the next message's type, and all of it."""
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(int.from_bytes(head[1:]) - 4)


def _commits(session: _Session, message: bytes) -> bool:
    """Return whether a query ends a transaction with success: said so, or a change that is one by itself."""
    text = message[5:].rstrip(b"\0").strip()
    return text == b"COMMIT" or (session.status == IDLE and text.startswith(CHANGES))
