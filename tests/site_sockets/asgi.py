"""A site with sockets of its own beside delivery's."""

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

django_application = get_asgi_application()

from delivery.routing import websocket_urlpatterns  # noqa: E402
from tests.site_sockets import consumers  # noqa: E402
from tests.site_sockets.chat import Chat  # noqa: E402

own = [
    path("ws/chat/<str:room>/", Chat.as_asgi()),
    path("ws/json/", consumers.EchoJson.as_asgi()),
    path("ws/text/", consumers.EchoText.as_asgi()),
    path("ws/hooks/", consumers.Hooked.as_asgi()),
    path("ws/lenient/", consumers.Lenient.as_asgi()),
    path("ws/linking/", consumers.Linking.as_asgi()),
]

application = ProtocolTypeRouter(
    {
        "http": django_application,
        # DeliveryConsumer looks after logins itself; for the site's own sockets, Channels does.
        "websocket": AuthMiddlewareStack(URLRouter([*own, *websocket_urlpatterns])),
    }
)
