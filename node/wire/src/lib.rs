//! Frames between the agent and a runner, on one UNIX stream socket per sandbox.
//!
//! This crate owns the layout of every byte on that socket and does no I/O: both ends bring their own reads and writes. It must
//! hold that no byte sequence whatever makes a decoder panic, allocate more than [`MAX_CONTROL_PAYLOAD`] plus a header, or accept
//! a frame that the other end is not entitled to send: the runner shares its address space with tenant code, so to the agent
//! everything that arrives is an allegation.
//!
//! A frame is a 32-byte little-endian [`Header`] and a payload. What the payload is depends on the [`Kind`]:
//!
//! | kinds | payload |
//! |---|---|
//! | `Assign`, `Ready`, `Refused`, `Fail` | one JSON document: [`Assignment`], [`Declarations`], [`LoadFailure`], [`Failure`] |
//! | `Invoke` | a [`CallHead`], then the first bytes of the input |
//! | `Reply` | a [`ReplyHead`], then the first bytes of the reply |
//! | `Data`, `ReplyData`, `LogLine` | plain bytes |
//! | `Caller`, `CallerParked` | [`AtRest`] |
//! | `Overrun` | the name of the invocation |
//! | the rest | none |
//!
//! **Flow control.** Each direction of an invocation starts with a credit of [`WINDOW`] bytes. Every body byte (in `Invoke`, `Data`,
//! `Reply`, `ReplyData`; heads do not count) uses one up, and the receiver returns them with `Credit` as it passes bytes on.
//! A sender without credit waits; a receiver may treat more than [`WINDOW`] unreturned bytes as a broken peer.

pub mod archive;
mod builtin;
mod control;
mod direct;
mod head;
mod header;
pub mod problem;
mod reader;
pub mod tar;

pub use builtin::{
    Builtin, Durability, FileListing, Imported, LastCapture, ListAsk, ListedFile, ListedFileKind, ListedKey,
    Listing, ValueHead, decode_put, encode_put, from_hex, to_hex,
};
pub use control::{
    Assignment, Concurrency, Declarations, FailKind, Failure, FunctionDecl, LoadFailure, LoadFailureKind,
    MOST_SEGMENTS_OF_PREPARED, PayloadKind, Recovery, RunnerLimits, StateSummary, TypeDecl,
};
pub use direct::{
    AtRest, CallerEnd, DrainCause, MAX_PARKED_RECORD, MAX_RESIDUE, direct_id, direct_name, is_direct,
    table_tag,
};
pub use head::{
    CallHead, MAX_CALL_HEAD, MAX_CONTENT_TYPE, MAX_IDEMPOTENCY_KEY, MAX_INVOCATION_ID, ReplyHead, TRACE_LEN,
    log_line_head, split_log_line,
};
pub use header::{
    CancelReason, FLAG_END, FLAG_REPLAYED, HEADER_LEN, Header, Kind, LENGTH_UNKNOWN, MAX_CONTROL_PAYLOAD,
    MAX_FRAME_PAYLOAD, SegmentUse, Sender, SpareRefusal, WINDOW,
};
pub use reader::{Frame, FrameReader};

/// Exit code of a runner that meets a fault of the host's: its own, the agent's, or a disk's that fails under the state.
pub const EXIT_FAULT: i32 = 70;
/// Exit code of a runner whose ring was closed or overwritten, which nobody in its sandbox but the plugin can do.
pub const EXIT_RING_SPOILED: i32 = 71;

/// Why bytes are not a frame of this protocol.
///
/// Each of these means that the peer is broken or hostile, never that a caller did something wrong: the remedy is always to close
/// the socket and end the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The kind byte names no frame.
    #[error(
        "frame kind {0} does not exist: the two ends are of different versions, or the stream lost its place"
    )]
    UnknownKind(u8),
    /// The kind exists, but only the other end may send it.
    #[error("a {0:?} frame came from the end that never sends one")]
    WrongDirection(Kind),
    /// A flag bit that no frame, or not this one, carries.
    #[error("a {kind:?} frame has the flags {flags:#04x}, which it cannot have")]
    BadFlags {
        /// What the frame says it is.
        kind: Kind,
        /// All its flags.
        flags: u8,
    },
    /// The payload is longer than its kind allows.
    #[error("a {kind:?} frame announces {len} bytes; {max} is the most it can have")]
    TooLong {
        /// What the frame says it is.
        kind: Kind,
        /// The announced payload length in bytes.
        len: usize,
        /// The limit for this kind in bytes.
        max: usize,
    },
    /// Frames about an invocation need an id, frames about the connection must have none.
    #[error("a {kind:?} frame has the invocation id {id}")]
    BadId {
        /// What the frame says it is.
        kind: Kind,
        /// The id that it carries.
        id: u64,
    },
    /// The head inside an `Invoke` or `Reply` payload is cut short, over its limit or not text.
    #[error("the head of a call or reply is broken: {0}")]
    BadHead(&'static str),
    /// The payload of a `Caller` or `CallerParked` frame is no connection at rest.
    #[error("a connection at rest is broken: {0}")]
    BadCaller(&'static str),
    /// A JSON payload did not parse.
    #[error("the document of a {kind:?} frame cannot be read: {why}")]
    BadDocument {
        /// The frame that carried it.
        kind: Kind,
        /// What the JSON parser says.
        why: String,
    },
}
