"""What `delivery_web` says of the site's application before it serves it."""

from __future__ import annotations

from channels.routing import ProtocolTypeRouter
from channels.security.websocket import AllowedHostsOriginValidator

from delivery.launch import application
from delivery.routing import websocket_application


def test_a_validator_before_the_whole_site_is_named() -> None:
    behind = ProtocolTypeRouter({"websocket": AllowedHostsOriginValidator(websocket_application)})
    (notice,) = application.notices(behind)
    assert "OriginValidator" in notice
    assert not list(application.notices(ProtocolTypeRouter({"websocket": websocket_application})))
