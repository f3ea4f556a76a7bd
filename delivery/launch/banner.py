"""The lines that a reader pastes into other terminals: printed by `up`, shown on the demo's page."""

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


def terminal_lines(url: str, var: Path, *, directory: Path | None = None) -> TerminalLines:
    """Return the commands with which bob receives what alice sends through the socket at `url`.

    Commands of a stack whose state is not in `var/` of `directory` (default: the current one) name it, since they
    sign the token with the key that lies there.
    """
    directory = directory or Path.cwd()
    python = _python(directory)
    prefix = "" if var == directory / "var" else f"DELIVERY_VAR={shlex.quote(str(var))} "
    client = f"{python} -m delivery.client"

    def token(user: str) -> str:
        return f"--token $({prefix}{python} manage.py delivery_token {user})"

    return TerminalLines(
        receive=f"{client} receive --dir received --url {url} {token('bob')}",
        send=f"{client} send FILE --to user:bob --url {url} {token('alice')}",
    )


def _python(directory: Path) -> str:
    # Not resolved: the interpreter of a virtual environment is a link, and following it leads out of it.
    executable = Path(os.path.abspath(sys.executable))
    if executable.is_relative_to(directory):
        return shlex.quote(str(executable.relative_to(directory)))
    return shlex.quote(str(executable))


def ready_text(*, port: int, var: Path, users: list[str], superuser: str | None, passwords: Path | None) -> str:
    """Return what `up` prints once the web process answers."""
    lines = terminal_lines(f"ws://127.0.0.1:{port}/ws/delivery/", var)
    accounts = ""
    if users or superuser:
        names = ", ".join([*users, *([f"{superuser} (superuser)"] if superuser else [])])
        accounts = f"\n  users      {names}\n  passwords  {passwords}"
    return f"""
  delivery is up: http://127.0.0.1:{port}/
  admin      http://127.0.0.1:{port}/admin/{accounts}

  receive, in a second terminal:
    {lines.receive}
  send, in a third:
    {lines.send}

  Ctrl-C stops everything.
"""
