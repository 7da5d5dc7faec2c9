//! The journal: records of processes that are durable and not in the database yet.
//!
//! A transaction of the database copies a dozen pages and waits for a file that has grown; a claim must not wait for that. So what a
//! request has changed goes here first, as one *batch* for all requests that waited together: appended to a file of its own, whose blocks
//! were written once before, and synced. The database follows at leisure, with everything at once, and is what is read at every start.
//!
//! **A generation** is what was appended since the database was last written. Its number is in the database, and in every batch: the
//! transaction that takes a generation over sets the next number, and the file is begun anew from its start. What lies behind, or was
//! left by a write that failed, has another number and counts for nothing. Each opening begins one above every number that is found.
//!
//! **Batches begin on pages of their own,** so no write touches a page that holds a durable batch, and the next is written only when the
//! one before it is synced. A loss of power can therefore damage nothing but the last one, which nobody was told of: it is cut. A batch
//! behind one that cannot be read is damage, and an error that names the file.
//!
//! | offset | bytes | what, little-endian |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 8 | generation |
//! | 16 | 8 | number of the batch in its generation, from 0 |
//! | 24 | 8 | length of the content |
//! | 32 | 8 | CRC-64/NVME of the bytes above and of the content |
//! | 40 | | JSON: a list of [`ProcessRecord`]s, each whole, as it is after the change |

use std::io;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest};
use redb::StorageBackend;

use super::SchedError;
use super::database::store_error;
use crate::ProcessRecord;

/// No JSON text begins so: content is never taken for a batch.
const MAGIC: [u8; 8] = *b"\0DZJRNL\x01";
const HEADER_BYTES: usize = 40;
/// Where batches begin: no less than what a disk or a file system writes at once.
const PAGE_BYTES: usize = 4096;
/// Pages of the file.
const PAGES: usize = 512;

/// The file, and how far it is written.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Box<dyn StorageBackend>,
    generation: u64,
    /// The number of the next batch, and its page.
    next: (u64, usize),
    buffer: Vec<u8>,
}

/// What a file holds.
#[derive(Debug, PartialEq)]
struct Content {
    /// The records of the generation that was asked for, in the order in which they were made.
    records: Vec<ProcessRecord>,
    /// The highest generation of any batch.
    latest: u64,
}

impl Journal {
    /// Opens the file, and gives the records of `generation` that it holds; `None`: of a database that never had a journal, for which
    /// nothing counts. Nothing can be appended before [`Journal::begin`].
    ///
    /// # Errors
    /// [`SchedError::Corrupt`] for damage and for a file that is gone or cut, and those of the disk.
    pub(super) fn open(
        path: &Path,
        file: Box<dyn StorageBackend>,
        generation: Option<u64>,
    ) -> Result<(Journal, Vec<ProcessRecord>), SchedError> {
        let failed = |error: io::Error| store_error(path, error);
        let damaged = |why| SchedError::Corrupt { path: path.to_owned(), why };
        let mut bytes = vec![0; PAGES * PAGE_BYTES];
        let is_new = file.len().map_err(failed)? < bytes.len() as u64;
        if is_new && generation.is_some() {
            return Err(damaged("it is gone, or was cut".to_owned()));
        }
        if is_new {
            file.set_len(bytes.len() as u64).map_err(failed)?;
            file.write(0, &bytes).map_err(failed)?;
            file.sync_data().map_err(failed)?;
        } else {
            file.read(0, &mut bytes).map_err(failed)?;
        }
        // No batch has this number.
        let none = 0;
        let Content { records, latest } = decode(&bytes, generation.unwrap_or(none)).map_err(damaged)?;
        let journal = Journal {
            path: path.to_owned(),
            file,
            generation: latest.max(generation.unwrap_or(none)),
            next: (0, PAGES),
            buffer: Vec::new(),
        };
        Ok((journal, records))
    }

    /// The number of the generation that follows: for the transaction that takes this one over.
    pub(super) fn next_generation(&self) -> u64 {
        self.generation + 1
    }

    /// Begins it. The database has everything that was appended before, durably.
    pub(super) fn begin(&mut self) {
        self.generation += 1;
        self.next = (0, 0);
    }

