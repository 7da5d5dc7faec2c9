//! The bytes of a state file: page 0 with two header slots, then records.
//!
//! All numbers are little-endian.
//!
//! - *Header slot*, 96 bytes at 0 and at 2048: magic 8, format u32, zero u32, lineage 16, generation u64, start u64, base_seq u64,
//!   base_end u64, zero 24, crc u64.
//! - *Record*, 48 bytes and its parts: magic u32, parts u32, len u64 (all of it), seq u64, prev u64 (crc of the record before),
//!   root u64 (which region), crc u64 (of everything else).
//! - *Part*, 32 bytes, key and value: kind u8, zero 3, key_len u32, value_len u64, fingerprint u64, version u64 (0: the record's
//!   seq).
//!
//! Records, keys and values are padded with zeros to 16 bytes, so that values are 16-aligned in the map. `root` makes a record of
//! another region, generation or file worthless here, however valid it looks.

use crc_fast::{CrcAlgorithm, Digest};

use crate::StateError;

/// Longest key in bytes.
pub const MAX_KEY_LEN: usize = 64 << 10;
pub(crate) const FORMAT: u32 = 1;
pub(crate) const PAGE: u64 = 4096;
/// No file has this many generations or commits.
const COUNT_LIMIT: u64 = 1 << 62;
pub(crate) const SLOT_LEN: usize = 96;
pub(crate) const SLOTS: [u64; 2] = [0, 2048];
pub(crate) const RECORD_LEN: usize = 48;
pub(crate) const PART_LEN: usize = 32;
const SLOT_MAGIC: [u8; 8] = *b"DNZSTATE";
const RECORD_MAGIC: u32 = 0x4352_5A44;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Which process a state file belongs to, chosen by whoever formats it; copies keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage(pub [u8; 16]);

/// A header slot: where the current region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) lineage: Lineage,
    /// Counts the regions that this file has had; the higher of two slots counts.
    pub(crate) generation: u64,
    /// Offset of the first record.
    pub(crate) start: u64,
    /// Number of the last commit that the base records contain.
    pub(crate) base_seq: u64,
    /// Everything from `start` to here was whole when this slot was written.
    pub(crate) base_end: u64,
}

impl Slot {
    /// What the records of this region carry.
    pub(crate) fn root(&self) -> u64 {
        let mut digest = digest();
        digest.update(&self.lineage.0);
        digest.update(&self.generation.to_le_bytes());
        digest.update(&self.start.to_le_bytes());
        digest.finalize()
    }

    pub(crate) fn encode(&self) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        out[0..8].copy_from_slice(&SLOT_MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..32].copy_from_slice(&self.lineage.0);
        out[32..40].copy_from_slice(&self.generation.to_le_bytes());
        out[40..48].copy_from_slice(&self.start.to_le_bytes());
        out[48..56].copy_from_slice(&self.base_seq.to_le_bytes());
        out[56..64].copy_from_slice(&self.base_end.to_le_bytes());
        let crc = crc_of(&[&out[..88]]);
        out[88..96].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `Ok(None)` for a slot that was never written.
    pub(crate) fn decode(bytes: &[u8; SLOT_LEN], offset: u64) -> Result<Option<Slot>, StateError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let corrupt = |why| Err(StateError::Corrupt { offset, why });
        if bytes[0..8] != SLOT_MAGIC {
            return corrupt("the header is no state header");
        }
        if u64_at(bytes, 88) != crc_of(&[&bytes[..88]]) {
            return corrupt("the header's checksum does not fit");
        }
        let format = u32_at(bytes, 8);
        if format != FORMAT {
            return Err(StateError::OtherFormat { found: format, readable: FORMAT });
        }
        let mut lineage = [0; 16];
        lineage.copy_from_slice(&bytes[16..32]);
        let slot = Slot {
            lineage: Lineage(lineage),
            generation: u64_at(bytes, 32),
            start: u64_at(bytes, 40),
            base_seq: u64_at(bytes, 48),
            base_end: u64_at(bytes, 56),
        };
        if slot.start < PAGE || !slot.start.is_multiple_of(16) || slot.base_end < slot.start {
            return corrupt("the header points nowhere");
        }
        // So that they can be counted on from here without a thought.
        if slot.generation > COUNT_LIMIT || slot.base_seq > COUNT_LIMIT {
            return corrupt("the header counts what cannot have happened");
        }
        Ok(Some(slot))
    }
}

/// The fixed front of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) parts: u32,
    /// Length of the whole record in bytes.
    pub(crate) len: u64,
    pub(crate) seq: u64,
    pub(crate) prev: u64,
    pub(crate) root: u64,
    pub(crate) crc: u64,
}

impl RecordHead {
    /// The bytes without the checksum field, which are what it covers first.
    fn covered(&self) -> [u8; RECORD_LEN - 8] {
        let mut out = [0; RECORD_LEN - 8];
        out[0..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&self.parts.to_le_bytes());
        out[8..16].copy_from_slice(&self.len.to_le_bytes());
        out[16..24].copy_from_slice(&self.seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.prev.to_le_bytes());
        out[32..40].copy_from_slice(&self.root.to_le_bytes());
        out
    }

    /// A digest that has seen the front; feed it the parts in their order.
    pub(crate) fn digest(&self) -> Digest {
        let mut digest = digest();
        digest.update(&self.covered());
        digest
    }

