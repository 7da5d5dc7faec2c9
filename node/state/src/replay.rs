//! Reads a log from its file with plain reads, checks all of it, and says where it ends.
//!
//! It owns the difference between a torn tail and damage. Used by the engine before it maps anything, and by [`crate::offline`],
//! whose input a tenant may have written byte by byte: nothing here trusts a length before it has seen that the file is that long,
//! and the search behind a bad record is bounded.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU32;

use rustix::fs::SeekFrom;

use crate::StateError;
use crate::format::{PART_LEN, PartHead, PartKind, RECORD_LEN, RecordHead, SLOT_LEN, SLOTS, Slot};
use crate::index::{Entry, Index};

/// What a log says.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) slot: Slot,
    pub(crate) index: Index,
    /// End of the last whole record.
    pub(crate) tail: u64,
    /// Where bytes of a torn record end: everything from `tail` to here is to be cleared.
    pub(crate) torn_end: u64,
    pub(crate) seq: u64,
    /// Checksum that the next record chains.
    pub(crate) chain: u64,
}

/// Reads and checks everything.
pub(crate) fn replay(file: &File) -> Result<Replay, StateError> {
    let file_len = file.metadata().map_err(StateError::io("read", 0))?.len();
    let slot = read_slot(file)?;
    let window = Window::new(file, file_len);
    let (seq, chain, tail) = (slot.base_seq, slot.root(), slot.start);
    let mut state = Replay { slot, index: Index::default(), tail, torn_end: tail, seq, chain };
    let mut scan = Scan { window, root: slot.root() };
    while let Some(head) = scan.next_of(&state)? {
        scan.apply(&head, &mut state)?;
    }
    if state.tail < slot.base_end {
        return Err(StateError::Corrupt {
            offset: state.tail,
            why: "a record that was whole is not any more",
        });
    }
    state.torn_end = scan.end_of_torn_tail(&state)?;
    Ok(state)
}

/// The slot that counts. One that is neither valid nor blank is damage: falling back to the other would lose commits.
pub(crate) fn read_slot(file: &File) -> Result<Slot, StateError> {
    let mut newest: Option<Slot> = None;
    for offset in SLOTS {
        let mut bytes = [0; SLOT_LEN];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(StateError::NotFormatted);
            }
            Err(error) => return Err(StateError::io("read", 0)(error)),
        }
        let slot = Slot::decode(&bytes, offset)?;
        if slot.map(|s| s.generation) > newest.map(|s| s.generation) {
            newest = slot;
        }
    }
    newest.ok_or(StateError::NotFormatted)
}

struct Scan<'a> {
    window: Window<'a>,
    root: u64,
}

impl Scan<'_> {
    /// The head of the record at the tail, if a whole and valid one is there.
    fn next_of(&mut self, state: &Replay) -> Result<Option<RecordHead>, StateError> {
        let Some(head) = self.head_at(state.tail)? else { return Ok(None) };
        let in_base = state.tail < state.slot.base_end;
        let seq_fits = head.seq == if in_base { state.slot.base_seq } else { state.seq + 1 };
        let base_fits = !in_base || state.tail + head.len <= state.slot.base_end;
        let fits = seq_fits && base_fits && head.prev == state.chain;
        Ok(if fits && self.crc_fits(state.tail, &head)? { Some(head) } else { None })
    }

    /// A record's head at `offset` that belongs to this region and ends inside the file.
    fn head_at(&mut self, offset: u64) -> Result<Option<RecordHead>, StateError> {
        let Some(bytes) = self.window.chunk::<RECORD_LEN>(offset)? else { return Ok(None) };
        let Some(head) = RecordHead::decode(bytes) else { return Ok(None) };
        let inside = offset.checked_add(head.len).is_some_and(|end| end <= self.window.file_len);
        Ok((inside && head.root == self.root).then_some(head))
    }

    fn crc_fits(&mut self, offset: u64, head: &RecordHead) -> Result<bool, StateError> {
        let mut digest = head.digest();
        let mut at = offset + RECORD_LEN as u64;
        let end = offset + head.len;
        while at < end {
            let piece = self.window.some_bytes(at, end - at)?;
            digest.update(piece);
            at += piece.len() as u64;
        }
        Ok(digest.finalize() == head.crc)
    }

    /// Takes the parts of a record whose checksum fits: what is wrong now was written wrong.
    fn apply(&mut self, head: &RecordHead, state: &mut Replay) -> Result<(), StateError> {
        let end = state.tail + head.len;
        let mut at = state.tail + RECORD_LEN as u64;
        for _ in 0..head.parts {
            at = self.apply_part(at, end, head.seq, &mut state.index)?;
        }
        if at != end {
            return Err(StateError::Corrupt {
                offset: state.tail,
                why: "the parts of a record do not fill it",
            });
        }
        state.tail = end;
        state.seq = head.seq;
        state.chain = head.crc;
        Ok(())
    }

    fn apply_part(&mut self, at: u64, end: u64, seq: u64, index: &mut Index) -> Result<u64, StateError> {
        let corrupt = |why| StateError::Corrupt { offset: at, why };
        let bytes = self.window.chunk::<PART_LEN>(at)?.ok_or(corrupt("a part is cut short"))?;
        let part = PartHead::decode(bytes).ok_or(corrupt("a record has a part of unknown kind"))?;
        let next = part.whole_len().and_then(|len| at.checked_add(len)).filter(|next| *next <= end);
        let next = next.ok_or(corrupt("a part is longer than its record"))?;
        let key = self.window.bytes(at + PART_LEN as u64, u64::from(part.key_len))?;
        let key: Box<[u8]> = key.ok_or(corrupt("a key is cut short"))?.into();
        match part.kind {
            PartKind::Delete => drop(index.remove(&key)),
            PartKind::Put => drop(index.put(key, entry_of(&part, at, seq))),
        }
        Ok(next)
    }

    /// Looks behind the tail. Nothing but zeros, or pieces of a record that was cut short: the end of the pieces comes back. A whole
    /// later record of this region: the one at the tail was whole once, so it is damage.
    fn end_of_torn_tail(&mut self, state: &Replay) -> Result<u64, StateError> {
        let damaged = |why| StateError::Corrupt { offset: state.tail, why };
        let mut torn_end = state.tail;
        let mut at = state.tail;
        // A file made to be searched for ever is damaged on purpose.
        let mut budget = self.window.file_len.saturating_mul(4).saturating_add(1 << 20);
        while at < self.window.file_len {
            let piece = self.window.some_bytes(at, self.window.file_len - at)?;
            let behind = at + piece.len() as u64;
            let Some(used) = piece.iter().position(|byte| *byte != 0) else {
                at = self.window.skip_hole(behind);
                continue;
            };
            // Records begin at multiples of 16, as does every region.
            at += (used as u64) & !15;
            torn_end = (at + 16).min(self.window.file_len);
            if at > state.tail
                && let Some(head) = self.head_at(at)?
                && head.seq > state.seq
            {
                budget = budget
                    .checked_sub(head.len)
                    .ok_or(damaged("what lies behind it is made to look like records"))?;
                if self.crc_fits(at, &head)? {
                    return Err(damaged("valid commits follow a record that is not valid"));
                }
            }
            at += 16;
        }
        Ok(torn_end)
    }
}

