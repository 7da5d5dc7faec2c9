//! What can go wrong with state, and whose doing it is.

use std::io;

use crate::MAX_KEY_LEN;

/// Why state cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file was never formatted as state, or its formatting did not finish.
    #[error(
        "the state file has no header: it was never formatted, or a copy into it did not finish; restore it from its swapped copy"
    )]
    NotFormatted,
    /// Another version of this program wrote the file.
    #[error(
        "the state file has format {found}, this program reads format {readable}: run the version that wrote it"
    )]
    OtherFormat {
        /// In the file.
        found: u32,
        /// Known here.
        readable: u32,
    },
    /// Bytes that were written whole are no longer what was written.
    #[error(
        "the state file is damaged at byte {offset} ({why}): the disk or another program changed it; restore an earlier copy"
    )]
    Corrupt {
        /// Offset of the damaged record or header in the file, in bytes.
        offset: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// The live objects would take more than the process may have.
    #[error(
        "state would take {needed} bytes, {quota} are allowed: delete objects, or raise `state` under [limits]"
    )]
    QuotaExceeded {
        /// Live bytes with this change, in bytes.
        needed: u64,
        /// The limit in bytes.
        quota: u64,
    },
    /// One invocation committed so much that the log has no address left for more until it returns.
    #[error(
        "the log has no room left before the invocation returns: commit less often within one invocation"
    )]
    LogFull,
    /// The disk (or a disk quota of the host) is full. Nothing was written.
    #[error("the disk is full: {needed} more bytes are needed for state; free some on the node")]
    NoSpace {
        /// What was asked of the disk, in bytes.
        needed: u64,
    },
    /// There is no memory for the change. Nothing was written.
    #[error("no memory for {needed} bytes of state: put smaller objects, or raise `memory` under [limits]")]
    NoMemory {
        /// What was asked for, in bytes.
        needed: usize,
    },
    /// A key without bytes.
    #[error("a key of state must not be empty")]
    KeyEmpty,
    /// A key over the limit.
    #[error("a key of state has {len} bytes; {MAX_KEY_LEN} is the most it can have")]
    KeyTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// An earlier write failed, so nobody knows what the file holds behind its last good commit.
    #[error("an earlier write to the state file failed: the process must be started again")]
    Poisoned,
    /// The operating system refused.
    #[error("the state file cannot be {doing}: {source}")]
    Io {
        /// "read", "written", "mapped".
        doing: &'static str,
        /// Its reason.
        source: io::Error,
    },
}

impl StateError {
    /// An I/O error, or [`StateError::NoSpace`] where that is what it says.
    pub(crate) fn io(doing: &'static str, needed: u64) -> impl FnOnce(io::Error) -> StateError {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StateError::NoSpace { needed }
            }
            _ => StateError::Io { doing, source },
        }
    }
}
