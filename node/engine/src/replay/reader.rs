//! Reading records one after another by plain reads: never through a map, so that a failing disk is an error and not a signal.

use crate::StateError;
use crate::error::Operation;
use crate::format::{Header, Lineage, Part, PartError, Parts, Place, RECORD_LEN, RecordHead, checksum};
use crate::index::Item;
use crate::segment::ReadChecksum;
use crate::storage::Segment;

/// Values longer than this are not read by recovery when a sync has covered them: the first reader compares them with their checksum.
/// Shorter ones come along with the pages that are read anyway.
pub(crate) const EAGER_LEN: u64 = 16 << 10;

/// Parts beyond this many bytes of a record are not searched for a flipped bit: it would take too long.
const REPAIRED_LEN: usize = 64 << 10;

/// Bytes that may be hashed in vain while records are looked for in a segment, in lengths of the segment. What a sandbox wrote may look
/// like the head of a long record at every place, and each of them costs its length.
const IN_VAIN: u64 = 4;

/// Bytes that may be hashed while flipped bits are looked for in a segment: once the most that one place can take.
const REPAIRS: u64 = 8 * ((RECORD_LEN + REPAIRED_LEN) as u64).pow(2);

/// Read at once.
const WINDOW: usize = 1 << 20;

/// Where a record begins and what it has to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) at: u64,
    /// Number and checksum of the record before.
    pub(crate) seq: u64,
    pub(crate) chain: u64,
}

/// Why there is no record at a place.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The bytes there are not the record that has to follow.
    Broken(&'static str),
    /// Nothing can be said, or it is known that something is wrong.
    Fatal(StateError),
}

impl Cursor {
    /// Before the first record of a segment.
    pub(crate) fn first(header: &Header) -> Cursor {
        Cursor { at: header.len(), seq: header.base_seq, chain: header.base_chain }
    }

    /// Behind a record at `at`.
    pub(crate) fn behind(at: u64, head: &RecordHead) -> Cursor {
        Cursor { at: at + head.len, seq: head.seq, chain: head.crc }
    }
}

impl From<StateError> for Stop {
    fn from(error: StateError) -> Stop {
        Stop::Fatal(error)
    }
}

/// Records of one segment.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    pub(crate) segment: &'a dyn Segment,
    lineage: Lineage,
    capacity: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Bytes that were hashed, and were no record.
    in_vain: u64,
    /// Bytes that were hashed for flipped bits.
    repairing: u64,
}

impl<'a> Records<'a> {
    pub(crate) fn new(segment: &'a dyn Segment, lineage: Lineage) -> Records<'a> {
        let capacity = segment.capacity();
        Records { segment, lineage, capacity, window: Vec::new(), window_at: 0, in_vain: 0, repairing: 0 }
    }

    fn place(&self, at: u64) -> Place {
        Place { lineage: self.lineage, segment: self.segment.id(), at }
    }

    /// `len` bytes from `at`, which lie inside the segment.
    pub(crate) fn bytes(&mut self, at: u64, len: usize) -> Result<&[u8], StateError> {
        let inside = at >= self.window_at && at + len as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let left = usize::try_from(self.capacity - at).unwrap_or(usize::MAX);
            self.window.resize(len.max(WINDOW).min(left), 0);
            self.window_at = at;
            let read = self.segment.read_at(&mut self.window, at);
            if let Err(error) = read {
                self.window.clear();
                return Err(StateError::io(Operation::Read, self.segment.id())(error));
            }
        }
        let from = usize::try_from(at - self.window_at).unwrap_or(usize::MAX);
        Ok(&self.window[from..from + len])
    }

    /// A valid record at `at`, whatever it follows. Its values are not looked at.
    pub(crate) fn valid_at(&mut self, at: u64) -> Result<Option<RecordHead>, StateError> {
        if at + RECORD_LEN as u64 > self.capacity {
            return Ok(None);
        }
        let Some(head) = RecordHead::decode(self.bytes(at, RECORD_LEN)?) else { return Ok(None) };
        if head.len > self.capacity - at {
            return Ok(None);
        }
        let place = self.place(at);
        let record = self.bytes(at, RECORD_LEN + head.meta_len as usize)?;
        let fits = head.fits(place, record);
        if !fits {
            self.in_vain += head.values_at();
        }
        Ok(fits.then_some(head))
    }

    /// The record that follows `cursor`.
    pub(crate) fn next(&mut self, cursor: &Cursor) -> Result<RecordHead, Stop> {
        let head = self.valid_at(cursor.at)?.ok_or(Stop::Broken("no whole record is there"))?;
        if head.seq != cursor.seq + 1 || head.prev != cursor.chain {
            return Err(Stop::Broken("a record does not follow the one before"));
        }
        Ok(head)
    }

