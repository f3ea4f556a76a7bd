"""Whatever order uploads come, move and end in, and however the budget changes, nobody's credit stands still for good."""

from __future__ import annotations

import random

import pytest

from delivery.protocol.messages import UploadOffer
from delivery.protocol.receiver import Receiver, Terms
from delivery.server.flow_control import CreditLedger

KIB, MIB = 1024, 1024 * 1024
BUDGETS = (10_000_000, 13_360_332, 20_000_000, 268_435_456)
SIZES = (70_000, 262_143, 8 * MIB + 1, 24 * MIB, 40 * MIB + 77)
MOST_STEPS = 20_000


@pytest.mark.parametrize("seed", range(150))
def test_every_upload_gets_to_its_end(seed: int) -> None:
    """`make faults` found one that had given way to others, and was given nothing more after they had ended."""
    chance = random.Random(seed)
    ledger = CreditLedger(chance.choice(BUDGETS), 16 * MIB, chance.choice((0, 256 * KIB, 16 * MIB)))
    waiting = [(number, chance.choice("ab"), chance.choice(SIZES)) for number in range(chance.choice((1, 2, 3, 5)))]
    live: list[Receiver] = []
    for step in range(MOST_STEPS):
        if not waiting and not live:
            return
        if chance.random() < 0.02:
            ledger.budget = chance.choice(BUDGETS)
        if waiting and chance.random() < 0.3:
            live.append(_accepted(ledger, *waiting.pop()))
        elif live:
            _move(ledger, chance, chance.choice(live), float(step))
            live = [receiver for receiver in live if receiver.stored != receiver.chunks]
    pytest.fail(f"stand still: {[(one.stored, one.limit, one.chunks, one.held) for one in live]}")


def _accepted(ledger: CreditLedger, number: int, user: str, size: int) -> Receiver:
    offer = UploadOffer(
        transfer=str(number),
        handle=number + 1,
        name="",
        size=size,
        content_type="",
        chunk_size=256 * KIB,
        meta={},
        to=(),
    )
    receiver = Receiver(offer)
    waits = not ledger.fits(receiver, 0, user)
    terms = Terms(window=ledger.window(), segment_size=8 * MIB, max_size=1 << 40)
    receiver.accept(chunk_size=256 * KIB, stored=0, terms=terms, now=0.0, hold=waits)
    ledger.join(receiver, lambda: None, user, waits=waits)
    return receiver


def _move(ledger: CreditLedger, chance: random.Random, receiver: Receiver, now: float) -> None:
    """Send and store some of what there is credit for."""
    receiver.next_ack(now)
    chunks = receiver.chunks or 0
    if receiver.stored < (end := min(receiver.limit, chunks)):
        stored = receiver.stored + chance.randint(1, min(32, end - receiver.stored))
        receiver.received = receiver.handed = max(receiver.received, stored)
        receiver.on_stored(stored)
        ledger.moved(receiver)
    if receiver.stored == chunks:
        ledger.leave(receiver)
