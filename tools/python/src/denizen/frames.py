"""The frames of the protocol as bytes, without I/O.

Owns what `docs/protocol.md` says of a frame's form, in both directions. What must hold: whatever bytes come, the result is frames or one
`ProtocolViolation`; and nothing is made that the other end would refuse.
"""

import base64
import binascii
import struct
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from .errors import BLAMES, RETRIES, BadRequest, DenizenError, ProtocolViolation, of_problem

VERSION = 1
HEADER_LEN = 32
ALIGN = 16
MAX_HEAD = 8192
MAX_FRAME_BODY = 1 << 20
MIN_WINDOW = 65536
DEFAULT_CALL_WINDOW = 1 << 20
DEFAULT_CONNECTION_WINDOW = 4 << 20
MAX_WINDOW = 1 << 30
MIN_CALLS = 16
MAX_CALLS = 4096
EARLY_CALLS = 16
EARLY_BYTES = 65536
MAX_FUNCTIONS = 4096
MAX_NAME = 128
MAX_CONTENT_TYPE = 1024
MAX_IDEMPOTENCY_KEY = 128
MAX_INVOCATION_ID = 128
MAX_ADDRESS = 256
MAX_TOKEN = 1024
MAX_CLIENT = 64
MAX_PROBLEM_TYPE = 64
MAX_DETAIL = 4096
MAX_CAUSE = 1024
MAX_REMEDY = 1024
MAX_MOVES = 5
MAX_EPOCHS = 4096
RECONNECT_MIN_MS = 50
RECONNECT_MAX_MS = 5000

MAGIC = int.from_bytes(b"denizen\0", "little")
BY_NAME = (1 << 32) - 1
LENGTH_UNKNOWN = (1 << 64) - 1
END = 1
REPLAYED = 2

HELLO, ACCEPTED, MOVED = 64, 65, 66
CALL, DATA, CANCEL, CREDIT, PING, PONG = 72, 73, 74, 75, 76, 77
REPLY, FAIL, DRAIN = 80, 81, 82

DURABILITIES = ("process", "node", "store")
CANCEL_UNWANTED, CANCEL_DEADLINE, CANCEL_INPUT_BROKEN = 0, 1, 2

_HEADER = struct.Struct("<IBBHQIIQ")
_FIELD = struct.Struct("<HH")

# Tag: name, rule.
_FIELDS = {
    1: ("app", "name"),
    2: ("process", "name"),
    3: ("function", "name"),
    4: ("content_type", MAX_CONTENT_TYPE),
    5: ("idempotency_key", MAX_IDEMPOTENCY_KEY),
    6: ("traceparent", "binary"),
    7: ("invocation", MAX_INVOCATION_ID),
    8: ("address", MAX_ADDRESS),
    9: ("token", "binary"),
    10: ("client", MAX_CLIENT),
    11: ("function_ref", "binary"),
    12: ("problem", "problem"),
    13: ("detail", "prose"),
    14: ("cause", "prose"),
    15: ("remedy", "prose"),
}
_TAGS = {name: tag for tag, (name, _) in _FIELDS.items()}
_PROSE_LIMITS = {"detail": MAX_DETAIL, "cause": MAX_CAUSE, "remedy": MAX_REMEDY}


class _Form(NamedTuple):
    """What a kind may have, from the table of frames."""

    from_server: bool
    from_client: bool
    flags: int
    fixed: Optional[int]
    fields: Tuple[str, ...]
    has_body: bool


_FORMS: Dict[int, _Form] = {
    HELLO: _Form(False, True, 0, 16, ("app", "process", "token", "client"), False),
    ACCEPTED: _Form(True, False, 0, 32, (), True),
    MOVED: _Form(True, False, 0, 0, ("address",), False),
    CALL: _Form(
        False, True, END, 16, ("process", "function", "content_type", "idempotency_key", "traceparent"), True
    ),
    DATA: _Form(True, True, END, None, (), True),
    CANCEL: _Form(False, True, 0, None, (), False),
    CREDIT: _Form(True, True, 0, None, (), False),
    PING: _Form(True, True, 0, None, (), False),
    PONG: _Form(True, True, 0, None, (), False),
    REPLY: _Form(True, False, END | REPLAYED, 16, ("process", "content_type", "invocation", "function_ref"), True),
    FAIL: _Form(
        True,
        True,
        REPLAYED,
        16,
        ("process", "invocation", "address", "problem", "detail", "cause", "remedy"),
        False,
    ),
    DRAIN: _Form(True, False, 0, 0, ("address", "detail"), False),
}


