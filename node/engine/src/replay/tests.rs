//! Logs that honest engines do not write: what they cost to be read.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::format::{PART_LEN, PartHead, Place, RECORD_LEN, aligned, checksum};
use crate::storage::Map;

const LINEAGE: Lineage = Lineage([5; 16]);
const CAPACITY: u64 = 64 << 10;

/// A segment in memory that counts what is read of it.
#[derive(Debug)]
struct Counted {
    id: u64,
    bytes: Vec<u8>,
    read: AtomicU64,
}

impl Segment for Counted {
    fn id(&self) -> u64 {
        self.id
    }
    fn capacity(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("recovery does not write")
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let from = usize::try_from(offset).unwrap();
        bytes.copy_from_slice(&self.bytes[from..from + bytes.len()]);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        unreachable!("recovery does not sync")
    }
    fn map(&self) -> io::Result<Map> {
        unreachable!("recovery does not map")
    }
    fn next_data(&self, offset: u64) -> Option<u64> {
        let at = usize::try_from(offset).unwrap();
        (self.bytes[at..].iter().any(|byte| *byte != 0)).then_some(offset)
    }
}

/// Commits in each segment.
const COMMITS: usize = 30;

/// A log whose headers a test may spoil.
#[derive(Default)]
struct Forged {
    segments: Vec<Counted>,
    /// Of each segment, what a true header says of it after each of its commits.
    ends: Vec<Vec<Listed>>,
}

impl Forged {
    /// Adds segment number `id`; `spoil` sees the list of its header, which is true so far, and what there is to say of all segments.
    fn add(&mut self, id: u64, spoil: impl FnOnce(&mut Vec<Listed>, &[Vec<Listed>])) {
        let mut listed: Vec<Listed> = self.ends.iter().map(|ends| ends[COMMITS - 1]).collect();
        let (mut seq, mut chain) = listed.last().map_or((0, 0), |last| (last.last_seq, last.end_chain));
        spoil(&mut listed, &self.ends);
        let (base_seq, capacity) = (seq, CAPACITY);
        let header = Header {
            lineage: LINEAGE,
            id,
            ordinal: id,
            base_seq,
            base_chain: chain,
            durable: 0,
            capacity,
            created_ms: 0,
            listed,
        };
        let mut bytes = header.encode();
        let mut ends = Vec::new();
        for _ in 0..COMMITS {
            seq += 1;
            chain = commit(&mut bytes, id, seq, chain);
            let end = bytes.len() as u64;
            ends.push(Listed { id, base_seq, last_seq: seq, end, end_chain: chain });
        }
        bytes.resize(usize::try_from(capacity).unwrap(), 0);
        self.segments.push(Counted { id, bytes, read: AtomicU64::new(0) });
        self.ends.push(ends);
    }

    /// Reads it; returns what comes of that, and how often each byte was read on average.
    fn replay(self) -> (Result<Replayed, StateError>, u64) {
        let counted: Vec<Arc<Counted>> = self.segments.into_iter().map(Arc::new).collect();
        let segments: Vec<Arc<dyn Segment>> = counted.iter().map(|one| one.clone() as _).collect();
        let outcome = replay(&segments, Some(LINEAGE));
        let read: u64 = counted.iter().map(|one| one.read.load(Ordering::Relaxed)).sum();
        (outcome, read / (CAPACITY * counted.len() as u64))
    }
}

/// Appends a commit of one empty object to a segment; returns its checksum.
fn commit(segment: &mut Vec<u8>, id: u64, seq: u64, prev: u64) -> u64 {
    put(segment, id, (seq, 0), prev, 0, &[])
}

/// Appends a commit of one object to a segment, which says that commits up to `durable` are so; returns its checksum. The value lies at
/// `place`, in units of 16, or in the record where that is 0.
fn put(
    segment: &mut Vec<u8>,
    id: u64,
    (seq, durable): (u64, u64),
    prev: u64,
    place: u32,
    value: &[u8],
) -> u64 {
    let at = segment.len() as u64;
    let mut record = vec![0; RECORD_LEN];
    let (kind, key_len) = (PartKind::Put, 8);
    let (value_len, value_crc) = (value.len() as u64, checksum(value));
    let part =
        PartHead { kind, key_len, place, value_len, fingerprint: 0, version: 0, time_ms: 0, value_crc };
    part.append_to(&mut record, &seq.to_le_bytes());
    let meta_len = u32::try_from(record.len() - RECORD_LEN).unwrap();
    let in_record = if place == 0 { value } else { &[] };
    let len = record.len() as u64 + aligned(in_record.len() as u64);
    let head = RecordHead { parts: 1, len, seq, durable, prev, time_ms: 1, meta_len, crc: 0 };
    let crc = head.seal(Place { lineage: LINEAGE, segment: id, at }, &mut record);
    segment.extend_from_slice(&record);
    segment.extend_from_slice(in_record);
    segment.resize(segment.len().next_multiple_of(16), 0);
    crc
}

