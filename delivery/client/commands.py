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
from typing import Any

from delivery.client.client import Client, connect
from delivery.client.deliveries import Incoming
from delivery.client.directories import ReceivingDirectory
from delivery.client.reporting import Report
from delivery.client.resumption import Resumption
from delivery.client.uploads import Receipt
from delivery.errors import DeliveryError, IntegrityError, Refused, StorageUnavailable, TransferAborted

DONE, FAILED = 0, 1
AT_ONCE = 4
GONE_CODES = frozenset({"expired", "cancelled", "mismatch"})  # what is remembered is of no more use: begin anew


async def send(options: Namespace, report: Report) -> int:
    """Send every file, at most four at once; return the exit status."""
    started = time.monotonic()
    async with _client(options, report, receive=False) as client:
        turns = asyncio.Semaphore(AT_ONCE)
        outcomes = await asyncio.gather(*(_send_one(client, file, options, report, turns) for file in options.files))
        _summarise(client, report, started, ok=all(outcomes))
    return DONE if all(outcomes) else FAILED


async def _send_one(client: Client, file: str, options: Namespace, report: Report, turns: asyncio.Semaphore) -> bool:
    async with turns:
        label = _decodable(options.name or ("stdin" if file == "-" else Path(file).name))
        try:
            receipt = await _send_file(client, file, label, options, report)
        except Exception as error:  # noqa: BLE001 - shown, as the end of this file: the others go on
            report.event(
                "failed", {"name": label, "error": str(error) or repr(error), "code": getattr(error, "code", None)}
            )
            return False
        report.event(
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


def _decodable(name: str) -> str:
    """Return a name of the file system as one that can be sent: what is no UTF-8 in it is replaced."""
    return os.fsencode(name).decode(errors="replace")


async def _send_file(client: Client, file: str, label: str, options: Namespace, report: Report) -> Receipt:
    def arguments(transfer: str | None) -> dict[str, Any]:
        return {
            "to": options.to,
            "name": label,
            "content_type": options.content_type,
            "progress": lambda progress: report.progress(label, progress),
            "deadline": options.timeout,
            "transfer": transfer,
        }

    if file == "-":
        return await client.send(sys.stdin.buffer, **arguments(None))
    path = Path(file)
    remembered = Resumption(path, options.url, options.to, label)
    try:
        try:
            receipt = await client.send(path, **arguments(remembered.transfer))
        except (Refused, TransferAborted) as error:
            if not remembered.resumed or error.code not in GONE_CODES:
                raise
            remembered.anew()
            receipt = await client.send(path, **arguments(remembered.transfer))
        remembered.forget()
        return receipt
    except (TransferAborted, IntegrityError) as error:
        if isinstance(error, IntegrityError) or error.final:
            remembered.forget()
        raise
    finally:
        remembered.close()


async def receive(options: Namespace, report: Report) -> int:
    """Save what is offered until `count` deliveries are saved, or nothing came for `timeout` s; return the status."""
    started = time.monotonic()
    directory = Path(options.dir)
    with ReceivingDirectory(directory, uuid.uuid4().hex) as here:
        async with _client(options, report, receive=True, client_id=here.client_id) as client:
            receiving = _Receiving(client, directory, options, report)
            await receiving.run()
            short = options.count is not None and receiving.saved < options.count
            ok = not receiving.failed and not short
            _summarise(client, report, started, ok=ok)
    if short and not receiving.failed:
        report.event("failed", {"error": f"{receiving.saved} of {options.count} came within {options.timeout} s"})
    return DONE if ok else FAILED


class _Receiving:
    """Saving what comes, at most four at once and never more than were asked for."""

    def __init__(self, client: Client, directory: Path, options: Namespace, report: Report) -> None:
        self.saved = 0
        self.failed = False
        self._client = client
        self._directory = directory
        self._count: int | None = options.count
        self._idle_seconds: float | None = options.timeout
        self._report = report
        self._stop: DeliveryError | None = None

    async def run(self) -> None:
        offers = self._client.deliveries()
        coming: asyncio.Task[Incoming | None] | None = None
        saving: set[asyncio.Task[None]] = set()
        try:
            while self._stop is None and (self._count is None or self.saved < self._count):
                room = AT_ONCE if self._count is None else min(AT_ONCE, self._count - self.saved)
                if coming is None and len(saving) < room:
                    coming = asyncio.create_task(_next(offers))
                waiting = {*saving, *([coming] if coming else [])}
                idle = self._idle_seconds if not saving else None
                done, _ = await asyncio.wait(waiting, timeout=idle, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    return
                if coming in done and coming is not None:
                    incoming, coming = coming.result(), None
                    if incoming is None:
                        return
                    saving.add(asyncio.create_task(self._save(incoming)))
                saving = {task for task in saving if not task.done()}
            if self._stop is not None:
                raise self._stop
        finally:
            rest = [*saving, *([coming] if coming else [])]
            for task in rest:
                task.cancel()
            if rest:
                await asyncio.wait(rest)

    async def _save(self, incoming: Incoming) -> None:
        try:
            path = await incoming.save(
                self._directory, progress=lambda progress: self._report.progress(incoming.name, progress)
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
        self._report.event("done", {**details, "size": incoming.received_size, "sha256": incoming.sha256})

    def _fail(self, incoming: Incoming, error: DeliveryError) -> None:
        self.failed = True
        code = getattr(error, "code", None)
        self._report.event("failed", {"name": incoming.name, "error": str(error), "code": code})


async def _next(offers: AsyncIterator[Incoming]) -> Incoming | None:
    return await anext(offers, None)


def _client(options: Namespace, report: Report, *, receive: bool, client_id: str | None = None) -> Client:
    return connect(
        options.url,
        options.token,
        receive=receive,
        groups=getattr(options, "group", ()),
        client_id=client_id,
        chunk_size=options.chunk_size,
        observer=report.event,
    )


def _summarise(client: Client, report: Report, started: float, *, ok: bool) -> None:
    seconds = round(time.monotonic() - started, 3)
    report.event("summary", {"ok": ok, **client.statistics.as_dict(), "seconds": seconds})
