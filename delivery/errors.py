"""The one tree of errors.

    DeliveryError
    ├── UsageError              local misuse: an argument or a call that cannot be right
    │   └── ConfigurationError  a setting that is unknown, impossible or missing
    ├── ProtocolViolation       the peer broke the protocol; carries the close code and reason
    │   └── MessagesLost        something on the way swallowed messages; smaller chunks may pass
    ├── Refused                 the policy or a limit says no; carries the wire code
    ├── TransferAborted         a transfer ended early; carries the wire code and whether it is final
    ├── ConnectionStopped       the connection cannot come back by itself; carries the close code
    ├── Unavailable             a part we need does not answer; trying again later helps
    │   ├── StorageUnavailable
    │   │   └── StoredFileMissing   a stored file is not there
    │   ├── BufferUnavailable
    │   ├── WorkersUnavailable
    │   └── PolicyUnavailable
    ├── ChunksLost              bytes that were buffered but not stored are gone; carries the position
    ├── StaleLease              a newer writer holds the transfer; nothing was changed
    ├── IntegrityError          bytes differ from their checksum, digest, size or modification time
    └── Expired                 the time of a payload or transfer is up

A message says what was expected and what came, and never holds payload bytes, tokens or cookies.
"""

from __future__ import annotations


class DeliveryError(Exception):
    """Root of every error that this package raises on purpose."""


class UsageError(DeliveryError):
    """The caller passed something that cannot be right."""


class ConfigurationError(UsageError):
    """A setting is unknown, impossible or missing."""


class ProtocolViolation(DeliveryError):
    """The peer broke the protocol: close the connection with `code` and `reason`."""

    def __init__(self, reason: str, code: int = 4400) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class MessagesLost(ProtocolViolation):
    """Messages did not arrive although later ones did: a server closes with 1009, a client does as if it had."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, 1009)


class Refused(DeliveryError):
    """An offer or call is refused; `code` is a reject code of PROTOCOL section 2."""

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        max_size: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or code)
        self.code = code
        self.message = message
        self.max_size = max_size
        self.retry_after = retry_after


class TransferAborted(DeliveryError):
    """A transfer ended early; `code` is an abort code of PROTOCOL section 5."""

    def __init__(self, code: str, message: str = "", *, final: bool = True) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.final = final


class ConnectionStopped(DeliveryError):
    """The server closed with a code after which reconnecting cannot help (PROTOCOL section 6)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        self.reason = reason


class Unavailable(DeliveryError):
    """A part that is needed does not answer; trying again after `retry_after` seconds may help."""

    def __init__(self, message: str = "", *, retry_after: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageUnavailable(Unavailable):
    """Storage failed to take or give bytes (a full disk, a refused connection)."""


class StoredFileMissing(StorageUnavailable):
    """A stored file is not there. Its volume may not be mounted; or it is gone, and trying again does not help."""


class BufferUnavailable(Unavailable):
    """Redis does not answer, or is out of memory."""


class WorkersUnavailable(Unavailable):
    """No live Celery worker consumes the queue."""


class PolicyUnavailable(Unavailable):
    """The site's policy raises or does not answer."""


class ChunksLost(DeliveryError):
    """Chunks that had been taken in were gone before they were stored; `seq` is the first missing one."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"chunk {seq} is gone from the buffer")
        self.seq = seq


class StaleLease(DeliveryError):
    """A newer writer holds the transfer; the attempt under the old lease changed nothing."""


class IntegrityError(DeliveryError):
    """Stored bytes differ from their checksum, digest, size or modification time."""


class Expired(DeliveryError):
    """The payload or transfer has expired."""
