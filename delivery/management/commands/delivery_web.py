"""`manage.py delivery_web`: one web process, the only way of serving that closes sockets with 1001 when it stops."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections

from delivery import conf
from delivery.buffer import pool
from delivery.errors import UsageError
from delivery.launch import application, environment
from delivery.server import web_process
from delivery.websocket.body_limit import BodyLimit
from delivery.websocket.server import Server, WebOptions

SERVER_LOG = logging.getLogger("uvicorn.error")


class Command(BaseCommand):
    help = "Serve the site's ASGI application: HTTP and WebSockets. One process; start as many as there are cores."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
        parser.add_argument("--port", type=int, default=os.environ.get("PORT") or "8000", help="default: PORT, or 8000")
        parser.add_argument(
            "--proxy-headers", action="store_true", help="believe X-Forwarded-For and -Proto of trusted proxies"
        )
        parser.add_argument("--forwarded-allow-ips", help="proxies to trust, comma-separated (default: 127.0.0.1)")

    def execute(self, *args: Any, **options: Any) -> str | None:
        variables = environment.with_malloc(os.environ)
        # Only as a process of its own: called from other code, this process is not ours to start over. Before the
        # system checks, which would say everything twice.
        if variables != dict(os.environ) and sys.argv[1:2] == ["delivery_web"]:
            environment.start_over(variables)
        return super().execute(*args, **options)

    def handle(
        self, *, host: str, port: int, proxy_headers: bool, forwarded_allow_ips: str | None, **options: Any
    ) -> None:
        current = conf.current()
        web = WebOptions(
            host=host,
            port=port,
            message_limit=current.server_message_limit(),
            proxy_headers=proxy_headers,
            forwarded_allow_ips=forwarded_allow_ips,
            body_limit=_body_limit(current),
        )
        try:
            site = application.site_application()
        except UsageError as error:
            raise CommandError(str(error)) from None
        self._look_around(site)
        if not SERVER_LOG.hasHandlers():  # a site without LOGGING: it would serve and say nothing
            SERVER_LOG.addHandler(logging.StreamHandler(self.stdout))
            SERVER_LOG.setLevel(logging.INFO)
        Server(
            web.config(application.served(site)),
            before_close=web_process.drain_process,
            drain_seconds=current.drain_grace,
            must_end=True,
        ).run()

    def _look_around(self, site: Any) -> None:
        """Say what is missing that settings don't show. None of it is final: it is served, and comes when it comes."""
        for notice in application.notices(site):
            self._warn(notice)
        if not pool.answers():
            self._warn(
                f"Redis does not answer at {pool.place()}: no socket is served before it does. Start it, or correct "
                "DELIVERY['REDIS_URL'] and CHANNEL_LAYERS."
            )
        try:
            self.check_migrations()
        except DatabaseError as error:
            self._warn(f"The database does not answer: {error}".strip())
        finally:
            connections.close_all()  # this thread queries nothing from here on

    def _warn(self, text: str) -> None:
        self.stderr.write(self.style.WARNING(text))


def _body_limit(options: conf.Settings) -> BodyLimit:
    """Return the limits of requests' bodies. One body may have what Django takes into memory, and the budget holds one."""
    most = options.max_request_body and max(options.max_request_body, settings.DATA_UPLOAD_MAX_MEMORY_SIZE or 0)
    budget = options.request_body_budget and max(options.request_body_budget, most)
    return BodyLimit(most, options.streamed_paths, budget)
