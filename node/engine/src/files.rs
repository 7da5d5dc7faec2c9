//! Files of a process in its state: how a file tree is written into [`Table::Files`], and how it is read back.
//!
//! An **entry** stands under its path and names the **parts** that hold its bytes; a part stands under its number. Parts are written
//! first, under numbers that no entry names; the commit that writes the entry is what switches a file from its old bytes to its new
//! ones, whole. Parts that nobody names are garbage that the next writer removes. What lies in a part of number 0 was never written: a
//! hole.
//!
//! No function writes this table, so its writer takes no turn and meets no conflict; that there is one at a time is the caller's
//! business. Decoders take bytes that a sandbox wrote: they refuse, they never panic.

use std::ops::Bound;

use crate::engine::Engine;
use crate::error::StateError;
use crate::format::Fields;
use crate::index::Item;
use crate::offline::Offline;
use crate::state::{Snapshot, whole};
use crate::tables::Table;
use crate::transaction::Transaction;
use crate::turn::Access;

/// The longest path in bytes.
pub const MAX_FILE_PATH_LEN: usize = 1000;

/// The longest part of a file in bytes.
pub const MAX_FILE_PART_LEN: u32 = 1 << 20;

/// The shortest length of a part that is not the last of its file, in bytes.
pub const MIN_FILE_PART_LEN: u32 = 4096;

/// The permission bits that are kept.
pub const FILE_MODE: u32 = 0o777;

/// A hole where a part would be.
pub const HOLE: u64 = 0;

const ENTRY: u8 = b'F';
const PART: u8 = b'P';
const HEAD_LEN: usize = 32;
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;

/// A file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// The nine permission bits.
    pub mode: u32,
    /// When it was modified: seconds since 1970, and nanoseconds. Of a directory 0.
    pub modified: (i64, u32),
    /// What it is.
    pub kind: FileKind,
}

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its length in bytes.
        len: u64,
        /// Length of every part but the last, in bytes: a power of two from [`MIN_FILE_PART_LEN`] to [`MAX_FILE_PART_LEN`].
        part_len: u32,
        /// Numbers of its parts, in order; [`HOLE`] for one that is all zeros.
        parts: Vec<u64>,
    },
}

impl FileEntry {
    /// Numbers of its parts that hold something.
    pub fn parts(&self) -> impl Iterator<Item = u64> {
        let parts: &[u64] = match &self.kind {
            FileKind::Directory => &[],
            FileKind::File { parts, .. } => parts,
        };
        parts.iter().copied().filter(|part| *part != HOLE)
    }

    /// Its parts in order, [`HOLE`] among them, each with its length in bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, usize)> {
        let (len, part_len, parts): (u64, u32, &[u64]) = match &self.kind {
            FileKind::Directory => (0, 1, &[]),
            FileKind::File { len, part_len, parts } => (*len, *part_len, parts),
        };
        let length_from = move |offset: u64| (len - offset.min(len)).min(u64::from(part_len));
        (0_u64..).zip(parts).map(move |(at, part)| {
            let left = length_from(at.saturating_mul(u64::from(part_len)));
            (*part, usize::try_from(left).unwrap_or(0))
        })
    }

    /// Its length in bytes; 0 for a directory.
    pub fn len(&self) -> u64 {
        match self.kind {
            FileKind::Directory => 0,
            FileKind::File { len, .. } => len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, len, part_len, parts): (_, _, _, &[u64]) = match &self.kind {
            FileKind::Directory => (DIRECTORY, 0, 0, &[]),
            FileKind::File { len, part_len, parts } => (FILE, *len, *part_len, parts),
        };
        let mut value = Vec::with_capacity(HEAD_LEN + 8 * parts.len());
        value.extend_from_slice(&[kind, 0, 0, 0]);
        value.extend_from_slice(&self.mode.to_le_bytes());
        value.extend_from_slice(&len.to_le_bytes());
        value.extend_from_slice(&self.modified.0.to_le_bytes());
        value.extend_from_slice(&self.modified.1.to_le_bytes());
        value.extend_from_slice(&part_len.to_le_bytes());
        parts.iter().for_each(|part| value.extend_from_slice(&part.to_le_bytes()));
        value
    }

    /// Reads an entry; `None` if it is none.
    pub fn decode(value: &[u8]) -> Option<FileEntry> {
        let (head, parts) = value.split_first_chunk::<HEAD_LEN>()?;
        let mut fields = Fields(head);
        let kind = fields.u8();
        let zeros = fields.take::<3>();
        let (mode, len) = (fields.u32(), fields.u64());
        let modified = (i64::from_le_bytes(fields.take()), fields.u32());
        let part_len = fields.u32();
        let possible = zeros == [0; 3] && mode & !FILE_MODE == 0 && modified.1 < 1_000_000_000;
        let kind = match kind {
            DIRECTORY if len == 0 && part_len == 0 && parts.is_empty() => FileKind::Directory,
            FILE => {
                let sized = part_len.is_power_of_two()
                    && (MIN_FILE_PART_LEN..=MAX_FILE_PART_LEN).contains(&part_len)
                    && parts.len().is_multiple_of(8)
                    && (parts.len() / 8) as u64 == len.div_ceil(u64::from(part_len));
                let number = |bytes: &[u8]| Fields(bytes).u64();
                let parts = || parts.chunks_exact(8).map(number).collect();
                if !sized {
                    return None;
                }
                FileKind::File { len, part_len, parts: parts() }
            }
            _ => return None,
        };
        possible.then_some(FileEntry { mode, modified, kind })
    }
}

