"""The code tables agree with the vectors that JavaScript's table is checked against."""

from __future__ import annotations

import pytest

from delivery.protocol import codes
from delivery.protocol.codes import ABORT_CODES, CLOSE_CODES, FINAL_ABORT_CODES, REJECT_CODES, Reaction, reaction_to

from .vectors import load

VECTORS = load("codes")


def test_close_codes_are_those_of_the_vectors():
    table = [{"code": c.code, "reason": c.reason, "reaction": c.reaction} for c in CLOSE_CODES.values()]
    assert table == VECTORS["close"]


def test_reject_codes_are_those_of_the_vectors():
    table = [{"code": v.code, "text": v.text, "retryable": v.retryable} for v in REJECT_CODES.values()]
    assert table == VECTORS["reject"]


def test_abort_codes_are_those_of_the_vectors():
    table = [
        {"code": v.code, "text": v.text, "retryable": v.retryable, "final": v.code in FINAL_ABORT_CODES}
        for v in ABORT_CODES.values()
    ]
    assert table == VECTORS["abort"]


def test_nack_and_going_away_codes_are_those_of_the_vectors():
    assert sorted(codes.NACK_CODES) == VECTORS["nack"]
    assert [{"reason": r, "code": c} for r, c in codes.GOING_AWAY_CODES.items()] == VECTORS["going_away"]


@pytest.mark.parametrize("entry", CLOSE_CODES.values(), ids=lambda entry: str(entry.code))
def test_a_reason_fits_into_a_close_frame(entry):
    assert 0 < len(entry.reason.encode()) <= codes.MAX_REASON_BYTES


@pytest.mark.parametrize("code", [1002, 1005, 1010, 1015, 3000, 4999])
def test_an_unknown_code_is_backed_off_from(code):
    assert reaction_to(code) is Reaction.BACKOFF


def test_a_final_code_is_never_retryable():
    assert not any(ABORT_CODES[code].retryable for code in FINAL_ABORT_CODES)


def test_every_reason_to_go_away_closes_with_a_code_that_clients_come_back_from():
    assert {reaction_to(code) for code in codes.GOING_AWAY_CODES.values()} <= {Reaction.RETURN, Reaction.WAIT}
