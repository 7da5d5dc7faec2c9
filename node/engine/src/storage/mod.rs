//! Where segments come from. The engine opens, makes and deletes no file: whoever owns the files hands segments in through
//! [`Storage`], because in a sandbox nothing can be opened.
//!
//! What an implementation keeps, and what the engine relies on:
//!
//! - a segment is a **fresh** file, all of it allocated (`fallocate`) and reading as zeros before it is handed in. A sparse file on a
//!   full disk is a signal at some read;
//! - while the engine has it, it is never truncated, punched, zero-filled, recycled or cloned by reference;
//! - its name survives a crash once it was handed in (the owner synced its directory).

mod directory;
mod files;
mod map;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use directory::{Directory, segment_file, segment_ids};
pub use files::FileSegment;
pub use map::Map;

/// One segment of the log.
pub trait Segment: Send + Sync + fmt::Debug {
    /// Its number: unique for this process for ever.
    fn id(&self) -> u64;

    /// Bytes that it can hold; all of them are allocated.
    fn capacity(&self) -> u64;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Whatever the system says. The engine never tries the same write again.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// Whatever the system says; reading over the end is `UnexpectedEof`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// Whatever the system says. The engine never tries again.
    fn sync(&self) -> io::Result<()>;

    /// Maps the whole segment for reading. What is written later shows in it.
    ///
    /// # Errors
    /// Whatever the system says.
    fn map(&self) -> io::Result<Map>;

    /// The file, to be written through a map as well as by [`Segment::write_at`]; `None` if it cannot be mapped for writing.
    fn writable_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Where data begins at or after `offset`; `None` if only zeros that were never written follow. `Some(offset)` is always true enough.
    fn next_data(&self, offset: u64) -> Option<u64> {
        Some(offset)
    }
}

/// Who owns the segments.
pub trait Storage: Send + Sync + fmt::Debug {
    /// All segments that there are, in any order. Called once, at opening. What of it turns out not to be part of the log is retired, so
    /// nothing of it may be handed out as a spare.
    ///
    /// # Errors
    /// Whatever the system says.
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>>;

    /// A spare of at least this many bytes, if one is ready. Does not wait.
    ///
    /// # Errors
    /// Whatever the system says.
    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>>;

    /// Asks for a spare of about this many bytes, to be ready by the time that the segment in use is full. Returns at once.
    fn request_spare(&self, wanted_bytes: u64);

    /// Says that the log does not need this segment any more, for ever, and that this is durable. The owner may delete the file;
    /// snapshots may still read its map.
    fn retire(&self, id: u64);
}