class Frame(NamedTuple):
    """A frame, its head taken apart. `fields` has text for text and bytes for the rest."""

    kind: int
    flags: int
    id: int
    a: int
    b: int
    c: int
    fixed: bytes
    fields: Dict[str, object]
    body: bytes

    @property
    def is_end(self) -> bool:
        return bool(self.flags & END)

    def text(self, field: str) -> Optional[str]:
        """A text field, or None where there is none."""
        value = self.fields.get(field)
        return value if isinstance(value, str) else None


def _violation(name: str, detail: str) -> ProtocolViolation:
    return ProtocolViolation(
        detail, kind=name, remedy="look whether a Denizen node of the same version listens at this address"
    )


# Writing.


def encode(
    kind: int,
    id: int,
    *,
    flags: int = 0,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    fixed: bytes = b"",
    fields: Optional[Mapping[str, object]] = None,
    body: bytes = b"",
) -> bytes:
    """A whole frame with its padding. Fields that are None are left out.

    Raises BadRequest for a text that the other end would refuse."""
    head = bytearray(fixed)
    present = {name: value for name, value in (fields or {}).items() if value is not None}
    for name in sorted(present, key=lambda name: _TAGS[name]):
        value = _encode_field(name, present[name])
        head += _FIELD.pack(_TAGS[name], len(value)) + value
    header = _HEADER.pack(len(body), kind, flags, len(head), id, a, b, c)
    return b"".join((header, head, bytes(-len(head) % ALIGN), body, bytes(-len(body) % ALIGN)))


def _encode_field(name: str, value: object) -> bytes:
    rule = _FIELDS[_TAGS[name]][1]
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)  # type: ignore[call-overload]
    why = _flaw(rule, name, raw)
    if why is not None:
        raise BadRequest(f"the {name.replace('_', ' ')} cannot be {value!r:.80}: {why}")
    return raw


_NAME_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_PROBLEM_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-")


def _flaw(rule: object, name: str, raw: bytes) -> Optional[str]:
    """What is wrong with a field's content, if anything."""
    if not raw:
        return "it is empty"
    if rule == "name":
        if len(raw) > MAX_NAME or raw[:1] in (b".", b"-") or not _NAME_BYTES.issuperset(raw):
            return "a name is 1 to 128 of A-Z a-z 0-9 . _ - and begins with neither . nor -"
    elif rule == "problem":
        if len(raw) > MAX_PROBLEM_TYPE or not _PROBLEM_BYTES.issuperset(raw):
            return "it is no problem type"
    elif rule == "prose":
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return "it is not UTF-8"
        if len(raw) > _PROSE_LIMITS[name]:
            return "it is too long"
        if any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) <= 0x9F for c in text):
            return "it has control characters"
    elif rule == "binary":
        if name == "traceparent" and (len(raw) != 25 or not any(raw[:16]) or not any(raw[16:24])):
            return "it is not 25 bytes, or an id is all zero"
        if name == "token" and len(raw) > MAX_TOKEN:
            return "it is too long"
        if name == "function_ref" and (len(raw) != 12 or not any(raw[:8]) or int.from_bytes(raw[8:], "little") >= MAX_FUNCTIONS):
            return "it is not a table and an index"
    elif isinstance(rule, int):
        if len(raw) > rule:
            return f"it is over {rule} bytes"
        if any(byte < 0x20 or byte > 0x7E for byte in raw):
            return "it has bytes that are not visible ASCII"
    return None


def hello(
    app: str,
    process: Optional[str] = None,
    *,
    token: bytes = b"",
    client: Optional[str] = None,
    want_functions: bool = True,
    create: bool = True,
    epoch: int = 0,
    windows: Tuple[int, int] = (DEFAULT_CALL_WINDOW, DEFAULT_CONNECTION_WINDOW),
) -> bytes:
    """A HELLO."""
    options = (1 if want_functions else 0) | (0 if create else 2)
    fields = {"app": app, "process": process, "token": token or None, "client": client}
    fixed = struct.pack("<II8x", *windows)
    return encode(HELLO, MAGIC, a=VERSION | VERSION << 16, b=options, c=epoch, fixed=fixed, fields=fields)


