"""One REDIS_URL, in the spelling of each library.

redis-py and the channel layer take `redis://host:port/N` and `unix:///path?db=N`; Celery takes the first but calls
the second `redis+socket:///path?virtual_host=N`.
"""

from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit


def broker_url(redis_url: str) -> str:
    """Return Celery's URL for the database after that of `redis_url`.

    The broker's keys have no expiry, unlike all of ours; in a database of their own the two are told apart at a glance,
    and flushing the chunk buffer leaves the queues alone.
    """
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        query = dict(parse_qsl(parts.query))
        query["virtual_host"] = str(int(query.pop("db", "0")) + 1)
        # Not urlunsplit(): it drops the empty host of a scheme that it does not know.
        return f"redis+socket://{parts.netloc}{parts.path}?{urlencode(query)}"
    number = parts.path.strip("/") or "0"
    return urlunsplit(parts._replace(path=f"/{int(number) + 1}"))


def default_redis_url(var: Path) -> str:
    """Return the URL that `manage.py up` left in `var`, or that of a Redis on its usual port."""
    try:
        return (var / "redis.url").read_text().strip()
    except FileNotFoundError:
        return "redis://127.0.0.1:6379/0"
