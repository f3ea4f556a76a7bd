"""The commands to paste into other terminals: printed by `up`, shown on the demo's page."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TerminalLines:
    """Commands of two terminals; each works in the directory where the stack was started."""

    receive: str
    send: str


def terminal_lines(url: str, *, python: str = "python", variables: str = "") -> TerminalLines:
    """Return the commands with which bob receives what alice sends through the socket at `url`.

    No token becomes an argument of a process. `python` and `variables` (`NAME=value `) are put in as they are, and so must be quoted. Their defaults tell
    strangers nothing about the machine.
    """

    def client(user: str, arguments: str) -> str:
        # In a variable of this command: every user of the machine can see its arguments.
        token = f"DELIVERY_TOKEN=$({variables}{python} manage.py delivery_token {user})"
        return f"{token} {python} -m delivery.client {arguments} --url {url}"

    return TerminalLines(
        receive=client("bob", "receive --dir received"), send=client("alice", "send FILE --to user:bob")
    )


def local_lines(url: str, var: Path, directory: Path) -> TerminalLines:
    """Return the commands as they work on this machine, in `directory`, for the stack whose state is in `var`.

    They name `var` unless it is the default, since the token is signed with the key that lies there.
    """
    variables = "" if var == directory / "var" else f"DELIVERY_VAR={shlex.quote(str(var))} "
    # Not resolved: the interpreter of a virtual environment is a link, and following it leads out of it.
    executable = Path(os.path.abspath(sys.executable))
    if executable.is_relative_to(directory):
        executable = executable.relative_to(directory)
    return terminal_lines(url, python=shlex.quote(str(executable)), variables=variables)


def ready_text(*, port: int, var: Path, users: list[str], superuser: str | None, passwords: Path | None) -> str:
    """Return what `up` prints once the web process answers."""
    lines = local_lines(f"ws://127.0.0.1:{port}/ws/delivery/", var, Path.cwd())
    accounts = ""
    if users or superuser:
        names = ", ".join([*users, *([f"{superuser} (superuser)"] if superuser else [])])
        accounts = f"\n  users      {names}\n  passwords  {passwords}"
    # Not printed itself: it may hold a password.
    database = " with the same DATABASE_URL" if os.environ.get("DATABASE_URL") else ""
    return f"""
  delivery is up: http://127.0.0.1:{port}/
  admin      http://127.0.0.1:{port}/admin/{accounts}

  receive, in a second terminal{database}:
    {lines.receive}
  send, in a third{database}:
    {lines.send}

  Ctrl-C stops everything.
"""
