"""Use cases: what can be done with payloads and transfers. All of it runs in threads and may query the database.

admission    the one decision on what a user may send; recipients, quotas: whom addresses mean, what is charged
uploads      open, resume, rewind, detach
segments     a buffered run becomes a segment
handover     one task stores several, for speed
ranges       a range goes into the buffer
digests      the SHA-256 of what is stored, computed ahead where it can be
outcomes     a payload becomes visible; or is cancelled, fails, expires
deliveries   what waits for a user, which connection takes it, how far they are
inline       few bytes, kept in their row
holders      which connection has a transfer, and letting go of many at once
attachments  a payload becomes the file of a model's field
missing_files   a stored file is gone: the payload fails in the end, and can be revived
outbox       the site's signals
timeline     the events
cleanup      the sweep, forgetting users, deleting rows
sql          transactions, the order of locks, fixed statements
"""

from delivery.transfers.missing_files import revive as revive_payload
from delivery.transfers.outcomes import cancel_payload, cancel_transfer, expire_payload

__all__ = ["cancel_payload", "cancel_transfer", "expire_payload", "revive_payload"]
