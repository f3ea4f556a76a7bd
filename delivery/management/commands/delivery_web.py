"""`manage.py delivery_web`: one web process, the only way of serving that closes sockets with 1001 when it stops."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.module_loading import import_string

from delivery import conf
from delivery.launch import environment
from delivery.launch.web import Server, WebOptions
from delivery.serving import leaving


class Command(BaseCommand):
    help = "Serve the site's ASGI application: HTTP and WebSockets. One process; start as many as there are cores."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
        parser.add_argument("--port", type=int, default=os.environ.get("PORT") or "8000", help="default: PORT, or 8000")
        parser.add_argument(
            "--proxy-headers", action="store_true", help="believe X-Forwarded-For and -Proto of trusted proxies"
        )
        parser.add_argument("--forwarded-allow-ips", help="proxies to trust, comma-separated (default: 127.0.0.1)")

    def handle(
        self, *, host: str, port: int, proxy_headers: bool, forwarded_allow_ips: str | None, **options: Any
    ) -> None:
        variables = environment.with_malloc(os.environ)
        # Only as a process of its own: called from other code, this process is not ours to start over.
        if variables != dict(os.environ) and sys.argv[1:2] == ["delivery_web"]:
            environment.start_over(variables)
        current = conf.current()
        web = WebOptions(
            host=host,
            port=port,
            message_limit=current.server_message_limit(),
            proxy_headers=proxy_headers,
            forwarded_allow_ips=forwarded_allow_ips,
        )
        Server(
            web.config(_application()),
            before_close=leaving.drain_process,
            drain_seconds=current.drain_grace,
            must_end=True,
        ).run()


def _application() -> Any:
    path = getattr(settings, "ASGI_APPLICATION", None)
    if not path:
        raise CommandError(
            'ASGI_APPLICATION is not set: name the site\'s application, "project.asgi.application" for instance'
        )
    return import_string(path)