    /// Whether so much is written that it is time to take it over.
    pub(super) fn is_half_full(&self) -> bool {
        self.next.1 > PAGES / 2
    }

    /// Appends a batch and waits until it is on the disk. False if it has no room: nothing has happened then.
    ///
    /// # Errors
    /// Those of the disk. What is on it is not known then, and nothing more is to be appended: the journal is to be opened anew.
    pub(super) fn append(&mut self, records: &[ProcessRecord]) -> Result<bool, SchedError> {
        let (number, page) = self.next;
        let mut buffer = std::mem::take(&mut self.buffer);
        encode(&mut buffer, self.generation, number, records)
            .map_err(|error| store_error(&self.path, io::Error::from(error)))?;
        let pages = buffer.len() / PAGE_BYTES;
        if page + pages > PAGES {
            return Ok(false);
        }
        let written = self.file.write((page * PAGE_BYTES) as u64, &buffer);
        written.and_then(|()| self.file.sync_data()).map_err(|error| store_error(&self.path, error))?;
        self.next = (number + 1, page + pages);
        self.buffer = buffer;
        Ok(true)
    }
}

/// Makes the bytes of a batch, up to the end of its last page.
fn encode(
    buffer: &mut Vec<u8>,
    generation: u64,
    number: u64,
    records: &[ProcessRecord],
) -> serde_json::Result<()> {
    buffer.clear();
    buffer.resize(HEADER_BYTES, 0);
    serde_json::to_writer(&mut *buffer, records)?;
    let length = (buffer.len() - HEADER_BYTES) as u64;
    buffer[..8].copy_from_slice(&MAGIC);
    for (at, number) in [(8, generation), (16, number), (24, length)] {
        buffer[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let sum = checksum(&buffer[..32], &buffer[HEADER_BYTES..]);
    buffer[32..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    buffer.resize(buffer.len().next_multiple_of(PAGE_BYTES), 0);
    Ok(())
}

fn checksum(head: &[u8], content: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(head);
    digest.update(content);
    digest.finalize()
}

/// A batch as it stands in the file.
struct Batch<'b> {
    generation: u64,
    number: u64,
    content: &'b [u8],
}

impl Batch<'_> {
    fn pages(&self) -> usize {
        (HEADER_BYTES + self.content.len()).div_ceil(PAGE_BYTES)
    }
}

/// The batch at the start of `bytes`, if there is a whole one.
fn batch(bytes: &[u8]) -> Option<Batch<'_>> {
    let (head, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let field = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let content = rest.get(..usize::try_from(field(24)?).ok()?)?;
    let is_whole = head.starts_with(&MAGIC) && field(32)? == checksum(head.get(..32)?, content);
    is_whole.then_some(Batch { generation: field(8)?, number: field(16)?, content })
}

/// Reads a whole file.
///
/// # Errors
/// What is damaged.
fn decode(bytes: &[u8], generation: u64) -> Result<Content, String> {
    let mut content = Content { records: Vec::new(), latest: 0 };
    let (mut page, mut number) = (0, 0);
    let at = |page: usize| bytes.get(page * PAGE_BYTES..).and_then(batch);
    while let Some(found) = at(page).filter(|found| found.generation == generation && found.number == number)
    {
        let records: Vec<ProcessRecord> = serde_json::from_slice(found.content)
            .map_err(|error| format!("batch {number} of it cannot be read ({error})"))?;
        content.records.extend(records);
        content.latest = generation;
        (page, number) = (page + found.pages(), number + 1);
    }
    for page in page..bytes.len() / PAGE_BYTES {
        if let Some(found) = at(page) {
            if found.generation == generation {
                return Err(format!("batch {number} of it is damaged, and others follow"));
            }
            content.latest = content.latest.max(found.generation);
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use denizen_image::ImageId;
    use proptest::prelude::*;

    use super::*;
    use crate::{AppName, Epoch, Home, Phase, ProcessName};

    fn record(process: &str, epoch: u64) -> ProcessRecord {
        ProcessRecord {
            app: AppName::new("a").unwrap(),
            process: ProcessName::new(process).unwrap(),
            phase: Phase::Starting,
            epoch: Epoch::new(epoch),
            born: Some(Epoch::new(1)),
            home: Home::Swapped { epoch: Epoch::new(1) },
            image: ImageId::of(b"one"),
            commit: 4,
            durable: 3,
            state_bytes: 2,
            failure: None,
        }
    }

    /// A file with these batches, and as many pages of zeros behind.
    fn file(generation: u64, batches: &[Vec<ProcessRecord>]) -> Vec<u8> {
        let (mut bytes, mut buffer) = (Vec::new(), Vec::new());
        for (number, records) in batches.iter().enumerate() {
            encode(&mut buffer, generation, number as u64, records).unwrap();
            bytes.extend_from_slice(&buffer);
        }
        bytes.resize(2 * bytes.len() + PAGE_BYTES, 0);
        bytes
    }

    fn batches(count: u64) -> Vec<Vec<ProcessRecord>> {
        // The second one takes several pages.
        let of = |number| (0..if number == 1 { 40 } else { 1 }).map(move |at| record("p", 100 * number + at));
        (0..count).map(|number| of(number).collect()).collect()
    }

    #[test]
    fn what_was_appended_is_read_in_its_order() {
        let batches = batches(4);
        let content = decode(&file(7, &batches), 7).unwrap();
        assert_eq!(content, Content { records: batches.concat(), latest: 7 });
        assert_eq!(decode(&[], 7).unwrap().records, []);
        assert_eq!(decode(&vec![0; 3 * PAGE_BYTES], 7).unwrap().latest, 0);
    }

    #[test]
    fn only_the_generation_that_was_asked_for_counts() {
        let old = file(6, &batches(4));
        assert_eq!(decode(&old, 7).unwrap(), Content { records: Vec::new(), latest: 6 });
        // A new one over it: what it has not reached is still there.
        let new = file(7, &batches(1));
        let mut bytes = old.clone();
        bytes[..PAGE_BYTES].copy_from_slice(&new[..PAGE_BYTES]);
        assert_eq!(decode(&bytes, 7).unwrap().records, batches(1).concat());
        assert_eq!(decode(&bytes, 5).unwrap().latest, 7);
    }

    /// The last batch is cut at every place that a loss of power can leave it at, with anything behind.
    #[test]
    fn a_torn_last_batch_is_cut() {
        let whole = batches(2);
        let bytes = file(7, &whole);
        let end = bytes.len() / 2;
        for page in 1..end / PAGE_BYTES {
            for filler in [0, 0xFF, b'{'] {
                let mut torn = bytes.clone();
                torn[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].fill(filler);
                assert_eq!(decode(&torn, 7).unwrap().records, whole[0], "page {page}");
            }
        }
    }

    #[test]
    fn a_damaged_batch_before_others_is_an_error() {
        let bytes = file(7, &batches(3));
        for at in [0, 9, 17, 25, 33, 50, PAGE_BYTES + 3, PAGE_BYTES + 4321] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let found = decode(&damaged, 7);
            // Where the number of its generation is changed, too: another would be missing.
            assert!(found.is_err(), "a damage at {at} went unseen: {found:?}");
        }
    }

    proptest! {
        /// Whatever lies in a file, reading it gives records that were written, in order and without a gap, or an error.
        #[test]
        fn no_bytes_make_records_that_were_never_written(
            count in 0_u64..5,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            generation in 6_u64..9,
        ) {
            let written = batches(count);
            let mut bytes = file(7, &written);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(2 * bytes.len()).min(bytes.len()));
            if let Ok(content) = decode(&bytes, generation) {
                let all = written.concat();
                prop_assert!(content.records.is_empty() || generation == 7);
                prop_assert_eq!(&content.records[..], &all[..content.records.len()]);
            }
        }

        #[test]
        fn any_bytes_can_be_read(mut bytes in prop::collection::vec(any::<u8>(), 0..3 * PAGE_BYTES), length: u64) {
            let _ = decode(&bytes, 7);
            if bytes.len() > HEADER_BYTES {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[24..32].copy_from_slice(&length.to_le_bytes());
                prop_assert_eq!(decode(&bytes, 7).unwrap().records, vec![]);
            }
        }
    }
}
