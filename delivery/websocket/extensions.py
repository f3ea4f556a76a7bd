"""What our server offers an ASGI application beyond the ASGI specification, in `scope["extensions"]`.

Under another server, none of these is there, and the application does without: `pieces` are joined and sent, messages
come through `receive`, and one limit holds for every message of every connection.
"""

from __future__ import annotations

from typing import Any

#: An extension, and the type of its message: `pieces` (bytes-like) are sent as one binary message, none of them copied.
#: Its member `write` in the scope does that at once, and returns False, having done nothing, where `send` would wait or
#: raise.
PIECES = "delivery.pieces"

#: An extension, and the type of its message: from now on `take` is called with large binary messages and `take_text` with
#: texts, whenever the application waits in `receive` and nothing else waits for it. Both return False to stop reading:
#: then `receive` gives a message of the type `PACE`, and nothing more comes before `receive` is called again.
STRAIGHT = "delivery.straight"
PACE = "delivery.pace"

#: An extension: its member `at` in the scope returns the monotonic time at which bytes of an incomplete message last came;
#: 0.0 where no message is under way.
INCOMPLETE = "delivery.incomplete"

#: An extension: its member `set` in the scope sets how many bytes each message of this connection may have from now on.
#: Before the application calls it or accepts the connection, the limit is `FIRST_BYTES` of `uvicorn.py`; where it never
#: calls it, the server's.
LIMIT = "delivery.limit"


def message_limit(receive: Any) -> int | None:
    """Return the server's own message limit in bytes, given the `receive` of one of its connections.

    None where it cannot be told: uvicorn alone shows its configuration there.
    """
    config = getattr(getattr(receive, "__self__", None), "config", None)
    limit = getattr(config, "ws_max_size", None)
    return limit if isinstance(limit, int) else None
