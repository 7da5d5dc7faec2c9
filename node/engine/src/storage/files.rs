//! A segment in a file: written through one descriptor, read and mapped through another that cannot write, so that a stray pointer
//! of the tenant is a fault and never damage.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use memmap2::MmapOptions;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::{Map, Segment};

/// A segment in a file.
#[derive(Debug)]
pub struct FileSegment {
    id: u64,
    capacity: u64,
    /// `None` for a log that is only read.
    writable: Option<File>,
    read_only: File,
}

impl FileSegment {
    /// A segment from two descriptors of one file, the second opened for reading only. Its capacity is the file's length.
    ///
    /// # Errors
    /// Whatever the system says when it is asked for the length.
    pub fn new(id: u64, writable: Option<File>, read_only: File) -> io::Result<FileSegment> {
        let capacity = read_only.metadata()?.len();
        Ok(FileSegment { id, capacity, writable, read_only })
    }

    /// Allocates a new file: afterwards it can be handed in. Metadata is synced; the directory is the caller's business.
    ///
    /// # Errors
    /// Whatever the system says, `StorageFull` above all.
    pub fn allocate(file: &File, capacity: u64) -> io::Result<()> {
        FileSegment::reserve(file, capacity)?;
        file.sync_all()
    }

    /// The same, and syncs nothing: for whoever syncs the file later.
    ///
    /// # Errors
    /// As [`FileSegment::allocate`].
    pub fn reserve(file: &File, capacity: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, capacity) {
                Err(Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    fn writable(&self) -> io::Result<&File> {
        self.writable.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }
}

impl Segment for FileSegment {
    fn id(&self) -> u64 {
        self.id
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.writable()?.write_all_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_only.read_exact_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.writable()?.sync_data()
    }

    fn map(&self) -> io::Result<Map> {
        let map = MmapOptions::new().map_raw_read_only(&self.read_only)?;
        // Read-ahead behind the tail would fill the page cache with large folios of zeros, and each commit into one of those would
        // write all of it to the disk. A system that refuses the advice loses nothing but that.
        let _ = map.advise(memmap2::Advice::Random);
        Map::from_mmap(map)
    }

    fn writable_file(&self) -> Option<BorrowedFd<'_>> {
        self.writable.as_ref().map(AsFd::as_fd)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        // A private position would be nicer than moving the descriptor's, but nothing else uses that one.
        match rustix::fs::seek(&self.read_only, SeekFrom::Data(offset)) {
            Ok(at) => Some(at),
            Err(Errno::NXIO) => None,
            Err(_) => Some(offset),
        }
    }
}
