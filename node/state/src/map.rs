//! The read-only map of a state file.
//!
//! One of the unsafe rooms. It owns the rule that makes a map of a growing file sound: only bytes that the engine has written, and
//! that it will not write again while anyone can read them, are ever turned into a slice. The engine keeps that rule; it asks for a
//! range only below the tail of its current region, and leaves a region only when it holds the sole reference to itself.

use std::fs::File;

use memmap2::{MmapOptions, MmapRaw};

use crate::StateError;

/// Addresses for a whole log, most of them not backed by anything yet.
#[derive(Debug)]
pub(crate) struct Map {
    raw: MmapRaw,
}

impl Map {
    /// Reserves `len` bytes of addresses over `file`, which may be (and stay) much shorter.
    pub(crate) fn over(file: &File, len: usize) -> Result<Map, StateError> {
        let raw = MmapOptions::new().len(len).map_raw_read_only(file);
        Ok(Map { raw: raw.map_err(StateError::io("mapped", 0))? })
    }

    /// Length in bytes of the addresses.
    pub(crate) fn len(&self) -> u64 {
        self.raw.len() as u64
    }

    /// The bytes of the file at `offset`.
    ///
    /// The caller, the engine, keeps to what the module says: the range was written by it and lies below the tail.
    ///
    /// # Panics
    /// When the range is outside the map: a bug in the engine, which checks offsets as it reads them from the file.
    pub(crate) fn bytes(&self, offset: u64, len: u64) -> &[u8] {
        let end = offset.checked_add(len).filter(|end| *end <= self.len());
        assert!(end.is_some(), "a stored object lies outside the map");
        #[expect(
            clippy::cast_possible_truncation,
            reason = "both are at most the map's length, which is a usize"
        )]
        let (offset, len) = (offset as usize, len as usize);
        // SAFETY: inside the map (just checked); written and below the tail (the engine's rule), so backed by the file and not
        // changed while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(offset), len) }
    }
}