    pub(crate) fn encode(&self) -> [u8; RECORD_LEN] {
        let mut out = [0; RECORD_LEN];
        out[..RECORD_LEN - 8].copy_from_slice(&self.covered());
        out[RECORD_LEN - 8..].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    /// Only what can be seen from these bytes; `None` where they are no record's front.
    pub(crate) fn decode(bytes: &[u8; RECORD_LEN]) -> Option<RecordHead> {
        let head = RecordHead {
            parts: u32_at(bytes, 4),
            len: u64_at(bytes, 8),
            seq: u64_at(bytes, 16),
            prev: u64_at(bytes, 24),
            root: u64_at(bytes, 32),
            crc: u64_at(bytes, 40),
        };
        let plausible =
            u32_at(bytes, 0) == RECORD_MAGIC && head.len >= RECORD_LEN as u64 && head.len.is_multiple_of(16);
        plausible.then_some(head)
    }
}

/// What a part does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    Put,
    Delete,
}

/// The fixed front of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartHead {
    pub(crate) kind: PartKind,
    pub(crate) key_len: u32,
    pub(crate) value_len: u64,
    pub(crate) fingerprint: u64,
    pub(crate) version: u64,
}

impl PartHead {
    /// Offset of the value from the start of the part.
    pub(crate) fn value_offset(&self) -> u64 {
        PART_LEN as u64 + pad(u64::from(self.key_len))
    }

    /// Length of the whole part, or `None` when the numbers overflow.
    pub(crate) fn whole_len(&self) -> Option<u64> {
        let value = self.value_len.checked_next_multiple_of(16)?;
        self.value_offset().checked_add(value)
    }

    pub(crate) fn encode(&self) -> [u8; PART_LEN] {
        let mut out = [0; PART_LEN];
        out[0] = match self.kind {
            PartKind::Put => PUT,
            PartKind::Delete => DELETE,
        };
        out[4..8].copy_from_slice(&self.key_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.value_len.to_le_bytes());
        out[16..24].copy_from_slice(&self.fingerprint.to_le_bytes());
        out[24..32].copy_from_slice(&self.version.to_le_bytes());
        out
    }

    /// `None` for a part that this program does not know or that cannot be.
    pub(crate) fn decode(bytes: &[u8; PART_LEN]) -> Option<PartHead> {
        let kind = match bytes[0] {
            PUT => PartKind::Put,
            DELETE => PartKind::Delete,
            _ => return None,
        };
        let head = PartHead {
            kind,
            key_len: u32_at(bytes, 4),
            value_len: u64_at(bytes, 8),
            fingerprint: u64_at(bytes, 16),
            version: u64_at(bytes, 24),
        };
        let key_fits = head.key_len >= 1 && head.key_len as usize <= MAX_KEY_LEN;
        (key_fits && bytes[1..4] == [0; 3] && head.whole_len().is_some()).then_some(head)
    }
}

/// Bytes that a live object takes in a log, which is what the quota counts.
pub(crate) fn put_cost(key_len: usize, value_len: usize) -> u64 {
    PART_LEN as u64 + pad(key_len as u64) + pad(value_len as u64)
}

/// The next multiple of 16.
pub(crate) fn pad(len: u64) -> u64 {
    len.next_multiple_of(16)
}

/// Refuses keys that cannot be stored.
pub(crate) fn check_key(key: &[u8]) -> Result<(), StateError> {
    match key.len() {
        0 => Err(StateError::KeyEmpty),
        len if len > MAX_KEY_LEN => Err(StateError::KeyTooLong { len }),
        _ => Ok(()),
    }
}

pub(crate) fn digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc64Nvme)
}

fn crc_of(pieces: &[&[u8]]) -> u64 {
    let mut digest = digest();
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc64_nvme() {
        assert_eq!(crc_of(&[b"1234", b"56789"]), 0xAE8B_1486_0A79_9888);
    }

    #[test]
    fn a_slot_round_trips_and_any_flipped_bit_is_seen() {
        let slot =
            Slot { lineage: Lineage([3; 16]), generation: 7, start: 4096, base_seq: 9, base_end: 8192 };
        let bytes = slot.encode();
        assert_eq!(Slot::decode(&bytes, 0).unwrap(), Some(slot));
        for bit in 0..SLOT_LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Slot::decode(&flipped, 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_header_that_cannot_be_counted_on_is_refused() {
        let slot =
            Slot { lineage: Lineage([3; 16]), generation: 7, start: 4096, base_seq: 9, base_end: 8192 };
        for slot in [Slot { generation: u64::MAX, ..slot }, Slot { base_seq: u64::MAX, ..slot }] {
            assert!(matches!(Slot::decode(&slot.encode(), 0), Err(StateError::Corrupt { .. })), "{slot:?}");
        }
    }

    #[test]
    fn an_unknown_part_is_refused() {
        let head = PartHead { kind: PartKind::Put, key_len: 1, value_len: 5, fingerprint: 2, version: 3 };
        assert_eq!(PartHead::decode(&head.encode()), Some(head));
        for kind in [0, 3, 255] {
            let mut bytes = head.encode();
            bytes[0] = kind;
            assert_eq!(PartHead::decode(&bytes), None);
        }
        let huge = PartHead { value_len: u64::MAX - 3, ..head };
        assert_eq!(PartHead::decode(&huge.encode()), None);
    }
}
