"""Running a command as a process: Ctrl-C and SIGTERM, a reader that has gone, the exit status.

Exit status: 0 all done, 1 something failed, 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM, 141 nobody reads what is
written any more (`... --json | head`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from delivery.client.cli import commands
from delivery.client.cli.activity import Activity
from delivery.client.cli.arguments import parse
from delivery.client.cli.reporting import JsonReport, QuietReport, Report
from delivery.errors import DeliveryError, UsageError
from delivery.escaping import PrintableFormatter, printable_lines

FAILED, USAGE, INTERRUPTED, UNREAD = 1, 2, 130, 141
READER_SECONDS = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    options = parse(arguments)
    try:
        report = _report(as_json=options.json, quiet=options.quiet)
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is missing: pip install 'django-delivery[client]'", file=sys.stderr)
        return FAILED
    _keep_memory()
    command = commands.send if options.command == "send" else commands.receive
    activity = Activity(report)
    try:
        with report:
            return _run(lambda: command(options, activity), report.unread)
    except UsageError as error:
        activity.event("failed", {"error": str(error), "code": None})
        return USAGE
    except (DeliveryError, OSError) as error:
        activity.event("failed", {"error": str(error), "code": getattr(error, "code", None)})
        return FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        if report.unread():
            return UNREAD
        report.say("stopped; the same command goes on where it was" if activity.resumable else "stopped")
        return INTERRUPTED


def _report(*, as_json: bool, quiet: bool) -> Report:
    """Return what shows the command. Raises `ModuleNotFoundError` where bars are wanted and rich is missing."""
    if as_json:
        return JsonReport()
    if quiet:
        return QuietReport()
    from delivery.client.cli.bars import BarReport  # needs rich, which scripts can do without

    return BarReport()


def _run(work: Callable[[], Coroutine[Any, Any, int]], unread: Callable[[], bool]) -> int:
    """Run on uvloop where it is installed. SIGINT, SIGTERM and a reader that has gone cancel the work."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ModuleNotFoundError:
        factory = None

    async def interruptible() -> int:
        loop, working = asyncio.get_running_loop(), asyncio.ensure_future(work())
        watching = asyncio.create_task(_until(unread))
        try:
            with _interrupting(lambda: loop.call_soon_threadsafe(working.cancel)):
                await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
                working.cancel()
                return await working
        finally:
            watching.cancel()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(interruptible())


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(READER_SECONDS)


@contextlib.contextmanager
def _interrupting(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` on the first SIGINT or SIGTERM, which lets go of everything properly; end at once on the next."""
    told = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            _end(INTERRUPTED)
        told = True
        stop()

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the program that called us has its own ways
        before = {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _keep_memory() -> None:
    """Have glibc keep what it freed: else each chunk is mapped and unmapped, which costs more than sending it."""
    try:
        libc = ctypes.CDLL(None)
        for parameter, value in ((-3, 67_108_864), (-1, 268_435_456), (-2, 16_777_216)):  # mmap, trim, top pad
            libc.mallopt(parameter, value)
    except (OSError, AttributeError, TypeError):
        pass


def script() -> None:
    """Run as a program. Leaves without joining threads: one may be blocked in reading standard input for ever."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    logging.lastResort = handler
    try:
        status = main()
    except SystemExit as error:  # of the parser
        status = error.code if isinstance(error.code, int) else FAILED
    except Exception:  # noqa: BLE001 - a bug: shown, with whatever the server's words in it are escaped
        print(printable_lines(traceback.format_exc()), file=sys.stderr)
        status = FAILED
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    _end(status)


def _end(status: int) -> NoReturn:
    """End the process at once. A terminal gets its cursor back, which a progress bar hides."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h")
    os._exit(status)
