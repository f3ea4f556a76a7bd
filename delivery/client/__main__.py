"""The command line: `python -m delivery.client send FILE... --to user:alice` and `... receive --dir DIR`.

Exit status: 0 all done, 1 something failed, 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM, 141 nobody reads what is
written any more (`... --json | head`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import re
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from delivery.client.credentials import without_credentials
from delivery.errors import DeliveryError, UsageError
from delivery.escaping import PrintableFormatter, printable, printable_lines
from delivery.protocol.frames import is_chunk_size

DEFAULT_URL = "ws://127.0.0.1:8000/ws/delivery/"
FAILED, USAGE, INTERRUPTED, UNREAD = 1, 2, 130, 141
READER_SECONDS = 0.25
ADDRESS = re.compile(r"(user|group):.+", re.DOTALL)

EPILOG = """\
the URL comes from --url or DELIVERY_URL (default ws://127.0.0.1:8000/ws/delivery/), the login from --token or, better,
DELIVERY_TOKEN, which other users of this machine cannot see. `manage.py delivery_token USER` makes one.
After Ctrl-C, a crash or a lost network the same command goes on where it was.
exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C
"""


class Parser(argparse.ArgumentParser):
    """Shows errors escaped, and of arguments that nobody knows the names alone: a mistyped --token has one's value."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            names = [word.partition("=")[0] for word in message.split()[2:] if word.startswith("-")]
            message = f"unrecognized arguments: {' '.join(names)}" if names else "too many arguments"
        super().error(printable(message))


TIMEOUT_HELP = "end after S seconds without progress, connecting included (default: never)"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m delivery.client",
        description="Send and receive large payloads over WebSockets; every interruption is resumed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="send|receive")
    send = commands.add_parser("send", help="send files", description="Send files.", epilog=EPILOG)
    send.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a file; a named pipe, or - for standard input, cannot be gone on with by another command",
    )
    send.add_argument(
        "--to",
        action="append",
        default=[],
        type=_address,
        metavar="ADDRESS",
        help="user:NAME, user:NUMBER or group:NAME; may be repeated; without it the payload is for the site itself",
    )
    send.add_argument("--name", help="the name that recipients see (with one FILE)")
    send.add_argument("--content-type", metavar="TYPE", help="guessed from the name by default")
    send.add_argument("--timeout", type=_seconds, metavar="S", help=TIMEOUT_HELP)
    _add_common(send)
    receive = commands.add_parser("receive", help="receive files", description="Save deliveries.", epilog=EPILOG)
    receive.add_argument("--dir", default=".", metavar="DIR", help="where to save (default: here)")
    receive.add_argument("--count", type=_count, metavar="N", help="stop after N deliveries")
    receive.add_argument("--once", dest="count", action="store_const", const=1, help="the same as --count 1")
    receive.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME",
        help="also take what goes to this group; may be repeated",
    )
    receive.add_argument("--timeout", type=_seconds, metavar="S", help=TIMEOUT_HELP)
    _add_common(receive)
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("--url", default=os.environ.get("DELIVERY_URL") or DEFAULT_URL, help="ws:// or wss:// address")
    command.add_argument("--token", default=os.environ.get("DELIVERY_TOKEN") or None, help="the login")
    command.add_argument(
        "--chunk-size",
        type=_chunk_size,
        metavar="BYTES",
        help="largest chunk (default: 524288 to a server that is near, 262144 elsewhere)",
    )
    command.add_argument("--json", action="store_true", help="one JSON object a line on standard output, for scripts")
    command.add_argument("--quiet", action="store_true", help="show errors only")


def _address(text: str) -> str:
    if not ADDRESS.fullmatch(text):
        # Not for what has a colon: it may be an address of some other kind, mistyped.
        meant = "" if ":" in text else f"; did you mean user:{text}?"
        raise argparse.ArgumentTypeError(f"expected user:NAME, user:NUMBER or group:NAME, got {text!r}{meant}")
    return text


def _chunk_size(text: str) -> int:
    if not text.isdecimal() or not is_chunk_size(int(text)):
        raise argparse.ArgumentTypeError("expected a power of two from 4096 to 4194304")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("expected seconds above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    options = _parse(parser(), arguments)
    try:
        from delivery.client import commands
        from delivery.client.activity import Activity
        from delivery.client.reporting import report_for

        report = report_for(as_json=options.json, quiet=options.quiet)
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


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if options.command == "send":
        if options.name and len(options.files) > 1:
            parser.error("--name goes with one FILE")
        for file in options.files:
            if wrong := _wrong_with(file):
                parser.error(f"{file}: {wrong}")
    if not options.url.startswith(("ws://", "wss://")):
        parser.error(f"--url: expected ws:// or wss://, got {without_credentials(options.url)}")
    return options


def _wrong_with(file: str) -> str | None:
    """Return why `file` cannot be sent, None where it can."""
    if file == "-":
        return None
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        return "no such file" if isinstance(error, FileNotFoundError) else error.strerror
    except ValueError:  # a NUL
        return "no such file"
    if stat.S_ISDIR(mode):
        return "is a directory; make an archive of it, for instance with tar"
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        return "is not a file"
    return None if os.access(file, os.R_OK) else "not readable"


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


if __name__ == "__main__":
    script()
