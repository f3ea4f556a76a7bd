"""The one table of moves, and whose fault a wrong one is."""

from __future__ import annotations

import itertools

import pytest

from delivery.errors import ProtocolViolation, UsageError
from delivery.protocol.codes import ABORT_CODES, FINAL_ABORT_CODES
from delivery.protocol.states import LIVE, TRANSITIONS, Machine, Move, State

EVERY_MOVE = list(itertools.product(State, Move))


def machine_in(state: State) -> Machine:
    machine = Machine("t", 7)
    machine.state = state
    return machine


@pytest.mark.parametrize(("state", "move"), EVERY_MOVE)
def test_the_peer_may_ask_for_what_the_table_lists_and_nothing_else(state, move):
    machine = machine_in(state)
    if after := TRANSITIONS.get((state, move)):
        machine._remote(move)
        assert machine.state is after
    else:
        with pytest.raises(ProtocolViolation, match=str(state)):
            machine._remote(move)
        assert machine.state is state


@pytest.mark.parametrize(("state", "move"), EVERY_MOVE)
def test_our_driver_may_ask_for_what_the_table_lists_and_nothing_else(state, move):
    machine = machine_in(state)
    if after := TRANSITIONS.get((state, move)):
        machine._local(move)
        assert machine.state is after
    else:
        with pytest.raises(UsageError, match=str(state)):
            machine._local(move)
        assert machine.state is state


def test_nothing_leads_out_of_a_state_that_is_not_live():
    assert {state for state, _ in TRANSITIONS} == LIVE


@pytest.mark.parametrize("state", State)
def test_a_transfer_is_live_until_it_ended(state):
    assert machine_in(state).live is (state in {State.OFFERED, State.OPEN, State.FINISHING})


@pytest.mark.parametrize("code", ABORT_CODES)
def test_an_abort_is_final_exactly_where_its_code_is(code):
    final = code in FINAL_ABORT_CODES
    machine = machine_in(State.OPEN)
    with pytest.raises(UsageError, match=code):
        machine._abort(code, "", final=not final, retry_after=None)
    assert machine.live
    message = machine._abort(code, "why", final=final, retry_after=2.0)
    assert (message.transfer, message.handle, message.code, message.final) == ("t", 7, code, final)
    assert (message.message, message.retry_after) == ("why", 2.0)
    assert machine.state is (State.ABORTED if final else State.DETACHED)


def test_an_abort_with_an_unknown_code_is_misuse():
    with pytest.raises(UsageError, match="nonsense"):
        machine_in(State.OPEN)._abort("nonsense", "", final=False, retry_after=None)
