"""Bulk exchanges: with a real server, and with replies in every cut that a socket can make of them."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import redis

from delivery import conf
from delivery.buffer import exchange
from delivery.errors import BufferUnavailable


class _Line:
    """A connection of redis-py's, as far as `Exchange` needs one, whose other end gives `reply` in pieces."""

    def __init__(self, reply: bytes, step: int) -> None:
        self._ours, theirs = socket.socketpair()
        threading.Thread(target=self._give, args=(theirs, reply, step), daemon=True).start()

    def _give(self, theirs: socket.socket, reply: bytes, step: int) -> None:
        with theirs, contextlib.suppress(BrokenPipeError):
            for at in range(0, len(reply), step):
                theirs.sendall(reply[at : at + step])

    def pack_commands(self, commands: Sequence[exchange.Command]) -> list[bytes]:
        return []  # the reply is on its way whatever they are

    @property
    def _sock(self) -> socket.socket:
        return self._ours

    def close(self) -> None:
        self._ours.close()


Given = Callable[[bytes, int], exchange.Exchange]


@pytest.fixture
def given() -> Iterator[Given]:
    """Return what makes an exchange whose replies come in pieces of `step` bytes."""
    with contextlib.ExitStack() as stack:
        yield lambda reply, step: _exchange(stack, _Line(reply, step))


def _exchange(stack: contextlib.ExitStack, line: _Line) -> exchange.Exchange:
    stack.enter_context(contextlib.closing(line))
    return stack.enter_context(contextlib.closing(exchange.Exchange(line)))


def _reply(*values: bytes | None) -> bytes:
    written = [b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value) for value in values]
    return b"*%d\r\n%b" % (len(values), b"".join(written))


def _read_all(values: exchange.Exchange, count: int) -> Iterator[bytes | None]:
    values.send(("MGET",))
    values.expect(count)
    for _ in range(count):
        if values.length() is None:
            yield None
        else:
            yield b"".join(iter(lambda: values.read(1000), b""))
    values.finish()


SAMPLES = (b"x" * 5000, None, b"", b"\r\n$-1\r\n", None, os.urandom(3000), b"a", b"b" * 12)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 16, 4096, 100_000])
def test_values_come_whole_in_every_cut(given: Given, step: int) -> None:
    values = given(_reply(*SAMPLES), step)
    assert list(_read_all(values, len(SAMPLES))) == list(SAMPLES)


@pytest.mark.parametrize("step", [1, 5, 100_000])
def test_replies_of_several_commands_come_in_order(given: Given, step: int) -> None:
    small = b":12\r\n+OK\r\n$3\r\nabc\r\n$0\r\n\r\n_\r\n*2\r\n$1\r\na\r\n$0\r\n\r\n*0\r\n*-1\r\n"
    line = given(small + _reply(b"x" * 5000), step)
    assert [line.reply() for _ in range(8)] == [12, b"OK", b"abc", b"", None, [b"a", b""], [], None]
    line.expect(1)
    assert line.length() == 5000
    assert line.read(5000) == b"x" * 5000


def test_nothing_else_is_taken_for_values(given: Given) -> None:
    with pytest.raises(redis.ResponseError, match="LOADING"):
        given(b"-LOADING the dataset\r\n", 100).expect(1)
    with pytest.raises(redis.ResponseError, match="OOM"):
        given(b"-OOM command not allowed\r\n", 100).reply()
    with pytest.raises(redis.ResponseError, match="no array of 2"):
        given(b"*1\r\n", 100).expect(2)
    with pytest.raises(redis.InvalidResponse, match="no value"):
        given(b"%1\r\n", 100).reply()
    with pytest.raises(redis.InvalidResponse, match="no end"):
        given(b"$3\r\nabcde", 100).reply()
    with pytest.raises(redis.InvalidResponse, match="a line without end"):
        given(b"*" * 2000, 100).expect(1)


def test_a_reply_that_breaks_off_is_an_error(given: Given) -> None:
    values = given(_reply(b"x" * 5000)[:2000], 500)
    with pytest.raises(redis.ConnectionError):
        list(_read_all(values, 1))


