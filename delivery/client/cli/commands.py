"""The two commands of `python -m delivery.client`: what they do with a client, and their exit status."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from delivery.client.cli.activity import Activity, NoProgress
from delivery.client.cli.resumption import Resumption
from delivery.client.client import Client, connect
from delivery.client.download import Incoming
from delivery.client.receiving_directory import ReceivingDirectory
from delivery.client.upload import Receipt, Upload
from delivery.errors import DeliveryError, IntegrityError, Refused, StorageUnavailable, TransferAborted

DONE, FAILED = 0, 1
AT_ONCE = 4
GONE_CODES = frozenset({"expired", "cancelled", "mismatch"})  # what is remembered is of no more use: begin anew


async def send(options: Namespace, activity: Activity) -> int:
    """Send every file, at most four at once; return the exit status."""
    started = time.monotonic()
    client = _client(options, activity, receive=False)
    sending = _SendCommand(client, options, activity)
    ok = False
    try:
        async with activity.limited(options.timeout, excused=sending.waits_for_producers), client:
            ok = all(await asyncio.gather(*map(sending.send, options.files)))
    except NoProgress as error:
        _give_up(activity, str(error))
    _summarise(client, activity, started, ok=ok)
    return DONE if ok else FAILED


class _SendCommand:
    """Sending files, at most four at once."""

    def __init__(self, client: Client, options: Namespace, activity: Activity) -> None:
        self._client = client
        self._options = options
        self._activity = activity
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._running = 0
        self._streams: list[Upload] = []

    def waits_for_producers(self) -> bool:
        """Return whether all that is missing is more from those who write into standard input and pipes."""
        return 0 < self._running == len(self._streams) and all(stream.waits_for_source for stream in self._streams)

    async def send(self, file: str) -> bool:
        """Send one file and report how that ended; return whether it is done."""
        async with self._turns:
            label = _decodable(self._options.name or ("stdin" if file == "-" else os.path.basename(file)))
            self._running += 1
            try:
                receipt = await self._send_one(file, label)
            except Exception as error:  # noqa: BLE001 - shown, as the end of this file: the others go on
                details = {"name": label, "error": self._words(error), "code": getattr(error, "code", None)}
                self._activity.event("failed", details)
                return False
            finally:
                self._running -= 1
            self._activity.event(
                "done",
                {
                    "transfer": receipt.transfer,
                    "payload": receipt.payload,
                    "name": receipt.name,
                    "size": receipt.size,
                    "sha256": receipt.sha256,
                },
            )
            return True

    def _words(self, error: Exception) -> str:
        if isinstance(error, Refused) and error.code == "forbidden" and self._options.to:
            return f"{error} ({', '.join(self._options.to)})"
        return str(error) or repr(error)

    async def _send_one(self, file: str, label: str) -> Receipt:
        if file == "-":
            return await self._send_stream(sys.stdin.buffer, label)
        path = Path(file)
        return await (self._send_stream(path, label) if _is_pipe(path) else self._send_file(path, label))

    async def _send_stream(self, stream: BinaryIO | Path, label: str) -> Receipt:
        """Send what can be read once: another process could not go on with it."""
        upload = self._client.start(
            stream,
            self._options.to,
            name=label,
            content_type=self._options.content_type,
            progress=lambda progress: self._activity.progress(label, progress, resumable=False),
        )
        self._streams.append(upload)
        try:
            return await upload
        except asyncio.CancelledError:
            upload.detach()
            raise
        finally:
            self._streams.remove(upload)

    async def _send_file(self, path: Path, label: str) -> Receipt:
        remembered = Resumption(path, self._options.url, self._options.to, label)
        try:
            try:
                receipt = await self._send_as(path, label, remembered)
            except (Refused, TransferAborted) as error:
                if not remembered.resumed or error.code not in GONE_CODES:
                    raise
                self._activity.forget(remembered.transfer)
                remembered.anew()
                receipt = await self._send_as(path, label, remembered)
            remembered.forget()
            return receipt
        except (TransferAborted, IntegrityError) as error:
            if isinstance(error, IntegrityError) or error.final:
                self._activity.forget(remembered.transfer)
                remembered.forget()
            raise
        finally:
            remembered.close()

    async def _send_as(self, path: Path, label: str, remembered: Resumption) -> Receipt:
        return await self._client.send(
            path,
            self._options.to,
            name=label,
            content_type=self._options.content_type,
            transfer=remembered.transfer,
            progress=lambda progress: self._activity.progress(
                label, progress, resumable=remembered.kept and progress.stored > 0
            ),
        )


def _is_pipe(path: Path) -> bool:
    return path.is_fifo()


def _decodable(name: str) -> str:
    """Return a name of the file system as one that can be sent: what is no UTF-8 in it is replaced."""
    return os.fsencode(name).decode(errors="replace")


async def receive(options: Namespace, activity: Activity) -> int:
    """Save what is offered until `count` deliveries are saved, or nothing moved for `timeout` s; return the status."""
    started = time.monotonic()
    directory = Path(options.dir)
    with ReceivingDirectory(directory, uuid.uuid4().hex) as here:
        client = _client(options, activity, receive=True, client_id=here.client_id)
        receiving = _ReceiveCommand(client, directory, options, activity)
        ok = False
        try:
            async with activity.limited(options.timeout), client:
                _introduce(client, options, activity)
                await receiving.run()
                ok = not receiving.failed and not receiving.missing
        except NoProgress as error:
            # That nothing more comes is an end like any other, unless something was asked for or under way.
            ok = activity.connected and not (receiving.failed or receiving.missing or receiving.saving)
            if ok:
                activity.report.say(f"nothing more came for {options.timeout:g} s")
            else:
                came = f"{receiving.saved} of {options.count} came, " if options.count else ""
                _give_up(activity, f"{came}{error}")
        _summarise(client, activity, started, ok=ok)
    return DONE if ok else FAILED


def _introduce(client: Client, options: Namespace, activity: Activity) -> None:
    """Say who we are and what happens now. Raises `Refused` where the site does not let us have a group."""
    refused = [name for name in options.group if name not in activity.groups]
    if refused:
        raise Refused("forbidden", f"the site has no such group, or you are not in it: {', '.join(refused)}")
    groups = f" and {', '.join(f'group:{name}' for name in sorted(activity.groups))}" if activity.groups else ""
    where = "here" if options.dir == "." else f"in {options.dir}"
    activity.report.say(f"connected as {client.user}{groups}; waiting for deliveries, saved {where} (Ctrl-C ends it)")


class _ReceiveCommand:
    """Saving what comes, at most four at once and never more than were asked for."""

    def __init__(self, client: Client, directory: Path, options: Namespace, activity: Activity) -> None:
        self.saved = 0
        self.failed = False
        self.saving: set[asyncio.Task[None]] = set()
        self._client = client
        self._directory = directory
        self._count: int | None = options.count
        self._activity = activity
        self._stop: DeliveryError | None = None

    @property
    def missing(self) -> int:
        """How many of those that were asked for have not come."""
        return 0 if self._count is None else self._count - self.saved

    async def run(self) -> None:
        offers = self._client.deliveries()
        coming: asyncio.Task[Incoming | None] | None = None
        try:
            while self._stop is None and (self._count is None or self.saved < self._count):
                room = AT_ONCE if self._count is None else min(AT_ONCE, self._count - self.saved)
                if coming is None and len(self.saving) < room:
                    coming = asyncio.create_task(_next(offers))
                waiting = {*self.saving, *([coming] if coming else [])}
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if coming in done and coming is not None:
                    incoming, coming = coming.result(), None
                    if incoming is None:
                        return
                    self.saving.add(asyncio.create_task(self._save(incoming)))
                self.saving = {task for task in self.saving if not task.done()}
            if self._stop is not None:
                raise self._stop
        finally:
            rest = [*self.saving, *([coming] if coming else [])]
            for task in rest:
                task.cancel()
            if rest:
                await asyncio.wait(rest)

    async def _save(self, incoming: Incoming) -> None:
        try:
            path = await incoming.save(
                self._directory,
                progress=lambda progress: self._activity.progress(
                    incoming.name, progress, resumable=progress.received > 0
                ),
            )
        except (StorageUnavailable, TransferAborted) as error:
            self._fail(incoming, error)
            if isinstance(error, StorageUnavailable) or error.code == "taken_over":
                self._stop = error
            return
        except DeliveryError as error:
            self._fail(incoming, error)
            return
        self.saved += 1
        details = {"transfer": incoming.transfer, "payload": incoming.payload, "name": incoming.name, "path": str(path)}
        self._activity.event("done", {**details, "size": incoming.received_size, "sha256": incoming.sha256})

    def _fail(self, incoming: Incoming, error: DeliveryError) -> None:
        self.failed = True
        if getattr(error, "final", False):
            self._activity.forget(incoming.transfer)
        code = getattr(error, "code", None)
        details = {"transfer": incoming.transfer, "name": incoming.name, "error": str(error), "code": code}
        self._activity.event("failed", details)


async def _next(offers: AsyncIterator[Incoming]) -> Incoming | None:
    return await anext(offers, None)


def _client(options: Namespace, activity: Activity, *, receive: bool, client_id: str | None = None) -> Client:
    return connect(
        options.url,
        options.token,
        receive=receive,
        groups=getattr(options, "group", ()),
        client_id=client_id,
        chunk_size=options.chunk_size,
        observer=activity.event,
    )


def _give_up(activity: Activity, error: str) -> None:
    again = "; the same command goes on where it was" if activity.resumable else ""
    activity.event("failed", {"error": f"{error}{again}", "code": None})


def _summarise(client: Client, activity: Activity, started: float, *, ok: bool) -> None:
    seconds = round(time.monotonic() - started, 3)
    activity.event("summary", {"ok": ok, **client.statistics.as_dict(), "seconds": seconds})
