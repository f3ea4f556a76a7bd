"""A stored file that is gone fails its payload, but only after ten minutes of tries, and only where its storage is there."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.storage import FileSystemStorage
from django.test import override_settings
from django.utils import timezone

from delivery import dispatch
from delivery.errors import StorageUnavailable, StoredFileMissing
from delivery.models import Event, MissingFile, Payload, PayloadState, Segment, Usage
from delivery.storage import files
from delivery.transfers import cleanup, digests, missing_files, outcomes, ranges, timeline

DATA = b"twelve bytes"
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(dispatch, "publish", lambda *_task: None)  # no broker: what it asks for is done here
    local = {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": tmp_path / "payloads"},
    }
    with override_settings(STORAGES={"delivery": local, "default": local}):
        yield tmp_path / "payloads"


def stored(**fields: Any) -> Payload:
    payload = Payload.objects.create(
        **{"size": len(DATA), "state": PayloadState.COMPLETE, "completed_at": timezone.now(), "keep": True} | fields
    )
    name = files.write("delivery", payload.pk, 0, 1, iter([DATA]), len(DATA))
    Segment.objects.create(payload=payload, storage="delivery", name=name, offset=0, length=len(DATA))
    return payload


def remove(root: Path, payload: Payload) -> None:
    (root / payload.segments.get().name).unlink()


def wanted(payload: Payload) -> None:
    ranges.stage(payload.pk, 0, worker="")


def tried(times: int, *, minutes: float) -> None:
    """Have the sweep look this often, the tries a minute apart, after so long."""
    MissingFile.objects.update(since=timezone.now() - datetime.timedelta(minutes=minutes))
    for _ in range(times):
        MissingFile.objects.update(tried_at=timezone.now() - missing_files.BETWEEN_TRIES)
        missing_files.try_due()


def state(payload: Payload) -> str:
    return Payload.objects.get(pk=payload.pk).state


def test_a_payload_whose_file_is_gone_fails_after_tries_spread_over_ten_minutes(root: Path) -> None:
    payload, other = stored(), stored()
    remove(root, payload)
    wanted(payload)
    assert state(payload) == "complete"
    tried(missing_files.LEAST_TRIES + 1, minutes=9)
    assert state(payload) == "complete"
    tried(1, minutes=11)
    assert (state(payload), state(other)) == ("failed", "complete")
    assert Payload.objects.get(pk=payload.pk).failure == "digest"


def test_long_ago_is_not_enough_without_tries(root: Path) -> None:
    payload, _ = stored(), stored()
    remove(root, payload)
    wanted(payload)
    tried(missing_files.LEAST_TRIES - 1, minutes=60)
    assert state(payload) == "complete"
    wanted(payload)  # not a minute since the last one
    assert state(payload) == "complete"
    tried(1, minutes=60)
    assert state(payload) == "failed"


def test_recipients_try_too_where_no_sweep_runs(root: Path) -> None:
    payload, _ = stored(), stored()
    remove(root, payload)
    wanted(payload)
    long_ago = timezone.now() - datetime.timedelta(minutes=60)
    for _ in range(missing_files.LEAST_TRIES):
        MissingFile.objects.update(since=long_ago, tried_at=long_ago)
        wanted(payload)
    assert state(payload) == "failed"


def test_a_file_that_comes_back_is_forgotten(root: Path) -> None:
    payload, _ = stored(), stored()
    path = root / payload.segments.get().name
    path.rename(root / "aside")
    wanted(payload)
    (root / "aside").rename(path)
    tried(1, minutes=60)
    assert not MissingFile.objects.exists()
    assert state(payload) == "complete"


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "an empty folder and new uploads"])
def test_a_volume_that_is_not_mounted_fails_nothing(root: Path, left: str) -> None:
    payloads = [stored() for _ in range(6)]
    root.rename(root.with_name("away"))
    if left != "nothing":
        root.mkdir()
    if left == "an empty folder and new uploads":
        for _ in range(3):
            stored()
    for payload in payloads:
        wanted(payload)
    tried(2 * missing_files.LEAST_TRIES, minutes=60)
    assert {state(payload) for payload in payloads} == {"complete"}
    shutil.copytree(root.with_name("away"), root, dirs_exist_ok=True)
    tried(1, minutes=60)
    assert not MissingFile.objects.exists()


def test_the_ten_minutes_begin_anew_when_a_volume_comes_back_without_the_file(root: Path) -> None:
    payload, _ = stored(), stored()
    remove(root, payload)
    wanted(payload)
    tried(missing_files.LEAST_TRIES - 1, minutes=60)
    root.rename(root.with_name("away"))
    tried(1, minutes=60)
    root.with_name("away").rename(root)
    MissingFile.objects.update(tried_at=timezone.now() - missing_files.BETWEEN_TRIES)
    missing_files.try_due()
    assert state(payload) == "complete"
    assert MissingFile.objects.get().tries == 1


def test_the_only_payload_fails_where_the_root_is_not_empty(root: Path) -> None:
    payload = stored()
    remove(root, payload)  # its folder stays
    wanted(payload)
    tried(missing_files.LEAST_TRIES, minutes=11)
    assert state(payload) == "failed"


class Unanswering(FileSystemStorage):
    """A storage that says that it has no such file, and refuses to list anything."""

    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        raise ConnectionRefusedError(path)


def test_a_root_that_does_not_answer_keeps_a_payload(root: Path) -> None:
    payload = stored()
    remove(root, payload)
    backend = {"BACKEND": f"{__name__}.Unanswering", "OPTIONS": {"location": root}}
    with override_settings(STORAGES={"delivery": backend}):
        wanted(payload)
        tried(2 * missing_files.LEAST_TRIES, minutes=60)
    assert state(payload) == "complete"


def test_an_upload_whose_file_is_gone_before_it_is_checked_fails_too(root: Path) -> None:
    payload, _ = stored(state=PayloadState.SEALING, completed_at=None), stored()
    remove(root, payload)
    digests.seal(payload.pk, worker="")
    tried(missing_files.LEAST_TRIES, minutes=11)
    assert state(payload) == "failed"


def test_a_file_delivered_in_place_that_is_gone_is_waited_for(root: Path) -> None:
    payload, _ = stored(in_place=True), stored()
    Segment.objects.filter(payload=payload).update(owned=False, file_size=len(DATA))
    remove(root, payload)
    wanted(payload)
    assert state(payload) == "complete"
    tried(missing_files.LEAST_TRIES, minutes=11)
    assert state(payload) == "failed"


# -- revived -------------------------------------------------------------------------------------------------------


def failed(root: Path, **fields: Any) -> tuple[Payload, Path]:
    """Return a payload that failed, and where its file was brought into safety."""
    payload, _ = stored(**fields), stored()
    Payload.objects.filter(pk=payload.pk).update(sha256=_digest())
    path, aside = root / payload.segments.get().name, root / "aside"
    path.rename(aside)
    wanted(payload)
    tried(missing_files.LEAST_TRIES, minutes=11)
    assert state(payload) == "failed"
    return payload, aside


def _digest() -> str:

    return hashlib.sha256(DATA).hexdigest()


def bring_back(root: Path, payload: Payload, aside: Path) -> None:
    aside.rename(root / payload.segments.get().name)


def test_what_is_revived_is_checked_and_delivered_to_who_had_not_received_it(root: Path) -> None:
    alice, bob = User.objects.create_user("alice"), User.objects.create_user("bob")
    payload, _ = stored(), stored()
    outcomes.create_for_users(payload, [alice.pk, bob.pk])
    payload.deliveries.filter(user=bob).update(state="done")
    Payload.objects.filter(pk=payload.pk).update(sha256=_digest())
    path, aside = root / payload.segments.get().name, root / "aside"
    path.rename(aside)
    wanted(payload)
    tried(missing_files.LEAST_TRIES, minutes=11)
    before = payload.deliveries.get(user=alice)
    assert before.state == "failed"
    with pytest.raises(StorageUnavailable, match="still missing"):
        missing_files.revive(payload.pk, by="user:1")
    assert state(payload) == "failed"
    aside.rename(path)
    assert missing_files.revive(payload.pk, by="user:1")
    assert not missing_files.revive(payload.pk, by="user:1")
    digests.seal(payload.pk, worker="")
    assert state(payload) == "complete"
    again = payload.deliveries.get(user=alice)
    assert (again.state, again.pk != before.pk) == ("live", True)
    assert payload.deliveries.get(user=bob).state == "done"
    timeline.write()
    kinds = list(Event.objects.filter(payload=payload).order_by("pk").values_list("kind", flat=True))
    assert [kind for kind in kinds if kind in ("missing", "failed", "revived", "complete")] == [
        *("missing", "failed", "revived", "complete")
    ]


def test_other_bytes_in_the_place_of_a_file_fail_the_payload_again_and_nothing_is_deleted(root: Path) -> None:
    payload, aside = failed(root)
    path = root / payload.segments.get().name
    path.write_bytes(DATA[::-1])
    assert missing_files.revive(payload.pk, by="")
    digests.seal(payload.pk, worker="")
    assert state(payload) == "failed"
    path.unlink()
    bring_back(root, payload, aside)
    assert missing_files.revive(payload.pk, by="")
    digests.seal(payload.pk, worker="")
    assert state(payload) == "complete"


def test_quotas_are_charged_for_what_is_revived(root: Path) -> None:
    alice = User.objects.create_user("alice")
    usage = Usage.objects.create(user=alice, stored=len(DATA), live=0, counted_at=timezone.now())
    payload, aside = failed(root, owner=alice, reserved=len(DATA))
    usage.refresh_from_db()
    assert (usage.stored, usage.live) == (0, 0)
    bring_back(root, payload, aside)
    missing_files.revive(payload.pk, by="")
    digests.seal(payload.pk, worker="")
    usage.refresh_from_db()
    assert (state(payload), usage.stored, usage.live) == ("complete", len(DATA), 0)


def test_what_is_kept_goes_with_its_time_or_when_it_is_cancelled(root: Path) -> None:
    cancelled, _ = failed(root)
    expired, _ = failed(root, expires_at=timezone.now() - datetime.timedelta(seconds=1))
    kept, _ = failed(root)
    assert outcomes.cancel_payload(cancelled.pk, by="")
    cleanup.sweep()
    assert [state(one) for one in (cancelled, expired, kept)] == ["cancelled", "expired", "failed"]
    assert set(Segment.objects.values_list("payload", flat=True)) & {cancelled.pk, expired.pk, kept.pk} == {kept.pk}
    assert not missing_files.revive(cancelled.pk, by="")
    assert not outcomes.fail(kept.pk, "digest")


def test_what_failed_for_another_reason_cannot_be_revived(root: Path) -> None:
    payload = stored()
    outcomes.fail(payload.pk, "digest")
    assert not missing_files.revive(payload.pk, by="")


# -- what backends say ---------------------------------------------------------------------------------------------


def _sdk_error(name: str, module: str, **members: Any) -> Exception:
    kind = type(name, (Exception,), {"__module__": module})
    error: Exception = kind()
    for member, value in members.items():
        setattr(error, member, value)
    return error


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (FileNotFoundError("x"), True),
        (PermissionError("x"), False),
        (TimeoutError("x"), False),
        (_sdk_error("ClientError", "botocore.exceptions", response={"Error": {"Code": "404"}}), True),
        (_sdk_error("ClientError", "botocore.exceptions", response={"Error": {"Code": "NoSuchKey"}}), True),
        (
            _sdk_error(
                "ClientError",
                "botocore.exceptions",
                response={"Error": {"Code": "NoSuchBucket"}, "ResponseMetadata": {"HTTPStatusCode": 404}},
            ),
            False,
        ),
        (_sdk_error("ClientError", "botocore.exceptions", response={"Error": {"Code": "SlowDown"}}), False),
        (_sdk_error("NotFound", "google.api_core.exceptions", code=404), True),
        (_sdk_error("ResourceNotFoundError", "azure.core.exceptions", status_code=404), True),
        (_sdk_error("HttpResponseError", "azure.core.exceptions", status_code=503), False),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_a_backend_says_is_told_apart(error: Exception, missing: bool) -> None:
    with pytest.raises(StorageUnavailable) as caught, files.reporting():
        raise error
    assert isinstance(caught.value, StoredFileMissing) is missing


def test_a_programming_error_is_none_of_storages() -> None:
    with pytest.raises(TypeError), files.reporting():
        raise TypeError("a bug")
