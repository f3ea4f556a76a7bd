"""What the site's policy is asked about an offer, and what becomes of its answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import override_settings

from delivery import policy
from delivery.errors import Refused
from delivery.models import Usage
from delivery.policy import DefaultPolicy, Quota
from delivery.protocol.messages import UploadOffer
from delivery.transfers import admission, outcomes, uploads
from delivery.transfers.holders import Holder
from delivery.transfers.uploads import Opened

pytestmark = pytest.mark.django_db
HOLDER = Holder(0, "laptop", "session", 1, "channel")


class Asked(DefaultPolicy):
    """Writes down what it is asked to send to; its answers are set by a test."""

    sends: list[Sequence[str]]
    limit = 100
    quota_bytes = 2**70

    def may_send(self, user: Any, addresses: Sequence[str]) -> bool:
        self.sends.append(addresses)
        return True

    def max_payload(self, user: Any) -> int:
        return self.limit

    def quota(self, user: Any) -> Quota:
        return Quota(stored=self.quota_bytes)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> type[Asked]:
    class Here(Asked):
        sends: list[Sequence[str]] = []  # noqa: RUF012 - this test's own

    monkeypatch.setattr(policy, "current", Here)
    return Here


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


def offer(*, size: int | None = None, to: tuple[str, ...] = (), transfer: str = "") -> UploadOffer:
    return UploadOffer(transfer=transfer or str(uuid.uuid4()), handle=1, name="x", size=size, chunk_size=4096, to=to)


def opened(user: User, one: UploadOffer) -> Opened:
    found = uploads.open_upload(user, HOLDER, one, admission.ask(user, one), workers=True)
    assert isinstance(found, Opened)
    return found


def test_the_addresses_of_the_first_offer_stand(alice: User, asked: type[Asked]) -> None:
    bob = User.objects.create_user("bob")
    one = offer(to=("user:bob",))
    opened(alice, one)
    opened(alice, offer(transfer=one.transfer, to=("user:nobody",)))
    assert asked.sends == [[f"user:{bob.pk}"]] * 2


def test_an_upload_that_is_over_is_answered_without_the_policy(alice: User, asked: type[Asked]) -> None:
    one = offer()
    outcomes.cancel_payload(opened(alice, one).payload, by="")
    asked.sends.clear()
    assert admission.ask(alice, one) is None
    assert asked.sends == []
    with pytest.raises(Refused, match="cancelled"):
        opened(alice, one)


def test_the_sites_own_limit_holds_for_everybody(alice: User, asked: type[Asked]) -> None:
    asked.limit = 2**80
    with override_settings(DELIVERY={"MAX_PAYLOAD": 1000}):
        assert opened(alice, offer()).max_size == 1000
        with pytest.raises(Refused, match="1001 bytes, at most 1000"):
            opened(alice, offer(size=1001))


def test_limits_beyond_what_a_column_holds_are_kept_as_the_most_it_holds(alice: User, asked: type[Asked]) -> None:
    asked.limit = 2**80
    with override_settings(DELIVERY={"MAX_PAYLOAD": 2**90}):
        assert opened(alice, offer()).max_size == 2**63 - 1


def test_the_newest_limits_hold_while_the_size_is_unknown(alice: User, asked: type[Asked]) -> None:
    one = offer()
    assert opened(alice, one).max_size == 100
    asked.limit = 50
    assert opened(alice, one).max_size == 50
    with pytest.raises(Refused, match="51 bytes, at most 50"):
        opened(alice, offer(transfer=one.transfer, size=51))


def test_a_refused_size_changes_nothing_and_one_that_fits_is_charged(alice: User, asked: type[Asked]) -> None:
    rows = admission.overhead("x", {})
    asked.quota_bytes = rows + 60
    one = offer()
    lease = opened(alice, one).lease
    with pytest.raises(Refused, match="at most"):
        opened(alice, offer(transfer=one.transfer, size=61))
    assert Usage.objects.get().stored == rows
    again = opened(alice, offer(transfer=one.transfer, size=60))
    assert (again.lease, Usage.objects.get().stored) == (lease + 1, rows + 60)


@pytest.mark.parametrize("method", ["may_send", "max_payload", "quota", "find_user"])
def test_whatever_the_policy_raises_refuses_the_offer(
    alice: User, asked: type[Asked], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    def fail(*arguments: Any) -> Any:
        raise LookupError("a fault in the site's policy")

    monkeypatch.setattr(asked, method, fail)
    for ask in (admission.ask, admission.ask_small):
        with pytest.raises(Refused) as refused:
            ask(alice, offer(to=("user:alice",)))
        assert (refused.value.code, refused.value.retry_after) == ("busy", admission.FAILED_RETRY_AFTER)
    assert f"policy fails for user:{alice.pk}" in caplog.text


def test_a_group_that_cannot_be_asked_for_refuses_a_small_upload(alice: User, asked: type[Asked]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asked, "group_members", lambda self, name: 1 / 0)
        with pytest.raises(Refused, match="group"):
            admission.ask_small(alice, offer(to=("group:ops",)))


def test_names_and_meta_are_charged_in_bytes() -> None:
    assert admission.overhead("ä", {"k": "ö"}) == admission.ROW_BYTES + 2 + len('{"k": "ö"}'.encode())
