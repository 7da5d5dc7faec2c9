//! The ordered index of one table: a B+-tree whose pages are shared between snapshots and copied when they are written.
//!
//! A snapshot is a clone of the root. A page that only the writer can see is changed in place; one that a snapshot can see as well is
//! copied first, and the copy takes its place on the way up. What no snapshot sees any more is freed by the last reference, which is
//! all the reclamation there is: a reader that stays for ever holds on to one set of pages, whatever is written meanwhile.
//!
//! The items say where a value lies; they never hold it. Every page has an encoding ([`page`]) of at most 64 KiB.

mod bytes;
mod items;
mod iter;
mod keys;
pub(crate) mod page;
mod shared;
mod tree;

pub(crate) use tree::Tree;

/// Most entries in a leaf, and most children of an inner page. With the longest keys a page still fits in 64 KiB.
pub(crate) const FANOUT: usize = 48;

/// Where the value of a key lies, and what `keys` and readers ask of it without touching it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Item {
    /// Which segment, by its slot.
    pub(crate) slot: u32,
    /// Where in it, in units of 16 bytes.
    pub(crate) at: u32,
    /// Which cell of the segment is this version's.
    pub(crate) cell: u32,
    /// Recovery did not compare the value with its checksum: the first reader does.
    pub(crate) unread: bool,
    /// Length of the value in bytes.
    pub(crate) len: u64,
    /// Number of the commit that wrote it.
    pub(crate) version: u64,
    pub(crate) fingerprint: u64,
    /// When it was written, in milliseconds since 1970.
    pub(crate) time_ms: u64,
    pub(crate) value_crc: u64,
}

impl Item {
    /// Where the value begins in its segment, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.at) * crate::format::ALIGN
    }

    /// The position of a value `offset` bytes into a segment; segments are short enough for it to fit.
    pub(crate) fn position(offset: u64) -> u32 {
        u32::try_from(offset / crate::format::ALIGN).unwrap_or(u32::MAX)
    }
}
