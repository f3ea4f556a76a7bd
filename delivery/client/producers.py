"""Producers of payloads of unknown length: iterators, and files that can only be read forwards.

A producer owns its one pending pull. A pull belongs to no connection: when its waiter is cancelled, the pull continues, and
the next waiter gets its block. Only the iterator's own end completes the payload; a pause or a truncated response does not.
Knows nothing of transfers.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import queue
import select
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Executor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from delivery.errors import IntegrityError, UsageError

CLOSE_SECONDS = 5.0  # for a generator to clean up, before it is left to itself
PIECE_BYTES = 262_144  # of a file that is read forwards
INSTANT_BYTES = 65_536  # hashing less is quicker done than handed to a thread

Take = Callable[[bytes | None], None]


class Producer:
    """Pulls blocks, one at a time. `take` is called on the loop with each, at last with None for the end.

    `sha256` covers all blocks that were taken. An error of the iterator is final: every later `pull` raises it.
    """

    def __init__(self, take: Take) -> None:
        self.sha256 = hashlib.sha256()
        self._take = take
        self._pull: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def pulling(self) -> bool:
        """Whether the iterator was asked for a block and has not answered."""
        return self._pull is not None and not self._pull.done()

    async def pull(self, pool: Executor) -> None:
        """Wait until one more block, or the end, was taken. Cancelling it leaves the pull alone.

        `pool`: a thread for hashing. Raises what the iterator raised, `UsageError` for a block that is not bytes.
        """
        if self._pull is None:
            self._pull = asyncio.get_running_loop().create_future()
            # Nobody may be waiting when it fails.
            self._pull.add_done_callback(lambda pull: pull.cancelled() or pull.exception())
            self._advance(pool)
        pull = self._pull
        await asyncio.wait([pull])
        pull.result()

    def _arrived(self, block: bytes | None, error: BaseException | None) -> None:
        """Note the outcome of the pull under way."""
        pull = self._pull
        if pull is None or pull.done():
            return
        if error is not None:
            pull.set_exception(_awaitable(error))
            return
        self._take(block)
        pull.set_result(None)
        if block is not None:
            self._pull = None

    @abstractmethod
    def _advance(self, pool: Executor) -> None:
        """Have `_arrived` called with the next block."""

    @abstractmethod
    async def aclose(self) -> None:
        """End the pull and have a generator clean up. Waits at most 5 s, and never for an iterator that blocks."""


class AsyncProducer(Producer):
    """An async iterator. One task advances it and closes it, so that timeouts inside a generator work across blocks."""

    def __init__(self, blocks: AsyncIterator[bytes], take: Take) -> None:
        super().__init__(take)
        self._blocks = blocks
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _advance(self, pool: Executor) -> None:
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.create_task(self._drive(pool))

    async def aclose(self) -> None:
        self._closed = True
        if self._task is None:
            self._task = asyncio.create_task(self._close())
        elif not self._task.done():
            self._task.cancel()
        await asyncio.wait([self._task], timeout=CLOSE_SECONDS)

    async def _drive(self, pool: Executor) -> None:
        try:
            while await self._produce(pool):
                pass
        finally:
            await self._close()

    async def _produce(self, pool: Executor) -> bool:
        """Advance once, when asked to; return whether there may be more."""
        await self._wanted.wait()
        self._wanted.clear()
        try:
            block = _checked(await anext(self._blocks))
            await self._hash(block, pool)
        except StopAsyncIteration:
            self._arrived(None, None)
            return False
        except Exception as error:  # noqa: BLE001 - a program's iterator may raise anything: its upload fails with it
            self._arrived(None, error)
            return False
        except BaseException as error:
            self._arrived(None, error)
            if self._closed or not isinstance(error, asyncio.CancelledError):
                raise
            return False  # somebody cancelled what the iterator waited for
        self._arrived(block, None)
        return not self._closed

    async def _hash(self, block: bytes, pool: Executor) -> None:
        if len(block) > INSTANT_BYTES:
            await asyncio.get_running_loop().run_in_executor(pool, self.sha256.update, block)
        else:
            self.sha256.update(block)

    async def _close(self) -> None:
        if not isinstance(self._blocks, AsyncGenerator):
            return
        try:
            await self._blocks.aclose()
        except Exception as error:  # noqa: BLE001 - the upload has ended: nobody else would hear of it
            _complain(asyncio.get_running_loop(), error)


class ThreadProducer(Producer):
    """A plain iterator, advanced in a thread of its own, since it may block for as long as it likes.

    A daemon thread: a read that is blocked must not hold the exit of the process.
    """

    def __init__(self, blocks: Iterator[bytes], take: Take) -> None:
        super().__init__(take)
        self._blocks = blocks
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _advance(self, pool: Executor) -> None:
        self._start()
        self._wanted.put(True)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._start()
            self._wanted.put(False)

    def _start(self) -> None:
        if self._thread is None:
            run, loop = self._run, asyncio.get_running_loop()
            self._thread = threading.Thread(target=run, args=(loop,), name="delivery-producer", daemon=True)
            self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._wanted.get():
            block, error = self._next()
            if not _call(loop, self._arrived, block, error):
                break  # the loop is gone, and with it everybody who waited
            if block is None:
                break
        self._close(loop)

    def _next(self) -> tuple[bytes | None, BaseException | None]:
        try:
            block = _checked(next(self._blocks))
            self.sha256.update(block)
        except StopIteration:
            return None, None
        except BaseException as error:  # noqa: BLE001 - a program's iterator may raise anything: its upload fails with it
            return None, error
        return block, None

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        if not isinstance(self._blocks, Generator):
            return
        try:
            self._blocks.close()
        except Exception as error:  # noqa: BLE001 - the upload has ended: nobody else would hear of it
            _call(loop, _complain, loop, error)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> bool:
    """Have `function` called on the loop; return whether the loop still runs."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True


