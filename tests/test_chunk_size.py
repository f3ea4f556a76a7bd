"""The chunk size of a site that names none: what fits beside its other settings."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import checks

from delivery import conf


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 524_288),
        ({"MAX_MESSAGE": 524_288 + 12}, 524_288),
        ({"MAX_MESSAGE": 524_288 + 11}, 262_144),
        ({"MAX_MESSAGE": 300_000}, 262_144),
        ({"WINDOW": 131_072}, 131_072),
        ({"WINDOW": 4_096}, 4_096),
        ({"MAX_MESSAGE": 1_000_000, "CHUNK_SIZE": 65_536}, 65_536),
    ],
)
def test_less_by_default_where_less_fits(settings: Any, options: dict[str, int], size: int) -> None:
    settings.DELIVERY = options
    assert conf.current().chunk_size == size
    assert "delivery.E005" not in [message.id for message in checks.run_checks(tags=["delivery"])]


@pytest.mark.parametrize("wrong", [{"WINDOW": "48 MiB"}, {"MAX_MESSAGE": None}, {"WINDOW": 0}, {"MAX_MESSAGE": -1}])
def test_what_is_wrong_beside_it_is_left_to_the_checks(settings: Any, wrong: dict[str, Any]) -> None:
    settings.DELIVERY = wrong
    assert conf.current().chunk_size >= 4_096
    assert [message.id for message in checks.run_checks(tags=["delivery"])]


def test_one_that_was_named_and_does_not_fit_is_an_error(settings: Any) -> None:
    settings.DELIVERY = {"MAX_MESSAGE": 300_000, "CHUNK_SIZE": 524_288}
    assert "delivery.E005" in [message.id for message in checks.run_checks(tags=["delivery"])]


def test_a_limit_that_is_none_is_not_compared_with_the_servers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_WS_MAX_SIZE", "70000")
    assert "delivery.W005" in [message.id for message in checks.run_checks(tags=["delivery"])]
    settings.DELIVERY = {"MAX_MESSAGE": None}
    found = [message.id for message in checks.run_checks(tags=["delivery"])]
    assert "delivery.E003" in found
    assert "delivery.W005" not in found
