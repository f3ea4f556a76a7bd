"""The rows: the record of what exists and how much of it is stored.

Rows are written by `delivery.transfers` alone; the admin reads them. Bytes are in Storage, but for inline payloads.
Names of states are part of the public surface; see `docs/reference/states.md`.
"""

from __future__ import annotations

import datetime
import io
import secrets
import time
import uuid

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _


def new_id() -> uuid.UUID:
    """Return a new id that is greater than those made earlier (UUID version 7, RFC 9562 section 5.7).

    Rows that are made together are then adjacent in each index. With random ids each index entry of a batch of small
    messages changed a different page, 20 per message, and a commit writes all of them.
    """
    return uuid.UUID(
        int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    )


class PayloadState(models.TextChoices):
    STORING = "storing", _("being stored")
    SEALING = "sealing", _("being checked")
    COMPLETE = "complete", _("complete")
    FAILED = "failed", _("failed")
    CANCELLED = "cancelled", _("cancelled")
    EXPIRED = "expired", _("expired")


class TransferState(models.TextChoices):
    LIVE = "live", _("live")
    DONE = "done", _("done")
    FAILED = "failed", _("failed")
    CANCELLED = "cancelled", _("cancelled")
    EXPIRED = "expired", _("expired")


class Direction(models.TextChoices):
    UPLOAD = "upload", _("upload")
    DELIVERY = "delivery", _("delivery")


class ClientState(models.TextChoices):
    OPEN = "open", _("open")
    DONE = "done", _("done")
    DECLINED = "declined", _("declined")


class WaitingFor(models.TextChoices):
    NOTHING = "", _("nothing")
    CLIENT = "client", _("the client")
    WORKER = "worker", _("a worker")
    SEAL = "seal", _("the digest")


