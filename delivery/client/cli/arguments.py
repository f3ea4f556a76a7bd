"""The arguments of the command line: `send FILE... --to user:alice` and `receive --dir DIR`."""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Sequence
from typing import NoReturn

from delivery.client.credentials import without_credentials
from delivery.escaping import printable
from delivery.protocol.frames import is_chunk_size

DEFAULT_URL = "ws://127.0.0.1:8000/ws/delivery/"
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


def make_parser() -> argparse.ArgumentParser:
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was given. Ends the process with status 2, and a message, where a command cannot be right."""
    parser = make_parser()
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
