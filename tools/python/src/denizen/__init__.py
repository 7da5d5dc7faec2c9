"""A client of Denizen's framed protocol, in the standard library alone.

* `Connection` makes calls: one after the other, many at a time, or as streams. It mends itself when it is cut off.
* `Pool` lends connections to threads.
* `DenizenError` and its kinds say whose doing a failure is, and whether the call may be made again.

No call is executed twice by this client's doing: it is made again only if the node said that it was not executed, or if it carries an
idempotency key.
"""

from .connection import Call, Connection, Pool
from .errors import (
    BadRequest,
    CallerFault,
    ConnectionLost,
    DeadlineExceeded,
    DenizenError,
    FunctionFault,
    HostFault,
    ProtocolViolation,
    ReplyTooLong,
    StoreFault,
    Unreachable,
)
from .link import Reply
from .stream import CallStream

__version__ = "0.1.0"

__all__ = [
    "BadRequest",
    "Call",
    "CallStream",
    "CallerFault",
    "Connection",
    "ConnectionLost",
    "DeadlineExceeded",
    "DenizenError",
    "FunctionFault",
    "HostFault",
    "Pool",
    "ProtocolViolation",
    "Reply",
    "ReplyTooLong",
    "StoreFault",
    "Unreachable",
]
