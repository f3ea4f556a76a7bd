"""Handles rise; what was offered is told from what never was."""

from __future__ import annotations

import pytest

from delivery.errors import ProtocolViolation
from delivery.protocol.handles import REMEMBERED_GAPS, Handles


def taken(*handles: int) -> Handles:
    used = Handles()
    for handle in handles:
        used.take(handle)
    return used


@pytest.mark.parametrize("handle", [7, 6, 1])
def test_a_handle_exceeds_all_earlier_ones(handle):
    with pytest.raises(ProtocolViolation, match="does not rise"):
        taken(7).take(handle)


def test_what_was_offered_is_known():
    used = taken(1, 2, 7)
    assert used.highest == 7
    for handle in (1, 2, 7):
        used.check(handle)


@pytest.mark.parametrize("handle", [0, 3, 6, 8, 2**32])
def test_what_was_skipped_or_lies_ahead_was_never_offered(handle):
    with pytest.raises(ProtocolViolation, match="never offered"):
        taken(1, 2, 7).check(handle)


def test_a_peer_that_skips_without_end_costs_no_memory():
    used = taken(*range(2, 10_000, 2))
    assert len(used._skipped) == REMEMBERED_GAPS
    assert 9_997 not in used
    assert 3 in used  # forgotten: let off
