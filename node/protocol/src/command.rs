//! What an end may not ask of its own connection. Unlike a violation these are this side's doing, and the connection is none the worse.

use crate::violation::Violation;

/// Why a frame was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No call with this id is in flight: it has ended, or never was.
    #[error("call {id} is not in flight")]
    UnknownCall {
        /// The call.
        id: u64,
    },
    /// More body than there is credit for, or than a frame takes. Send as much as is open, and the rest when credit comes.
    #[error("{len} body bytes do not fit: {open} may be sent now")]
    NoCredit {
        /// What was to be sent.
        len: usize,
        /// What may be sent.
        open: usize,
    },
    /// The body's beginning was sent already, or its end was, or the beginning is still missing.
    #[error("the body of call {id} is not at a point where this may be sent")]
    OutOfOrder {
        /// The call.
        id: u64,
    },
    /// A frame of a body with neither bytes nor the end.
    #[error("there is nothing to send for call {id}")]
    Empty {
        /// The call.
        id: u64,
    },
    /// The body is not as long as was declared.
    #[error("the body of call {id} is not as long as was declared")]
    LengthMismatch {
        /// The call.
        id: u64,
    },
    /// The server allows no more calls at once. Wait for an end.
    #[error("{max} calls are in flight, which is as many as the server allows")]
    TooManyCalls {
        /// How many it allows.
        max: u32,
    },
    /// The body is over the server's limit.
    #[error("a body of {len} bytes is over the server's limit of {max}")]
    BodyTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The server drains: open another connection.
    #[error("the connection takes no more calls")]
    Draining,
    /// The connection is not open, or was given up.
    #[error("the connection is not open")]
    NotOpen,
    /// A text or number that the peer would refuse.
    #[error(transparent)]
    Refused(#[from] Violation),
}
