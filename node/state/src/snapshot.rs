//! Writes the live objects of one log as the base records of a new region, in the same file or another.
//!
//! It owns the layout of a base: records of a few MiB, each object with its original version, all with the number of the last commit.
//! Nothing refers to them until a header slot does, so a crash while they are written leaves the old region as it was.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crc_fast::Digest;

use crate::StateError;
use crate::format::{PART_LEN, PartHead, PartKind, RECORD_LEN, RecordHead, Slot, pad};
use crate::index::{Entry, Index, cost};

/// A base record is closed at this many bytes; a single larger object makes a larger one.
const RECORD_GOAL: u64 = 4 << 20;
/// How much is copied at once, in bytes.
const COPY_LEN: usize = 256 << 10;

/// Where everything went.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// End of the last record.
    pub(crate) end: u64,
    /// Checksum that the next record chains.
    pub(crate) chain: u64,
    /// New offset of each value, in the order of keys.
    pub(crate) offsets: Vec<u64>,
}

/// At most this many bytes are written for `live_bytes` of objects.
pub(crate) fn bound(live_bytes: u64) -> u64 {
    live_bytes + (live_bytes / RECORD_GOAL + 1) * RECORD_LEN as u64
}

/// Writes all objects of `index`, whose values are read from `from`, to `to` at `slot.start`.
pub(crate) fn write(index: &Index, from: &File, to: &File, slot: &Slot) -> Result<Snapshot, StateError> {
    let mut snapshot =
        Snapshot { end: slot.start, chain: slot.root(), offsets: Vec::with_capacity(index.len()) };
    let mut group: Vec<(&[u8], &Entry)> = Vec::new();
    let mut group_bytes = 0;
    for (key, entry) in index.iter() {
        group.push((key, entry));
        group_bytes += cost(key, entry);
        if group_bytes >= RECORD_GOAL {
            write_record(&group, group_bytes, from, to, slot, &mut snapshot)?;
            group.clear();
            group_bytes = 0;
        }
    }
    if !group.is_empty() {
        write_record(&group, group_bytes, from, to, slot, &mut snapshot)?;
    }
    Ok(snapshot)
}

fn write_record(
    group: &[(&[u8], &Entry)],
    bytes: u64,
    from: &File,
    to: &File,
    slot: &Slot,
    snapshot: &mut Snapshot,
) -> Result<(), StateError> {
    let mut head = RecordHead {
        parts: u32::try_from(group.len()).unwrap_or(u32::MAX),
        len: RECORD_LEN as u64 + bytes,
        seq: slot.base_seq,
        prev: snapshot.chain,
        root: slot.root(),
        crc: 0,
    };
    let start = snapshot.end;
    let mut out = Out { to, at: start + RECORD_LEN as u64, buffer: Vec::new(), digest: head.digest() };
    for (key, entry) in group {
        snapshot.offsets.push(write_part(key, entry, from, &mut out)?);
    }
    head.crc = out.finish()?;
    to.write_all_at(&head.encode(), start).map_err(StateError::io("written", head.len))?;
    snapshot.end = start + head.len;
    snapshot.chain = head.crc;
    Ok(())
}

/// Returns the offset of the value.
fn write_part(key: &[u8], entry: &Entry, from: &File, out: &mut Out<'_>) -> Result<u64, StateError> {
    let head = PartHead {
        kind: PartKind::Put,
        key_len: u32::try_from(key.len()).unwrap_or(u32::MAX),
        value_len: entry.len,
        fingerprint: entry.fingerprint,
        version: entry.version,
    };
    let value_at = out.position() + head.value_offset();
    out.push(&head.encode())?;
    out.push(key)?;
    out.zeros(head.value_offset() - PART_LEN as u64 - key.len() as u64)?;
    let mut piece = [0; 4096];
    let mut at = 0;
    while at < entry.len {
        let len = usize::try_from(entry.len - at).unwrap_or(usize::MAX).min(piece.len());
        from.read_exact_at(&mut piece[..len], entry.offset + at).map_err(StateError::io("read", 0))?;
        out.push(&piece[..len])?;
        at += len as u64;
    }
    out.zeros(pad(entry.len) - entry.len)?;
    Ok(value_at)
}

/// Gathers small pieces, and digests what it writes.
struct Out<'a> {
    to: &'a File,
    at: u64,
    buffer: Vec<u8>,
    digest: Digest,
}

impl Out<'_> {
    fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= COPY_LEN { self.flush() } else { Ok(()) }
    }

    fn zeros(&mut self, count: u64) -> Result<(), StateError> {
        const ZEROS: [u8; 16] = [0; 16];
        self.push(&ZEROS[..usize::try_from(count).unwrap_or(0)])
    }

    fn flush(&mut self) -> Result<(), StateError> {
        self.digest.update(&self.buffer);
        self.to
            .write_all_at(&self.buffer, self.at)
            .map_err(StateError::io("written", self.buffer.len() as u64))?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<u64, StateError> {
        self.flush()?;
        Ok(self.digest.finalize())
    }
}