def test_a_real_server_gives_what_was_put(valkey: None) -> None:
    data = os.urandom(1_000_000)
    client = exchange.client()
    client.set("delivery:bulk", data, ex=60)
    for _ in range(2):  # the second time on the same connection
        with exchange.connection() as values:
            values.send(("MGET", "delivery:bulk", "delivery:none"))
            values.expect(2)
            assert values.length() == len(data)
            assert b"".join(iter(lambda: values.read(65_536), b"")) == data
            assert values.length() is None
    assert client.get("delivery:bulk") == data


def test_what_is_set_from_where_it_lies_is_there(valkey: None) -> None:
    data = memoryview(bytearray(os.urandom(1_000_000)))
    with exchange.connection() as line:
        line.send_value(
            "delivery:bulk", len(data), (data[at : at + 300_000] for at in range(0, len(data), 300_000)), 60
        )
        line.send_value("delivery:empty", 0, [b""], 60)
        line.send(("STRLEN", "delivery:bulk"), ("TTL", "delivery:empty"))
        assert [line.reply() for _ in range(4)] == [b"OK", b"OK", len(data), 60]
    assert exchange.run_commands(("GET", "delivery:bulk"), ("GET", "delivery:none"), ("GET", "delivery:empty")) == [
        data,
        None,
        b"",
    ]


@pytest.mark.parametrize("parts", [[], [b"12"], [b"12", b"34"]], ids=["none", "too few", "too many"])
def test_a_value_of_another_length_than_announced_is_not_set(valkey: None, parts: list[bytes]) -> None:
    exchange.run_commands(("DEL", "delivery:bulk"))
    with pytest.raises(ValueError, match="other than the 3 bytes"), exchange.connection() as line:
        line.send_value("delivery:bulk", 3, parts, 60)
    assert exchange.run_commands(("EXISTS", "delivery:bulk")) == [0]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_buffers_go_out_whole_whatever_the_socket_takes_at_once(tls: bool) -> None:
    buffers = [b"head", memoryview(os.urandom(3_000_000)), b"", b"tail", os.urandom(500_000)]
    ours, theirs = socket.socketpair()
    got = bytearray()

    def take() -> None:
        with _tls(theirs, server=True) if tls else theirs as end:
            while piece := end.recv(10_007):
                got.extend(piece)

    taking = threading.Thread(target=take)
    taking.start()
    with _tls(ours, server=False) if tls else ours as end:
        end.settimeout(10)
        exchange._send_all(end, list(buffers))
    taking.join(10)
    assert got == b"".join(buffers)


def _tls(end: socket.socket, *, server: bool) -> ssl.SSLSocket:
    """Return a TLS socket without certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context.wrap_socket(end, server_side=server, suppress_ragged_eofs=True)


def test_a_command_that_fails_is_told(valkey: None) -> None:
    with pytest.raises(BufferUnavailable):
        exchange.run_commands(
            ("SET", "delivery:bulk", "x", "EX", 60), ("LPUSH", "delivery:bulk", "y"), ("GET", "delivery:bulk")
        )
    assert exchange.run_commands(("GET", "delivery:bulk")) == [b"x"]


def test_a_connection_that_was_closed_meanwhile_is_opened_again(valkey: None) -> None:
    exchange.run_commands(("SET", "delivery:bulk", "x", "EX", 60))
    with redis.Redis.from_url(conf.current().redis_url) as other:
        other.client_kill_filter(_type="normal", skipme=True)
    assert exchange.run_commands(("GET", "delivery:bulk")) == [b"x"]


def test_a_connection_that_was_not_read_to_its_end_is_not_used_again(valkey: None) -> None:
    exchange.client().set("delivery:bulk", b"x" * 100_000, ex=60)
    with pytest.raises(BufferUnavailable), exchange.connection() as line:
        line.send(("GET", "delivery:bulk"))
    with pytest.raises(BufferUnavailable), exchange.connection() as line:
        line.send(("PING",))
    assert exchange.client().get("delivery:bulk") == b"x" * 100_000
