"""Calls, the connection that they are on, and what becomes of them when it ends.

A `Connection` is one to *whom*, not one to *where*: it outlives its socket. It has no thread: whoever waits for a
reply moves the bytes of all calls. What must hold: every call that was begun ends once, in a `Reply` or an exception;
it is made again only if the node said that it was not executed, or if it has an idempotency key; and no answer of an
owner that has lost its process is believed.
"""

import collections
import contextlib
import random
import socket
import threading
import time
from typing import Deque, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from . import frames
from .errors import (
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    DenizenError,
    HostFault,
    ProtocolViolation,
    Unreachable,
)
from .link import MAX_TRIES, Link, OnWire, Reply
from .stream import CallStream

# A connection that nothing was done on for longer is looked at before it is used.
_A_PAUSE = 0.02
_CLIENT = "denizen-python/0.1.0"

Input = Union[bytes, bytearray, memoryview, str]


class _Request(NamedTuple):
    function: str
    process: Optional[str]
    deadline: Optional[float]
    durability: Optional[str]
    create: bool
    content_type: Optional[str]
    idempotency_key: Optional[str]
    traceparent: Optional[bytes]


class Call:
    """A call that was begun. Wait for it once."""

    def __init__(self, connection: "Connection", request: _Request, input: Optional[bytes]) -> None:
        self._connection = connection
        self._request = request
        # None: a stream, which cannot be made again once anything of it is sent.
        self._input = input
        now = time.monotonic()
        self._until = None if request.deadline is None else now + request.deadline
        # A node that is well tells by itself that a deadline has passed, and says more of it.
        grace = 0.0 if request.deadline is None else min(max(request.deadline / 10, 0.05), 1.0)
        self._expires = None if self._until is None else self._until + grace
        self._tries = 0
        self._wire: Optional[OnWire] = None
        self._end: Union[Reply, DenizenError, None] = None

    def wait(self) -> Reply:
        """Waits for the whole reply. Raises DenizenError."""
        while self._end is None:
            self._connection._step(None)
        if isinstance(self._end, DenizenError):
            raise self._end
        return self._end

    @property
    def is_done(self) -> bool:
        """Whether it has ended. Only what was received already counts: see `Connection.poll`."""
        return self._end is not None

    def cancel(self) -> None:
        """Gives the call up: its reply is not wanted any more. Whether it was executed is unknown."""
        self._connection._forget(self, frames.CANCEL_UNWANTED)
        if self._end is None:
            self._end = DenizenError("the caller cancelled", kind="caller-gone", blame="caller", retry="unknown")


