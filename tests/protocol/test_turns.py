"""Turns are fair: a small payload passes between the chunks of a large one."""

from __future__ import annotations

from delivery.protocol.sender import Sender
from delivery.protocol.turns import Turns

from .messages_of import CHUNK, accept, offer


def senders(*chunks: int) -> tuple[Turns, dict[int, Sender]]:
    """Return accepted senders of so many chunks each, handles from 1 on."""
    turns, live = Turns(), {}
    for handle, count in enumerate(chunks, 1):
        live[handle] = Sender(offer(handle=handle, size=count * CHUNK))
        live[handle].on_accept(accept(handle=handle, limit=100), 0.0)
        turns.join(handle)
    return turns, live


def sent(turns: Turns, live: dict[int, Sender]) -> list[str]:
    order = []
    while (sender := turns.take(live)) is not None:
        if sender.finish_due():
            sender.finish(None)
            order.append(f"{sender.handle} finish")
        else:
            sender.chunk_sent(sender.next_seq, 0.0)
            order.append(f"{sender.handle}")
    return order


def test_senders_take_turns_chunk_by_chunk():
    assert sent(*senders(3, 2)) == ["2", "1", "2", "2 finish", "1", "1", "1 finish"]


def test_a_newcomer_comes_first_and_then_in_turn():
    turns, live = senders(100)
    turns.take(live).chunk_sent(0, 0.0)
    live[2] = Sender(offer(handle=2, size=CHUNK), early=True)
    turns.join(2)
    assert [turns.take(live).handle for _ in range(3)] == [2, 1, 2]


def test_who_has_nothing_to_send_is_passed_over():
    turns, live = senders(1, 1)
    live[1].paused = True
    assert turns.take(live) is live[2]
    live[2].paused = True
    assert turns.take(live) is None


def test_who_left_gets_no_turn():
    turns, live = senders(1, 1)
    turns.leave(1)
    del live[1]
    assert turns.take(live) is live[2]
    turns.leave(2)
    del live[2]
    assert turns.take(live) is None
