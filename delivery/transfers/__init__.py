"""Use cases: what can be done with payloads and transfers. All of it runs in threads and may query the database.

uploads      open, resume, rewind, detach
storing      a buffered run becomes a segment
sealing      the digest of what is stored
completing   a payload becomes visible
deliveries   what waits for a user, who takes it, how far they are
staging      a range goes into the buffer
ending       cancel, fail, expire
missing_files   a stored file is gone: the payload fails in the end, and can be revived
retention    the sweep
notices      the site's signals
events       the timeline
locks        which rows are locked, and in what order
"""

from delivery.transfers.ending import cancel_payload, cancel_transfer, expire_payload
from delivery.transfers.missing_files import revive as revive_payload

__all__ = ["cancel_payload", "cancel_transfer", "expire_payload", "revive_payload"]