class Connection:
    """Calls of one application, or of one process of it.

    Args:
        address: the node's data-plane address, "host:port".
        app: the application.
        process: binds the connection to one process: the quickest way. Without, each call may name one.
        token: what the node issued, in its text form. Opaque.
        create: whether the process may be created if it does not exist.
        patience: seconds to go on trying when no node accepts the connection. 0: one attempt.
        connect_timeout: seconds for one attempt: to connect, and again to be greeted.
        reply_limit: bytes of a reply that is taken whole; a longer one is cancelled. Streams have no limit.
        windows: reply bytes that the node may send unasked: for each call, and for the connection.

    It connects with its first call, or with `connect`. One thread at a time uses it; `Pool` has more. Use it in a `with`, or `close` it:
    that cancels what runs.
    """

    def __init__(
        self,
        address: str,
        app: str,
        process: Optional[str] = None,
        *,
        token: Optional[str] = None,
        create: bool = True,
        patience: float = 10.0,
        connect_timeout: float = 5.0,
        reply_limit: int = 64 << 20,
        windows: Tuple[int, int] = (frames.DEFAULT_CALL_WINDOW, frames.DEFAULT_CONNECTION_WINDOW),
    ) -> None:
        call, connection = windows
        if not frames.MIN_WINDOW <= call <= connection <= frames.MAX_WINDOW:
            raise BadRequest(f"the windows cannot be {windows}: {frames.MIN_WINDOW} to {frames.MAX_WINDOW} bytes, the first not larger")
        _host_and_port(address)
        raw = frames.token_bytes(token) if token else b""
        self._hello = frames.hello(app, process, token=raw, client=_CLIENT, create=create, windows=windows)
        self._home = self._address = address
        self._process = process
        self._patience = patience
        self._connect_timeout = connect_timeout
        self._reply_limit = reply_limit
        self._windows = windows
        self._table = 0
        self._indices: Dict[str, int] = {}
        self._epochs: "collections.OrderedDict[str, int]" = collections.OrderedDict()
        self._link: Optional[Link] = None
        self._waiting: Deque[Call] = collections.deque()
        self._unended: Dict[int, Call] = {}
        self._moves = self._failures = 0
        self._connect_at = 0.0
        self._failing_since: Optional[float] = None
        self._given_up: Optional[DenizenError] = None
        self._last_step = time.monotonic()

    # What a program does.

    def connect(self) -> "Connection":
        """Connects, and waits until the node has accepted the connection. Raises DenizenError."""
        self._fresh_attempt()
        while not self.is_connected:
            self._step(None)
            if self._given_up is not None:
                raise self._given_up
        return self

    @property
    def is_connected(self) -> bool:
        """Whether the node has accepted this connection and not ended it."""
        return self._link is not None and self._link.accepted is not None and self._link.draining is None

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return len(self._unended)

    def epoch(self, process: str) -> int:
        """The highest epoch seen of a process; 0 if none was."""
        return self._epochs.get(process, 0)

    def call(self, function: str, input: Input = b"", **how) -> Reply:
        """Calls a function and waits for its whole reply. Takes what `begin` takes. Raises DenizenError."""
        return self.begin(function, input, **how).wait()

    def begin(
        self,
        function: str,
        input: Input = b"",
        *,
        process: Optional[str] = None,
        deadline: Optional[float] = None,
        durability: Optional[str] = None,
        create: bool = True,
        content_type: Optional[str] = None,
        idempotency_key: Optional[str] = None,
        traceparent: Optional[bytes] = None,
    ) -> Call:
        """Begins a call and does not wait: any number may run at a time.

        Args:
            function: its name.
            input: text is sent as UTF-8.
            process: on a connection that is not bound to one; else any idle one, or a new one.
            deadline: seconds for the call, reconnections included. None: the image's, counted by the node.
            durability: what the commit must survive: "process", "node" or "store". None: the image's choice.
            create: False refuses with "unknown-process" rather than create the process.
            content_type, traceparent: handed on. The latter is 25 bytes.
            idempotency_key: makes the call safe to repeat, and lets this client do so. Visible ASCII, at most 128 bytes.

        Raises BadRequest for a call that cannot be made like this; everything else comes from `Call.wait`."""
        request = _Request(function, process, deadline, durability, create, content_type, idempotency_key, traceparent)
        # What cannot be sent is told before anything is tried.
        frames.call(1, function, b"", end=True, durability=durability, process=process, content_type=content_type,
                    idempotency_key=idempotency_key, traceparent=traceparent)
        whole = input.encode("utf-8") if isinstance(input, str) else bytes(input)
        call = Call(self, request, whole)
        self._note(call)
        self._waiting.append(call)
        if self._link is not None:
            self._guarded(self._send_begun)
        if isinstance(call._end, BadRequest):
            raise call._end
        return call

    def stream(self, function: str, *, length: Optional[int] = None, **how) -> "CallStream":
        """Begins a call whose input is written and whose reply is read piece by piece. Takes what `begin` takes but
        for the input; `length` is that of the whole input, if known. Never made again: what has gone through the caller's
        hands cannot be taken back."""
        options = dict(
            process=None,
            deadline=None,
            durability=None,
            create=True,
            content_type=None,
            idempotency_key=None,
            traceparent=None,
        )
        unknown = set(how) - set(options)
        if unknown:
            raise TypeError(f"stream() got an unexpected keyword argument {unknown.pop()!r}")
        options.update(how)
        call = Call(self, _Request(function, **options), None)  # type: ignore[arg-type]
        self._note(call)
        while call._end is None and not (self._link is not None and self._link.has_room()):
            self._step(None)
        if isinstance(call._end, DenizenError):
            raise call._end
        assert self._link is not None
        try:
            self._link.begin(call, length)
        except DenizenError as error:
            self._finish(call, error)
            raise
        return CallStream(self, call, self._link)

    def poll(self, timeout: float = 0.0) -> None:
        """Moves bytes for at most so many seconds, or until anything happens. For a program that does other things while calls run."""
        self._step(time.monotonic() + timeout)

    def close(self) -> None:
        """Ends the connection. What runs is cancelled."""
        if self._link is not None:
            self._link.sock.close()
            self._link = None
        gone = ConnectionLost("the connection was closed here", retry="unknown")
        for call in list(self._unended.values()):
            self._finish(call, gone.with_retry("safe" if call._tries == 0 else "unknown"))
        self._waiting.clear()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    # What keeps it going.

    def _note(self, call: Call) -> None:
        self._fresh_attempt()
        self._unended[id(call)] = call

    def _fresh_attempt(self) -> None:
        if self._given_up is not None:
            self._given_up = None
            self._moves = self._failures = 0
        if not self._unended:
            # Nobody has tried since; what went wrong before says nothing of now.
            self._failing_since = None
            if self._link is not None and time.monotonic() - self._last_step > _A_PAUSE:
                # It may have ended meanwhile, and a call on it would be one of which nobody knows what became.
                self._step(time.monotonic())

    def _finish(self, call: Call, end: Union[Reply, DenizenError]) -> None:
        self._unended.pop(id(call), None)
        if call._end is None:
            call._end = end

    def _forget(self, call: Call, reason: int) -> None:
        self._unended.pop(id(call), None)
        with contextlib.suppress(ValueError):
            self._waiting.remove(call)
        wire, call._wire = call._wire, None
        if wire is not None and self._link is not None and wire.link is self._link:
            self._link.cancel(wire, reason)
            self._guarded(self._link._send)

    def _step(self, until: Optional[float]) -> None:
        """Does a piece of whatever is to be done, waiting at most until `until`."""
        self._expire()
        ends = [call._expires for call in self._unended.values() if call._expires is not None]
        if until is not None:
            ends.append(until)
        if self._link is None:
            self._reconnect(min(ends) if ends else None)
        if self._link is not None:
            if self._link.accepted is None:
                ends.append(self._link.greet_until)
            timeout = None if not ends else max(min(ends) - time.monotonic(), 0.0)
            self._guarded(lambda: self._advance(timeout))
        self._last_step = time.monotonic()

    def _advance(self, timeout: Optional[float]) -> None:
        self._send_begun()
        link = self._link
        if link is None:
            return
        link.move(timeout)
        if link.turn is not None:
            return
        if link.accepted is not None:
            self._moves = self._failures = 0
            self._failing_since = None
            self._send_begun()
        elif time.monotonic() >= link.greet_until:
            raise OSError("it accepted the connection and said nothing")
        if link.draining is not None and not link.calls_left():
            raise EOFError("the server drained the connection")

    def _guarded(self, work) -> None:
        """Does something with the link, and everything that follows if it ends meanwhile."""
        link = self._link
        if link is None:
            return
        cut: Optional[DenizenError] = None
        try:
            work()
        except ProtocolViolation as error:
            cut = error
        except (OSError, EOFError) as error:
            cut = ConnectionLost(
                f"the connection to {link.address} ended before the call did",
                cause=str(error) or type(error).__name__,
                remedy="whether the call took effect is unknown: look, or give calls an idempotency key",
            )
        if cut is not None or link.turn is not None:
            self._leave(link, cut)

    def _send_begun(self) -> None:
        while self._waiting and self._link is not None and self._link.has_room():
            call = self._waiting.popleft()
            if call._end is not None:
                continue
            try:
                self._link.begin(call, None)
            except BadRequest as error:
                self._finish(call, error)
        if self._link is not None:
            self._link._send()

    def _reconnect(self, until: Optional[float]) -> None:
        now = time.monotonic()
        if now < self._connect_at:
            time.sleep(max(min(self._connect_at, until if until is not None else self._connect_at) - now, 0.0))
            return
        address = self._address
        try:
            sock = socket.create_connection(_host_and_port(address), timeout=self._connect_timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setblocking(False)
        except OSError as error:
            # What was heard of another address may be out of date.
            self._address = self._home
            why = Unreachable(
                f"no node answers at {address}",
                cause=str(error),
                remedy="start the node, or look whether this is its data-plane address",
            )
            self._later(0.0, why)
            return
        self._link = Link(self, sock, address)

    def _leave(self, link: Link, cut: Optional[DenizenError]) -> None:
        """The connection is over: what becomes of its calls, and where to go on."""
        if self._link is not link:
            return
        self._link = None
        link.sock.close()
        turned = link.accepted is None and link.turn is not None
        why = cut or ConnectionLost("the process lives elsewhere")
        if link.turn is not None and link.turn[0] == "refused":
            why = link.turn[1]
        self._settle(link, why, turned)
        stale = cut is not None and cut.kind == "stale-epoch"
        if link.turn is not None and link.turn[0] == "moved":
            self._follow(link.turn[1], link.turn[2])
        elif link.turn is not None:
            # An accepted connection that is given up says nothing about the next one; a refusal does.
            if turned and why.retry == "never":
                self._give_up(why)
            else:
                self._later(why.retry_after, why)
        elif link.draining is not None and not stale and link.draining.text("address"):
            self._follow(link.draining.text("address") or self._home, link.draining.c)
        else:
            if isinstance(cut, ConnectionLost) and link.accepted is None:
                why = Unreachable(f"no node answers at {link.address}", cause=cut.cause, remedy=cut.remedy)
            self._later(0.0, why)

    def _settle(self, link: Link, why: DenizenError, turned: bool) -> None:
        again: List[Call] = []
        last = None if link.draining is None else link.draining.id
        for wire in sorted(link.calls.values(), key=lambda wire: wire.id):
            call = wire.call
            call._wire = None
            if call._end is not None:
                continue
            not_executed = turned or (last is not None and wire.id > last)
            whole = call._input is not None
            # Of a reply that is taken whole nothing has been handed out yet.
            if whole and call._tries < MAX_TRIES and (not_executed or call._request.idempotency_key is not None):
                again.append(call)
            else:
                self._finish(call, why.with_retry("safe" if not_executed else "unknown"))
        self._waiting.extendleft(reversed(again))

    def _follow(self, address: str, epoch: int) -> None:
        self._moves += 1
        if self._moves > frames.MAX_MOVES:
            detail = f"{frames.MAX_MOVES} nodes in a row say that the process lives elsewhere"
            self._give_up(HostFault(detail, kind="moved", retry="safe"))
        elif epoch and self._process is not None and epoch < self.epoch(self._process):
            # It points to an owner whose term is over.
            self._later(0.0, Unreachable(f"no node has {self._process}: {address} had it before"))
        else:
            self._address = address
            self._connect_at = time.monotonic()

    def _later(self, least: float, why: DenizenError) -> None:
        """Waits twice as long each time, a random half of it more or less."""
        now = time.monotonic()
        longest = min(frames.RECONNECT_MIN_MS << min(self._failures, 16), frames.RECONNECT_MAX_MS) / 1000
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
        self._connect_at = now + max(longest / 2 + random.random() * longest / 2, least)
        if self._connect_at - self._failing_since > self._patience:
            self._give_up(why)

    def _give_up(self, why: DenizenError) -> None:
        """Nothing that has not been sent will be."""
        for call in list(self._unended.values()):
            # A node's refusal says by itself whether the same would be refused again.
            ours = isinstance(why, (ConnectionLost, ProtocolViolation))
            self._finish(call, why.with_retry("safe") if ours else why)
        self._waiting.clear()
        self._connect_at = 0.0
        self._given_up = why

    def _expire(self) -> None:
        now = time.monotonic()
        for call in [call for call in self._unended.values() if call._expires is not None and call._expires <= now]:
            retry = "safe" if call._tries == 0 else "unknown"
            self._forget(call, frames.CANCEL_DEADLINE)
            self._finish(call, DeadlineExceeded(f"no answer came within {call._request.deadline} s", retry=retry))

    def _learn(self, table: int, indices: Dict[str, int]) -> None:
        if table != self._table:
            self._table, self._indices = table, {}
        if len(self._indices) < frames.MAX_FUNCTIONS:
            self._indices.update(indices)

    def _saw(self, process: str, epoch: int) -> None:
        """An answer of `epoch` came; 0 says nothing."""
        seen = self.epoch(process)
        if epoch and epoch < seen:
            raise ProtocolViolation(f"an owner of epoch {epoch} answers, and {seen} was seen", kind="stale-epoch")
        if epoch > seen:
            self._epochs[process] = epoch
            if len(self._epochs) > frames.MAX_EPOCHS:
                self._epochs.popitem(last=False)


class Pool:
    """Connections for many threads: lent one at a time, kept for the next. Takes what `Connection` takes, and `keep`, how many are kept
    while nobody uses them.

        pool = denizen.Pool("127.0.0.1:7071", "counter", "alice", token=token)
        with pool.connection() as connection:
            connection.call("increment")
    """

    def __init__(self, *args, keep: int = 8, **how) -> None:
        self._args, self._how, self._keep = args, how, keep
        self._idle: List[Connection] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection: one that was used before, or a new one, which connects with its first call."""
        with self._lock:
            lent = self._idle.pop() if self._idle else None
        if lent is None:
            lent = Connection(*self._args, **self._how)
        try:
            yield lent
        finally:
            # One with calls that nobody will wait for is closed, which cancels them.
            kept = False
            if lent.is_connected and not lent.in_flight:
                with self._lock:
                    kept = len(self._idle) < self._keep
                    if kept:
                        self._idle.append(lent)
            if not kept:
                lent.close()

    def close(self) -> None:
        """Ends the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _host_and_port(address: str) -> Tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise BadRequest(f"{address!r} is not a node's address", remedy="an address looks like 127.0.0.1:7071")
    return host.strip("[]"), int(port)
