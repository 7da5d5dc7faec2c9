"""Calls, the connection that they are on, and what becomes of them when it ends.

A `Connection` is one to *whom*, not one to *where*: it outlives its socket. It has no thread: whoever waits for a
reply moves the bytes of all calls. What must hold: every call that was begun ends once, in a `Reply` or an exception;
it is made again only if the node said that it was not executed, or if it has an idempotency key; and no answer of an
owner that has lost its process is believed.
"""

import collections
import contextlib
import random
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
from .link import MAX_TRIES, Link, OnWire, Reply, wait
from .stream import CallStream

# A connection that nothing was done on for longer is looked at before it is used.
_A_PAUSE = 0.02
# Connections to other nodes that are kept without calls, for the next one that is moved there.
_BRANCHES_KEPT = 16
_CLIENT = "denizen-python/0.1.0"
_NO_NODE = "start the node, or look whether this is its data-plane address"

Input = Union[bytes, bytearray, memoryview, str]


class _Epochs:
    """The highest epoch that was seen of each process, by any connection of a client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: "collections.OrderedDict[str, int]" = collections.OrderedDict()

    def of(self, process: str) -> int:
        with self._lock:
            return self._seen.get(process, 0)

    def saw(self, process: str, epoch: int) -> None:
        """An answer of `epoch` came; 0 says nothing. Raises ProtocolViolation if a higher one was seen."""
        with self._lock:
            seen = self._seen.get(process, 0)
            if epoch and epoch < seen:
                raise ProtocolViolation(f"an owner of epoch {epoch} answers, and {seen} was seen", kind="stale-epoch")
            if epoch > seen:
                self._seen[process] = epoch
                if len(self._seen) > frames.MAX_EPOCHS:
                    self._seen.popitem(last=False)


class _Request(NamedTuple):
    function: str
    process: Optional[str]
    deadline: Optional[float]
    durability: Optional[str]
    create: bool
    content_type: Optional[str]
    idempotency_key: Optional[str]
    traceparent: Optional[bytes]
    repeatable: bool

    @property
    def may_be_repeated(self) -> bool:
        return self.repeatable or self.idempotency_key is not None


class _Branch:
    """A connection to another node, and which calls are made there: ours and theirs, by ours."""

    def __init__(self, connection: "Connection") -> None:
        self.connection = connection
        self.calls: Dict[int, Tuple[Call, Call]] = {}


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
        # The nodes that were asked, once one has said that the process lives elsewhere.
        self._asked: List[str] = []
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
        _epochs: Optional[_Epochs] = None,
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
        self._follows = True
        self._epochs = _epochs or _Epochs()
        # The one that takes new calls; and those that are drained, until what they run has ended.
        self._link: Optional[Link] = None
        self._leaving: List[Link] = []
        # Connections to other nodes, for calls that were moved there, by address.
        self._elsewhere: Dict[str, _Branch] = {}
        self._wanted = False
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
            self._wanted = True
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
        return self._epochs.of(process)

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
        traceparent: Union[bytes, str, None] = None,
        repeatable: bool = False,
    ) -> Call:
        """Begins a call and does not wait: any number may run at a time.

        Args:
            function: its name.
            input: text is sent as UTF-8.
            process: on a connection that is not bound to one; else any idle one, or a new one.
            deadline: seconds for the call, reconnections included. None: the image's, counted by the node.
            durability: what the commit must survive: "process", "node" or "store". None: the image's choice.
            create: False refuses with "unknown-process" rather than create the process.
            content_type: handed on.
            traceparent: the trace that this is part of: the text of the HTTP header of W3C Trace Context, or its 25 bytes.
            idempotency_key: makes the call safe to repeat, and lets this client do so. Visible ASCII, at most 128 bytes.
            repeatable: it may be executed more than once, because it only reads, or does the same again: it is made again after a
                lost connection also without a key. Nobody checks that.

        Raises BadRequest for a call that cannot be made like this; everything else comes from `Call.wait`."""
        trace = frames.traceparent_bytes(traceparent) if isinstance(traceparent, str) else traceparent
        request = _Request(function, process, deadline, durability, create, content_type, idempotency_key, trace, repeatable)
        # What cannot be sent is told before anything is tried.
        frames.call(1, function, b"", end=True, durability=durability, process=process, content_type=content_type,
                    idempotency_key=idempotency_key, traceparent=trace)
        whole = input.encode("utf-8") if isinstance(input, str) else bytes(input)
        call = Call(self, request, whole)
        self._note(call)
        self._waiting.append(call)
        if self._link is not None:
            self._guarded(self._link, self._send_begun)
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
            repeatable=False,
        )
        unknown = set(how) - set(options)
        if unknown:
            raise TypeError(f"stream() got an unexpected keyword argument {unknown.pop()!r}")
        options.update(how)
        if isinstance(options["traceparent"], str):
            options["traceparent"] = frames.traceparent_bytes(options["traceparent"])
        call = Call(self, _Request(function, **options), None)  # type: ignore[arg-type]
        self._note(call)
        while call._end is None and not (self._link is not None and self._link.has_room()):
            self._wanted = True
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
        for link in self._links():
            link.is_over = True
            link.sock.close()
        for branch in self._elsewhere.values():
            branch.connection.close()
        self._link, self._leaving, self._wanted, self._elsewhere = None, [], False, {}
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
        self._given_up = None
        if all(call._wire is not None for call in self._unended.values()):
            # Nobody has tried since; what went wrong before says nothing of now.
            self._failing_since = None
        if not self._unended:
            if self._link is not None and time.monotonic() - self._last_step > _A_PAUSE:
                # It may have ended meanwhile, and a call on it would be one of which nobody knows what became.
                self._step(time.monotonic())

    def _finish(self, call: Call, end: Union[Reply, DenizenError]) -> None:
        self._unended.pop(id(call), None)
        if call._end is None:
            call._end = end

    def _forget(self, call: Call, reason: int) -> None:
        self._unended.pop(id(call), None)
        for branch in self._elsewhere.values():
            theirs = branch.calls.pop(id(call), None)
            if theirs is not None:
                branch.connection._forget(theirs[1], reason)
        with contextlib.suppress(ValueError):
            self._waiting.remove(call)
        wire, call._wire = call._wire, None
        if wire is not None and not wire.link.is_over:
            wire.link.cancel(wire, reason)
            self._guarded(wire.link, wire.link._send)

    def _links(self) -> List[Link]:
        return self._leaving + ([] if self._link is None else [self._link])

    def _step(self, until: Optional[float]) -> None:
        """Does a piece of whatever is to be done, waiting at most until `until`."""
        if self._expire():
            # Perhaps this was what is waited for.
            return
        ends, links = self._prepare(until)
        branches = [(self, links)]
        for branch in self._elsewhere.values():
            if branch.connection._unended:
                branch.connection._expire()
                theirs, links = branch.connection._prepare(None)
                ends += theirs
                branches.append((branch.connection, links))
        if self._gather():
            return
        timeout = None if not ends else max(min(ends) - time.monotonic(), 0.0)
        owners = {link: owner for owner, links in branches for link in links}
        if owners:
            for link, readable, writable in wait(list(owners), timeout):
                owner = owners[link]
                owner._guarded(link, lambda o=owner, link=link, r=readable, w=writable: o._advance(link, r, w))  # type: ignore[misc]
        elif timeout:
            time.sleep(timeout)
        for owner, _ in branches:
            owner._look_for_late_greeting()
        self._gather()

    def _prepare(self, until: Optional[float]) -> Tuple[List[float], List[Link]]:
        """Before waiting: when something is to be done at the latest, and which links there are."""
        ends = [call._expires for call in self._unended.values() if call._expires is not None]
        if until is not None:
            ends.append(until)
        if self._link is None and (self._wanted or self._waiting):
            self._reconnect()
            if self._link is None:
                ends.append(self._connect_at)
        if self._link is not None:
            self._guarded(self._link, self._send_begun)
        if self._link is not None and self._link.accepted is None:
            ends.append(self._link.greet_until)
        links = self._links()
        for link in links:
            link.fill()
        return ends, links

    def _look_for_late_greeting(self) -> None:
        link = self._link
        if link is not None and link.accepted is None and time.monotonic() >= link.greet_until:
            self._guarded(link, _be_late)
        self._last_step = time.monotonic()

    def _moved(self, call: Call, error: DenizenError) -> bool:
        """The node says that the call's process lives elsewhere: makes it there. A stream is made again nowhere."""
        if error.kind != "moved" or error.address is None or self._process is not None or call._input is None or not self._follows:
            return False
        call._asked = call._asked or [self._address]
        if error.address in call._asked:
            why: Optional[str] = f"nodes send the call in a circle, to {error.address} again"
        elif len(call._asked) > frames.MAX_MOVES:
            why = f"{frames.MAX_MOVES} nodes in a row say that the process lives elsewhere"
        else:
            why = None
        if why is not None:
            self._finish(call, HostFault(why, kind="moved", retry="safe", address=error.address))
            return True
        call._asked.append(error.address)
        try:
            branch = self._branch_to(error.address)
        except DenizenError as bad:
            self._finish(call, bad)
            return True
        request = call._request
        if call._until is not None:
            request = request._replace(deadline=max(call._until - time.monotonic(), 0.001))
        theirs = Call(branch.connection, request, call._input)
        branch.connection._note(theirs)
        branch.connection._waiting.append(theirs)
        branch.calls[id(call)] = (call, theirs)
        return True

    def _branch_to(self, address: str) -> "_Branch":
        if address not in self._elsewhere:
            for idle in [key for key, branch in self._elsewhere.items() if not branch.connection._unended]:
                if len(self._elsewhere) >= _BRANCHES_KEPT:
                    self._elsewhere.pop(idle).connection.close()
            self._elsewhere[address] = _Branch(self._clone(address))
        return self._elsewhere[address]

    def _clone(self, address: str) -> "Connection":
        _host_and_port(address)
        other = Connection.__new__(Connection)
        other.__dict__.update(self.__dict__)
        other._home = other._address = address
        other._link, other._leaving, other._elsewhere = None, [], {}
        other._waiting, other._unended, other._wanted = collections.deque(), {}, False
        other._moves = other._failures = 0
        other._connect_at, other._failing_since, other._given_up = 0.0, None, None
        # What is moved again goes back to where it began.
        other._follows = False
        return other

    def _gather(self) -> bool:
        """Takes over what has ended elsewhere. Says whether anything has."""
        ended = []
        for branch in self._elsewhere.values():
            for key in [key for key, (_, theirs) in branch.calls.items() if theirs._end is not None]:
                ended.append(branch.calls.pop(key))
        for call, theirs in ended:
            end = theirs._end
            assert end is not None
            if call._end is None and not (isinstance(end, DenizenError) and self._moved(call, end)):
                self._finish(call, end)
        return bool(ended)

    def _advance(self, link: Link, readable: bool, writable: bool) -> None:
        was_accepted = link.accepted is not None
        try:
            link.move(readable, writable)
        finally:
            if link.accepted is not None and not was_accepted:
                self._moves = self._failures = 0
                self._failing_since = None
                self._wanted = False
            if link.draining is not None and not link.is_leaving:
                self._part(link)
        if self._link is not None:
            self._send_begun()

    def _part(self, link: Link) -> None:
        """After a DRAIN: what it refused is made on the next connection, and this one ends what it runs."""
        assert link.draining is not None
        link.is_leaving = True
        self._link = None
        self._leaving.append(link)
        why = ConnectionLost(f"the node drains the connection to {link.address}", retry="safe")
        self._settle([wire for wire in link.calls.values() if wire.id > link.draining.id], why, True)
        for id in [id for id in link.calls if id > link.draining.id]:
            del link.calls[id]
        address = link.draining.text("address")
        if address:
            self._follow(address, link.draining.c)
        else:
            self._pause(0.0)

    def _guarded(self, link: Link, work) -> None:
        """Does something with a link, and everything that follows if it ends meanwhile."""
        if link.is_over:
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

    def _reconnect(self) -> None:
        if time.monotonic() < self._connect_at:
            return
        address = self._address
        try:
            self._link = Link(self, *_host_and_port(address), address)
        except OSError as error:
            # What was heard of another address may be out of date.
            self._address = self._home
            why = Unreachable(
                f"no node answers at {address}",
                cause=str(error),
                remedy=_NO_NODE,
            )
            self._later(0.0, why)

    def _leave(self, link: Link, cut: Optional[DenizenError]) -> None:
        """The connection is over: what becomes of its calls, and where to go on."""
        if link.is_over:
            return
        if link.draining is not None and not link.is_leaving:
            # It came just before the end.
            self._part(link)
        link.is_over = True
        link.sock.close()
        if link.is_connecting:
            # What was heard of another address may be out of date.
            self._address = self._home
        if link is self._link:
            self._link = None
        else:
            self._leaving.remove(link)
        turned = link.accepted is None and link.turn is not None
        why = cut or ConnectionLost("the process lives elsewhere")
        if link.turn is not None and link.turn[0] == "refused":
            why = link.turn[1]
        self._settle(list(link.calls.values()), why, turned)
        if link.is_leaving:
            # The next one stands already, or will be asked for.
            return
        if link.turn is not None and link.turn[0] == "moved":
            self._follow(link.turn[1], link.turn[2])
        elif link.turn is not None:
            # An accepted connection that is given up says nothing about the next one; a refusal does.
            if turned and why.retry == "never":
                self._give_up(why)
            else:
                self._later(why.retry_after, why)
        else:
            if isinstance(cut, ConnectionLost) and link.accepted is None:
                why = Unreachable(f"no node answers at {link.address}", cause=cut.cause, remedy=_NO_NODE)
            self._later(0.0, why)

    def _settle(self, wires: List[OnWire], why: DenizenError, not_executed: bool) -> None:
        """What becomes of calls whose connection ended, or refused them."""
        again: List[Call] = []
        for wire in sorted(wires, key=lambda wire: wire.id):
            call = wire.call
            call._wire = None
            if call._end is not None:
                continue
            whole = call._input is not None
            # Of a reply that is taken whole nothing has been handed out yet.
            if whole and call._tries < MAX_TRIES and (not_executed or call._request.may_be_repeated):
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
        """Another attempt, unless the patience is over."""
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        self._pause(least)
        if self._connect_at - self._failing_since > self._patience:
            self._give_up(why)

    def _pause(self, least: float) -> None:
        """Waits twice as long each time, a random half of it more or less."""
        longest = min(frames.RECONNECT_MIN_MS << min(self._failures, 16), frames.RECONNECT_MAX_MS) / 1000
        self._failures += 1
        self._connect_at = time.monotonic() + max(longest / 2 + random.random() * longest / 2, least)

    def _give_up(self, why: DenizenError) -> None:
        """Nothing that has not been sent will be. The next call is a new attempt."""
        for call in [call for call in self._unended.values() if call._wire is None]:
            # A node's refusal says by itself whether the same would be refused again.
            ours = isinstance(why, (ConnectionLost, ProtocolViolation))
            self._finish(call, why.with_retry("safe") if ours else why)
        self._waiting.clear()
        self._connect_at = 0.0
        self._failing_since = None
        self._moves = self._failures = 0
        self._wanted = False
        self._given_up = why

    def _expire(self) -> bool:
        """Gives up the calls whose time is over. Says whether there were any."""
        now = time.monotonic()
        late = [call for call in self._unended.values() if call._expires is not None and call._expires <= now]
        for call in late:
            retry = "safe" if call._tries == 0 else "unknown"
            self._forget(call, frames.CANCEL_DEADLINE)
            self._finish(call, DeadlineExceeded(f"no answer came within {call._request.deadline} s", retry=retry))
        return bool(late)

    def _saw(self, process: str, epoch: int) -> None:
        self._epochs.saw(process, epoch)


def _be_late() -> None:
    raise OSError("it accepted no connection in time, or said nothing on it")


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
        # What one has seen of epochs, none of the others goes back behind.
        self._epochs = _Epochs()

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection: one that was used before, or a new one, which connects with its first call."""
        with self._lock:
            lent = self._idle.pop() if self._idle else None
        if lent is None:
            lent = Connection(*self._args, _epochs=self._epochs, **self._how)
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
