"""What a side announces, and which chunks fit."""

from __future__ import annotations

import pytest

from delivery.errors import ProtocolViolation
from delivery.protocol.limits import Limits, announced
from delivery.protocol.messages import Hello, Welcome


@pytest.mark.parametrize(
    ("max_message", "chunk_size", "fitting"),
    [
        (2_097_152, 262_144, 262_144),
        (262_156, 262_144, 262_144),
        (262_155, 262_144, 131_072),
        (65_548, 262_144, 65_536),
        (65_548, 4_096, 4_096),
    ],
)
def test_the_largest_chunk_that_fits_with_its_header(max_message, chunk_size, fitting):
    assert Limits(max_message=max_message, chunk_size=chunk_size).fitting() == fitting


def test_a_peer_announces_its_limits():
    hello = Hello(client="c", max_message=70_000, chunk_size=65_536, early_data=9)
    assert announced(hello) == Limits(max_message=70_000, chunk_size=65_536, early_data=9)
    welcome = Welcome(session="s", user=None, max_message=70_000, chunk_size=4_096, window=1)
    assert announced(welcome) == Limits(max_message=70_000, chunk_size=4_096)


def test_chunks_that_do_not_fit_into_messages_are_a_violation():
    announced(Hello(client="c", max_message=262_156, chunk_size=262_144))
    with pytest.raises(ProtocolViolation, match="does not fit"):
        announced(Hello(client="c", max_message=262_155, chunk_size=262_144))
