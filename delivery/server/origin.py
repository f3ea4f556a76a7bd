"""Which pages may connect: the Origin of a handshake against the site, as Django's CSRF check compares them (PROTOCOL section 1).

Scheme and host with port, as the request has them: `SECURE_PROXY_SSL_HEADER`, `USE_X_FORWARDED_HOST` and `ALLOWED_HOSTS` count, and
`CSRF_TRUSTED_ORIGINS` names others. `DELIVERY["ALLOWED_ORIGINS"]`, where it is set, is the whole list instead.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.utils.http import is_same_domain

from delivery import conf
from delivery.escaping import printable

logger = logging.getLogger(__name__)

MOST_LOGGED = 200  # characters of what a stranger sent
MOST_A_MINUTE = 20  # refusals logged

_logged: set[tuple[int, str, str]] = set()


class Handshake(HttpRequest):
    """The opening handshake of an ASGI scope, as far as Django's own properties of a request tell where it was sent."""

    def __init__(self, scope: dict[str, Any]) -> None:
        super().__init__()
        self._secure = scope.get("scheme") in ("wss", "https")
        host, port = scope.get("server") or ("unknown", 0)
        self.META = {"SERVER_NAME": str(host), "SERVER_PORT": str(port)}
        for name, value in scope.get("headers", ()):
            key = f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}"
            text = value.decode("latin-1")
            self.META[key] = f"{self.META[key]},{text}" if key in self.META else text

    def _get_scheme(self) -> str:
        """Return the scheme of the page's own site: that of HTTP, not of WebSocket."""
        return "https" if self._secure else "http"


def origin_of(scope: dict[str, Any]) -> str | None:
    """Return the Origin of a handshake, None where it has none: whoever sends it is no browser."""
    found = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"origin"]
    return ",".join(found) if found else None  # two are none that is allowed


def allowed(scope: dict[str, Any]) -> bool:
    """Return whether a browser of this handshake's Origin may connect. A refusal is logged with what it was compared to."""
    origin = origin_of(scope)
    if origin is None:
        return True
    reason = _refusal(origin, scope)
    if reason:
        _log(origin, reason)
    return not reason


def _refusal(origin: str, scope: dict[str, Any]) -> str:
    """Return why an Origin is refused, an empty text where it is not."""
    if not _is_origin(origin):
        return "that is no Origin of a page"
    listed = conf.current().allowed_origins
    if listed is not None:
        return "" if origin.lower() in map(str.lower, listed) else "DELIVERY['ALLOWED_ORIGINS'] does not list it"
    request = Handshake(scope)
    site = _site(request)
    if origin.lower() == site.lower() or _is_trusted(origin):
        return ""
    if not site:
        return f"it was sent to the host {_shown(request.META.get('HTTP_HOST', ''))}, which is not in ALLOWED_HOSTS"
    return (
        f"it was sent to {_shown(site)}, as the handshake says. If that is the same site, a proxy in front drops the scheme or the "
        "port: have it pass on Host as it came, and X-Forwarded-Proto. CSRF_TRUSTED_ORIGINS lets other sites in"
    )


def _log(origin: str, reason: str) -> None:
    """Log a refusal, the same one once a minute and no more than a few others: strangers choose what it says."""
    minute = int(time.monotonic() // 60)
    _logged.difference_update([one for one in _logged if one[0] != minute])
    entry = (minute, origin, reason)
    if entry not in _logged and len(_logged) < MOST_A_MINUTE:
        _logged.add(entry)
        logger.warning("a handshake with the Origin %s is refused: %s", _shown(origin), reason)


def _is_origin(text: str) -> bool:
    """Return whether it is scheme, host and maybe a port, and nothing else: as a browser writes an Origin of a page."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # "http://[", or a port that is none
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    bare = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
    return text.isascii() and text.lower() == bare.lower()


def _site(request: Handshake) -> str:
    """Return scheme and host that the handshake was sent to; an empty text where that host is not ours."""
    try:
        return f"{request.scheme}://{request.get_host()}"
    except DisallowedHost:
        return ""


def _is_trusted(origin: str) -> bool:
    scheme, _, host = origin.lower().partition("://")
    for trusted in settings.CSRF_TRUSTED_ORIGINS:
        trusted_scheme, _, pattern = trusted.lower().partition("://")
        if scheme != trusted_scheme:
            continue
        if is_same_domain(host, pattern.lstrip("*")) if "*" in pattern else host == pattern:
            return True
    return False


def _shown(text: str) -> str:
    return printable(text[:MOST_LOGGED])
