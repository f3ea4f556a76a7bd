"""The interfaces of the connection and the web process that their parts use.

Only `typing.Protocol`s: `connection` and `web_process` own the parts and import them; the parts import neither.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar
from uuid import UUID

from delivery.auth import Login
from delivery.buffer.pubsub import Subscriber
from delivery.policy import Quota
from delivery.protocol.connection import Connection
from delivery.protocol.events import Event
from delivery.transfers.deliveries import Waiting
from delivery.transfers.holders import Holder

P = ParamSpec("P")
T = TypeVar("T")


class ConnectionClosed(Exception):
    """The socket takes nothing more: its peer is gone."""


class Socket(Protocol):
    """What a connection asks of its consumer. Sending raises `ConnectionClosed` once the peer is gone."""

    channel_name: str

    async def send_text(self, text: str) -> None: ...

    def send_now(self, *pieces: bytes | bytearray | memoryview) -> bool:
        """Send one binary message if that takes no waiting; else return False, and send nothing."""

    async def send_bytes(self, *pieces: bytes | bytearray | memoryview) -> None:
        """Send one binary message, whose pieces nobody changes any more."""

    async def close(self, code: int, reason: str) -> None: ...

    async def join(self, group: str) -> None: ...

    def abandon(self) -> None: ...

    def limit_messages(self, size: int) -> None:
        """Take messages of at most `size` bytes from now on, where the server lets that be chosen."""

    def incomplete_at(self) -> float:
        """Return the monotonic time at which bytes of an incomplete message came last.

        0.0 where none is under way, or where the server does not say.
        """


class DatabasePort(Protocol):
    """Runs what talks to the database."""

    async def db(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread. Cancelling the caller leaves it running to its end."""


class ProcessPort(DatabasePort, Protocol):
    """What a part asks of its process."""

    subscriber: Subscriber

    async def publish(self, task: str, arguments: dict[str, Any], *, marker: str, attempt: int = 0) -> bool:
        """Publish a task unless somebody just did; return whether it was published. Raises `BufferUnavailable`."""


class Closable(Protocol):
    """A socket that can be told to go away. `login`: who is at its other end, None where the site looks after that."""

    login: Login | None

    async def leave(self, reason: str) -> None: ...

    def revoke(self, reason: str) -> None: ...


class Recipient(Protocol):
    """A connection that is offered what arrives for its addresses."""

    client: str

    @property
    def over(self) -> bool:
        """Whether its socket is gone."""

    @property
    def receiving(self) -> bool:
        """Whether a delivery is on its way to it."""

    def arrived(self, address: str, waiting: Waiting | None) -> None: ...

    def staged(self, payload: UUID, worker: str) -> None: ...

    async def check_groups(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


class ConnectionPort(Protocol):
    """What uploads and downloads ask of their connection."""

    core: Connection
    client: str
    quota: Quota
    close_code: int | None

    @property
    def user(self) -> Any:
        """The user at the other end, once there is one."""

    @property
    def over(self) -> bool:
        """Whether the socket is gone."""

    @property
    def deaf(self) -> bool:
        """Whether what comes is discarded: we are going away, and the peer may not know yet."""

    @property
    def busy(self) -> int:
        """How many tasks serve this connection."""

    def require_holder(self) -> Holder:
        """Return who holds the transfers of this connection, once there was a hello."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that the connection owns. What escapes it closes the connection with 1011."""

    def act(self, happened: Sequence[Event]) -> None:
        """Do what the core's events ask for."""

    def wake(self) -> None:
        """There may be something to write."""

    def transfers_live(self) -> None:
        """Look often from now on: a transfer has begun."""

    def reset_timer(self) -> None:
        """What time alone asks for may be due sooner."""

    async def confirm(self) -> None:
        """Look whether the login still holds. Raises `TransferAborted` where it does not."""

    def moved_by(self, worker: str) -> None:
        """A worker has reported on a transfer."""

    def close(self, code: int, reason: str) -> None: ...

    async def db(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `WebProcess.db` does, a few at a time."""

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `WebProcess.change` does, a few at a time."""


class ConnectionPart:
    """A part of one connection, which owns it.

    Were they to hold each other, all that a connection had would stay in memory until Python's collector of cycles comes
    by, which stops the whole process, and the longer, the more of them there are.
    """

    def __init__(self, connection: ConnectionPort) -> None:
        self._owner = weakref.ref(connection)

    @property
    def _connection(self) -> ConnectionPort:
        connection = self._owner()
        if connection is None:
            raise RuntimeError("a part is used after its connection is gone")
        return connection