fn entry_of(part: &PartHead, at: u64, seq: u64) -> Entry {
    Entry {
        offset: at + part.value_offset(),
        len: part.value_len,
        fingerprint: part.fingerprint,
        version: if part.version == 0 { seq } else { part.version },
        validated: Box::new(AtomicU32::new(0)),
    }
}

/// A stretch of the file in memory that moves along.
struct Window<'a> {
    file: &'a File,
    file_len: u64,
    buffer: Vec<u8>,
    at: u64,
}

/// How much is read at once, in bytes: more than the longest key and the heads around it.
const WINDOW_LEN: usize = 256 << 10;

impl<'a> Window<'a> {
    fn new(file: &'a File, file_len: u64) -> Window<'a> {
        Window { file, file_len, buffer: Vec::new(), at: 0 }
    }

    /// Between 1 and `most` bytes at `offset`, which must be inside the file.
    fn some_bytes(&mut self, offset: u64, most: u64) -> Result<&[u8], StateError> {
        let have = self.have(offset);
        if have == 0 {
            self.refill(offset)?;
        }
        let len = usize::try_from(most).unwrap_or(usize::MAX).min(self.have(offset));
        let from = self.position(offset);
        Ok(&self.buffer[from..from + len])
    }

    /// Where the next bytes at or behind `offset` may be that are no hole. A file can be long and have next to nothing in it;
    /// reading all those zeros could take hours.
    fn skip_hole(&self, offset: u64) -> u64 {
        match rustix::fs::seek(self.file, SeekFrom::Data(offset)) {
            // Record boundaries are multiples of 16, and so must be where the search goes on.
            Ok(data) => data.max(offset) & !15,
            Err(rustix::io::Errno::NXIO) => self.file_len,
            // A file system without holes.
            Err(_) => offset,
        }
    }

    /// Exactly `len` bytes, or `None` where the file ends before; `len` is at most [`crate::MAX_KEY_LEN`] and a little.
    fn bytes(&mut self, offset: u64, len: u64) -> Result<Option<&[u8]>, StateError> {
        if offset.checked_add(len).is_none_or(|end| end > self.file_len) {
            return Ok(None);
        }
        let Ok(len) = usize::try_from(len) else { return Ok(None) };
        if self.have(offset) < len {
            self.refill(offset)?;
        }
        let from = self.position(offset);
        Ok(self.buffer.get(from..from + len))
    }

    fn chunk<const N: usize>(&mut self, offset: u64) -> Result<Option<&[u8; N]>, StateError> {
        Ok(self.bytes(offset, N as u64)?.and_then(|bytes| bytes.first_chunk()))
    }

    /// How many bytes from `offset` on are in the buffer.
    fn have(&self, offset: u64) -> usize {
        if offset < self.at { 0 } else { self.buffer.len().saturating_sub(self.position(offset)) }
    }

    fn position(&self, offset: u64) -> usize {
        usize::try_from(offset - self.at).unwrap_or(usize::MAX)
    }

    fn refill(&mut self, offset: u64) -> Result<(), StateError> {
        let left = usize::try_from(self.file_len - offset).unwrap_or(usize::MAX);
        self.buffer.resize(WINDOW_LEN.min(left), 0);
        self.at = offset;
        self.file.read_exact_at(&mut self.buffer, offset).map_err(StateError::io("read", 0))
    }
}
