"""`manage.py up`: the whole stack on one machine, from an empty directory to a page that answers."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter
from django.db import connections

from delivery import conf
from delivery.errors import UsageError
from delivery.launch import banner, environment, valkey
from delivery.launch.accounts import DemoAccounts
from delivery.launch.celery import POOLS
from delivery.launch.console import Console
from delivery.launch.stack import Plan, Stack
from delivery.launch.state import Ledger, StateDirectory, end_stale

PARTS = """\
Each part can be started alone, with the same DELIVERY_VAR, REDIS_URL and DATABASE_URL:
  manage.py migrate
  manage.py delivery_web --host 127.0.0.1 --port 8000
  manage.py delivery_worker --concurrency 2
  manage.py delivery_beat

DIR holds the database, the payloads, the demo's passwords and pids.json, which always names the living processes.
Only its owner may enter it: one that others may enter is closed, or refused where it holds more than a stack.
"""


class HelpFormatter(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of the epilog as they are."""


class Command(BaseCommand):
    help = (
        "Run everything: embedded Valkey (or REDIS_URL), SQLite (or DATABASE_URL), workers, beat, web. Ctrl-C ends it."
    )
    requires_system_checks = ()  # the parts and `migrate` run them, with the right settings

    def add_arguments(self, parser: CommandParser) -> None:
        parser.formatter_class = HelpFormatter
        parser.epilog = PARTS
        parser.add_argument("--workers", type=int, default=1, metavar="N", help="Celery workers (default: 1)")
        parser.add_argument("--concurrency", type=int, default=2, metavar="N", help="tasks of one worker (default: 2)")
        parser.add_argument(
            "--pool", choices=POOLS, default=POOLS[0], help="how a worker runs tasks (default: %(default)s)"
        )
        parser.add_argument(
            "--port", type=int, default=os.environ.get("PORT") or "8000", metavar="P", help="default: PORT, or 8000"
        )
        parser.add_argument(
            "--var", type=Path, metavar="DIR", help="state of the stack (default: DELIVERY_VAR, or var/)"
        )

    def handle(self, *, workers: int, concurrency: int, pool: str, port: int, var: Path | None, **options: Any) -> None:
        if workers < 1 or concurrency < 1:
            raise CommandError("--workers and --concurrency want at least 1")
        os.umask(0o077)  # of every part, too: nobody else reads what they write
        try:
            state = _state_directory(var)
            with state.held():
                plan = self._prepare(state, port=port, workers=workers, concurrency=concurrency, pool=pool)
                status = _run(plan, state)
                if plan.valkey is not None:
                    valkey.remove_temporary(state)
        except UsageError as error:
            raise CommandError(str(error)) from None
        sys.exit(status)

    def _prepare(self, state: StateDirectory, *, port: int, workers: int, concurrency: int, pool: str) -> Plan:
        """Bring the directory and the database into order; nothing is running yet when this returns."""
        for name in end_stale(state):
            self.stdout.write(f"ended {name}, left by an earlier start that was killed")
        check_port(port)
        call_command("migrate", interactive=False, verbosity=0)
        DemoAccounts.of_site().ensure(state.passwords)
        connections.close_all()  # it queries nothing from here on, and may run for weeks
        embedded = None if os.environ.get("REDIS_URL") else valkey.prepare(state)
        return Plan(
            var=state.root,
            port=port,
            workers=workers,
            concurrency=concurrency,
            pool=pool,
            drain_seconds=conf.current().drain_grace,
            valkey=embedded,
        )


def _state_directory(given: Path | None) -> StateDirectory:
    """Return the directory of `--var`, with settings that agree: they were read before the options were."""
    default = getattr(settings, "DELIVERY_VAR", None) or environment.manage_directory() / "var"
    root = Path(given or default).expanduser().resolve()
    if os.environ.get("DELIVERY_VAR") != str(root):
        os.environ["DELIVERY_VAR"] = str(root)
        if root != Path(default).resolve():
            environment.start_over(os.environ)
    try:
        return StateDirectory.at(root)
    except OSError as error:
        raise CommandError(f"cannot make {root}: {error.strerror}") from None


def check_port(port: int) -> None:
    """Raise UsageError, in one line that says what to do, if nothing can listen on 127.0.0.1:port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OverflowError:
            raise UsageError(f"{port} is no port; choose one from 1 to 65535, for instance PORT=8001") from None
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be used ({error.strerror}); choose another: PORT={port + 1}"
            ) from None


def _run(plan: Plan, state: StateDirectory) -> int:
    console = Console(sys.stdout)
    ledger = Ledger(state)
    ledger.begin()
    demo = DemoAccounts.of_site()
    text = banner.ready_text(
        port=plan.port, var=state.root, users=list(demo.users), superuser=demo.superuser, passwords=state.passwords
    )

    async def run() -> int:
        return await Stack(plan, ledger, console).run(text)

    try:
        return asyncio.run(run())
    finally:
        console.close()
