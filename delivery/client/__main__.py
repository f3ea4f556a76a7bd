"""The command line: `python -m delivery.client send FILE... --to user:alice` and `... receive --dir DIR`.

Exit status: 0 all done, 1 something failed, 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from delivery.errors import DeliveryError, UsageError
from delivery.protocol.frames import is_chunk_size

DEFAULT_URL = "ws://127.0.0.1:8000/ws/delivery/"
FAILED, USAGE, INTERRUPTED = 1, 2, 130

EPILOG = """\
the URL comes from --url or DELIVERY_URL (default ws://127.0.0.1:8000/ws/delivery/), the login from --token or, better,
DELIVERY_TOKEN, which other users of this machine cannot see. `manage.py delivery_token USER` makes one.
After Ctrl-C, a crash or a lost network the same command goes on where it was.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m delivery.client",
        description="Send and receive large payloads over WebSockets; every interruption is resumed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="send|receive")
    send = commands.add_parser("send", help="send files", description="Send files.", epilog=EPILOG)
    send.add_argument(
        "files", nargs="+", metavar="FILE", help="a file, or - for standard input (which cannot be resumed)"
    )
    send.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="user:NAME, user:NUMBER or group:NAME; may be repeated; without it the payload is for the site itself",
    )
    send.add_argument("--name", help="the name that recipients see (with one FILE)")
    send.add_argument("--content-type", metavar="TYPE", help="guessed from the name by default")
    send.add_argument("--timeout", type=_seconds, metavar="S", help="give up after S seconds; it can be resumed")
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
    receive.add_argument("--timeout", type=_seconds, metavar="S", help="stop when nothing was on its way for S seconds")
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
        from delivery.client.reporting import report_for

        report = report_for(as_json=options.json, quiet=options.quiet)
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is missing: pip install 'django-delivery[client]'", file=sys.stderr)
        return FAILED
    _keep_memory()
    command = commands.send if options.command == "send" else commands.receive
    try:
        with report:
            return _run(lambda: command(options, report))
    except UsageError as error:
        report.event("failed", {"error": str(error), "code": None})
        return USAGE
    except (DeliveryError, OSError) as error:
        report.event("failed", {"error": str(error), "code": getattr(error, "code", None)})
        return FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not options.json:
            print("stopped; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if options.command == "send":
        if options.name and len(options.files) > 1:
            parser.error("--name goes with one FILE")
        for file in options.files:
            if file != "-" and not os.path.isfile(file):
                parser.error(f"{file}: {'is not a file' if os.path.exists(file) else 'no such file'}")
            if file != "-" and not os.access(file, os.R_OK):
                parser.error(f"{file}: not readable")
    if not options.url.startswith(("ws://", "wss://")):
        parser.error(f"--url: expected ws:// or wss://, got {options.url}")
    return options


def _run(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run on uvloop where it is installed; SIGINT and SIGTERM let go of everything properly first."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ModuleNotFoundError:
        factory = None

    async def interruptible() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is not None and hasattr(signal, "SIGTERM"):
            for number in (signal.SIGINT, signal.SIGTERM):
                try:
                    loop.add_signal_handler(number, task.cancel)
                except (NotImplementedError, RuntimeError):
                    break
        return await work()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(interruptible())


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
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    script()
