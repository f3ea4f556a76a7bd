"""What is no WebSocket at all, or none that RFC 6455 allows: closed by the server, seen by nobody else."""

from __future__ import annotations

import asyncio

import pytest

from tests.hostile.conftest import Open, Target
from tests.hostile.wire import BINARY, CLOSE, CONT, PING, PONG, TEXT, Wire, frame, said
from tests.stack import Person

pytestmark = pytest.mark.usefixtures("unharmed")
PROTOCOL_ERROR = 1002  # RFC 6455 section 7.4.1: sent by the WebSocket layer itself, below ours
MAX_MESSAGE = 2 * 1024 * 1024
SERVER_LIMIT = 64 * 1024 * 1024

ILLEGAL = {
    "unmasked text": frame(TEXT, b"{}", masked=False),
    "unmasked chunk": frame(BINARY, bytes(20), masked=False),
    "unmasked close": frame(CLOSE, b"\x03\xe8", masked=False),
    "RSV1": frame(TEXT, b"{}", rsv=4),
    "RSV2": frame(TEXT, b"{}", rsv=2),
    "RSV3": frame(BINARY, bytes(20), rsv=1),
    "RSV1 on a ping": frame(PING, b"x", rsv=4),
    **{f"opcode {opcode:#x}": frame(opcode, b"x") for opcode in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)},
    "fragmented ping": frame(PING, b"x", fin=False),
    "fragmented close": frame(CLOSE, b"\x03\xe8", fin=False),
    "ping of 126 bytes": frame(PING, bytes(126)),
    "pong of 65536 bytes": frame(PONG, bytes(65_536)),
    "continuation of nothing": frame(CONT, b"x"),
    "a second message inside the first": frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a close with 1005": frame(CLOSE, b"\x03\xed"),
    "a close with 0": frame(CLOSE, b"\x00\x00"),
    "a length with its top bit": b"\x82\xff" + b"\xff" * 8 + bytes(4),
}


@pytest.mark.parametrize("data", ILLEGAL.values(), ids=ILLEGAL)
async def test_what_websocket_forbids_is_closed(open_wire: Open, mallory: Person, data: bytes) -> None:
    wire = await open_wire(mallory)
    await wire.send(data)
    code, reason = await wire.closes()
    assert code == PROTOCOL_ERROR or (code == 1009 and data[1:2] == b"\xff")
    assert len(reason.encode()) <= 123


async def test_the_same_before_hello(open_wire: Open, mallory: Person) -> None:
    for data in ILLEGAL.values():
        wire = await open_wire(mallory, hello=False)
        await wire.send(data)
        assert (await wire.closes())[0] in (PROTOCOL_ERROR, 1009)


async def test_bad_utf8_across_fragments_closes_1007(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    await wire.send(frame(TEXT, b'{"type": "\xc3', fin=False) + frame(CONT, b'\x28"}'))
    assert (await wire.closes())[0] == 1007


async def test_a_close_reason_that_is_not_utf8(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    await wire.send(frame(CLOSE, b"\x03\xe8\xff\xff"))
    assert (await wire.closes())[0] in (1002, 1007)


async def test_good_utf8_may_be_cut_anywhere(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    text = '{"type": "ping", "id": 7, "é": "€𝄞"}'.encode()
    pieces = [frame(CONT, text[at : at + 1], fin=at == len(text) - 1) for at in range(1, len(text))]
    between = frame(PING, b"now")  # allowed between fragments
    await wire.send(frame(TEXT, text[:1], fin=False) + between + b"".join(pieces))
    await wire.hear("pong", id=7)
    assert wire.pongs == 1


@pytest.mark.parametrize("pieces", [1, 2, 33], ids=lambda pieces: f"{pieces} frames")
async def test_the_message_limit_plus_one_closes_1009(open_wire: Open, mallory: Person, pieces: int) -> None:
    wire = await open_wire(mallory)
    size, rest = divmod(MAX_MESSAGE + 1, pieces)
    for index in range(pieces):
        last = index == pieces - 1
        await wire.send(frame(CONT if index else BINARY, bytes(size + (rest if last else 0)), fin=last))
    assert await wire.closes() == (1009, "message too big")


async def test_a_frame_that_announces_too_much_is_never_waited_for(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    await wire.send(b"\x82\xff" + (SERVER_LIMIT + 1).to_bytes(8, "big") + bytes(4) + bytes(1000))
    assert (await wire.closes())[0] == 1009


@pytest.mark.parametrize("length", range(1, 15))
async def test_a_frame_cut_off_by_the_end_of_tcp(open_wire: Open, mallory: Person, length: int) -> None:
    wire = await open_wire(mallory)
    whole = frame(BINARY, bytes(300))
    await wire.send(whole[:length])
    await wire.end()


async def test_frames_and_text_behind_the_close_are_discarded(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    await wire.send(frame(CLOSE, b"\x03\xe8") + said("ping", id=1) * 1000 + b"no frame at all")
    assert (await wire.closes())[0] == 1000


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,  # TLS
        b"GET\r\n\r\n",
        b"GET /ws/delivery/ HTTP/9.9\r\n\r\n",
        b"GET /ws/delivery/ HTTP/1.1\r\nHost: x\r\nHost: \xff\xfe\r\n\x00: 1\r\n\r\n",
        b"GET /ws/delivery/ HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET /ws/delivery/ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n\r\n",
        b"GET /ws/%00%ff/../\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /ws/delivery/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /ws/delivery/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    ],
    ids=range(9),
)
async def test_no_handshake(target: Target, head: bytes) -> None:
    async with Wire.bare(target.port) as wire:
        await wire.send(head)
        await wire.send(b"\r\n\r\n")
        answer = await asyncio.wait_for(wire.reader.read(64), 10)
        assert answer == b"" or 400 <= int(answer.split(b" ")[1]) < 500, answer


@pytest.mark.parametrize("origin", ["http://[::1", "http://[", "http://]", "//", "http://\xff", "http:// ", "a" * 8000])
async def test_an_origin_that_is_none_gets_403(target: Target, mallory: Person, origin: str) -> None:
    async with Wire.bare(target.port) as wire:
        assert await wire.handshake(mallory.token, headers={"Origin": origin}) == 403


@pytest.mark.parametrize(
    "headers", [{"Cookie": "a" * 9000}, {f"X-{number}": "" for number in range(200)}], ids=["9 kB", "200"]
)
async def test_too_much_in_a_handshake_gets_431(target: Target, mallory: Person, headers: dict[str, str]) -> None:
    async with Wire.bare(target.port) as wire:
        assert await wire.handshake(mallory.token, headers=headers) == 431
        assert await asyncio.wait_for(wire.reader.read(), 10) is not None  # to its end


@pytest.mark.parametrize("cookie", ["sessionid", "sessionid=\xff", "=;=;=", "sessionid=" + "x" * 5000, '"\\"; a="'])
async def test_a_cookie_that_is_none_is_no_login(target: Target, open_wire: Open, cookie: str) -> None:
    headers = {"Origin": f"http://127.0.0.1:{target.port}", "Cookie": cookie}
    wire = await open_wire(None, hello=False, headers=headers)
    await wire.say("hello", client="c", max_message=65_548)
    assert (await wire.closes())[0] == 4401


@pytest.mark.parametrize("token", ["", "x", ":::", "e30:1:x", "é€"[:1], "A" * 8000, "eyJ9:1vX:0"])
async def test_a_token_that_is_none_closes_4401(open_wire: Open, token: str) -> None:
    wire = await open_wire(None, hello=False, headers={"Authorization": f"Bearer {token}"})
    assert (await wire.closes())[0] == 4401
