"""Signed links: a path under which a payload can be downloaded over HTTP by whoever has it."""

from __future__ import annotations

import datetime
import time
from uuid import UUID

from django.core import signing
from django.urls import NoReverseMatch, reverse

from delivery.errors import UsageError
from delivery.models import Payload, PayloadState

SALT = "delivery.link"


def url_of(payload: Payload, expires: datetime.timedelta) -> str:
    """Return the path of a download that works until `expires` from now.

    Raises `UsageError` for a payload that is not complete, and where the site has no URL for it.
    """
    if payload.state != PayloadState.COMPLETE:
        raise UsageError(f"payload {payload.pk} is {payload.state}, expected complete")
    until = int(time.time() + expires.total_seconds())
    link = signing.dumps([payload.pk.hex, until], salt=SALT)
    try:
        return reverse("delivery-payload", args=[link])
    except NoReverseMatch:
        raise UsageError('the site\'s URLs lack path("delivery/", include("delivery.urls"))') from None


def payload_of(link: str) -> UUID | None:
    """Return the payload that a link is for, None where it is forged or expired."""
    try:
        key, until = signing.loads(link, salt=SALT)
        return UUID(key) if time.time() < until else None
    except (signing.BadSignature, ValueError, TypeError):
        return None