def _complain(loop: asyncio.AbstractEventLoop, error: Exception) -> None:
    loop.call_exception_handler({"message": "an iterator of a payload failed to clean up", "exception": error})


def _awaitable(error: BaseException) -> Exception:
    """Return what a future may hold: being cancelled, or StopIteration, would mean something else to who awaits it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return IntegrityError(f"the producer was ended by {type(error).__name__}: this is not all of the payload")


def _checked(block: Any) -> bytes:
    """Return a copy, which the iterator cannot change any more."""
    if not isinstance(block, bytes | bytearray | memoryview):
        raise UsageError(f"expected an iterator of bytes, got {type(block).__name__}")
    return bytes(block)


# -- pipes, standard input, sockets, HTTP responses: read as it comes, in the thread of whoever iterates -----------------


def open_and_read(path: Path) -> Iterator[bytes]:
    """Open and read something that is no regular file; opening a named pipe waits for its writer."""
    with open(path, "rb", buffering=0) as file:
        yield from read_descriptor(file)


def read_forwards(file: Any) -> Iterator[bytes]:
    """Return the pieces of an open file until its own end.

    Raises `IntegrityError` where that cannot be told from a pause, or where an HTTP response was cut.
    """
    raw = getattr(file, "raw", file)
    if isinstance(raw, io.FileIO):
        return _read_buffered(file, raw)
    if isinstance(file, HTTPResponse):
        return _read_response(file)
    return _read_object(file)


def read_descriptor(raw: io.FileIO) -> Iterator[bytes]:
    """Read a descriptor, past any buffer, whose lock a blocked thread would take along into the exit of the process."""
    while (piece := raw.read(PIECE_BYTES)) != b"":
        if piece is None:
            _until_readable(raw)
        else:
            yield piece


def _read_buffered(file: Any, raw: io.FileIO) -> Iterator[bytes]:
    if isinstance(file, io.BufferedReader) and (piece := _left_in(file, raw)):
        yield piece
    yield from read_descriptor(raw)


def _left_in(file: io.BufferedReader, raw: io.FileIO) -> bytes:
    """Return what the program has read ahead, without waiting for more."""
    if not hasattr(select, "poll"):
        return file.read1(PIECE_BYTES)
    if _poll(raw, 0):
        return file.read1(PIECE_BYTES)
    # Python does not say what a buffer holds: only a descriptor that does not block gives it without waiting.
    descriptor = raw.fileno()
    blocking = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        return file.read1(len(file.peek()))
    finally:
        os.set_blocking(descriptor, blocking)


def _until_readable(raw: io.FileIO) -> None:
    if not hasattr(select, "poll"):
        raise _would_block(raw)
    _poll(raw, None)


def _poll(raw: io.FileIO, milliseconds: int | None) -> bool:
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    return bool(poll.poll(milliseconds))


def _read_response(response: HTTPResponse) -> Iterator[bytes]:
    while piece := response.read(PIECE_BYTES):
        yield piece
    if response.length:  # `http.client` itself says nothing
        raise IntegrityError(f"the HTTP response ended {response.length} bytes before its end")


def _read_object(file: Any) -> Iterator[bytes]:
    read = getattr(file, "read1", file.read)
    while True:
        piece = read(PIECE_BYTES)
        if piece is not None and len(piece) == 0 and isinstance(getattr(file, "raw", None), io.RawIOBase):
            piece = file.raw.read(PIECE_BYTES)  # a buffer says b"" where its raw file says None
        if piece is None:
            raise _would_block(file)
        if len(piece) == 0:
            return
        yield piece


def _would_block(file: Any) -> IntegrityError:
    return IntegrityError(
        f"cannot wait for a file that does not block ({type(file).__name__}): open it as one that does"
    )
