"""The site's ASGI application: imports it, reports missing parts, and makes it answer every handshake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from channels.routing import ProtocolTypeRouter
from channels.security.websocket import OriginValidator
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.handlers.asgi import ASGIHandler
from django.utils.module_loading import import_string

from delivery.errors import UsageError
from delivery.websocket import handshakes

ROUTES = 'application = ProtocolTypeRouter({"http": ASGIStaticFilesHandler(application), "websocket": websocket_application})'


def site_application() -> Any:
    """Return the application that ASGI_APPLICATION names. Raises UsageError if it is not set or cannot serve a socket."""
    path = getattr(settings, "ASGI_APPLICATION", None)
    if not path:
        raise UsageError(
            'ASGI_APPLICATION is not set: name the site\'s application, "mysite.asgi.application" for instance'
        )
    application = import_string(path)
    if isinstance(application, ASGIHandler) or not _routes(application).get("websocket", True):
        raise UsageError(
            f"{path} serves no WebSockets. In asgi.py, with delivery.routing.websocket_application: {ROUTES}"
        )
    return application


def _routes(application: Any) -> dict[str, Any]:
    """Return the parts of a ProtocolTypeRouter; empty for any other kind of application."""
    if not isinstance(application, ProtocolTypeRouter):
        return {}
    return {"websocket": None, **application.application_mapping}


def notices(application: Any) -> Iterator[str]:
    """Report what pages or clients would miss. With DEBUG off, a proxy or a middleware serves static files."""
    http = _routes(application).get("http")
    bare = isinstance(http, ASGIHandler) and not isinstance(http, ASGIStaticFilesHandler)
    if settings.DEBUG and bare and "django.contrib.staticfiles" in settings.INSTALLED_APPS:
        yield f"Nobody serves static files, the admin's style sheets among them. In asgi.py: {ROUTES}"
    if isinstance(_routes(application).get("websocket"), OriginValidator):
        yield (
            "Channels' OriginValidator stands before the whole site: it refuses every client that is no browser, the command line "
            "among them. delivery checks Origins itself: in asgi.py, route its path past the validator."
        )


def served(application: Any) -> Any:
    """Return the application as the server runs it: a handshake for no path of the site's is answered with 404."""
    return handshakes.answered(application)