class Payload(models.Model):
    """A payload: the whole immutable byte sequence."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("owner"), null=True, on_delete=models.SET_NULL, related_name="+"
    )
    name = models.CharField(_("name"), max_length=255, blank=True)
    content_type = models.CharField(_("content type"), max_length=255, blank=True)
    meta = models.JSONField(_("meta"), default=dict, blank=True)
    size = models.PositiveBigIntegerField(_("size"), null=True)  # bytes; null until the sender knows it
    sha256 = models.CharField(_("SHA-256"), max_length=64, blank=True)  # of what is stored; empty until sealed
    expected_sha256 = models.CharField(max_length=64, blank=True)  # what the sender says it is
    state = models.CharField(_("state"), max_length=16, choices=PayloadState, default=PayloadState.STORING)
    failure = models.CharField(_("failure"), max_length=64, blank=True)  # an abort code
    inline = models.BinaryField(null=True)  # the bytes themselves, where they are few
    in_place = models.BooleanField(default=False)  # the file belongs to the site: never deleted by us
    reserved = models.BigIntegerField(default=0)  # bytes of content that its owner's quota is charged with
    overhead = models.BigIntegerField(null=True)  # bytes charged for its rows; null: an earlier version made it
    max_size = models.BigIntegerField(null=True)  # most bytes of content, as the policy said at the last offer
    max_stored = models.BigIntegerField(null=True)  # most bytes of all that its owner sent, likewise
    keep = models.BooleanField(default=False)  # never expires: for the site itself, or attached
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    completed_at = models.DateTimeField(_("completed"), null=True)
    expires_at = models.DateTimeField(_("expires"), null=True)
    lifetime = models.DurationField(null=True)  # asked for by `expires=`; counts from completion
    sealing_at = models.DateTimeField(null=True)  # heartbeat of the task that computes the digest
    sealer = models.CharField(max_length=64, blank=True)  # its id

    class Meta:
        verbose_name = _("payload")
        verbose_name_plural = _("payloads")
        ordering = ("-created_at",)
        indexes = (
            models.Index(fields=["state", "expires_at"], name="delivery_payload_expiry"),
            models.Index(fields=["-created_at"], name="delivery_payload_created"),
        )
        permissions = (
            ("cancel_payload", _("Can cancel payloads")),
            ("expire_payload", _("Can expire payloads")),
            ("revive_payload", _("Can revive payloads whose files were missing")),
        )

    def __str__(self) -> str:
        return self.name or str(self.id)

    @property
    def deliveries(self) -> models.QuerySet[Transfer]:
        """The deliveries of this payload: rows with `user`, `state` and `position`."""
        return self.transfers.filter(direction=Direction.DELIVERY)

    def open(self) -> io.BufferedReader:
        """Open the complete payload as a seekable, read-only binary file.

        Raises `UsageError` before it is complete and after it has ended; reading raises `StorageUnavailable`, and
        `IntegrityError` where stored bytes are missing.
        """
        from delivery import api  # the one import upwards: the verbs of a payload

        return api.open_payload(self)

    def attach(self, instance: models.Model, field: str) -> None:
        """Make this complete payload the file of `instance.field`, in that field's own storage.

        Done at once, without a copy, where the payload is one whole file of ours in that storage; else a Celery task
        composes it under the field's `upload_to` once the transaction has committed, and saves the field. Either way
        the file is the site's from then on, and never swept. Raises `UsageError` for a payload that is not complete
        or a field that is no `FileField`.
        """
        from delivery import api  # upwards, as in `open`

        api.attach(self, instance, field)

    def discard(self) -> None:
        """Let go of this payload: its transfers end as cancelled, its files are deleted once that has committed.

        A file that is the site's own, delivered in place or attached, stays.
        """
        from delivery import api  # upwards, as in `open`

        api.discard(self)

    def url(self, *, expires: datetime.timedelta = datetime.timedelta(hours=1)) -> str:
        """Return a path under which anyone who has it can download this complete payload over HTTP.

        `expires`: counted from now; the link ends with the payload at the latest. Raises `UsageError` before it is
        complete, and where the site's URLs do not include `delivery.urls`.
        """
        from delivery import api  # upwards, as in `open`

        return api.url_of(self, expires)


class Address(models.Model):
    """A recipient of a payload: `user:<primary key>` or `group:<name>`."""

    id = models.BigAutoField(primary_key=True)
    # Its index is the constraint's below, which begins with it; likewise in `Segment` and others.
    payload = models.ForeignKey(Payload, on_delete=models.CASCADE, related_name="addresses", db_index=False)
    address = models.CharField(_("address"), max_length=255)

    class Meta:
        verbose_name = _("address")
        verbose_name_plural = _("addresses")
        constraints = (models.UniqueConstraint(fields=["payload", "address"], name="delivery_address_once"),)
        indexes = (models.Index(fields=["address"], name="delivery_address_wanted"),)

    def __str__(self) -> str:
        return self.address


class Segment(models.Model):
    """A run of bytes that one task stored: one file, or a part of one. `owned`: the file is ours to delete."""

    id = models.BigAutoField(primary_key=True)
    payload = models.ForeignKey(Payload, on_delete=models.CASCADE, related_name="segments", db_index=False)
    storage = models.CharField(max_length=64)  # alias in STORAGES
    name = models.CharField(max_length=500)  # the name that Storage returned
    offset = models.PositiveBigIntegerField()  # in the payload, bytes
    file_offset = models.PositiveBigIntegerField(default=0)  # in the file, bytes
    length = models.PositiveBigIntegerField()  # bytes
    owned = models.BooleanField(default=True)
    file_size = models.PositiveBigIntegerField(null=True)  # of a file delivered in place, checked at each staging
    file_modified_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("payload", "offset")
        constraints = (models.UniqueConstraint(fields=["payload", "offset"], name="delivery_segment_once"),)

    def __str__(self) -> str:
        return f"{self.name} [{self.offset}:{self.offset + self.length}]"


class Transfer(models.Model):
    """One payload over one leg: an upload by a user, or a delivery to a user."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    direction = models.CharField(_("direction"), max_length=8, choices=Direction)
    payload = models.ForeignKey(Payload, verbose_name=_("payload"), on_delete=models.CASCADE, related_name="transfers")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("user"), on_delete=models.CASCADE, related_name="+", db_index=False
    )
    key = models.UUIDField()  # the id on the wire: chosen by the client for an upload, our own for a delivery
    state = models.CharField(_("state"), max_length=16, choices=TransferState, default=TransferState.LIVE)
    failure = models.CharField(_("failure"), max_length=64, blank=True)  # an abort code
    lease = models.PositiveIntegerField(default=0)  # fencing number of the current writer (uploads)
    position = models.PositiveBigIntegerField(_("position"), default=0)  # bytes safe with the receiver
    client = models.CharField(max_length=64, blank=True)  # whose connection holds it; empty while detached
    session = models.CharField(max_length=64, blank=True)
    session_order = models.PositiveBigIntegerField(default=0)  # later welcomes have higher numbers
    channel = models.CharField(max_length=128, blank=True)  # reaches the consumer that holds it
    waiting_for = models.CharField(_("waiting for"), max_length=16, choices=WaitingFor, blank=True)
    worker = models.CharField(_("worker"), max_length=255, blank=True)  # that moved it last
    last_close_code = models.PositiveIntegerField(_("last close code"), null=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    progressed_at = models.DateTimeField(_("last progress"))
    ended_at = models.DateTimeField(_("ended"), null=True)
    expires_at = models.DateTimeField(_("expires"), null=True)

    class Meta:
        verbose_name = _("transfer")
        verbose_name_plural = _("transfers")
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(fields=["user", "direction", "key"], name="delivery_transfer_key_once"),
            models.UniqueConstraint(
                fields=["payload", "user"],
                condition=models.Q(direction="delivery"),
                name="delivery_one_delivery_a_user",
            ),
        )
        indexes = (
            # Of what lives, which is little: what is over need not be found by these.
            models.Index(fields=["expires_at"], condition=models.Q(state="live"), name="delivery_transfer_due"),
            models.Index(
                fields=["user", "created_at"],
                condition=models.Q(state="live", direction="delivery"),
                name="delivery_transfer_waiting",
            ),
            models.Index(fields=["-created_at"], name="delivery_transfer_created"),
        )
        permissions = (("cancel_transfer", _("Can cancel transfers")),)

    def __str__(self) -> str:
        return str(self.id)