    /// The parts of a record that [`Records::valid_at`] found at `at`.
    pub(crate) fn parts(&mut self, at: u64, head: &RecordHead) -> Result<Vec<Found>, StateError> {
        let id = self.segment.id();
        let meta = self.bytes(at + RECORD_LEN as u64, head.meta_len as usize)?;
        Found::all(id, at, head, meta)
    }

    /// The record that follows `cursor`, if a single flipped bit in its head or parts is all that is wrong with it; and its parts.
    ///
    /// A bit is put back only if the whole record then fits its checksum, the place and the record before, so what comes out is what was
    /// written but for a chance of one in 2⁶⁴ per bit tried.
    pub(crate) fn repaired(
        &mut self,
        cursor: &Cursor,
    ) -> Result<Option<(RecordHead, Vec<Found>)>, StateError> {
        let left = usize::try_from(self.capacity - cursor.at).unwrap_or(usize::MAX);
        if left < RECORD_LEN {
            return Ok(None);
        }
        let place = self.place(cursor.at);
        // The copy counts, too.
        let mut hashed = left.min(RECORD_LEN + REPAIRED_LEN) as u64;
        let follows = |head: &RecordHead| head.seq == cursor.seq + 1 && head.prev == cursor.chain;
        let mut fitting = |record: &[u8]| {
            let head = RecordHead::decode(record).filter(follows)?;
            hashed += head.values_at();
            (head.len <= left as u64 && head.fits(place, record)).then_some(head)
        };
        if self.repairing >= REPAIRS {
            return Ok(None);
        }
        let mut record = self.bytes(cursor.at, left.min(RECORD_LEN + REPAIRED_LEN))?.to_vec();
        // With a bit of the parts flipped the head is as it was, so it says how far to try.
        let parts_end = RecordHead::decode(&record).filter(follows).map(|head| head.values_at());
        let end = parts_end.and_then(|end| usize::try_from(end).ok()).unwrap_or(RECORD_LEN);
        let mut found = None;
        for bit in 0..end.min(record.len()) * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            found = fitting(&record);
            if found.is_some() {
                break;
            }
            record[bit / 8] ^= 1 << (bit % 8);
        }
        self.repairing += hashed;
        let Some(head) = found else { return Ok(None) };
        let meta = &record[RECORD_LEN..RECORD_LEN + head.meta_len as usize];
        Found::all(self.segment.id(), cursor.at, &head, meta).map(|parts| Some((head, parts)))
    }

    /// Whether a value fits its checksum.
    pub(crate) fn value_fits(&mut self, part: &Found) -> Result<bool, StateError> {
        self.fits(part.value_at, part.head.value_len, part.head.value_crc)
    }

    /// Whether the value of `len` bytes at `at` fits the checksum `crc`.
    pub(crate) fn fits(&mut self, at: u64, len: u64, crc: u64) -> Result<bool, StateError> {
        if len <= EAGER_LEN {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            return Ok(checksum(self.bytes(at, len)?) == crc);
        }
        Ok(ReadChecksum::new(self.segment).of(at, len)? == crc)
    }

    /// Whether [`Records::scan`] has given up.
    pub(crate) fn is_flooded(&self) -> bool {
        self.in_vain > IN_VAIN * self.capacity
    }

    /// Whether the next bytes, up to a page of them, are zeros.
    pub(crate) fn blank_at(&mut self, at: u64) -> Result<bool, StateError> {
        let len = usize::try_from(self.capacity.saturating_sub(at)).unwrap_or(usize::MAX).min(4096);
        Ok(self.bytes(at, len)?.iter().all(|byte| *byte == 0))
    }

    /// The next valid record at or after `at`, at any multiple of 16.
    ///
    /// # Errors
    /// Damage where too much looks like a record and is none. What lies behind is not known then, and is not to be taken for nothing: it
    /// may be what says that a missing commit had been durable.
    pub(crate) fn scan(&mut self, mut at: u64) -> Result<Option<(u64, RecordHead)>, StateError> {
        loop {
            match self.segment.next_data(at) {
                Some(data) => at = at.max(data & !15),
                None => return Ok(None),
            }
            let step_end = (at + WINDOW as u64 / 2).min(self.capacity);
            while at + RECORD_LEN as u64 <= step_end {
                if let Some(head) = self.valid_at(at)? {
                    return Ok(Some((at, head)));
                }
                if self.is_flooded() {
                    let why = "too much looks like a record and is none: what is behind it cannot be known";
                    return Err(StateError::damage(self.segment.id(), at, None, why));
                }
                at += 16;
            }
            if step_end == self.capacity {
                return Ok(None);
            }
        }
    }
}

/// A part of a record, with its key copied out.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) head: crate::format::PartHead,
    pub(crate) key: Box<[u8]>,
    /// Where its value lies in the segment.
    pub(crate) value_at: u64,
}

