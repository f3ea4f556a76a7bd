"""What a session consists of: parts that know it without keeping it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from delivery.server.connection import Session


class Part:
    """A part of one session, which owns it.

    Were they to hold each other, all that a connection had would stay in memory until Python's collector of cycles comes
    by, which stops the whole process, and the longer, the more of them there are.
    """

    def __init__(self, session: Session) -> None:
        self._of = weakref.ref(session)

    @property
    def _session(self) -> Session:
        session = self._of()
        if session is None:
            raise RuntimeError("a part is used after its session is gone")
        return session
