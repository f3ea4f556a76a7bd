"""The login of a client: checks it, and keeps it out of every message, log and traceback."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from delivery.errors import UsageError

#: What the client's connections log to. Apart from `websockets.client`, whose DEBUG lines hold every header.
logger = logging.getLogger("websockets.client.delivery")

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})


def checked_token(token: str | None) -> str | None:
    """Return `token` without white space around it, None where nothing is left.

    Raises `UsageError`, which does not hold the token, where a header cannot carry it: visible ASCII is expected
    (RFC 9110 section 5.5). Most often, something else was printed or pasted along with it.
    """
    token = (token or "").strip()
    if all("!" <= character <= "~" for character in token):
        return token or None
    if any(character.isspace() for character in token):
        raise UsageError("the token has white space inside: was something else printed or pasted along with it?")
    raise UsageError("the token has characters that no token has; expected visible ASCII")


def without_credentials(url: str) -> str:
    """Return `url` as it may be shown: without user name, password, query and fragment."""
    if "://" not in url:  # the scheme was forgotten: the parts would not be where they are looked for
        return "..." if "@" in url else url.partition("?")[0].partition("#")[0]
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://..."
    if "@" in parts.path:  # a password with a slash in it, as far as one can tell
        return f"{parts.scheme}://..."
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _HideCredentials(logging.Filter):
    """Takes the value out of records that show a header which is a login."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args
        if isinstance(arguments, tuple) and len(arguments) == 2 and str(arguments[0]).lower() in _SECRET_HEADERS:
            record.args = (arguments[0], "[hidden]")
        return True


logger.addFilter(_HideCredentials())
