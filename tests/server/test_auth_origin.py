"""Which Origins may connect: the same ones as in Django's own CSRF check, asked with the same request."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.middleware.csrf import CsrfViewMiddleware
from django.test import override_settings

from delivery import auth

HOST = "example.org:8443"


def scope(*origins: str, host: str = HOST, scheme: str = "wss", **headers: str) -> dict[str, Any]:
    lines = [(b"host", host.encode("latin-1")), *((b"origin", one.encode("latin-1")) for one in origins)]
    lines += [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "websocket", "scheme": scheme, "server": ("10.0.0.1", 8000), "headers": lines}


def django_allows(handshake: dict[str, Any]) -> bool:
    """Return what CsrfViewMiddleware says of a POST with the same head."""
    scheme = {"ws": "http", "wss": "https"}[handshake["scheme"]]
    request = ASGIRequest({**handshake, "type": "http", "method": "POST", "path": "/", "scheme": scheme}, None)  # type: ignore[arg-type]
    return CsrfViewMiddleware(lambda request: None)._origin_verified(request)  # type: ignore[arg-type,return-value,attr-defined]


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(auth, "_logged", set())
    with override_settings(ALLOWED_HOSTS=["example.org", ".example.net"], CSRF_TRUSTED_ORIGINS=[]):
        yield


OWN = "https://example.org:8443"
FOREIGN = [
    "https://example.org",
    "https://example.org:443",
    "https://example.org:8444",
    "http://example.org:8443",
    "https://evil.example",
    "https://evil.example:8443",
    "https://example.org.evil.example:8443",
    "https://www.example.org:8443",
    "null",
    "",
    "file://",
]
MALFORMED = [
    "https://evil.example@example.org:8443",
    "https://example.org:8443@evil.example",
    "https://example.org:bad",
    "https://example.org:99999",
    "https://example.org:8443/",
    "https://example.org:8443/path",
    "https://example.org:8443?query",
    "https://example.org:8443#part",
    " https://example.org:8443",
    "https://example.org:8443\t",
    "https://example.org:8443, https://example.org:8443",
    "https://[::1",
    "https:example.org:8443",
    "//example.org:8443",
    "wss://example.org:8443",
    "https://ex\xe4mple.org:8443",
]


def test_the_sites_own_page_may_connect() -> None:
    assert auth.origin_allowed(scope(OWN))
    assert auth.origin_allowed(scope("HTTPS://Example.org:8443"))
    assert auth.origin_allowed(scope("http://example.org", host="example.org", scheme="ws"))
    assert auth.origin_allowed(scope("https://any.example.net", host="any.example.net"))


def test_who_sends_no_origin_is_no_browser() -> None:
    assert auth.origin_allowed(scope())


@pytest.mark.parametrize("text", FOREIGN + MALFORMED)
def test_another_page_may_not(text: str) -> None:
    assert not auth.origin_allowed(scope(text))


def test_two_origins_are_none() -> None:
    assert not auth.origin_allowed(scope(OWN, OWN))


def test_a_host_that_is_not_ours_makes_no_origin_ours() -> None:
    assert not auth.origin_allowed(scope("https://evil.example", host="evil.example"))
    with override_settings(ALLOWED_HOSTS=["*"]):
        assert auth.origin_allowed(scope("https://any.example", host="any.example"))
        assert not auth.origin_allowed(scope("https://evil.example", host="any.example"))


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_malformed_is_no_listed_or_trusted_origin(text: str) -> None:
    with override_settings(CSRF_TRUSTED_ORIGINS=["https://*.example.org:8443", "https://*.org:8443", text]):
        assert not auth.origin_allowed(scope(text))
    with override_settings(DELIVERY={**settings.DELIVERY, "ALLOWED_ORIGINS": [text, "null"]}):
        assert not auth.origin_allowed(scope(text))
        assert not auth.origin_allowed(scope("null"))


def test_allowed_origins_are_the_whole_list() -> None:
    options = {**settings.DELIVERY, "ALLOWED_ORIGINS": ["https://app.example"]}
    with override_settings(DELIVERY=options, CSRF_TRUSTED_ORIGINS=["https://trusted.example"]):
        assert auth.origin_allowed(scope("https://app.example"))
        assert not auth.origin_allowed(scope(OWN))
        assert not auth.origin_allowed(scope("https://trusted.example"))


TRUSTED = ["https://app.example", "https://*.trusted.example", "http://*.plain.example:8080"]


@pytest.mark.parametrize(
    "text",
    [
        *("https://app.example", "http://app.example", "https://app.example:444", "https://sub.app.example"),
        *(
            "https://a.trusted.example",
            "https://a.b.trusted.example",
            "https://trusted.example",
            "https://eviltrusted.example",
        ),
        *(
            "http://a.trusted.example",
            "https://a.trusted.example:444",
            "http://a.plain.example:8080",
            "http://a.plain.example",
        ),
        *(OWN, *FOREIGN),
    ],
)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_django_says_the_same(text: str, scheme: str) -> None:
    handshake = scope(text, scheme=scheme)
    with override_settings(CSRF_TRUSTED_ORIGINS=TRUSTED):
        assert auth.origin_allowed(handshake) == django_allows(handshake)


@pytest.mark.parametrize("text", ["https://example.org", "http://example.org", "https://inner"])
@pytest.mark.parametrize("forwarded", [{}, {"x_forwarded_proto": "https"}, {"x_forwarded_proto": "http, https"}])
@pytest.mark.parametrize("forwarded_host", [{}, {"x_forwarded_host": "example.org"}])
@pytest.mark.parametrize("believes_host", [True, False])
def test_django_says_the_same_behind_a_proxy(
    text: str, forwarded: dict[str, str], forwarded_host: dict[str, str], *, believes_host: bool
) -> None:
    handshake = scope(text, host="inner", scheme="ws", **forwarded, **forwarded_host)
    with override_settings(
        ALLOWED_HOSTS=["example.org", "inner"],
        SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
        USE_X_FORWARDED_HOST=believes_host,
    ):
        assert auth.origin_allowed(handshake) == django_allows(handshake)


def test_a_refusal_is_logged_with_both_values(caplog: pytest.LogCaptureFixture) -> None:
    auth.origin_allowed(scope("https://example.org:8443", host="example.org", scheme="ws"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "https://example.org:8443" in record.message
    assert "http://example.org," in record.message


def test_what_strangers_send_forges_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with override_settings(ALLOWED_HOSTS=["*"]):
        for number in range(100):
            auth.origin_allowed(scope(f"https://evil\x1b[2J\n{number}", host="a\r\nb\x1b"))
    assert len(caplog.records) == auth.MOST_A_MINUTE
    assert all(record.message.isprintable() and len(record.message) < 1_000 for record in caplog.records)


def test_the_same_refusal_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        auth.origin_allowed(scope("https://evil.example"))
    assert len(caplog.records) == 1
