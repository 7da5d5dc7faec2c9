"""One socket, with the calls on it: credit both ways, and what has come of each reply.

Owns the order of the server's frames. What must hold: input is never sent beyond its credit; reply bytes are credited
once they are in the caller's hands (a stream) or stored for one who asked for the whole; and what comes for a call
that nobody wants any more is dropped and credited. The socket does not block, and waiting is for both directions at
once: a client that only wrote while the server only wrote would wait for ever.
"""

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Dict, List, NamedTuple, Optional, Tuple

from . import frames
from .errors import BadRequest, DenizenError, ProtocolViolation, ReplyTooLong

if TYPE_CHECKING:
    from .connection import Call, Connection

# How often one call is sent, at most: one that ends its process each time shall not do so for ever.
MAX_TRIES = 8
# Unsent bytes from which on no more input is copied behind them.
_ENOUGH_UNSENT = 256 << 10
_READ_BYTES = 256 << 10


class Reply(NamedTuple):
    """A whole reply, and what the node says of it."""

    #: What the function answered.
    body: bytes
    #: Content type of the reply.
    content_type: Optional[str]
    #: The process that ran the call, where the caller did not name one.
    process: Optional[str]
    #: The invocation's id; log lines carry the same.
    invocation: Optional[str]
    #: The ownership term that it ran in.
    epoch: int
    #: The last commit that the reply rests on.
    commit: int
    #: What that commit survives: "process", "node" or "store".
    durability: str
    #: Whether it was remembered from an earlier call with the same idempotency key.
    replayed: bool

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8")


class OnWire:
    """A call on one connection: its credit both ways, and what has come of its reply."""

    def __init__(self, link: "Link", id: int, call: "Call", sendable: int, window: int) -> None:
        self.link = link
        self.id = id
        self.call = call
        self.named = False
        self.sendable = sendable
        self.sent_at = 0
        self.input_ended = False
        self.window = window
        self.owed = 0
        self.begun = False
        self.reply_ended = False
        self.left: Optional[int] = None
        self.head: Dict[str, object] = {}
        self.body = bytearray()


