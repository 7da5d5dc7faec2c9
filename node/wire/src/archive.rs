//! All objects of a process as one stream of bytes: what export writes and import reads.
//!
//! ```text
//! "DZSTATE1"                                                             8 bytes
//! record  { u32 key length, u32 0, u64 value length, u64 fingerprint,
//!           u64 version, u64 time in ms since 1970, key, value }         40 bytes + key + value, any number
//! end     { u32 0xFFFF_FFFF, u32 0, u64 number of records,
//!           u64 CRC-64/NVME of everything before, u64 0, u64 0 }         40 bytes, the last
//! ```
//!
//! Little-endian, without padding. The CRC tells a stream that was cut or damaged on its way; it proves nothing to somebody who does not
//! trust the writer, so a reader checks every length before it believes it. [`Decoder`] keeps one key and no value, whatever the
//! stream claims.

use crc_fast::{CrcAlgorithm, Digest};

/// How a stream begins.
pub const MAGIC: [u8; 8] = *b"DZSTATE1";
/// Length of the fixed part of a record in bytes.
pub const HEAD_LEN: usize = 40;
/// The longest key in bytes; none is shorter than 1.
pub const MAX_KEY: usize = 1024;
/// What stands in place of a key's length in the end record.
const END: u32 = u32::MAX;

/// A record without key and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// Length of the value in bytes.
    pub value_len: u64,
    /// The fingerprint that the object was put with; 0 for plain bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it.
    pub version: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
}

/// Why bytes are no archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It begins otherwise.
    #[error("this is no archive of state: it does not begin with {:?}", "DZSTATE1")]
    Magic,
    /// A key is empty or longer than [`MAX_KEY`].
    #[error("record {record} has a key of {len} bytes, 1 to {MAX_KEY} are allowed: the archive is damaged")]
    KeyLength {
        /// Which record, from 0.
        record: u64,
        /// The claimed length in bytes.
        len: u32,
    },
    /// A value is longer than the reader takes.
    #[error(
        "record {record} has a value of {len} bytes, {limit} are allowed: raise the limit, or the archive is damaged"
    )]
    ValueLength {
        /// Which record, from 0.
        record: u64,
        /// The claimed length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A field that has to be 0 is not.
    #[error(
        "record {record} has something where nothing belongs: the archive is damaged, or a newer version wrote it"
    )]
    Reserved {
        /// Which record, from 0.
        record: u64,
    },
    /// The end record does not fit what came before.
    #[error("the archive is damaged: its end does not fit what came before it ({0})")]
    End(&'static str),
    /// Something follows the end.
    #[error("there are bytes behind the end of the archive")]
    Trailing,
    /// The stream ended before its end record.
    #[error("the archive is cut short: it ends in record {record}")]
    Cut {
        /// Which record, from 0.
        record: u64,
    },
}

/// Writes an archive. The caller sends what is appended to its buffer; values it sends itself, and shows them to
/// [`Encoder::value`].
#[derive(Debug)]
pub struct Encoder {
    digest: Digest,
    records: u64,
    /// Bytes of the value begun that are still to come.
    owed: u64,
}

impl Encoder {
    /// Begins, with the magic.
    pub fn begin(out: &mut Vec<u8>) -> Encoder {
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        digest.update(&MAGIC);
        out.extend_from_slice(&MAGIC);
        Encoder { digest, records: 0, owed: 0 }
    }

    /// Begins a record; exactly `head.value_len` bytes of value have to follow.
    ///
    /// # Panics
    /// If the key's length is not 1 to [`MAX_KEY`], or the value before is not whole: a mistake of our own code.
    pub fn record(&mut self, out: &mut Vec<u8>, key: &[u8], head: RecordHead) {
        assert!((1..=MAX_KEY).contains(&key.len()), "a key has 1 to {MAX_KEY} bytes");
        assert!(self.owed == 0, "the value before is not whole");
        let RecordHead { value_len, fingerprint, version, time_ms } = head;
        let from = out.len();
        let key_len = u32::try_from(key.len()).unwrap_or(END);
        put_head(out, key_len, [value_len, fingerprint, version, time_ms]);
        out.extend_from_slice(key);
        self.digest.update(&out[from..]);
        self.records += 1;
        self.owed = value_len;
    }

