"""ASGI application of the reference site: Django for HTTP, `delivery` for WebSockets."""

import os

from channels.routing import ProtocolTypeRouter
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

# Django must be set up before anything that imports models.
django_application = get_asgi_application()

from delivery.routing import websocket_application  # noqa: E402

application = ProtocolTypeRouter(
    {
        # The static files handler serves the admin's CSS without DEBUG and without a second server. A busy site
        # lets its own web server or a CDN serve STATIC_ROOT instead.
        "http": ASGIStaticFilesHandler(django_application),
        "websocket": websocket_application,
    }
)
