//! State of one process: mapped log segments, atomic commits, snapshots, durability by choice.
//!
//! This crate owns the bytes of the segments (`FORMAT.md` draws them) and everything that is true of them. What must hold:
//!
//! - **A commit is all or nothing.** It is one checksummed record that chains the one before; recovery cuts what was never durable,
//!   and calls damage by its name ([`StateError::Corrupt`]).
//! - **What is durable stays.** A commit that [`Engine::wait`] reported survives the loss of power. After any failed write or sync
//!   the engine takes no more commits and never tries again.
//! - **What somebody can see is not written again.** So a value is read where it lies, through a map that cannot write, for as long as
//!   the [`Transaction`] or [`Snapshot`] that handed it out; and segments are retired whole, never recycled. While nobody syncs, a value
//!   of some kilobytes may be written over one that is dead to all readers and to recovery (`slots`). What can be written through
//!   memory is the newest part of the log alone, while nobody syncs, at an address that nobody is told.
//! - **A reader sees one commit**, whatever is written meanwhile, and no reader waits for a transaction or the compactor.
//! - **Limits come first.** Quota, conflicts and room are checked before a byte is written.
//!
//! Deliberately absent: opening, creating and deleting files (the owner does, through [`storage::Storage`]); threads; retries; and
//! any knowledge of what the bytes of a value mean.

mod aligned;
mod compact;
mod engine;
mod error;
mod files;
mod format;
mod group;
mod index;
mod ledger;
mod log;
pub mod offline;
mod out;
mod publish;
mod replay;
mod replies;
mod salvage;
mod segment;
mod slots;
#[cfg(test)]
#[path = "slots/tests.rs"]
mod slots_tests;
mod state;
pub mod storage;
mod sync;
mod tables;
mod transaction;
mod turn;
mod window;

pub use aligned::AlignedBuf;
pub use compact::Compaction;
pub use engine::{Durability, Engine, Options, Recovery, SegmentSizes, Summary, SyncJob};
pub use error::{Damage, Operation, ShownKey, StateError};
pub use files::{
    FILE_MODE, FileAt, FileEntry, FileKind, FilesWriter, HOLE, MAX_FILE_PART_LEN, MAX_FILE_PATH_LEN,
    MIN_FILE_PART_LEN, is_file_path,
};
pub use format::{FORMAT, Lineage, MAX_KEY_LEN, MAX_SEGMENT_LEN, MAX_VALUE_LEN, PartKind};
pub use index::page::{MAX_PAGE_LEN, PageError, check_pages};
pub use replies::{Expired, Remembered};
pub use salvage::Salvage;
pub use state::{ConsumedUpTo, KeyInfo, Snapshot, Value};
pub use tables::{Consumption, Message, MessageId, Reply, Table, Timer, TimerId};
pub use transaction::{Savepoint, Transaction};
pub use turn::Access;