impl Found {
    fn all(id: u64, at: u64, head: &RecordHead, meta: &[u8]) -> Result<Vec<Found>, StateError> {
        let mut found = Vec::with_capacity(head.parts as usize);
        for part in Parts::new(meta, at, head) {
            match part {
                Ok(part) => found.push(Found::new(&part)),
                Err(PartError::UnknownKind(kind)) => {
                    return Err(StateError::UnknownPart { segment: id, offset: at, kind });
                }
                Err(PartError::Malformed) => {
                    return Err(StateError::damage(id, at, None, "a whole record holds impossible parts"));
                }
            }
        }
        Ok(found)
    }

    fn new(part: &Part<'_>) -> Found {
        Found { head: part.head, key: part.key.into(), value_at: part.value_at }
    }

    /// Whether the value does not lie in the record.
    pub(crate) fn is_placed(&self) -> bool {
        self.head.place != 0
    }

    /// What an index says of it: a part of the record `head` in the segment in `slot`.
    pub(crate) fn item(&self, slot: u32, cell: u32, head: &RecordHead, unread: bool) -> Item {
        let own = |own: u64, record: u64| if own == 0 { record } else { own };
        Item {
            slot,
            at: Item::position(self.value_at),
            cell,
            unread,
            len: self.head.value_len,
            version: own(self.head.version, head.seq),
            fingerprint: self.head.fingerprint,
            time_ms: own(self.head.time_ms, head.time_ms),
            value_crc: self.head.value_crc,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{PartHead, PartKind};
    use crate::storage::Map;
    use std::io;

    const LINEAGE: Lineage = Lineage([5; 16]);

    #[derive(Debug)]
    struct Memory(Vec<u8>);

    impl Segment for Memory {
        fn id(&self) -> u64 {
            4
        }
        fn capacity(&self) -> u64 {
            self.0.len() as u64
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!("recovery does not write")
        }
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
            let from = usize::try_from(offset).unwrap();
            bytes.copy_from_slice(&self.0[from..from + bytes.len()]);
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            unreachable!("recovery does not sync")
        }
        fn map(&self) -> io::Result<Map> {
            unreachable!("recovery does not map")
        }
    }

    /// A record at 32 that follows commit 6, with its parts as `edit` leaves them; its checksum is right.
    fn record(edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = vec![0; RECORD_LEN];
        let part = |kind, key_len, value_len| PartHead {
            kind,
            key_len,
            place: 0,
            value_len,
            fingerprint: 9,
            version: 0,
            time_ms: 0,
            value_crc: checksum(b"value"),
        };
        part(PartKind::Put, 3, 5).append_to(&mut bytes, b"key");
        part(PartKind::Delete, 5, 0).append_to(&mut bytes, b"other");
        edit(&mut bytes[RECORD_LEN..]);
        let meta_len = u32::try_from(bytes.len() - RECORD_LEN).unwrap();
        let len = bytes.len() as u64 + 16;
        let head = RecordHead { parts: 2, len, seq: 7, durable: 6, prev: 77, time_ms: 1, meta_len, crc: 0 };
        head.seal(Place { lineage: LINEAGE, segment: 4, at: 32 }, &mut bytes);
        bytes.extend_from_slice(b"value\0\0\0\0\0\0\0\0\0\0\0");
        [vec![0; 32], bytes, vec![0; 64]].concat()
    }

    const CURSOR: Cursor = Cursor { at: 32, seq: 6, chain: 77 };

    fn keys(found: &[Found]) -> Vec<&[u8]> {
        found.iter().map(|part| &*part.key).collect()
    }

    #[test]
    fn a_record_is_read_where_it_was_written_and_nowhere_else() {
        let image = record(|_| {});
        let segment = Memory(image.clone());
        let mut records = Records::new(&segment, LINEAGE);
        let head = records.next(&CURSOR).unwrap();
        let parts = records.parts(32, &head).unwrap();
        assert_eq!(keys(&parts), [b"key".as_slice(), b"other"]);
        assert!(records.value_fits(&parts[0]).unwrap());
        assert_eq!(records.scan(0).unwrap().map(|(at, _)| at), Some(32));
        let before = Cursor { chain: 78, ..CURSOR };
        assert!(matches!(records.next(&before), Err(Stop::Broken(_))), "it does not follow that");
        let moved = Memory([vec![0; 16], image].concat());
        assert!(Records::new(&moved, LINEAGE).scan(0).unwrap().is_none(), "a copy is not a record");
        let other = Lineage([6; 16]);
        assert!(Records::new(&segment, other).scan(0).unwrap().is_none(), "of another lineage");
    }

    #[test]
    fn an_unknown_kind_is_refused_by_its_number() {
        let segment = Memory(record(|parts| parts[0] = 99));
        let mut records = Records::new(&segment, LINEAGE);
        let head = records.next(&CURSOR).unwrap();
        let error = records.parts(32, &head).unwrap_err();
        assert!(matches!(error, StateError::UnknownPart { segment: 4, offset: 32, kind: 99 }));
        assert!(error.to_string().contains("kind 99"), "{error}");
    }

    #[test]
    fn a_place_lies_before_its_record_and_behind_the_header() {
        let placed = |place: u32, value_len: u64| {
            let mut meta = Vec::new();
            let (kind, key_len, crc) = (PartKind::Put, 3, 1);
            let head = PartHead {
                kind,
                key_len,
                place,
                value_len,
                fingerprint: 9,
                version: 0,
                time_ms: 0,
                value_crc: crc,
            };
            head.append_to(&mut meta, b"key");
            let meta_len = u32::try_from(meta.len()).unwrap();
            let len = (RECORD_LEN + meta.len()) as u64;
            let record =
                RecordHead { parts: 1, len, seq: 7, durable: 6, prev: 77, time_ms: 1, meta_len, crc: 0 };
            Found::all(4, 65_536, &record, &meta).map(|parts| parts[0].clone())
        };
        let part = placed(4096 / 16, 4000).unwrap();
        assert_eq!((part.head.kind, part.value_at, part.is_placed()), (PartKind::Put, 4096, true));
        assert!(placed((65_536 - 4096) / 16, 4096).is_ok(), "up to its record");
        for (place, len) in [
            (4096 / 16 - 1, 4096),
            ((65_536 - 4096) / 16 + 1, 4096),
            (u32::MAX, 4096),
            (256, 1000),
            (256, 33_000),
            (256, u64::MAX),
        ] {
            assert!(matches!(placed(place, len), Err(StateError::Corrupt(_))), "{place} {len}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_put_back() {
        let image = record(|_| {});
        for bit in 32 * 8..(image.len() - 64 - 16) * 8 {
            let mut image = image.clone();
            image[bit / 8] ^= 1 << (bit % 8);
            let segment = Memory(image);
            let mut records = Records::new(&segment, LINEAGE);
            assert!(matches!(records.next(&CURSOR), Err(Stop::Broken(_))), "bit {bit}");
            let (_, parts) = records.repaired(&CURSOR).unwrap().unwrap();
            assert_eq!(keys(&parts), [b"key".as_slice(), b"other"], "bit {bit}");
        }
    }

    #[test]
    fn impossible_parts_behind_a_right_checksum_are_errors() {
        let mut random = 1_u64;
        let mut refused = 0;
        for _ in 0..20_000 {
            let segment = Memory(record(|parts| {
                for _ in 0..3 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let at = usize::try_from(random >> 33).unwrap() % parts.len();
                    parts[at] = random.to_le_bytes()[3];
                }
            }));
            let mut records = Records::new(&segment, LINEAGE);
            let head = records.next(&CURSOR).unwrap();
            match records.parts(32, &head) {
                Ok(parts) => {
                    for part in &parts {
                        assert!(part.value_at + part.head.value_len <= 32 + head.len, "beyond the record");
                        records.value_fits(part).unwrap();
                    }
                }
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 5000, "{refused}");
    }

    /// Forged heads wherever one can be, each of which says that it is as long as can be.
    fn flood(segment: &mut [u8]) {
        let len = segment.len();
        for at in (0..len - RECORD_LEN).step_by(RECORD_LEN) {
            let rest = (len - at) as u64;
            let meta_len = u32::try_from(rest - RECORD_LEN as u64).unwrap();
            let mut bytes = [0; RECORD_LEN];
            bytes[..4].copy_from_slice(b"DZcm");
            bytes[8..16].copy_from_slice(&rest.to_le_bytes());
            bytes[16..24].copy_from_slice(&2_u64.to_le_bytes());
            bytes[24..32].copy_from_slice(&1_u64.to_le_bytes());
            bytes[48..52].copy_from_slice(&meta_len.to_le_bytes());
            assert!(RecordHead::decode(&bytes).is_some());
            segment[at..at + RECORD_LEN].copy_from_slice(&bytes);
        }
    }

    #[test]
    fn a_segment_full_of_forged_heads_is_judged_in_bounded_work_and_is_never_blank() {
        let mut image = vec![0; 16 << 20];
        flood(&mut image);
        let segment = Memory(image);
        let mut records = Records::new(&segment, LINEAGE);
        let error = records.scan(0).unwrap_err();
        assert!(matches!(error, StateError::Corrupt(_)), "{error}");
        assert!(records.in_vain <= (IN_VAIN + 1) * records.capacity, "{} bytes", records.in_vain);
        // Nor is more hashed by asking again.
        records.scan(16).unwrap_err();
        assert!(records.in_vain <= (IN_VAIN + 2) * records.capacity, "{} bytes", records.in_vain);
    }
}
