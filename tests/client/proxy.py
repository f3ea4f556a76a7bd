"""A TCP proxy that cuts connections, swallows what goes through, or cuts messages that are too large for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Proxy:
    """Forwards 127.0.0.1:`port` to `target`. `cut_after`: bytes up, by connection number, after which to cut."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.target = target
        self.connections = 0
        self.black_hole = False
        self.cut_after: Callable[[int], int | None] = lambda number: None
        self.cut_down_after: Callable[[int], int | None] = lambda number: None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self.cut()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.connections += 1
        number = self.connections
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        ours = {writer, back}
        self._writers |= ours
        try:
            tasks = [
                asyncio.ensure_future(self._pump(reader, back, self.cut_after(number))),
                asyncio.ensure_future(self._pump(there, writer, self.cut_down_after(number))),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            pass  # the loop ends: asyncio would complain of a handler that was cancelled
        finally:
            self._writers -= ours
            for one in ours:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
        while data := await reader.read(65_536):
            if self.black_hole:
                continue
            if left is not None:
                left -= len(data)
                if left <= 0:
                    return
            writer.write(data)
            await writer.drain()