def call(
    id: int,
    function: Union[str, Tuple[int, int]],
    body: bytes,
    *,
    end: bool,
    length: Optional[int] = None,
    deadline_ms: int = 0,
    durability: Optional[str] = None,
    create: bool = True,
    process: Optional[str] = None,
    content_type: Optional[str] = None,
    idempotency_key: Optional[str] = None,
    traceparent: Optional[bytes] = None,
) -> bytes:
    """A CALL with the beginning of its body. `function` is a name, or (table, index)."""
    named = isinstance(function, str)
    table, index = 0, BY_NAME
    if not isinstance(function, str):
        table, index = function
    if durability is not None and durability not in DURABILITIES:
        raise BadRequest(f"the durability cannot be {durability!r}: it is one of {', '.join(DURABILITIES)}")
    level = 255 if durability is None else DURABILITIES.index(durability)
    if end:
        length = len(body)
    fields = {
        "process": process,
        "function": function if named else None,
        "content_type": content_type,
        "idempotency_key": idempotency_key,
        "traceparent": traceparent,
    }
    return encode(
        CALL,
        id,
        flags=END if end else 0,
        a=index,
        b=deadline_ms,
        c=LENGTH_UNKNOWN if length is None else length,
        fixed=struct.pack("<QBB6x", table, level, 0 if create else 1),
        fields=fields,
        body=body,
    )


def data(id: int, body: bytes, *, end: bool) -> bytes:
    """A DATA of the client."""
    return encode(DATA, id, flags=END if end else 0, body=body)


def traceparent_bytes(text: str) -> bytes:
    """The text of the HTTP header `traceparent` (W3C Trace Context, version 00) in its binary form."""
    parts = text.split("-")
    digits = "".join(parts[1:])
    well_formed = len(parts) == 4 and parts[0] == "00" and [len(part) for part in parts[1:]] == [32, 16, 2]
    if not well_formed or set(digits) - set("0123456789abcdef"):
        raise BadRequest(f"{text!r} is not a traceparent", remedy="one looks like 00-TRACE-PARENT-FLAGS, in lower-case hexadecimal digits")
    return bytes.fromhex(digits)


def token_bytes(text: str) -> bytes:
    """The binary form of a token's text form, which is opaque otherwise.

    Raises BadRequest if it is not one."""
    text = text.strip()
    prefix = "dzt1_"
    encoded = text[len(prefix) :]
    try:
        if not text.startswith(prefix) or "=" in encoded:
            raise ValueError
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        if not raw or len(raw) > MAX_TOKEN:
            raise ValueError
    except (ValueError, binascii.Error):
        raise BadRequest(
            "the token cannot be read",
            kind="bad-token",
            remedy="pass the text that the node issued, beginning with dzt1_",
        ) from None
    return raw


# Reading.