/// Whether `path` is one that a file can have: relative, of components between single slashes, none of them `.` or `..`, without a zero.
pub fn is_file_path(path: &[u8]) -> bool {
    let component = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    path.len() <= MAX_FILE_PATH_LEN && !path.contains(&0) && path.split(|byte| *byte == b'/').all(component)
}

fn entry_key(path: &[u8]) -> Vec<u8> {
    [&[ENTRY], path].concat()
}

fn part_key(number: u64) -> [u8; 9] {
    let mut key = [PART; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

fn path_of(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[ENTRY]).filter(|path| is_file_path(path))
}

fn part_of(key: &[u8]) -> Option<u64> {
    let number = key.strip_prefix(&[PART])?;
    number.try_into().ok().map(u64::from_be_bytes)
}

/// Writes files. Dropping it without [`FilesWriter::commit`] leaves nothing.
#[derive(Debug)]
pub struct FilesWriter {
    transaction: Transaction,
}

impl Engine {
    /// Begins to write files. It waits for nobody, whatever functions run; there must be one at a time.
    pub fn write_files(&self) -> FilesWriter {
        // Without a turn, and as one that has it: nobody else writes this table.
        FilesWriter { transaction: Transaction::new(self.clone(), Access::Exclusive, None) }
    }
}

impl FilesWriter {
    /// Writes a part under a number that no entry names. The number is not [`HOLE`], and there are at most [`MAX_FILE_PART_LEN`] bytes.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn put_part(&mut self, number: u64, bytes: &[u8]) -> Result<(), StateError> {
        self.transaction.set(Table::Files, &part_key(number), 0, bytes)
    }

    /// Removes a part; says whether it was there.
    pub fn remove_part(&mut self, number: u64) -> bool {
        self.transaction.remove(Table::Files, &part_key(number))
    }

    /// Writes the entry of a file or directory. The path is as [`is_file_path`] wants it.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn put(&mut self, path: &[u8], entry: &FileEntry) -> Result<(), StateError> {
        self.transaction.set(Table::Files, &entry_key(path), 0, &entry.encode())
    }

    /// Removes an entry; says whether it was there. Its parts stay.
    pub fn remove(&mut self, path: &[u8]) -> bool {
        self.transaction.remove(Table::Files, &entry_key(path))
    }

    /// What is committed to make all of it permanent at once. It never meets a conflict.
    pub fn transaction(&mut self) -> &mut Transaction {
        &mut self.transaction
    }

    /// Makes all of it permanent at once.
    ///
    /// # Errors
    /// As [`Transaction::commit`]; never a conflict.
    pub fn commit(&mut self) -> Result<u64, StateError> {
        self.transaction.commit()
    }
}

/// A path and what stands under it, or why it cannot be read.
pub type FileAt<'a> = (&'a [u8], Result<FileEntry, StateError>);

impl Snapshot {
    /// Files and directories, in the order of their paths: a directory comes before what is in it. Damage to one is an error of that one.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] if something stands where no path can: a sandbox lied.
    pub fn files(&self) -> Result<Vec<FileAt<'_>>, StateError> {
        let entries = self.files_between(ENTRY, PART);
        let read = |(key, item): (_, _)| {
            let entry = self.state.value(key, item);
            let entry = entry.and_then(|value| whole(key, FileEntry::decode(value.bytes)));
            whole(key, path_of(key)).map(|path| (path, entry))
        };
        entries.map(read).collect()
    }

    /// What stands under a path; `None` if nothing does.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn file_entry(&self, path: &[u8]) -> Result<Option<FileEntry>, StateError> {
        let key = entry_key(path);
        let value = self.state.get(Table::Files, &key)?;
        value.map(|value| whole(&key, FileEntry::decode(value.bytes))).transpose()
    }

    /// The bytes of one of [`FileEntry::pieces`]; `None` for a hole.
    ///
    /// # Errors
    /// As [`Snapshot::get`], also where there is no such part.
    pub fn file_piece(&self, (number, len): (u64, usize)) -> Result<Option<&[u8]>, StateError> {
        if number == HOLE {
            return Ok(None);
        }
        let part = self.file_part(number)?.filter(|part| part.len() == len);
        whole(&part_key(number), part).map(Some)
    }

    /// The bytes of a part; `None` if there is none of this number.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn file_part(&self, number: u64) -> Result<Option<&[u8]>, StateError> {
        Ok(self.state.get(Table::Files, &part_key(number))?.map(|value| value.bytes))
    }

    /// Numbers of all parts, ascending.
    pub fn file_parts(&self) -> Vec<u64> {
        self.files_between(PART, PART + 1).filter_map(|(key, _)| part_of(key)).collect()
    }

    fn files_between(&self, from: u8, to: u8) -> impl Iterator<Item = (&[u8], &Item)> {
        let range = self.state.tree(Table::Files).range(Bound::Included(&[from]));
        range.take_while(move |(key, _)| key[0] < to)
    }
}

