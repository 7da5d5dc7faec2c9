//! State of one process: an append-only log of commits in one file, mapped read-only.
//!
//! This crate owns the bytes of that file. What must hold:
//!
//! - **A commit is all or nothing.** It is one checksummed record that chains the one before. A record that was cut short at the
//!   end of the log never happened and is cut; a bad record with valid ones behind it, or below what the header vouches for, is
//!   [`StateError::Corrupt`], never cut.
//! - **No reader ever faults.** The map comes from a descriptor that cannot write, and only bytes below the log's tail are
//!   touched; the file is allocated ahead of the tail, so a full disk is [`StateError::NoSpace`] at the commit and not a signal
//!   at some read.
//! - **Pointers stay good.** What a [`Transaction`] or [`Reader`] hands out lives until it is dropped, whatever is put,
//!   deleted or committed meanwhile.
//! - **Limits come first.** The quota is checked before a byte is kept, and room on the disk before a byte is written.
//!
//! The log lives in a *region* of the file. When garbage outweighs what is live, the next [`Engine::begin`] writes the live
//! objects to a free region and then switches one header slot; a crash at any instant leaves one of the two whole. The
//! [`offline`] module does the same from file to file with plain reads, for an agent that must never map tenants' files.
//!
//! What is deliberately absent: `fsync` on the commit path (durability here is `process`: it survives the sandbox and the agent,
//! not the host), conflict detection (the runner admits one writer, or many readers), and a clock.

mod aligned;
mod engine;
mod error;
mod format;
mod index;
mod map;
pub mod offline;
mod replay;
mod snapshot;
mod transaction;

pub use aligned::AlignedBuf;
pub use engine::{Engine, OpenOptions, Summary};
pub use error::StateError;
pub use format::{Lineage, MAX_KEY_LEN};
pub use transaction::{Reader, Transaction, Value};
