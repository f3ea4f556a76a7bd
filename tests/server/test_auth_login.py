"""What an opening handshake says about its sender."""

from __future__ import annotations

import pytest

from delivery.auth import Request


@pytest.mark.parametrize(
    ("cookie", "key"),
    [
        (b"sessionid=abc", "abc"),
        (rb'sessionid="a\000c"', None),
        (b"other=1", None),
        (b"", None),
    ],
)
def test_session_key_is_taken_from_the_cookie(cookie: bytes, key: str | None) -> None:
    assert Request.of({"headers": [(b"cookie", cookie)]}).session == key
