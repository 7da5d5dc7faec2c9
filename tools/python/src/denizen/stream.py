"""One call as a pair of streams."""

import io
from typing import TYPE_CHECKING, Dict

from . import frames
from .errors import DenizenError
from .link import Link

if TYPE_CHECKING:
    from .connection import Call, Connection


class CallStream(io.RawIOBase):
    """One call as a pair of streams: its input is written, its reply read, in any order. Use it in a `with`: left
    before its end, the call is cancelled.

    `read` and iteration end the input first; `read_some` does not, for a function that answers while it is still being told. Raises
    DenizenError."""

    def __init__(self, connection: "Connection", call: "Call", link: Link) -> None:
        super().__init__()
        self._connection = connection
        self._call = call
        self._link = link
        assert call._wire is not None
        self._wire = call._wire
        self._over = False

    @property
    def head(self) -> Dict[str, object]:
        """What the node says of the call, as in `Reply`; waits for the beginning of the reply. After the last byte
        it has the final commit."""
        while not self._wire.head:
            self._check()
            self._connection._step(None)
        return self._wire.head

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[override]
        """Sends all of it, waiting for credit."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            self._check()
            if self._wire.reply_ended:
                # The function has answered without reading on. What it left is of no use to anybody.
                break
            sent = self._link.send_input(self._wire, view[at:], False)  # type: ignore[arg-type]
            at += sent
            if sent:
                self._connection._guarded(self._link, self._link._send)
            else:
                self._connection._step(None)
        return len(view)

    def finish(self) -> None:
        """Ends the input."""
        if not self._wire.input_ended and not self._wire.reply_ended:
            self._check()
            self._link.send_input(self._wire, b"", True)
            self._connection._guarded(self._link, self._link._send)

    def read_some(self, size: int = 65536) -> bytes:
        """What is there, at least a byte, without ending the input. Empty: the reply is over."""
        while size > 0 and not self._over:
            if self._wire.body:
                piece = bytes(self._wire.body[:size])
                del self._wire.body[:size]
                self._link.credit(self._wire, len(piece))
                self._connection._guarded(self._link, self._link._send)
                return piece
            if self._wire.reply_ended:
                self._over = True
                self._connection._forget(self._call, frames.CANCEL_UNWANTED)
                break
            self._check()
            self._connection._step(None)
        return b""

    def readinto(self, buffer) -> int:
        """For `read`, `readall` and iteration."""
        self.finish()
        piece = self.read_some(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _check(self) -> None:
        if self._wire.reply_ended:
            return
        end = self._call._end
        # What came before a failure is handed out before it.
        if isinstance(end, DenizenError) and not self._wire.body:
            raise end

    def close(self) -> None:
        """Ends it; before the end of the reply, cancels the call."""
        if not self.closed and not self._over:
            self._over = True
            self._connection._forget(self._call, frames.CANCEL_UNWANTED)
        super().close()