#[test]
fn a_log_is_read_about_twice() {
    let mut log = Forged::default();
    (1..=200).for_each(|id| log.add(id, |_, _| {}));
    let (replayed, times) = log.replay();
    let replayed = replayed.unwrap();
    assert_eq!((replayed.seq, replayed.sources.len(), replayed.torn), (200 * COMMITS as u64, 200, false));
    assert!(times <= 3, "read {times} times");
}

/// Every header lists all segments as they are but for the last, so that each of them has to be tried.
#[test]
fn what_is_known_to_be_whole_is_not_read_for_every_attempt() {
    let mut log = Forged::default();
    log.add(1, |_, _| {});
    (2..=200).for_each(|id| log.add(id, |list, _| list.last_mut().unwrap().end_chain ^= 1));
    let (replayed, times) = log.replay();
    assert_eq!(replayed.unwrap().seq, COMMITS as u64, "only the first is listed by nobody who lies");
    assert!(times <= 6, "read {times} times");
}

/// As above, and no two neighbours agree about where a segment ends: each names the end of another commit in it.
#[test]
fn headers_that_all_disagree_are_damage_after_bounded_work() {
    let mut log = Forged::default();
    log.add(1, |_, _| {});
    for id in 2..=200 {
        log.add(id, |list, ends| {
            let which = usize::try_from(id).unwrap() % COMMITS;
            list.iter_mut().zip(ends).for_each(|(one, ends)| *one = ends[which]);
            list.last_mut().unwrap().end_chain ^= 1;
        });
    }
    let (replayed, times) = log.replay();
    assert!(matches!(replayed, Err(StateError::Corrupt(_))), "{:?}", replayed.map(|replayed| replayed.seq));
    assert!(times <= 4 + AGAIN, "read {times} times");
}

#[test]
fn a_segment_that_lists_itself_is_not_tried_for_ever() {
    let mut log = Forged::default();
    log.add(1, |_, _| {});
    log.add(2, |list, _| {
        list.push(Listed { id: 2, base_seq: 1, last_seq: 9, end: CAPACITY, end_chain: 7 });
    });
    assert_eq!(log.replay().0.unwrap().seq, COMMITS as u64);
}

/// A log of one segment with an object of 30,000 bytes, and `more` that say that theirs lies where that one does, or `apart` bytes on.
fn overlapping(more: u64, apart: u32, all_durable: bool) -> Forged {
    let mut log = Forged::default();
    log.add(1, |_, _| {});
    let segment = &mut log.segments[0].bytes;
    // But for the header.
    segment.truncate(4096);
    let value = [7; 30_000];
    let value_at = 4096 + RECORD_LEN as u64 + aligned(PART_LEN as u64 + 8);
    let mut chain = put(segment, 1, (1, 0), 0, 0, &value);
    for seq in 2..2 + more {
        let durable = if all_durable { seq - 1 } else { 0 };
        let place = u32::try_from(value_at / 16 + (seq - 2) * u64::from(apart / 16)).unwrap();
        let len = value.len() - usize::try_from(seq - 2).unwrap() * apart as usize;
        chain = put(segment, 1, (seq, durable), chain, place, &value[..len]);
    }
    segment.resize(usize::try_from(CAPACITY).unwrap(), 0);
    log
}

/// Values cannot lie over each other while both live. A log that says so would make much of few bytes.
#[test]
fn values_that_lie_over_each_other_are_no_values() {
    // All of them durable, and not; then each in a place of its own, so that each has to be looked at.
    for (apart, all_durable, seq) in [(0, true, None), (0, false, Some(1)), (16, false, None)] {
        let (replayed, times) = overlapping(100, apart, all_durable).replay();
        match (seq, replayed) {
            (None, Err(StateError::Corrupt(damage))) => {
                assert!(damage.to_string().contains("more is live in it than it holds"), "{damage}");
            }
            (Some(seq), Ok(replayed)) => assert_eq!((replayed.torn, replayed.seq), (true, seq)),
            (_, replayed) => panic!("{apart} {all_durable}: {:?}", replayed.map(|log| log.seq)),
        }
        assert!(times <= 10, "{apart} {all_durable}: read {times} times");
    }
    // Two of them fit, and stay two.
    assert_eq!(overlapping(1, 0, true).replay().0.unwrap().seq, 2);
}
