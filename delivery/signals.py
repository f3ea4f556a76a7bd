"""What a site can listen to. Connect handlers in an `AppConfig.ready()`, so that every process knows of them.

Each handler runs in a Celery worker, inside a transaction that also marks it handled: its effects in the same database
happen once, others at least once. One that raises is rolled back alone and tried again with backoff.

    payload_stored     payload=   a payload is complete
    payload_delivered  payload=, transfer=   the first client of a recipient has all of it
    payload_expired    payload=   a payload's time is up; its files are about to go
    transfer_failed    payload=, transfer=   a transfer ended early; `transfer.failure` has the code
"""

from __future__ import annotations

from django.dispatch import Signal

payload_stored = Signal()
payload_delivered = Signal()
payload_expired = Signal()
transfer_failed = Signal()

BY_NAME: dict[str, Signal] = {
    "payload_stored": payload_stored,
    "payload_delivered": payload_delivered,
    "payload_expired": payload_expired,
    "transfer_failed": transfer_failed,
}