    /// These bytes of the value were sent.
    ///
    /// # Panics
    /// If they are more than were announced.
    pub fn value(&mut self, bytes: &[u8]) {
        self.owed = self.owed.checked_sub(bytes.len() as u64).expect("a value is as long as its record says");
        self.digest.update(bytes);
    }

    /// Ends the archive.
    ///
    /// # Panics
    /// If the last value is not whole.
    pub fn end(self, out: &mut Vec<u8>) {
        assert!(self.owed == 0, "the last value is not whole");
        put_head(out, END, [self.records, self.digest.finalize(), 0, 0]);
    }
}

fn put_head(out: &mut Vec<u8>, key_len: u32, fields: [u64; 4]) {
    out.extend_from_slice(&key_len.to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    fields.iter().for_each(|field| out.extend_from_slice(&field.to_le_bytes()));
}

/// What a decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'d, 'i> {
    /// A record begins.
    Record {
        /// Its key.
        key: &'d [u8],
        /// What else is known of it.
        head: RecordHead,
    },
    /// The next bytes of the value of the record begun; not empty.
    Value(&'i [u8]),
    /// The archive is whole, and fits its CRC.
    End {
        /// How many records it had.
        records: u64,
    },
}

/// Reads an archive, however it is cut into pieces.
#[derive(Debug)]
pub struct Decoder {
    digest: Digest,
    limit: u64,
    records: u64,
    step: Step,
    /// What is collected for the step: at most a head or a key.
    have: Vec<u8>,
    /// The key that was handed out last.
    key: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Magic,
    Head,
    Key(usize, RecordHead),
    Value(u64),
    Ended,
    Broken(ArchiveError),
}

impl Decoder {
    /// A decoder that takes values of at most `value_limit` bytes.
    pub fn new(value_limit: u64) -> Decoder {
        Decoder {
            digest: Digest::new(CrcAlgorithm::Crc64Nvme),
            limit: value_limit,
            records: 0,
            step: Step::Magic,
            have: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Takes bytes off the front of `input` until something is found; `None` when they are all taken.
    ///
    /// # Errors
    /// [`ArchiveError`], and the same one for ever after.
    pub fn next<'d, 'i>(&'d mut self, input: &mut &'i [u8]) -> Result<Option<Event<'d, 'i>>, ArchiveError> {
        loop {
            match self.step.clone() {
                Step::Magic => {
                    if !self.collect(input, MAGIC.len()) {
                        return Ok(None);
                    }
                    if self.have != MAGIC {
                        return self.broken(ArchiveError::Magic);
                    }
                    self.take_in(Step::Head);
                }
                Step::Head => {
                    if !self.collect(input, HEAD_LEN) {
                        return Ok(None);
                    }
                    match self.head() {
                        Ok(Some(next)) => self.take_in(next),
                        Ok(None) => return Ok(Some(Event::End { records: self.records })),
                        Err(error) => return self.broken(error),
                    }
                }
                Step::Key(len, head) => {
                    if !self.collect(input, len) {
                        return Ok(None);
                    }
                    self.records += 1;
                    self.key.clone_from(&self.have);
                    self.take_in(if head.value_len == 0 { Step::Head } else { Step::Value(head.value_len) });
                    return Ok(Some(Event::Record { key: &self.key, head }));
                }
                Step::Value(owed) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let count = usize::try_from(owed).unwrap_or(usize::MAX).min(input.len());
                    let (piece, rest) = input.split_at(count);
                    *input = rest;
                    self.digest.update(piece);
                    let owed = owed - count as u64;
                    self.step = if owed == 0 { Step::Head } else { Step::Value(owed) };
                    return Ok(Some(Event::Value(piece)));
                }
                Step::Ended if input.is_empty() => return Ok(None),
                Step::Ended => return self.broken(ArchiveError::Trailing),
                Step::Broken(error) => return Err(error),
            }
        }
    }

    /// The stream ended.
    ///
    /// # Errors
    /// [`ArchiveError::Cut`] if it ended too early, and whatever was wrong before.
    pub fn finish(&self) -> Result<(), ArchiveError> {
        match &self.step {
            Step::Ended => Ok(()),
            Step::Broken(error) => Err(error.clone()),
            _ => Err(ArchiveError::Cut { record: self.records }),
        }
    }

    fn broken<T>(&mut self, error: ArchiveError) -> Result<T, ArchiveError> {
        self.step = Step::Broken(error.clone());
        Err(error)
    }

    /// Whether `len` bytes are collected.
    fn collect(&mut self, input: &mut &[u8], len: usize) -> bool {
        let count = (len - self.have.len()).min(input.len());
        let (now, rest) = input.split_at(count);
        self.have.extend_from_slice(now);
        *input = rest;
        self.have.len() == len
    }

    /// What was collected is good: on to the next step.
    fn take_in(&mut self, next: Step) {
        self.digest.update(&self.have);
        self.have.clear();
        self.step = next;
    }

    /// Reads the head that was collected. `None`: it was the end, and all is well.
    fn head(&mut self) -> Result<Option<Step>, ArchiveError> {
        let record = self.records;
        let word = |at: usize| u32::from_le_bytes(self.have[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_le_bytes(self.have[at..at + 8].try_into().unwrap_or_default());
        let (len, reserved) = (word(0), word(4));
        let head =
            RecordHead { value_len: long(8), fingerprint: long(16), version: long(24), time_ms: long(32) };
        if reserved != 0 {
            return Err(ArchiveError::Reserved { record });
        }
        if len == END {
            return self.check_end(head).map(|()| None);
        }
        let key_len = usize::try_from(len).ok().filter(|len| (1..=MAX_KEY).contains(len));
        let key_len = key_len.ok_or(ArchiveError::KeyLength { record, len })?;
        if head.value_len > self.limit {
            return Err(ArchiveError::ValueLength { record, len: head.value_len, limit: self.limit });
        }
        Ok(Some(Step::Key(key_len, head)))
    }

    fn check_end(&mut self, end: RecordHead) -> Result<(), ArchiveError> {
        if end.value_len != self.records {
            return Err(ArchiveError::End("it counts other records"));
        }
        if end.fingerprint != self.digest.clone().finalize() {
            return Err(ArchiveError::End("the checksum differs"));
        }
        if (end.version, end.time_ms) != (0, 0) {
            return Err(ArchiveError::Reserved { record: self.records });
        }
        self.step = Step::Ended;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Object = (Vec<u8>, Vec<u8>, u64, u64, u64);

    fn encode(objects: &[Object]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::begin(&mut out);
        for (key, value, fingerprint, version, time_ms) in objects {
            let (fingerprint, version, time_ms) = (*fingerprint, *version, *time_ms);
            let head = RecordHead { value_len: value.len() as u64, fingerprint, version, time_ms };
            encoder.record(&mut out, key, head);
            encoder.value(value);
            out.extend_from_slice(value);
        }
        encoder.end(&mut out);
        out
    }

    /// Decodes `bytes`, fed in pieces of `step`.
    fn decode(bytes: &[u8], step: usize, limit: u64) -> Result<Vec<Object>, ArchiveError> {
        let mut decoder = Decoder::new(limit);
        let mut objects: Vec<Object> = Vec::new();
        let mut ended = false;
        for mut piece in bytes.chunks(step) {
            while let Some(event) = decoder.next(&mut piece)? {
                match event {
                    Event::Record { key, head } => {
                        assert!((1..=MAX_KEY).contains(&key.len()) && head.value_len <= limit);
                        let RecordHead { fingerprint, version, time_ms, .. } = head;
                        objects.push((key.to_vec(), Vec::new(), fingerprint, version, time_ms));
                    }
                    Event::Value(bytes) => {
                        assert!(!bytes.is_empty());
                        objects.last_mut().expect("a value has a record").1.extend_from_slice(bytes);
                    }
                    Event::End { records } => {
                        assert_eq!(records, objects.len() as u64);
                        ended = true;
                    }
                }
            }
            assert!(decoder.have.len() <= MAX_KEY, "it keeps too much");
        }
        decoder.finish()?;
        assert!(ended);
        Ok(objects)
    }

    fn objects() -> impl Strategy<Value = Vec<Object>> {
        let key = proptest::collection::vec(any::<u8>(), 1..40);
        let value = proptest::collection::vec(any::<u8>(), 0..200);
        proptest::collection::vec((key, value, any::<u64>(), any::<u64>(), any::<u64>()), 0..8)
    }

    #[test]
    fn the_bytes_are_what_the_document_says() {
        let bytes = encode(&[(b"k".to_vec(), b"vv".to_vec(), 3, 4, 5)]);
        assert_eq!(&bytes[..8], b"DZSTATE1");
        assert_eq!(bytes[8..16], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], 2_u64.to_le_bytes());
        assert_eq!(bytes[24..32], 3_u64.to_le_bytes());
        assert_eq!(bytes[32..40], 4_u64.to_le_bytes());
        assert_eq!(bytes[40..48], 5_u64.to_le_bytes());
        assert_eq!(&bytes[48..51], b"kvv");
        assert_eq!(bytes[51..59], [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
        assert_eq!(bytes[59..67], 1_u64.to_le_bytes());
        assert_eq!(bytes[67..75], crc_fast::crc64_nvme(&bytes[..51]).to_le_bytes());
        assert_eq!(bytes[75..], [0; 16]);
    }

    #[test]
    fn lengths_are_believed_only_within_limits() {
        let record = |key_len: u32, value_len: u64| {
            let mut out = MAGIC.to_vec();
            put_head(&mut out, key_len, [value_len, 0, 0, 0]);
            decode(&out, 7, 100).unwrap_err()
        };
        assert_eq!(record(0, 1), ArchiveError::KeyLength { record: 0, len: 0 });
        assert_eq!(record(1025, 1), ArchiveError::KeyLength { record: 0, len: 1025 });
        assert_eq!(record(u32::MAX - 1, 1), ArchiveError::KeyLength { record: 0, len: u32::MAX - 1 });
        assert_eq!(record(1024, 101), ArchiveError::ValueLength { record: 0, len: 101, limit: 100 });
        assert_eq!(record(1024, 100), ArchiveError::Cut { record: 0 });
    }

    #[test]
    fn what_is_behind_the_end_is_refused() {
        let mut bytes = encode(&[]);
        assert_eq!(decode(&bytes, 1, 0), Ok(vec![]));
        bytes.push(0);
        assert_eq!(decode(&bytes, 1, 0), Err(ArchiveError::Trailing));
        assert_eq!(decode(&bytes, 1000, 0), Err(ArchiveError::Trailing));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_however_it_is_cut(objects in objects(), step in 1_usize..300) {
            prop_assert_eq!(decode(&encode(&objects), step, 1000), Ok(objects));
        }

        #[test]
        fn every_changed_bit_is_noticed(objects in objects(), at in any::<usize>(), bit in 0..8, step in 1_usize..300) {
            let mut bytes = encode(&objects);
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(decode(&bytes, step, 1000).is_err());
        }

        #[test]
        fn every_cut_is_noticed(objects in objects(), at in any::<usize>(), step in 1_usize..300) {
            let bytes = encode(&objects);
            prop_assert!(decode(&bytes[..at % bytes.len()], step, 1000).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(
            tail in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()], 0..400),
            magic in any::<bool>(),
            step in 1_usize..100,
        ) {
            let mut bytes = if magic { MAGIC.to_vec() } else { Vec::new() };
            bytes.extend(tail);
            prop_assert!(decode(&bytes, step, 1000).is_err());
        }
    }
}