impl Offline {
    /// Files and directories, in the order of their paths, as [`Snapshot::files`] gives them.
    ///
    /// # Errors
    /// As [`Snapshot::files`].
    pub fn files(&self) -> Result<Vec<FileAt<'_>>, StateError> {
        let entries = self.entries_of(Table::Files).take_while(|(key, _)| key[0] == ENTRY);
        let read = |(key, item): (_, _)| {
            let entry = self.load(key, item).and_then(|value| whole(key, FileEntry::decode(&value)));
            whole(key, path_of(key)).map(|path| (path, entry))
        };
        entries.map(read).collect()
    }

    /// What stands under a path; `None` if nothing does.
    ///
    /// # Errors
    /// As [`Offline::get`].
    pub fn file_entry(&self, path: &[u8]) -> Result<Option<FileEntry>, StateError> {
        let key = entry_key(path);
        let value = self.item(Table::Files, &key).map(|item| self.load(&key, item)).transpose()?;
        value.map(|value| whole(&key, FileEntry::decode(&value))).transpose()
    }

    /// A copy of the bytes of one of [`FileEntry::pieces`], compared with their checksum; `None` for a hole.
    ///
    /// # Errors
    /// As [`Offline::get`], also where there is no such part.
    pub fn file_piece(&self, (number, len): (u64, usize)) -> Result<Option<Vec<u8>>, StateError> {
        if number == HOLE {
            return Ok(None);
        }
        let key = part_key(number);
        let part = self.item(Table::Files, &key).map(|item| self.load(&key, item)).transpose()?;
        whole(&key, part.filter(|part| part.len() == len)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64, part_len: u32, parts: Vec<u64>) -> FileEntry {
        FileEntry { mode: 0o640, modified: (-5, 999_999_999), kind: FileKind::File { len, part_len, parts } }
    }

    #[test]
    fn entries_come_back() {
        let directory = FileEntry { mode: 0o755, modified: (0, 0), kind: FileKind::Directory };
        for entry in [directory, file(0, 4096, vec![]), file(8193, 4096, vec![7, HOLE, u64::MAX])] {
            assert_eq!(FileEntry::decode(&entry.encode()), Some(entry));
        }
        let some = file(8193, 4096, vec![7, HOLE, 9]);
        assert_eq!(some.parts().collect::<Vec<_>>(), [7, 9]);
        assert_eq!(some.pieces().collect::<Vec<_>>(), [(7, 4096), (HOLE, 4096), (9, 1)]);
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        let whole = file(8193, 4096, vec![7, 8, 9]).encode();
        for len in 0..whole.len() {
            assert_eq!(FileEntry::decode(&whole[..len]), None, "{len}");
        }
        // Kind, zeros, mode, length, nanoseconds, length of a part.
        for (at, byte) in
            [(0, 0), (0, 1), (0, 3), (1, 1), (5, 0x0e), (9, 0x90), (27, 0xff), (29, 0x11), (30, 0x20)]
        {
            let mut other = whole.clone();
            other[at] = byte;
            assert_eq!(FileEntry::decode(&other), None, "byte {at} as {byte}");
        }
    }

    #[test]
    fn paths_lead_nowhere_else() {
        for good in [&b"a"[..], b"a/b", b"...", b"\xff/ /\n", &[b'x'; MAX_FILE_PATH_LEN]] {
            assert!(is_file_path(good), "{good:?}");
        }
        for bad in [
            &b""[..],
            b"/",
            b"/a",
            b"a/",
            b"a//b",
            b".",
            b"a/../b",
            b"..",
            b"a\0b",
            &[b'x'; MAX_FILE_PATH_LEN + 1],
        ] {
            assert!(!is_file_path(bad), "{bad:?}");
        }
    }
}
