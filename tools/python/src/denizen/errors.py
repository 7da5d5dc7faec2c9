"""What can go wrong between a caller and a function, told apart by whose doing it is.

The class follows from `blame`, so that `except denizen.FunctionFault` means what it says; some causes that a program may want to treat
apart have a class of their own below that.
"""

from typing import Optional

BLAMES = ("caller", "function", "host", "store")
RETRIES = ("never", "safe", "unknown")


class DenizenError(Exception):
    """A call, or a connection, that did not come to its end.

    Attributes:
        kind: a stable name: a problem type of Denizen, or one of this client's own. The set is open; act on `retry`.
        blame: whose doing it is: "caller", "function", "host" or "store".
        retry: whether the same call may be made again: "never" (it would fail again), "safe" (nothing was committed), or
            "unknown" (something may have been committed).
        detail, cause, remedy: for people: what happened, what was behind it, what to do. None where nobody knows.
        process, invocation: where it happened, as logs name it. None where no process was reached.
        retry_after: seconds after which to try again; 0 leaves it to the caller.
        commit: the process's last commit; 0 where it is not known.
        address: where the process lives, for kind "moved". None otherwise.
        replayed: whether it is how an earlier call with the same idempotency key failed.
    """

    kind = "error"
    blame = "host"
    retry = "unknown"

    def __init__(
        self,
        detail: Optional[str] = None,
        *,
        kind: Optional[str] = None,
        blame: Optional[str] = None,
        retry: Optional[str] = None,
        cause: Optional[str] = None,
        remedy: Optional[str] = None,
        process: Optional[str] = None,
        invocation: Optional[str] = None,
        retry_after: float = 0.0,
        commit: int = 0,
        address: Optional[str] = None,
        replayed: bool = False,
    ) -> None:
        self.kind = kind or type(self).kind
        self.blame = blame or type(self).blame
        self.retry = retry or type(self).retry
        self.detail = detail
        self.cause = cause
        self.remedy = remedy
        self.process = process
        self.invocation = invocation
        self.retry_after = retry_after
        self.commit = commit
        self.address = address
        self.replayed = replayed
        super().__init__(self.kind if detail is None else f"{self.kind}: {detail}")

    def with_retry(self, retry: str) -> "DenizenError":
        """The same cause for a call of which that much is known."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.args = self.args
        other.retry = retry
        return other


class CallerFault(DenizenError):
    """The request's doing: a bad name, a body over the limit, a token that is not enough."""

    blame = "caller"
    retry = "never"


class FunctionFault(DenizenError):
    """The function's doing."""

    blame = "function"


class HostFault(DenizenError):
    """The node's doing, or of whatever is between it and here."""

    blame = "host"


class StoreFault(DenizenError):
    """The doing of the place where state is kept."""

    blame = "store"


class BadRequest(CallerFault, ValueError):
    """The call cannot be made as it was asked for. Nothing was sent."""

    kind = "refused-here"


class ReplyTooLong(CallerFault):
    """The reply is longer than this client takes whole. Read it as a stream, or raise `reply_limit`."""

    kind = "reply-too-long"
    retry = "unknown"


class DeadlineExceeded(FunctionFault, TimeoutError):
    """The time of the call is over, by the node's clock or by this client's."""

    kind = "deadline-exceeded"


class Unreachable(HostFault, ConnectionError):
    """Nobody answers there, and the time to try is over. Nothing was executed."""

    kind = "unreachable"
    retry = "safe"


class ConnectionLost(HostFault, ConnectionError):
    """The connection ended before the call did."""

    kind = "connection-lost"


class ProtocolViolation(HostFault):
    """The other end broke a rule of the protocol, or answers for an ownership term that is over (kind "stale-epoch").

    `kind` is the name of the violation."""

    kind = "protocol-error"


_BY_BLAME = {"caller": CallerFault, "function": FunctionFault, "host": HostFault, "store": StoreFault}


def of_problem(kind: str, blame: str, retry: str, **more) -> DenizenError:
    """The exception for what a node says."""
    cls = _BY_BLAME[blame]
    if kind == DeadlineExceeded.kind and blame == "function":
        cls = DeadlineExceeded
    return cls(more.pop("detail", None), kind=kind, blame=blame, retry=retry, **more)
