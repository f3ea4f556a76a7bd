"""Whole messages past the parser: in every cut, among all other frames, and on a real server."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
import websockets
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol
from websockets.uri import parse_uri

from delivery.websocket.past_parser import LARGE_BYTES
from delivery.websocket.server_reader import FAIR_TEXTS, MOST_BYTES, FrameBuffers, ServerReader
from tests.launch.test_guards import serving


class Parsed:
    """What stands behind: the parser of `websockets`, and the messages in the order in which they came out."""

    def __init__(self, most: int = 2**23) -> None:
        self.parser = Protocol(SERVER, max_size=most)
        self.messages: list[bytes] = []
        self.straight = 0
        self.texts: list[bool] = []

    def data_received(self, data: bytes) -> None:
        self.parser.receive_data(data)
        for frame in self.parser.events_received():
            assert isinstance(frame, Frame)
            self.messages.append(bytes(frame.data))

    def bytes_received(self) -> None:
        pass

    def large_received(self, data: bytes) -> None:
        self.straight += 1
        self.messages.append(data)

    def text_received(self, data: bytes, *, straight: bool) -> None:
        self.texts.append(straight)
        self.messages.append(data)

    def takes(self, length: int) -> bool:
        return self.parser.current_size is None

    def connection_lost(self, exc: Exception | None) -> None:
        raise NotImplementedError

    eof_received = pause_writing = resume_writing = connection_lost  # type: ignore[assignment]


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=True)


def feed(to: ServerReader, data: bytes, cuts: Any) -> None:
    """Give data as a transport does, in pieces of `cuts()` bytes at most."""
    at = 0
    while at < len(data):
        buffer = to.get_buffer(-1)
        piece = data[at : at + min(len(buffer), cuts())]
        buffer[: len(piece)] = piece
        to.buffer_updated(len(piece))
        at += len(piece)


SMALL = [b"", b"a", b"x" * 125, b"y" * 126, b"z" * 5_000]
LARGE = [os.urandom(size) for size in (LARGE_BYTES, 20_000, 65_535, 65_536, 262_156, 262_156, 262_156, 300_000)]


@pytest.mark.parametrize("step", [1, 2, 5, 13, 14, 15, 1_000, 65_536, 10**6])
def test_messages_come_whole_and_in_order_in_every_cut(step: int) -> None:
    sent = [LARGE[0], *SMALL, *LARGE, b"text", LARGE[4], LARGE[4], b"p"]
    behind = Parsed()
    feed(ServerReader(behind, FrameBuffers()), b"".join(frame(Opcode.BINARY, one) for one in sent), lambda: step)
    assert behind.messages == sent
    assert behind.straight == sum(len(one) >= LARGE_BYTES for one in sent)


@pytest.mark.parametrize("seed", range(30))
def test_random_frames_in_random_cuts(seed: int) -> None:
    chance = random.Random(seed)
    buffers = FrameBuffers()
    lines = [(Parsed(), []) for _ in range(3)]  # type: list[tuple[Parsed, list[bytes]]]
    ends = [ServerReader(behind, buffers) for behind, _ in lines]  # they share their buffers
    wires = [b"", b"", b""]
    for number, (_, sent) in enumerate(lines):
        for _ in range(12):
            kind = chance.choice(["large", "large", "small", "text", "ping", "fragments"])
            if kind == "fragments":
                parts = [chance.choice(SMALL + LARGE), b"middle", chance.choice(SMALL)]
                wires[number] += frame(Opcode.BINARY, parts[0], fin=False)
                wires[number] += frame(Opcode.CONT, parts[1], fin=False) + frame(Opcode.CONT, parts[2])
                sent += parts
                continue
            opcode = {"text": Opcode.TEXT, "ping": Opcode.PING}.get(kind, Opcode.BINARY)
            data = chance.choice(LARGE) if kind == "large" else os.urandom(chance.randrange(100))
            if kind == "text":
                data = b"t" * chance.choice([3, 30_000])
            wires[number] += frame(opcode, data)
            sent.append(data)
    while any(wires):
        number = chance.randrange(3)
        most = chance.choice([1, 20, 3_000, 100_000, 400_000])
        feed(ends[number], wires[number][:most], lambda: chance.choice([7, 5_000, 65_536, 262_170]))
        wires[number] = wires[number][most:]
    for behind, sent in lines:
        assert behind.messages == sent
        assert behind.straight > 0


def test_a_message_without_mask_and_one_that_is_too_large_are_the_parsers() -> None:
    behind = Parsed(most=MOST_BYTES + 1)
    end = ServerReader(behind, FrameBuffers())
    feed(end, frame(Opcode.BINARY, b"x" * (MOST_BYTES + 1)), lambda: 65_536)
    assert behind.straight == 0
    assert len(behind.messages[0]) == MOST_BYTES + 1
    feed(end, Frame(Opcode.BINARY, b"x" * 50_000).serialize(mask=False), lambda: 65_536)
    assert behind.straight == 0
    assert behind.parser.close_sent is not None
    assert behind.parser.close_sent.code == 1002


@pytest.mark.parametrize("step", [1, 2, 5, 6, 7, 8, 131, 1_000, 65_536])
def test_short_texts_come_in_order_among_all_else_in_every_cut(step: int) -> None:
    kinds = [(Opcode.TEXT, one) for one in SMALL] + [(Opcode.BINARY, LARGE[0]), (Opcode.BINARY, b"small")]
    sent = [*kinds, (Opcode.PING, b"ping"), *kinds, (Opcode.TEXT, b"t" * LARGE_BYTES), *kinds[2:]]
    behind = Parsed()
    feed(ServerReader(behind, FrameBuffers()), b"".join(frame(*one) for one in sent), lambda: step)
    assert behind.messages == [data for _, data in sent]
    assert behind.straight == 3
    assert behind.texts


def test_no_more_than_a_few_texts_of_one_read_pass_the_queue() -> None:
    behind = Parsed()
    end = ServerReader(behind, FrameBuffers())
    for _ in range(2):
        feed(end, frame(Opcode.TEXT, b"{}") * (FAIR_TEXTS + 2), lambda: 65_536)
    assert behind.texts == [*[True] * FAIR_TEXTS, False, False] * 2


def test_what_is_unusual_about_a_text_is_the_parsers() -> None:
    behind = Parsed()
    end = ServerReader(behind, FrameBuffers())
    feed(end, frame(Opcode.TEXT, b"be", fin=False), lambda: 65_536)
    feed(end, frame(Opcode.PONG, b"") + frame(Opcode.CONT, b"gun"), lambda: 65_536)
    assert behind.texts == []
    feed(end, frame(Opcode.TEXT, b"be", fin=False) + frame(Opcode.TEXT, b"new"), lambda: 65_536)
    assert behind.texts == [], "a text inside another is a violation"
    assert behind.parser.close_sent is not None
    assert behind.parser.close_sent.code == 1002


@pytest.mark.parametrize(
    "wrong",
    [Frame(Opcode.TEXT, b"{}").serialize(mask=False), bytes([0xC1]) + frame(Opcode.TEXT, b"{}")[1:]],
    ids=["unmasked", "reserved"],
)
def test_a_text_without_mask_or_with_reserved_bits_is_a_violation(wrong: bytes) -> None:
    behind = Parsed()
    feed(ServerReader(behind, FrameBuffers()), wrong, lambda: 65_536)
    assert behind.texts == []
    assert behind.parser.close_sent is not None
    assert behind.parser.close_sent.code == 1002


class Application:
    """An ASGI app that keeps what comes; what it is handed straight too. `refuse`: how many large ones it wants no more after."""

    def __init__(self, *, refuse: int = 0) -> None:
        self.came: list[bytes | str] = []
        self.straight = self.texts = self.paced = 0
        self.refuse = refuse
        self.accepts_after = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(self.accepts_after)
        await send({"type": "websocket.accept"})
        assert "delivery.straight" in scope["extensions"]
        await send({"type": "delivery.straight", "take": self.take, "take_text": self.take_text})
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] != "delivery.pace":
                self.came.append(message.get("bytes") if message.get("text") is None else message["text"])
            elif isinstance(self.came[-1], bytes):
                self.paced += 1
            if self.came[-1] == "slow" or message["type"] == "delivery.pace":
                count = len(self.came)
                await asyncio.sleep(0.05)
                assert len(self.came) == count, "it was read on"
            if self.came[-1] == "all?":
                await send({"type": "websocket.send", "text": str(len(self.came))})

    def take(self, data: bytes) -> bool:
        self.straight += 1
        self.came.append(data)
        self.refuse -= 1
        return self.refuse < 0

    def take_text(self, text: str) -> bool:
        self.texts += 1
        self.came.append(text)
        return text not in ("slow", "all?")


async def exchange(application: Application, sent: list[bytes | str]) -> str | bytes:
    async with (
        serving(application) as port,
        websockets.connect(f"ws://127.0.0.1:{port}/", compression=None, max_size=None) as socket,
    ):
        for message in [*sent, "all?"]:
            await socket.send(message)
        return await asyncio.wait_for(socket.recv(), 10)


async def test_a_server_hands_on_straight_and_in_order() -> None:
    application = Application()
    sent: list[bytes | str] = [LARGE[4], "slow", LARGE[4], LARGE[5], b"small", LARGE[6], "slow", *LARGE * 5]
    assert await exchange(application, sent) == str(len(sent) + 1)
    assert application.came == [*sent, "all?"]
    assert application.straight > 10


async def test_a_server_hands_on_texts_straight_and_in_order() -> None:
    application = Application()
    sent: list[bytes | str] = [f"é{number}" for number in range(100)]
    sent[30:30] = ["slow", LARGE[0], b"small", "t" * LARGE_BYTES, "last", "slow"]
    assert await exchange(application, sent) == str(len(sent) + 1)
    assert application.came == [*sent, "all?"]
    assert application.texts > 0
    assert application.paced == 0


async def test_a_text_that_is_no_utf8_closes_with_1007() -> None:
    application = Application()
    async with (
        serving(application) as port,
        websockets.connect(f"ws://127.0.0.1:{port}/", compression=None) as socket,
    ):
        await socket.send("fine")
        await socket.send(b"\xff\xfe", text=True)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007
    assert application.came == ["fine"]
    assert application.texts == 1


async def test_nothing_is_read_while_the_application_wants_no_more() -> None:
    application = Application(refuse=4)
    sent: list[bytes | str] = [*LARGE]
    assert await exchange(application, sent) == str(len(sent) + 1)
    assert application.came == [*sent, "all?"]
    assert application.paced == 4


async def test_a_message_above_the_servers_limit_closes_with_1009() -> None:
    application = Application()
    with pytest.raises(websockets.ConnectionClosed) as closed:
        await exchange(application, [LARGE[4], os.urandom(2**20 + 1)])
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    assert application.came == LARGE[4:5]


async def test_what_is_sent_before_the_answer_comes_whole() -> None:
    application = Application()
    application.accepts_after = 0.1
    async with serving(application) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        client = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"))
        client.send_request(client.connect())
        writer.write(b"".join(client.data_to_send()))
        await asyncio.sleep(0.05)
        writer.write(frame(Opcode.BINARY, LARGE[1]) + frame(Opcode.BINARY, LARGE[3]))  # larger ones only after it
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(Opcode.BINARY, LARGE[6]) + frame(Opcode.TEXT, b"all?"))
        await asyncio.wait_for(reader.readexactly(3), 10)
        writer.close()
        await writer.wait_closed()
    assert application.came == [LARGE[1], LARGE[3], LARGE[6], "all?"]
