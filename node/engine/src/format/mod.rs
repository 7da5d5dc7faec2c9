//! The bytes of a segment. `FORMAT.md` beside this crate draws them.
//!
//! Everything is little-endian, everything that begins a record or a value lies at a multiple of 16, and every length is checked
//! before it is used: these bytes may come from a damaged disk or from a sandbox. Nothing here does I/O.

mod header;
mod part;
mod record;

pub(crate) use header::{Header, HeaderPeek, Listed, PEEK_LEN, header_len};
pub use part::PartKind;
pub(crate) use part::{Effect, PART_LEN, PLACED, Part, PartError, PartHead, Parts, cost_in_log};
pub(crate) use record::{Place, RECORD_LEN, RecordHead};

use crate::StateError;

/// Version of the format that is written and read.
pub const FORMAT: u32 = 1;

/// The longest key in bytes. Keys have at least one.
pub const MAX_KEY_LEN: usize = 1024;

/// The longest value in bytes; a quota is usually much less.
pub const MAX_VALUE_LEN: u64 = 32 << 30;

/// The largest segment in bytes: positions in it are counted in units of 16 bytes in 32 bits.
pub const MAX_SEGMENT_LEN: u64 = 64 << 30;

/// Values and records begin at multiples of this many bytes.
pub(crate) const ALIGN: u64 = 16;
/// The same, for lengths in memory.
pub(crate) const ALIGN_LEN: usize = 16;

/// Which history a segment belongs to: chosen when the state is made, the same in all its segments, different in every copy that
/// goes its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lineage(pub [u8; 16]);

/// CRC-64/NVME.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::crc64_nvme(bytes)
}

pub(crate) fn aligned(len: u64) -> u64 {
    len.next_multiple_of(ALIGN)
}

pub(crate) fn check_key(key: &[u8]) -> Result<(), StateError> {
    match key.len() {
        0 => Err(StateError::KeyEmpty),
        len if len > MAX_KEY_LEN => Err(StateError::KeyTooLong { len }),
        _ => Ok(()),
    }
}

/// Reads fixed-width numbers one after another. Callers have checked that there are enough bytes: short input reads as zeros.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.0.split_at(self.0.len().min(N));
        self.0 = later;
        now.try_into().unwrap_or([0; N])
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}
