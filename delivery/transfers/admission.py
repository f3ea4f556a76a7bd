"""The admission decision on an upload of any kind: an offer, early data, plain mode, a large message.

`ask` puts the site's policy its questions, outside of any transaction and outside the thread that writes. `Admission` is
the answer; `uploads` and `inline` apply it inside their transactions, where `quotas` changes the user's row under a
condition, so that parallel offers cannot pass together. An admission is asked for anew at each offer. Its limits are kept
with the payload's row, so that an upload of unknown size is held to them as it grows without any question.

What server code delivers (`deliver()`) belongs to no user and has no limit; its addresses are resolved here as well.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from delivery import conf, policy
from delivery.errors import PolicyUnavailable, Refused
from delivery.models import Address, Direction, Payload, PayloadState, Transfer, TransferState
from delivery.policy import DefaultPolicy, Quota
from delivery.protocol.messages import UploadOffer
from delivery.transfers.recipients import Known, Recipients, canonical_addresses
from delivery.transfers.sql import Statement

logger = logging.getLogger(__name__)

ROW_BYTES = 1024  # that the rows of a payload are charged with, beside its name and meta
LIVE_PAYLOADS = (PayloadState.STORING, PayloadState.SEALING)
FAILED_RETRY_AFTER = 5.0  # seconds, where the policy raises or does not answer
MOST_BYTES = 2**63 - 1  # that a column holds
MAX_NAME = 255  # characters
_SEPARATORS = re.compile(r"[/\\]")
_KNOWN = Statement(
    Transfer,
    "SELECT 1 FROM {table} WHERE {user} = %s AND {direction} = %s AND {key} = %s",
    *("user", "direction", "key"),
)


_remembered = Known()


@dataclass(frozen=True, slots=True)
class Admission:
    """What one user may send to some addresses.

    `addresses`: canonical, as the rows keep them. `max_size`: the largest payload in bytes. `recipients`: the primary keys
    of the users whom the addresses mean now, for a small upload that is complete at once; None where that comes later.
    """

    addresses: tuple[str, ...]
    max_size: int
    quota: Quota
    recipients: tuple[Any, ...] | None = None

    @property
    def max_stored(self) -> int:
        """The most bytes that all payloads of the user may have, as a column holds it."""
        return min(self.quota.stored, MOST_BYTES)


def ask(user: Any, offer: UploadOffer) -> Admission | None:
    """Ask the site's policy about an offer of `user`. Call it outside of any transaction; it may take long.

    A first offer is asked for the addresses that it names, a later one for those of the first, which stand. Returns None
    for an upload that is over: its offer is answered as it ended. Raises `Refused`: `forbidden`, or `busy` where the
    policy fails.
    """
    key = UUID(offer.transfer)
    if not known(user.pk, key):
        return _asked(user, lambda rules: canonical_addresses(rules, offer.to))
    mine = Transfer.objects.filter(user=user, direction=Direction.UPLOAD, key=key)
    live = mine.filter(state=TransferState.LIVE, payload__state__in=LIVE_PAYLOADS)
    if (payload := live.values_list("payload_id", flat=True).first()) is None:
        return None
    stand = list(Address.objects.filter(payload=payload).order_by("pk").values_list("address", flat=True))
    return _asked(user, lambda rules: stand)


def ask_small(user: Any, offer: UploadOffer) -> Admission:
    """Do what `ask` does for a first offer that came with all of its bytes: its recipients are asked for as well.

    Believes for a second who a name or a key means.
    """
    recipients = Recipients(_remembered)
    found = _asked(user, lambda rules: canonical_addresses(recipients, offer.to))
    try:
        return replace(found, recipients=tuple(recipients.of(found.addresses)))
    except PolicyUnavailable as error:
        raise Refused("busy", str(error), retry_after=FAILED_RETRY_AFTER) from error


def known(user: Any, key: UUID) -> bool:
    """Return whether `user`, a primary key, has offered an upload under `key` before. Most offers are new."""
    return bool(_KNOWN.fetch(user, Direction.UPLOAD.value, key))


def _asked(user: Any, addresses_of: Callable[[DefaultPolicy], Sequence[str] | None]) -> Admission:
    try:
        rules = policy.current()
        addresses = addresses_of(rules)
        if addresses is None or not rules.may_send(user, addresses):
            raise Refused("forbidden")
        return Admission(tuple(addresses), largest(rules, user), rules.quota(user))
    except Refused:
        raise
    except Exception as error:  # the site's own code: whatever it raises refuses this offer alone
        logger.exception("the site's policy fails for %s", policy.address_of(user))
        raise Refused("busy", "the site's policy fails", retry_after=FAILED_RETRY_AFTER) from error


def largest(rules: DefaultPolicy, user: Any) -> int:
    """Return the largest payload in bytes that `user` may upload: the policy's answer, at most MAX_PAYLOAD."""
    return min(rules.max_payload(user), conf.current().max_payload, MOST_BYTES)


def keep_limits(payload: UUID) -> None:
    """Keep the limits of an upload of unknown size whose row has none: a process of an earlier version took its offer.

    Call it outside of any transaction. Raises what the policy raises.
    """
    row = Payload.objects.select_related("owner").get(pk=payload)
    rules = policy.current()
    max_size, max_stored = conf.current().max_payload, MOST_BYTES
    if row.owner is not None:
        max_size, max_stored = largest(rules, row.owner), min(rules.quota(row.owner).stored, MOST_BYTES)
    Payload.objects.filter(pk=payload, max_size=None).update(max_size=max_size, max_stored=max_stored)


def check_size(size: int, max_size: int) -> None:
    """Refuse `size` bytes where they are more than `max_size`. Raises `Refused` with `too_large`."""
    if size > max_size:
        raise Refused("too_large", f"{size} bytes, at most {max_size} are allowed", max_size=max_size)


def overhead(name: str, meta: Mapping[str, str]) -> int:
    """Return the bytes that a payload's rows are charged with, beside those of its content."""
    return ROW_BYTES + len(name.encode()) + len(json.dumps(dict(meta), ensure_ascii=False).encode())


def clean_name(name: str) -> str:
    """Return a display name without path parts, control, format and bidirectional characters, at most 255 long."""
    last = _SEPARATORS.split(name)[-1] if "/" in name or "\\" in name else name
    if last.isascii() and last.isprintable():
        return last.strip()[:MAX_NAME]
    kept = "".join(
        character for character in last if unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    )
    return kept.strip()[:MAX_NAME]


def clean_type(content_type: str) -> str:
    """Return a content type without control characters."""
    if content_type.isprintable():
        return content_type.strip()[:MAX_NAME]
    kept = "".join(character for character in content_type if character.isprintable())
    return kept.strip()[:MAX_NAME]