class Decoder:
    """Cuts what a peer sends into frames. Holds at most one unfinished frame."""

    def __init__(self, *, from_server: bool = True) -> None:
        self._from_server = from_server
        self._buffer = bytearray()

    @property
    def is_within_frame(self) -> bool:
        """Whether bytes of a begun frame are missing."""
        return bool(self._buffer)

    def feed(self, received: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Raises ProtocolViolation; the connection is of no use then."""
        self._buffer += received
        at = 0
        try:
            while True:
                frame, length = self._next(at)
                if frame is None:
                    return
                at += length
                yield frame
        finally:
            del self._buffer[:at]

    def _next(self, at: int) -> Tuple[Optional[Frame], int]:
        if len(self._buffer) - at < HEADER_LEN:
            return None, 0
        body_len, kind, flags, head_len, id, a, b, c = _HEADER.unpack_from(self._buffer, at)
        form = self._check(body_len, kind, flags, head_len)
        head_at = at + HEADER_LEN
        body_at = head_at + head_len + -head_len % ALIGN
        end = body_at + body_len + -body_len % ALIGN
        if len(self._buffer) < end:
            return None, 0
        whole = self._buffer
        if any(whole[head_at + head_len : body_at]) or any(whole[body_at + body_len : end]):
            raise _violation("bad-padding", "padding is not zero")
        head = bytes(whole[head_at : head_at + head_len])
        fixed, fields = _read_head(form, head)
        body = bytes(whole[body_at : body_at + body_len])
        return Frame(kind, flags, id, a, b, c, fixed, fields, body), end - at

    def _check(self, body_len: int, kind: int, flags: int, head_len: int) -> _Form:
        form = _FORMS.get(kind)
        if form is None:
            raise _violation("unknown-kind", f"there is no frame of kind {kind}")
        if not (form.from_server if self._from_server else form.from_client):
            raise _violation("wrong-direction", f"a frame of kind {kind} comes from the other end only")
        if flags & ~form.flags:
            raise _violation("bad-flags", f"a frame of kind {kind} has flags {flags}")
        most = 0 if form.fixed is None else MAX_HEAD
        if head_len > most or head_len < (form.fixed or 0):
            raise _violation("bad-head-length", f"a head of {head_len} bytes in a frame of kind {kind}")
        limit = MAX_FUNCTIONS * (1 + MAX_NAME) if kind == ACCEPTED else MAX_FRAME_BODY
        if body_len > (limit if form.has_body else 0):
            raise _violation("body-too-long", f"a body of {body_len} bytes in a frame of kind {kind}")
        return form


def _read_head(form: _Form, head: bytes) -> Tuple[bytes, Dict[str, object]]:
    fixed = head[: form.fixed or 0]
    fields: Dict[str, object] = {}
    at, last = len(fixed), -1
    while at < len(head):
        if len(head) - at < _FIELD.size:
            raise _violation("field-cut-short", "a field runs over the end of its head")
        tag, length = _FIELD.unpack_from(head, at)
        at += _FIELD.size
        value = head[at : at + length]
        at += length
        if len(value) < length:
            raise _violation("field-cut-short", "a field runs over the end of its head")
        if tag <= last:
            raise _violation("field-order", f"field {tag} comes after field {last}")
        last = tag
        name, rule = _FIELDS.get(tag, ("", None))
        if name not in form.fields or not name:
            if tag & 0x8000:
                continue
            raise _violation("unknown-field", f"field {tag} does not belong here")
        why = _flaw(rule, name, value)
        if why is not None:
            raise _violation("bad-field", f"the field {name}: {why}")
        fields[name] = value if rule == "binary" else value.decode("utf-8")
    return fixed, fields


class Accepted(NamedTuple):
    """What an OK says."""

    epoch: int
    max_calls: int
    max_body: int
    call_window: int
    connection_window: int
    table: int
    functions: List[str]


def read_accepted(frame: Frame) -> Accepted:
    """Takes an OK apart."""
    table, max_body, call_window, connection_window, rest = struct.unpack("<QQIIQ", frame.fixed)
    _must(rest == 0, "reserved-not-zero", "the rest of the OK")
    _must(frame.id == MAGIC, "not-denizen", "the OK has another magic")
    _must(frame.a == VERSION, "bad-value", f"version {frame.a}")
    _must(MIN_CALLS <= frame.b <= MAX_CALLS, "bad-value", f"{frame.b} calls in flight")
    _must(MIN_WINDOW <= call_window <= connection_window <= MAX_WINDOW, "bad-value", "the windows of the OK")
    _must(table != 0 or not frame.body, "bad-value", "functions without a table")
    functions, at = [], 0
    while at < len(frame.body):
        name = frame.body[at + 1 : at + 1 + frame.body[at]]
        _must(len(name) == frame.body[at] and _flaw("name", "function", name) is None, "bad-field", "the function table")
        functions.append(name.decode("ascii"))
        at += 1 + len(name)
    _must(len(functions) <= MAX_FUNCTIONS, "bad-field", "the function table")
    return Accepted(frame.c, frame.b, max_body, call_window, connection_window, table, functions)


def read_moved(frame: Frame) -> Tuple[str, int]:
    """Address and epoch of a MOVED."""
    _must(frame.id == MAGIC, "not-denizen", "the MOVED has another magic")
    address = frame.text("address")
    if address is None:
        raise _violation("missing-field", "a MOVED without an address")
    return address, frame.c


def read_problem(frame: Frame) -> DenizenError:
    """The exception that a FAIL stands for."""
    blame, retry = frame.a & 0xFF, frame.a >> 8
    _must(blame < len(BLAMES) and retry < len(RETRIES), "bad-value", "blame and retry of a FAIL")
    _must(frame.fixed[8:] == bytes(8), "reserved-not-zero", "the rest of a FAIL")
    kind = frame.text("problem")
    if kind is None:
        raise _violation("missing-field", "a FAIL without a problem")
    return of_problem(
        kind,
        BLAMES[blame],
        RETRIES[retry],
        detail=frame.text("detail"),
        cause=frame.text("cause"),
        remedy=frame.text("remedy"),
        process=frame.text("process"),
        invocation=frame.text("invocation"),
        address=frame.text("address"),
        retry_after=frame.b / 1000,
        commit=int.from_bytes(frame.fixed[:8], "little"),
        replayed=bool(frame.flags & REPLAYED),
    )


def durability(number: int) -> str:
    """The name of a durability."""
    _must(number < len(DURABILITIES), "bad-value", f"durability {number}")
    return DURABILITIES[number]


def _must(holds: bool, violation: str, detail: str) -> None:
    if not holds:
        raise _violation(violation, detail)
