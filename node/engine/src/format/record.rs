//! The head of a commit record. Its checksum covers itself, the checksum of the record before (the chain), the parts with their keys,
//! and the place that it was written for, so that a copy of a record elsewhere (in a value, say) is not taken for one. It does not
//! cover the values: each part carries the checksum of its own, so that recovery may leave a large value for its first reader and
//! the compactor may move one without trusting it.

use super::{ALIGN, Fields, Lineage, MAX_SEGMENT_LEN, PART_LEN, checksum};

const MAGIC: u32 = u32::from_le_bytes(*b"DZcm");

/// Bytes of a record head.
pub(crate) const RECORD_LEN: usize = 64;
const CRC_AT: usize = 56;

/// Where a record is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) lineage: Lineage,
    pub(crate) segment: u64,
    /// Offset of the record in its segment, in bytes.
    pub(crate) at: u64,
}

impl Place {
    /// Differs for any two places; odd multipliers keep different offsets different.
    fn salt(self) -> u64 {
        let mut lineage = Fields(&self.lineage.0);
        (lineage.u64() ^ lineage.u64().rotate_left(17))
            .wrapping_add(self.segment.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .wrapping_add(self.at.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHead {
    /// How many parts follow.
    pub(crate) parts: u32,
    /// Bytes of the whole record.
    pub(crate) len: u64,
    /// Number of this commit.
    pub(crate) seq: u64,
    /// All commits up to this one were durable when the record was written.
    pub(crate) durable: u64,
    /// Checksum of the record before.
    pub(crate) prev: u64,
    /// When it was committed, in milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// Bytes of the parts and keys.
    pub(crate) meta_len: u32,
    /// Checksum of this head and of the parts.
    pub(crate) crc: u64,
}

impl RecordHead {
    /// Fills in the head, checksum included, of a record that begins with [`RECORD_LEN`] free bytes and goes on with its parts. Returns
    /// the checksum.
    pub(crate) fn seal(mut self, place: Place, record: &mut [u8]) -> u64 {
        let meta_end = RECORD_LEN + self.meta_len as usize;
        record[..4].copy_from_slice(&MAGIC.to_le_bytes());
        record[4..8].copy_from_slice(&self.parts.to_le_bytes());
        for (at, number) in
            [(8, self.len), (16, self.seq), (24, self.durable), (32, self.prev), (40, self.time_ms)]
        {
            record[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        record[48..52].copy_from_slice(&self.meta_len.to_le_bytes());
        record[52..CRC_AT].fill(0);
        // The field itself counts as zero, so that one pass covers head and parts.
        record[CRC_AT..RECORD_LEN].fill(0);
        self.crc = checksum(&record[..meta_end]) ^ place.salt();
        record[CRC_AT..RECORD_LEN].copy_from_slice(&self.crc.to_le_bytes());
        self.crc
    }

    /// Decodes a head whose lengths are possible; whether it is *valid* only [`RecordHead::fits`] says.
    pub(crate) fn decode(bytes: &[u8]) -> Option<RecordHead> {
        let mut fields = Fields(bytes.get(..RECORD_LEN)?);
        if fields.u32() != MAGIC {
            return None;
        }
        let parts = fields.u32();
        let [len, seq, durable, prev, time_ms] = std::array::from_fn(|_| fields.u64());
        let meta_len = fields.u32();
        let reserved = fields.u32();
        let crc = fields.u64();
        let shortest = RECORD_LEN as u64 + u64::from(meta_len);
        let possible = reserved == 0
            && len.is_multiple_of(ALIGN)
            && u64::from(meta_len).is_multiple_of(ALIGN)
            && len >= shortest
            && len <= MAX_SEGMENT_LEN
            && u64::from(parts) * PART_LEN as u64 <= u64::from(meta_len)
            && durable < seq;
        possible.then_some(RecordHead { parts, len, seq, durable, prev, time_ms, meta_len, crc })
    }

    /// Whether the checksum fits `record`, which holds the head and all its parts.
    pub(crate) fn fits(&self, place: Place, record: &[u8]) -> bool {
        let record = record.get(..RECORD_LEN + self.meta_len as usize);
        record.is_some_and(|record| unsalted(record) ^ place.salt() == self.crc)
    }

    /// Bytes from the beginning of the record to its first value.
    pub(crate) fn values_at(&self) -> u64 {
        RECORD_LEN as u64 + u64::from(self.meta_len)
    }
}

/// The checksum of head and parts with the checksum field taken as zero.
fn unsalted(record: &[u8]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&record[..CRC_AT]);
    digest.update(&[0; RECORD_LEN - CRC_AT]);
    digest.update(&record[RECORD_LEN..]);
    digest.finalize()
}
