"""Chunks on the wire: header, checksum, sizes."""

from __future__ import annotations

import pytest

from delivery.errors import ProtocolViolation
from delivery.protocol import frames

from .vectors import load, name_of

VECTORS = load("frames")
SIZES = load("chunk_sizes")


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=name_of)
def test_a_valid_chunk_is_split_into_header_and_data(vector):
    chunk = frames.decode(bytes.fromhex(vector["hex"]))
    assert (chunk.handle, chunk.seq, chunk.checksum) == (vector["handle"], vector["seq"], vector["checksum"])
    assert bytes(chunk.data) == bytes.fromhex(vector["data"])
    assert chunk.intact() is vector["intact"]


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=name_of)
def test_a_chunk_is_encoded_to_the_same_bytes(vector):
    data = bytes.fromhex(vector["data"])
    given = None if vector["intact"] else vector["checksum"]
    message = frames.encode(vector["handle"], vector["seq"], data, given)
    assert message.hex() == vector["hex"]
    assert frames.encode_header(vector["handle"], vector["seq"], vector["checksum"]) == message[:12]


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=name_of)
def test_an_invalid_chunk_is_a_violation(vector):
    with pytest.raises(ProtocolViolation) as caught:
        frames.decode(bytes.fromhex(vector["hex"]))
    assert caught.value.code == vector["close"]


@pytest.mark.parametrize("vector", VECTORS["checksums"], ids=name_of)
def test_the_checksum_is_crc32c(vector):
    data = bytes.fromhex(vector["data"])
    assert frames.checksum(data) == frames.checksum(memoryview(data)) == vector["crc32c"]


def test_decoding_copies_nothing():
    message = bytearray(frames.encode(1, 0, b"data"))
    chunk = frames.decode(message)
    message[-1] ^= 1
    assert bytes(chunk.data) == b"dat" + bytes([ord("a") ^ 1])
    assert not chunk.intact()


@pytest.mark.parametrize("vector", VECTORS["chunk_sizes"], ids=lambda vector: str(vector["value"]))
def test_a_chunk_size_is_a_power_of_two_within_bounds(vector):
    assert frames.is_chunk_size(vector["value"]) is vector["valid"]


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (4095, 1), (4096, 1), (4097, 2), (8192, 2)])
def test_the_last_chunk_may_be_short(size, count):
    assert frames.chunk_count(size, 4096) == count


@pytest.mark.parametrize(
    "vector", [v for v in SIZES["agreed"] if v["size"] is not None or v["chunks"] is None], ids=name_of
)
def test_the_agreed_chunk_size(vector):
    args = (vector["offered"], vector["announced"], vector["stored"], vector["size"])
    assert frames.agreed_chunk_size(*args) == vector["chunk_size"]
