"""One REDIS_URL in the spelling of each library."""

from pathlib import Path

import pytest

from project.redis_urls import broker_url, default_redis_url


@pytest.mark.parametrize(
    ("redis_url", "expected"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/1"),
        ("redis://localhost", "redis://localhost/1"),
        ("rediss://user:word@host:6380/3?ssl_cert_reqs=none", "rediss://user:word@host:6380/4?ssl_cert_reqs=none"),
        ("unix:///run/a%20b/valkey.sock?db=0", "redis+socket:///run/a%20b/valkey.sock?virtual_host=1"),
        ("unix://:word@/run/valkey.sock", "redis+socket://:word@/run/valkey.sock?virtual_host=1"),
    ],
)
def test_broker_is_the_next_database(redis_url: str, expected: str) -> None:
    assert broker_url(redis_url) == expected


def test_directory_says_where_redis_is(tmp_path: Path) -> None:
    assert default_redis_url(tmp_path) == "redis://127.0.0.1:6379/0"
    (tmp_path / "redis.url").write_text("unix:///x?db=0\n")
    assert default_redis_url(tmp_path) == "unix:///x?db=0"