class Link:
    """One socket, with the calls on it."""

    def __init__(self, owner: "Connection", host: str, port: int, address: str) -> None:
        """Begins to connect. Only the name is waited for. Raises OSError."""
        self.owner = owner
        # What else the name stands for, while it is not connected.
        self._others = iter(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        self.is_connecting = True
        self.sock = self._dial(OSError("the name has no address"))
        self.is_over = False
        # Where the functions of this connection's process stand: those of another may stand elsewhere.
        self.table = 0
        self.indices: Dict[str, int] = {}
        self.address = address
        self.decoder = frames.Decoder()
        self.out = bytearray(owner._hello)
        self.accepted: Optional[frames.Accepted] = None
        self.calls: Dict[int, OnWire] = {}
        self.last_id = 0
        self.sendable = 0
        self.owed = 0
        self.draining: Optional[frames.Frame] = None
        # Whether the owner knows of the DRAIN, and makes new calls elsewhere.
        self.is_leaving = False
        self.greet_until = time.monotonic() + owner._connect_timeout
        # Why the server wants the connection to end: ("moved", address, epoch) or ("refused", error).
        self.turn: Optional[Tuple] = None

    def _dial(self, last: OSError) -> socket.socket:
        """Begins to connect to the next address that does not fail at once."""
        for family, kind, protocol, _, address in self._others:
            sock = None
            try:
                sock = socket.socket(family, kind, protocol)
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(address)
                return sock
            except OSError as error:
                last = error
                if sock is not None:
                    sock.close()
        raise last

    def _look_whether_connected(self) -> None:
        failed = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            self.sock.close()
            self.sock = self._dial(OSError(failed, os.strerror(failed)))
        else:
            self.is_connecting = False
            self.greet_until = time.monotonic() + self.owner._connect_timeout

    def has_room(self) -> bool:
        """Whether a call may begin. None is sent before the OK: if the node closed without a word, nobody would know
        what became of it."""
        return self.accepted is not None and self.draining is None and len(self.calls) < self.accepted.max_calls

    def calls_left(self) -> bool:
        """Whether calls that the server has accepted before its DRAIN have not ended."""
        last = 0 if self.draining is None else self.draining.id
        return any(id <= last for id in self.calls)

    def begin(self, call: "Call", length: Optional[int]) -> None:
        """Sends the beginning of a call; of a stream, nothing of its input yet."""
        assert self.accepted is not None
        request, id = call._request, self.last_id + 1
        room = min(self.sendable, self.accepted.call_window, frames.MAX_FRAME_BODY)
        whole = call._input
        first = b"" if whole is None else whole[:room]
        end = whole is not None and len(first) == len(whole)
        size = length if whole is None else len(whole)
        if size is not None and size > self.accepted.max_body:
            raise BadRequest(f"an input of {size} bytes is over the node's limit of {self.accepted.max_body}")
        if request.process is not None and self.owner._process is not None:
            raise BadRequest("the connection is bound to a process: a call cannot name another")
        known = self.indices.get(request.function)
        function = request.function if known is None else (self.table, known)
        left_ms = 0
        if call._until is not None:
            left_ms = min(max(int((call._until - time.monotonic()) * 1000 + 0.999), 1), (1 << 32) - 1)
        self.out += frames.call(
            id,
            function,
            first,
            end=end,
            length=size,
            deadline_ms=left_ms,
            durability=request.durability,
            create=request.create,
            process=request.process,
            content_type=request.content_type,
            idempotency_key=request.idempotency_key,
            traceparent=request.traceparent,
        )
        self.last_id = id
        wire = OnWire(self, id, call, self.accepted.call_window - len(first), self.owner._windows[0])
        wire.named = known is None
        wire.sent_at, wire.input_ended = len(first), end
        self.sendable -= len(first)
        self.calls[id] = wire
        call._wire = wire
        call._tries += 1

    def send_input(self, wire: OnWire, data: bytes, end: bool) -> int:
        """Sends as much as there is credit for; with `end` and nothing left over, the end."""
        if wire.input_ended or (data and len(self.out) >= _ENOUGH_UNSENT):
            return 0
        size = min(self.sendable, wire.sendable, frames.MAX_FRAME_BODY, _ENOUGH_UNSENT, len(data))
        end = end and size == len(data)
        if size or end:
            self.out += frames.data(wire.id, bytes(data[:size]), end=end)
            self.sendable -= size
            wire.sendable -= size
            wire.input_ended = end
        return size

    def cancel(self, wire: OnWire, reason: int) -> None:
        """Tells the server that nobody wants this reply. The call stays in use until its end comes."""
        if wire.call._input is None:
            self.credit(wire, len(wire.body))
        wire.body = bytearray()
        wire.input_ended = True
        if wire.id in self.calls:
            self.out += frames.encode(frames.CANCEL, wire.id, a=reason)

    def credit(self, wire: OnWire, size: int) -> None:
        """Reply bytes are dealt with; the server hears of it when half a window has come together."""
        self.owed += size
        if self.owed >= self.owner._windows[1] // 2:
            self.out += frames.encode(frames.CREDIT, 0, a=self.owed)
            self.owed = 0
        wire.owed += size
        if wire.owed >= self.owner._windows[0] // 2 and wire.id in self.calls:
            if not wire.reply_ended:
                self.out += frames.encode(frames.CREDIT, wire.id, a=wire.owed)
                wire.window += wire.owed
            wire.owed = 0

    def fill(self) -> None:
        """Input that waited for credit."""
        for wire in list(self.calls.values()):
            whole = wire.call._input
            if whole is None or wire.input_ended:
                continue
            while wire.sent_at < len(whole):
                size = self.send_input(wire, memoryview(whole)[wire.sent_at :], True)  # type: ignore[arg-type]
                if size == 0:
                    break
                wire.sent_at += size

    def move(self, readable: bool, writable: bool) -> None:
        """Sends what can be sent, and takes in what is there. Raises OSError, EOFError, or ProtocolViolation."""
        if self.is_connecting:
            self._look_whether_connected()
            return
        if writable:
            self.fill()
            self._send()
        if readable:
            self._receive()
        if self.draining is not None and not self.calls_left():
            raise EOFError("the server drained the connection")

    def _send(self) -> None:
        while self.out and not self.is_connecting:
            try:
                sent = self.sock.send(memoryview(self.out)[:_ENOUGH_UNSENT])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # What the server said before it closed is still to be read, and tells more.
                with contextlib.suppress(OSError, EOFError):
                    while True:
                        self._receive()
                        if self.turn:
                            break
                raise
            del self.out[:sent]
            self.fill()

    def _receive(self) -> None:
        try:
            received = self.sock.recv(_READ_BYTES)
        except InterruptedError:
            return
        if not received:
            raise EOFError("the server closed the connection")
        for frame in self.decoder.feed(received):
            self._take(frame)

    def _take(self, frame: frames.Frame) -> None:
        kind = frame.kind
        if self.accepted is None and kind not in (frames.ACCEPTED, frames.MOVED) and not (kind == frames.FAIL and frame.id == 0):
            raise ProtocolViolation("a frame before the answer to the HELLO", kind="unexpected-frame")
        if self.accepted is not None and kind in (frames.ACCEPTED, frames.MOVED):
            raise ProtocolViolation("a second answer to the HELLO", kind="unexpected-frame")
        if kind == frames.ACCEPTED:
            self._take_accepted(frames.read_accepted(frame))
        elif kind == frames.MOVED:
            self.turn = ("moved",) + frames.read_moved(frame)
        elif kind == frames.FAIL:
            self._take_failure(frame, frames.read_problem(frame))
        elif kind in (frames.REPLY, frames.DATA):
            self._take_body(frame)
        elif kind == frames.CREDIT:
            self._take_credit(frame)
        elif kind == frames.PING:
            self.out += frames.encode(frames.PONG, 0, c=frame.c)
        elif kind == frames.DRAIN:
            if self.draining is not None:
                raise ProtocolViolation("a second DRAIN", kind="unexpected-frame")
            self.draining = frame

    def _take_accepted(self, accepted: frames.Accepted) -> None:
        owner = self.owner
        if owner._process is not None:
            owner._saw(owner._process, accepted.epoch)
        self.accepted = accepted
        self.sendable = accepted.connection_window
        if accepted.functions:
            self._learn(accepted.table, {name: index for index, name in enumerate(accepted.functions)})

    def _learn(self, table: int, indices: Dict[str, int]) -> None:
        if table != self.table:
            self.table, self.indices = table, {}
        if len(self.indices) < frames.MAX_FUNCTIONS:
            self.indices.update(indices)

    def _take_failure(self, frame: frames.Frame, error: DenizenError) -> None:
        if frame.id == 0:
            self.turn = ("refused", error)
            return
        wire = self._wire_of(frame)
        self._check_epoch(wire, frame)
        del self.calls[wire.id]
        wire.call._wire = None
        if error.kind == "functions-changed":
            self._learn(0, {})
        if error.kind == "functions-changed" or (error.kind == "draining" and error.retry == "safe"):
            if wire.call._input is not None and wire.call._tries < MAX_TRIES and wire.call._end is None:
                # The index was of an older image, and the name is sent this time; or the process was about to be given up.
                self.owner._waiting.append(wire.call)
                return
        if wire.call._end is None and self.owner._moved(wire.call, error):
            return
        self.owner._finish(wire.call, error)

    def _take_body(self, frame: frames.Frame) -> None:
        wire = self._wire_of(frame)
        size = len(frame.body)
        if wire.begun == (frame.kind == frames.REPLY):
            raise ProtocolViolation("a body out of its place", kind="outside-body")
        if frame.kind == frames.DATA and not size and not frame.is_end:
            raise ProtocolViolation("a DATA with neither bytes nor END", kind="empty-data")
        wire.window -= size
        if wire.window < 0:
            raise ProtocolViolation("more bytes than credit", kind="window-exceeded")
        if frame.kind == frames.REPLY:
            self._take_head(wire, frame)
        wire.begun = True
        if wire.left is not None:
            wire.left -= size
            if wire.left < 0 or (frame.is_end and wire.left):
                raise ProtocolViolation("a body of another length than was said", kind="length-mismatch")
        if frame.is_end:
            wire.reply_ended = True
            wire.head["durability"] = frames.durability(frame.b)
            if frame.kind == frames.DATA:
                wire.head["commit"] = frame.c
            del self.calls[wire.id]
        self._keep(wire, frame)

    def _keep(self, wire: OnWire, frame: frames.Frame) -> None:
        call, size = wire.call, len(frame.body)
        if call._end is not None:
            self.credit(wire, size)
            return
        wire.body += frame.body
        if call._input is None:
            # A stream: credit is given as it is read.
            return
        self.credit(wire, size)
        limit = self.owner._reply_limit
        if len(wire.body) > limit:
            error = ReplyTooLong(f"the reply is longer than {limit} bytes", remedy="read it as a stream, or raise reply_limit")
            wire.body = bytearray()
            self.cancel(wire, frames.CANCEL_UNWANTED)
            self.owner._finish(call, error)
        elif frame.is_end:
            call._wire = None
            self.owner._finish(call, Reply(body=bytes(wire.body), **wire.head))  # type: ignore[arg-type]

    def _take_head(self, wire: OnWire, frame: frames.Frame) -> None:
        self._check_epoch(wire, frame)
        length = int.from_bytes(frame.fixed[8:], "little")
        wire.left = None if length == frames.LENGTH_UNKNOWN else length
        wire.head = {
            "content_type": frame.text("content_type"),
            "process": frame.text("process"),
            "invocation": frame.text("invocation"),
            "epoch": frame.c,
            "commit": int.from_bytes(frame.fixed[:8], "little"),
            "durability": frames.durability(frame.b),
            "replayed": bool(frame.flags & frames.REPLAYED),
        }
        place = frame.fields.get("function_ref")
        if wire.named and isinstance(place, bytes):
            table, index = int.from_bytes(place[:8], "little"), int.from_bytes(place[8:], "little")
            self._learn(table, {wire.call._request.function: index})

    def _take_credit(self, frame: frames.Frame) -> None:
        if frame.a == 0:
            raise ProtocolViolation("credit of nothing", kind="bad-value")
        if frame.id == 0:
            self.sendable += frame.a
            open = self.sendable
        else:
            wire = self._wire_of(frame)
            wire.sendable += frame.a
            open = wire.sendable
        if open > frames.MAX_WINDOW:
            raise ProtocolViolation("more credit than a window holds", kind="credit-overflow")

    def _wire_of(self, frame: frames.Frame) -> OnWire:
        wire = self.calls.get(frame.id)
        if wire is None:
            raise ProtocolViolation(f"call {frame.id} is not in flight", kind="unknown-call")
        return wire

    def _check_epoch(self, wire: OnWire, frame: frames.Frame) -> None:
        process = frame.text("process") or wire.call._request.process or self.owner._process
        if process is not None:
            self.owner._saw(process, frame.c)


def wait(links: List[Link], timeout: Optional[float]) -> List[Tuple[Link, bool, bool]]:
    """Which of them can be read and written."""
    if hasattr(select, "poll"):
        poller = select.poll()
        for link in links:
            # A socket that is not connected yet tells so by being writable.
            reading = 0 if link.is_connecting else select.POLLIN
            poller.register(link.sock, reading | (select.POLLOUT if link.out else 0))
        ready = dict(poller.poll(None if timeout is None else max(timeout * 1000, 0.0)))
        events = [(link, ready.get(link.sock.fileno(), 0)) for link in links]
        return [(link, bool(event & ~select.POLLOUT), bool(event & select.POLLOUT)) for link, event in events if event]
    socks = [link.sock for link in links]
    readable, writable, _ = select.select(socks, [link.sock for link in links if link.out], [], timeout)
    found = [(link, link.sock in readable, link.sock in writable) for link in links]
    return [ready_one for ready_one in found if ready_one[1] or ready_one[2]]
