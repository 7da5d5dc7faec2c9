//! Pieces of a body, as both ends hand them out and measure them.

use crate::command::CommandError;
use crate::header::Header;

/// Bytes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// What is there. Count them in with `consumed` when they are dealt with.
    pub bytes: &'a [u8],
    /// How many more belong to the same frame, and are the next on the stream.
    pub rest: usize,
    /// The body is complete.
    pub end: bool,
}

/// The rest of a body that is the next on the stream, so that it can be received where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// The call.
    pub id: u64,
    /// Bytes of body.
    pub body: usize,
    /// Zero bytes behind them, part of the frame.
    pub padding: usize,
    /// Whether anybody wants them: the call may have ended meanwhile.
    pub wanted: bool,
}

/// The part that `bytes` are, with `rest` more to come in the frame of `header`.
pub(crate) fn part<'a>(header: &Header, bytes: &'a [u8], rest: usize) -> Part<'a> {
    Part { bytes, rest, end: rest == 0 && header.is_end() }
}

/// What is left of a declared length after `len` more bytes; `None` if they are too many, or the end comes too early.
pub(crate) fn remaining(declared: Option<u64>, len: u32, end: bool) -> Option<Option<u64>> {
    let Some(declared) = declared else { return Some(None) };
    let left = declared.checked_sub(u64::from(len))?;
    (!end || left == 0).then_some(Some(left))
}

/// A body length that may be sent now.
pub(crate) fn within(len: usize, open: usize) -> Result<u32, CommandError> {
    u32::try_from(len).ok().filter(|_| len <= open).ok_or(CommandError::NoCredit { len, open })
}