class ClientPosition(models.Model):
    """The position of one client of a user in a delivery: telephone and laptop each receive it."""

    id = models.BigAutoField(primary_key=True)
    transfer = models.ForeignKey(Transfer, on_delete=models.CASCADE, related_name="clients", db_index=False)
    client = models.CharField(_("client"), max_length=64)
    state = models.CharField(_("state"), max_length=16, choices=ClientState, default=ClientState.OPEN)
    position = models.PositiveBigIntegerField(_("position"), default=0)  # bytes
    session_order = models.PositiveBigIntegerField(default=0)
    channel = models.CharField(max_length=128, blank=True)
    updated_at = models.DateTimeField(_("updated"))

    class Meta:
        constraints = (models.UniqueConstraint(fields=["transfer", "client"], name="delivery_client_once"),)
        indexes = (models.Index(fields=["client", "state"], name="delivery_client_open"),)

    def __str__(self) -> str:
        return self.client


class Event(models.Model):
    """One line of a transfer's timeline. Holds ids and numbers, never names or bytes."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(_("at"))
    # Ids without constraints: an event is written later, and its payload or transfer may be gone by then.
    payload = models.ForeignKey(
        Payload, null=True, on_delete=models.CASCADE, related_name="events", db_constraint=False
    )
    transfer = models.ForeignKey(
        Transfer, null=True, on_delete=models.CASCADE, related_name="events", db_constraint=False
    )
    kind = models.CharField(_("kind"), max_length=32)
    detail = models.JSONField(_("detail"), default=dict, blank=True)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering = ("-at", "-id")
        indexes = (models.Index(fields=["at"], name="delivery_event_at"),)

    def __str__(self) -> str:
        return self.kind


class Notice(models.Model):
    """A signal to the site that is still pending: written with its change, deleted when every handler has run.

    `handled` holds the handlers that have run: each one's effects were committed together with its name here.
    """

    id = models.BigAutoField(primary_key=True)
    signal = models.CharField(_("signal"), max_length=32)
    payload = models.ForeignKey(Payload, on_delete=models.CASCADE, related_name="notices")
    transfer = models.ForeignKey(Transfer, null=True, on_delete=models.CASCADE, related_name="notices")
    handled = models.JSONField(default=list)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    error = models.CharField(_("error"), max_length=255, blank=True)  # class name of the last exception
    due_at = models.DateTimeField(_("due"))

    class Meta:
        verbose_name = _("notice")
        verbose_name_plural = _("notices")
        indexes = (models.Index(fields=["due_at"], name="delivery_notice_due"),)

    def __str__(self) -> str:
        return self.signal


class Attachment(models.Model):
    """A payload that is to become the file of a model's field; deleted once it has."""

    id = models.BigAutoField(primary_key=True)
    payload = models.ForeignKey(Payload, on_delete=models.CASCADE, related_name="attachments")
    model = models.CharField(max_length=200)  # label: app.Model
    object_pk = models.CharField(max_length=255)
    field = models.CharField(max_length=100)
    attempts = models.PositiveIntegerField(default=0)
    error = models.CharField(max_length=255, blank=True)  # class name of the last exception
    due_at = models.DateTimeField()

    class Meta:
        indexes = (models.Index(fields=["due_at"], name="delivery_attachment_due"),)

    def __str__(self) -> str:
        return f"{self.model}.{self.field}"


class MissingFile(models.Model):
    """A payload with a stored file that was missing when it was read.

    Deleted when the file is back. If the payload failed for it, this row stays: the other files are kept, and the payload
    can be revived.
    """

    payload = models.OneToOneField(Payload, primary_key=True, on_delete=models.CASCADE, related_name="missing_file")
    since = models.DateTimeField(_("since"))  # the storage answered all the time since then
    tries = models.PositiveIntegerField(_("tries"), default=0)  # since then
    tried_at = models.DateTimeField(_("tried"))

    class Meta:
        indexes = (models.Index(fields=["tried_at"], name="delivery_missing_tried"),)

    def __str__(self) -> str:
        return str(self.payload_id)


class HandedOver(models.Model):
    """A payload whose file became the site's in place, in our folder: the folder outlives the payload's row."""

    payload = models.UUIDField(primary_key=True)

    def __str__(self) -> str:
        return str(self.payload)


class SweepMark(models.Model):
    """The position of a part of the sweep, as the time of the last row that it has checked."""

    name = models.CharField(primary_key=True, max_length=32)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Usage(models.Model):
    """The charges to a user's quota. Updated at each offer and end, and recounted by the sweep now and then."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, primary_key=True, on_delete=models.CASCADE, related_name="+", verbose_name=_("user")
    )
    stored = models.BigIntegerField(default=0)  # bytes reserved by payloads that exist or are on their way
    live = models.IntegerField(default=0)  # uploads that are not complete, but for inline ones
    counted_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.user_id}: {self.stored} bytes"
