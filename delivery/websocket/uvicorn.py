"""uvicorn's protocols, with bounds that uvicorn does not have and the extensions of `extensions.py`.

Bounded are the head of a request, the frames of a message, and answers that nobody reads: all of it before any login, so
that memory and time of a connection are bounded whatever its peer does. Above it stand uvicorn's own limit of a message
and, in the consumer, ours. The extensions send without copying, and hand messages on without a queue between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import PayloadTooBig
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN

from delivery.websocket import frames, tcp
from delivery.websocket.body_limit import BodyBudget, BodyLimit
from delivery.websocket.extensions import INCOMPLETE, LIMIT, PACE, PIECES, STRAIGHT
from delivery.websocket.past_parser import accepts_whole
from delivery.websocket.server_reader import ServerReader, buffers

HEAD_BYTES = 64 * 1024  # of a request: its line and headers
HEAD_SECONDS = 20.0
BODY_SECONDS = 20.0  # without a byte of a body that is read: it holds room that others wait for
FREE_BODY_BYTES = 65_536  # of each body, which the budget does not count: a form is taken in whatever others hold
RETRY_BODY_SECONDS = 5
MOST_FRAGMENTS = 16_384  # of one message: each costs 56 bytes beside its data

# Until the application has accepted a socket, or as long as it asks for no more: nobody is logged in yet.
FIRST_BYTES = 65_536  # of a message: PROTOCOL section 1
FIRST_FRAGMENTS = 256  # of one
FIRST_MESSAGES = 4  # that wait for the application, what tells of the connection itself among them

TOO_BIG = "message too big"
MOST_CONTROL_FRAMES = 1_000  # pings and pongs of WebSocket's own, in `CONTROL_SECONDS`
CONTROL_SECONDS = 10.0
FAIR_SECONDS = 0.01  # of parsing without a pause for others
FAIR_BYTES = 2 * 1024 * 1024  # of large messages handed on without one
CLOSE_SECONDS = 2.0  # for the answer to a close, as PROTOCOL section 6 has it

#: Where uvicorn's words about a single connection go: errors, and two lines for each that is accepted.
CONNECTIONS = logging.getLogger("uvicorn.error.websocket")

#: That the kernel takes ahead of the network for each connection: what is said last, like 1001, waits behind no more.
UNSENT_BYTES = 262_144

PING_BYTES = 256  # a ping of ours is smaller: a peer's TCP that took more since then took something else as well


class GuardedHttp(HttpToolsProtocol):
    """uvicorn's HTTP, with bounds on a request's head, its body, and the time that they take to come.

    `body_budget` is the one of all connections.
    """

    _head_bytes = 0
    _late: asyncio.TimerHandle | None = None
    _most_body: int | None = None  # bytes of the body of this request
    _body_bytes = 0
    _body_at = 0.0  # monotonic: when bytes of it came last
    _body_late: asyncio.TimerHandle | None = None
    _refused = False  # what still comes is read and dropped, so that the answer is not lost

    def __init__(
        self,
        *args: Any,
        body_limit: BodyLimit | None = None,
        body_budget: BodyBudget | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._body_limit = body_limit or BodyLimit()
        self._body_budget = body_budget or BodyBudget(0)
        self._held: dict[RequestResponseCycle, int] = {}  # bytes of the budget, by request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tcp.queue_little(transport, UNSENT_BYTES)
        tcp.pace_nothing_locally(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._end_body()
        for cycle, _ in self.pipeline:  # the application will never see them
            self._release_body(cycle)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._late is not None:  # the head goes on
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._end_head()
                self.send_400_response("Request head too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        if self._refused:
            return
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # else it is an upgrade, which brings no body
            self._body_bytes = 0
            self._most_body = self._body_limit.of(self.scope["path"])
            if self._check_size(self._declared_bytes()) and self._most_body is not None:
                self._begin_body()

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._body_at = self.loop.time()
        self._body_bytes += len(body)
        if self._check_size(self._body_bytes) and self._reserve_body(len(body)):
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._end_body()
        if not self._refused:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Give back what a request holds once the application is done with it: only then are its files gone."""

        async def releasing(*args: Any) -> None:
            try:
                await app(*args)
            finally:
                self._release_body(cycle)

        super()._start_asgi_task(cycle, releasing)

    def _declared_bytes(self) -> int:
        """Return the length that the request says its body has, 0 where it says none; the parser has seen that it is one."""
        return next((int(value) for name, value in self.headers if name == b"content-length"), 0)

    def _check_size(self, length: int) -> bool:
        """Return whether a body of `length` bytes may go on to the application; else answer 413."""
        if self._most_body is None or length <= self._most_body:
            return True
        self._refuse_body("413 Content Too Large", f"Request body too large: at most {self._most_body} bytes.")
        return False

    def _reserve_body(self, length: int) -> bool:
        """Return whether there is room for `length` bytes of the body, which have come; else answer 503.

        Held is what has come and not what was announced, or whoever announces much and sends nothing keeps others out.
        """
        counted = min(length, max(0, self._body_bytes - FREE_BODY_BYTES))
        if self._most_body is None or self.cycle.response_complete or not counted:
            return True
        if self._body_budget.reserve(counted):
            self._held[self.cycle] = self._held.get(self.cycle, 0) + counted
            return True
        retry = f"retry-after: {RETRY_BODY_SECONDS}\r\n"
        self._refuse_body("503 Service Unavailable", "Too many large requests at once: try again later.", retry)
        return False

    def _release_body(self, cycle: RequestResponseCycle) -> None:
        self._body_budget.release(self._held.pop(cycle, 0))

    def _refuse_body(self, status: str, text: str, headers: str = "") -> None:
        """Answer `status` instead of the application, drop what still comes, and end the connection."""
        self._refused = True
        self._end_body()
        answering = self.cycle.response_started or bool(self.pipeline)  # an answer of the application is on its way out
        self.cycle.disconnected = True  # it is told so, and what it still says goes nowhere
        self.cycle.message_event.set()
        if answering:
            self.transport.abort()
            return
        headers += f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(text)}\r\nconnection: close\r\n"
        self.transport.write(f"HTTP/1.1 {status}\r\n{headers}\r\n{text}".encode("ascii"))
        self.flow.resume_reading()
        linger(self.loop, self.transport)

    def _begin_body(self) -> None:
        self._body_at = self.loop.time()
        self._end_body()
        self._body_late = self.loop.call_later(BODY_SECONDS, self._check_body)

    def _check_body(self) -> None:
        """End a connection that sends nothing of a body, unless it is the application that does not read on."""
        left = BODY_SECONDS if self.flow.read_paused else self._body_at + BODY_SECONDS - self.loop.time()
        if left > 0:
            self._body_late = self.loop.call_later(left, self._check_body)
        else:
            self.transport.abort()

    def _end_body(self) -> None:
        if self._body_late is not None:
            self._body_late.cancel()
            self._body_late = None

    def handle_websocket_upgrade(self) -> None:
        """Hand over, and let go of the parser: they hold each other, until the collector of cycles comes by."""
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment]
        protocol = self.transport.get_protocol()
        if isinstance(protocol, GuardedWebSocket):
            self.loop.call_soon(protocol.read_past_parser)

    def _begin_head(self) -> None:
        if self._late is None:
            self._head_bytes = 0
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _end_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def linger(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> asyncio.TimerHandle:
    """Say that nothing more comes, and end TCP once the peer has answered that, or after 2 s.

    What it still sends would be met with a reset, which takes along what it has not yet read of ours.
    """
    if transport.can_write_eof() and not transport.is_closing():
        transport.write_eof()
    return loop.call_later(CLOSE_SECONDS, transport.abort)


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with bounds on what costs memory or time without ever becoming a message."""

    _fragments = 0
    _most_fragments = FIRST_FRAGMENTS
    _limited = False  # the application has said how much it takes
    _failed = False  # what still comes is read and dropped, so that the close is not lost
    _control_frames = 0
    _control_since = 0.0
    _take: Callable[[bytes], bool] | None = None
    _take_text: Callable[[str], bool] | None = None
    _listening = False  # the application waits for what comes
    _in_turn = 0  # bytes of large messages handed on since others had their turn
    _front: ServerReader | None = None
    _heard_at = 0.0  # monotonic: when bytes came last
    _acked = 0  # by the peer's TCP, when we last looked

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = CLOSE_SECONDS
        self.logger = self.conn.logger = CONNECTIONS
        self._server_limit: int | None = self.conn.max_message_size
        self.conn.max_message_size = FIRST_BYTES  # the parser reads it as each frame begins
        self.conn.debug = False  # or, where DEBUG is logged, it logs every frame and header: payloads, tokens, cookies

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._take = self._take_text = self._front = None
        self.conn.parser.close()  # a generator that holds its connection: both would wait for the collector of cycles

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        self._heard_at = began = time.monotonic()
        super().data_received(data)
        if not self.handshake_initiated:
            self._refuse_handshake()
            return
        taken = time.monotonic() - began
        if taken > FAIR_SECONDS and not self.transport.is_closing():
            # Thousands of tiny frames. libuv would read on, up to 32 times, before anybody else has their turn.
            self.transport.pause_reading()
            self.loop.call_later(taken, self._read_on)

    def eof_received(self) -> None:
        """Give up a peer that sends nothing more while it does not read: what waits to be sent to it never goes."""
        super().eof_received()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def read_past_parser(self) -> None:
        """From now on, take whole messages past the parser; unless its peer, before our answer, sent it something."""
        if self.transport.is_closing() or self.conn.reader.buffer:
            return
        self._front = ServerReader(self, buffers())
        self.transport.set_protocol(self._front)
        if self.transport.is_reading():  # uvloop looks at the kind of protocol only as it begins to read
            self.transport.pause_reading()
            self.transport.resume_reading()

    def limit(self, size: int) -> None:
        """Take messages of at most `size` bytes from now on."""
        self._limited = True
        self.conn.max_message_size = size
        self._most_fragments = FIRST_FRAGMENTS if size <= FIRST_BYTES else MOST_FRAGMENTS

    def _accept_limit(self) -> None:
        """Take what the server takes, where the application has not said otherwise."""
        if not self._limited:
            self.conn.max_message_size = self._server_limit
            self._most_fragments = MOST_FRAGMENTS

    def send_receive_event_to_app(self) -> None:
        first = self.conn.max_message_size is not None and self.conn.max_message_size <= FIRST_BYTES
        if first and self.queue.qsize() >= FIRST_MESSAGES:
            self.frames = []  # the application ends this by those that wait: nobody may say so much yet
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Close with what the parser says, and keep nothing of what still comes; uvicorn would end TCP at once."""
        if self._failed:
            return
        self._failed, self.frames = True, []
        writes, close = self.conn.data_to_send(), self.conn.close_sent
        if isinstance(self.conn.parser_exc, PayloadTooBig) and not self.close_sent:
            close = Close(1009, TOO_BIG)
            writes = [Frame(Opcode.CLOSE, close.serialize()).serialize(mask=False)]
        if close is not None:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.close_sent = True
        self.transport.write(b"".join(writes))
        self._read_on_and_drop()

    def _read_on_and_drop(self) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.read_paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()
        self.close_timer = linger(self.loop, self.transport)

    def bytes_received(self) -> None:
        """Note that bytes came, of whatever."""
        self._heard_at = time.monotonic()

    def incomplete_at(self) -> float:
        """Return the monotonic time at which bytes of an incomplete message came last; 0.0 where none is under way."""
        begun = self.conn.reader.buffer or self.conn.current_size is not None
        return self._heard_at if begun or (self._front is not None and self._front.incomplete) else 0.0

    def takes(self, length: int) -> bool:
        """Return whether a whole message of `length` bytes may come now; else the parser knows what it is."""
        return accepts_whole(self.conn, length)

    def large_received(self, data: bytes) -> None:
        """Take a whole binary message: straight to the application where it is ready, else into its queue."""
        self._fragments = 0
        self._count_turn(len(data))
        if self._take is None or not self._listening or not self.queue.empty():
            self.frames, self.curr_msg_data_type = [data], "bytes"
            self.send_receive_event_to_app()
        elif not self._take(data):
            self._pace()

    def text_received(self, data: bytes, *, straight: bool) -> None:
        """Take a whole text message: to the application where it is ready and `straight` is set, else into its queue."""
        self._fragments = 0
        if straight and self._take_text is not None and self._listening and self.queue.empty():
            try:
                text = data.decode()
            except UnicodeDecodeError:
                pass  # uvicorn knows how to end it
            else:
                if not self._take_text(text):
                    self._pace()
                return
        self.frames, self.curr_msg_data_type = [data], "text"
        self.send_receive_event_to_app()

    def _pace(self) -> None:
        """Read no further before the application has."""
        self.queue.put_nowait({"type": PACE})  # type: ignore[arg-type,misc]
        self.read_paused = True
        self.transport.pause_reading()

    def _count_turn(self, length: int) -> None:
        """Let others have their turn: libuv would read on, up to 32 times."""
        if not self._in_turn:
            self.loop.call_soon(self._end_turn)
        self._in_turn += length
        if self._in_turn >= FAIR_BYTES:
            self.transport.pause_reading()

    def _end_turn(self) -> None:
        self._in_turn = 0
        self._read_on()

    async def receive(self) -> Any:
        self._listening = True
        try:
            return await super().receive()
        finally:
            self._listening = False

    def _refuse_handshake(self) -> None:
        """Send why the handshake is refused (a header above 8 KiB: 431). uvicorn says nothing and waits for ever."""
        if self.conn.handshake_exc is not None:
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def _read_on(self) -> None:
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def handle_text(self, event: Frame) -> None:
        self._fragments = 0
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._fragments = 0
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        self._fragments += 1
        if self._fragments <= self._most_fragments:
            super().handle_cont(event)
        else:
            self._fail("too many fragments")

    def handle_ping(self) -> None:
        if not self._count_control():
            return
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # the pong: its peer does not read, and only the latest ping wants an answer

    def handle_pong(self, event: Frame) -> None:
        if self._count_control():
            super().handle_pong(event)

    def send_keepalive_ping(self) -> None:
        super().send_keepalive_ping()
        self._acked = tcp.bytes_acked(self.transport) or 0

    def keepalive_timeout(self) -> None:
        """Close a peer of which nothing came for the whole timeout, and to which nothing went either.

        uvicorn waits for the pong alone. No pong overtakes the large frame that its peer is sending, and no ping of ours
        overtakes what we are sending: on a slow link either takes longer than the timeout.
        """
        if self.ping_timeout is None or (left := self._patience(self.ping_timeout)) <= 0:
            super().keepalive_timeout()
            self.loop.call_later(CLOSE_SECONDS, self.transport.abort)  # what it does not read would be kept for ever
        else:
            self.pong_timer = self.loop.call_later(left, self.keepalive_timeout)

    def _patience(self, timeout: float) -> float:
        """Return how many more seconds to wait for a pong. `timeout`: of a peer with which no bytes are exchanged."""
        before, self._acked = self._acked, tcp.bytes_acked(self.transport) or 0
        if self._acked - before > PING_BYTES:
            return timeout
        return self._heard_at + timeout - time.monotonic()

    def _count_control(self) -> bool:
        now = self.loop.time()
        if now - self._control_since >= CONTROL_SECONDS:
            self._control_since, self._control_frames = now, 0
        self._control_frames += 1
        if self._control_frames > MOST_CONTROL_FRAMES:
            self._fail("too many control frames")
        return self._control_frames <= MOST_CONTROL_FRAMES

    def _fail(self, reason: str) -> None:
        """Close with 1008, once; what else came in the same read is dropped."""
        self.frames = []
        if self.conn.close_sent is None:
            self.conn.fail(1008, reason)
            self.handle_parser_exception()

    async def send(self, message: Any) -> None:
        if message["type"] == STRAIGHT:
            self._take, self._take_text = message["take"], message["take_text"]
        elif message["type"] == PIECES:
            await self._until_sendable()
            self._write(message["pieces"])
        elif self._is_text(message):
            # uvicorn composes a frame of it by a parser's means, in three times the time of all else on its way.
            data = message["text"].encode()
            await self._until_sendable()
            self.transport.write(frames.head(frames.FINAL_TEXT, len(data)) + data)
        else:
            if message["type"] == "websocket.accept":
                self._accept_limit()
            await super().send(message)
            if message["type"] == "websocket.http.response.body":
                self.handshake_complete = self.close_sent  # else it is logged as an application that never answered

    def write(self, pieces: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Send one binary message at once; return False, and send nothing, where `send` would wait or raise."""
        clear = self.writable.is_set() and self.conn.state is OPEN and self.handshake_complete
        if not clear or self.close_sent or self.disconnected:
            return False
        self._write(pieces)
        return True

    def _write(self, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
        self.transport.writelines([frames.head(frames.FINAL_BINARY, sum(map(len, pieces))), *pieces])

    def _is_text(self, message: Any) -> bool:
        text = message["type"] == "websocket.send" and message.get("bytes") is None and message.get("text") is not None
        return text and self.handshake_complete and not self.close_sent and not self.conn.extensions

    async def _until_sendable(self) -> None:
        """Wait until one message may be written, with uvicorn's backpressure and errors.

        Written past it, straight from where it lies: uvicorn would copy it into a frame, and that into what it writes,
        for each recipient of the same bytes.
        """
        await self.writable.wait()
        if self.disconnected or (self.conn.state is not OPEN and not self.close_sent):
            raise ClientDisconnected
        if self.close_sent or not self.handshake_complete:
            raise RuntimeError("a message can be sent between accept and close only")

    async def run_asgi(self) -> None:
        """Serve, and then give the connection up: closing waits for ever for a peer that does not read."""
        extensions: dict[str, Any] = self.scope["extensions"]  # type: ignore[assignment,typeddict-item,unused-ignore]
        extensions |= {PIECES: {"write": self.write}, STRAIGHT: {}, INCOMPLETE: {"at": self.incomplete_at}}
        extensions[LIMIT] = {"set": self.limit}
        try:
            await super().run_asgi()
        finally:
            self._take = self._take_text = None
            extensions.clear()  # or the scope, which we hold, holds us
            self.loop.call_later(CLOSE_SECONDS + 1.0, self.transport.abort)
