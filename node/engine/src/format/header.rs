//! The header of a segment: whose it is, where it stands in the log, and which other segments the log had when it began.
//!
//! The newest valid header is the root of recovery: what it does not list (and no later part retires) is not part of the log. It
//! is written once, before the first record of the segment, and never again.

use super::{FORMAT, Fields, Lineage, MAX_SEGMENT_LEN, checksum};

const MAGIC: [u8; 8] = *b"\x89DZSEG\r\n";

/// Bytes before the list.
const FIXED_LEN: usize = 128;
/// Bytes of one listed segment.
const LISTED_LEN: usize = 40;
/// Bytes of the checksum at the end.
const CRC_LEN: usize = 8;

/// Headers take a multiple of this many bytes, so that the first record has a page of its own.
pub(super) const HEADER_STEP: usize = 4096;
/// This much of a segment is enough to learn how long its header is.
pub(crate) const PEEK_LEN: usize = 16;

/// A segment that was part of the log when another one began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: u64,
    /// Number of the commit before its first one.
    pub(crate) base_seq: u64,
    pub(crate) last_seq: u64,
    /// Where its last record ends.
    pub(crate) end: u64,
    /// Checksum of its last record.
    pub(crate) end_chain: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) lineage: Lineage,
    pub(crate) id: u64,
    /// Place in the order of the log.
    pub(crate) ordinal: u64,
    /// Number of the commit before the first one in this segment.
    pub(crate) base_seq: u64,
    /// Checksum of the record before the first one in this segment.
    pub(crate) base_chain: u64,
    /// All commits up to this one were durable when the segment began.
    pub(crate) durable: u64,
    pub(crate) capacity: u64,
    pub(crate) created_ms: u64,
    pub(crate) listed: Vec<Listed>,
}

/// What the first bytes of a segment say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeaderPeek {
    /// Never written.
    Blank,
    /// A header of this many bytes.
    Header(usize),
    /// Neither.
    Damaged,
}

/// Bytes of a header that lists so many segments.
pub(crate) fn header_len(listed: usize) -> usize {
    (FIXED_LEN + listed * LISTED_LEN + CRC_LEN).next_multiple_of(HEADER_STEP)
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let len = header_len(self.listed.len());
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&self.lineage.0);
        let listed = self.listed.len() as u64;
        for number in [
            self.id,
            self.ordinal,
            self.base_seq,
            self.base_chain,
            self.durable,
            self.capacity,
            self.created_ms,
            listed,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.resize(FIXED_LEN, 0);
        for one in &self.listed {
            for number in [one.id, one.base_seq, one.last_seq, one.end, one.end_chain] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes.resize(len - CRC_LEN, 0);
        let crc = checksum(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Looks at the first [`PEEK_LEN`] bytes.
    pub(crate) fn peek(bytes: &[u8]) -> HeaderPeek {
        if bytes.len() < PEEK_LEN {
            return HeaderPeek::Damaged;
        }
        if bytes[..PEEK_LEN].iter().all(|byte| *byte == 0) {
            return HeaderPeek::Blank;
        }
        let mut fields = Fields(bytes);
        if fields.take() != MAGIC {
            return HeaderPeek::Damaged;
        }
        let _format = fields.u32();
        let len = fields.u32() as usize;
        if len == 0 || !len.is_multiple_of(HEADER_STEP) {
            return HeaderPeek::Damaged;
        }
        HeaderPeek::Header(len)
    }

    /// The format of a whole header. Its length, its number and a checksum at its end are in every format at the same place, so that
    /// another format is told from damage.
    pub(crate) fn format(bytes: &[u8]) -> Option<u32> {
        let HeaderPeek::Header(len) = Header::peek(bytes) else { return None };
        let (checked, crc) = bytes.get(..len)?.split_at(len - CRC_LEN);
        (checksum(checked) == Fields(crc).u64()).then(|| Fields(&bytes[MAGIC.len()..]).u32())
    }

    /// Decodes a whole header; `None` if anything in it is wrong.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Header> {
        if Header::format(bytes) != Some(FORMAT) {
            return None;
        }
        let HeaderPeek::Header(len) = Header::peek(bytes) else { return None };
        let checked = &bytes[..len - CRC_LEN];
        let mut fields = Fields(&checked[PEEK_LEN..]);
        let lineage = Lineage(fields.take());
        let [id, ordinal, base_seq, base_chain, durable, capacity, created_ms, listed] =
            std::array::from_fn(|_| fields.u64());
        let listed = usize::try_from(listed).ok().filter(|listed| *listed <= len / LISTED_LEN)?;
        if header_len(listed) != len || capacity > MAX_SEGMENT_LEN || capacity < len as u64 {
            return None;
        }
        let mut fields = Fields(&checked[FIXED_LEN..]);
        let listed = (0..listed)
            .map(|_| {
                let [id, base_seq, last_seq, end, end_chain] = std::array::from_fn(|_| fields.u64());
                Listed { id, base_seq, last_seq, end, end_chain }
            })
            .collect();
        Some(Header { lineage, id, ordinal, base_seq, base_chain, durable, capacity, created_ms, listed })
    }

    /// Bytes that this header takes in its segment.
    pub(crate) fn len(&self) -> u64 {
        header_len(self.listed.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(listed: u64) -> Header {
        Header {
            lineage: Lineage([7; 16]),
            id: 3,
            ordinal: 9,
            base_seq: 100,
            base_chain: 0xABCD,
            durable: 98,
            capacity: 1 << 20,
            created_ms: 5,
            listed: (0..listed)
                .map(|n| Listed { id: n, base_seq: n, last_seq: n + 1, end: 4096, end_chain: n * 3 })
                .collect(),
        }
    }

    #[test]
    fn headers_of_every_length_come_back() {
        for listed in [0, 1, 98, 99, 100, 101, 500] {
            let header = header(listed);
            let bytes = header.encode();
            assert_eq!(bytes.len() as u64, header.len());
            assert_eq!(Header::decode(&bytes), Some(header));
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let bytes = header(3).encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes), None, "bit {bit}");
        }
    }
}
