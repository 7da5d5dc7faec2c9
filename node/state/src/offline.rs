//! State files that no sandbox has open: checked and copied with plain reads and writes, never mapped, by the agent.
//!
//! The source may have been written byte by byte by a tenant. It is read once, as data, and everything in it is checked before it
//! counts; the worst that a hostile file can do is to be refused.

use std::fs::File;

use crate::engine::{allocate, summary_of, write_slot};
use crate::format::{PAGE, Slot};
use crate::replay::replay;
use crate::{Lineage, StateError, Summary, snapshot};

/// Makes `to` a state file with the live objects of `from` and nothing else, on the disk when it returns. Lineage, commit
/// number and versions stay. What `to` had before is gone. The copy's header is written last: one that did not finish is
/// [`StateError::NotFormatted`].
///
/// # Errors
/// As [`crate::Engine::open`] for `from`; [`StateError::NoSpace`] and [`StateError::Io`] for `to`.
pub fn copy_live(from: &File, to: &File) -> Result<Summary, StateError> {
    let found = replay(from)?;
    let mut slot = Slot {
        generation: found.slot.generation + 1,
        start: PAGE,
        base_seq: found.seq,
        base_end: PAGE,
        lineage: found.slot.lineage,
    };
    let written = |error| StateError::io("written", 0)(error);
    to.set_len(0).map_err(written)?;
    allocate(to, 0, PAGE + snapshot::bound(found.index.live_bytes()))?;
    slot.base_end = snapshot::write(&found.index, from, to, &slot)?.end;
    to.sync_all().map_err(written)?;
    write_slot(to, &slot)?;
    to.sync_all().map_err(written)?;
    Ok(summary_of(found.seq, &found.index))
}

/// Reads and checks the whole file, and says whose it is.
///
/// # Errors
/// As [`crate::Engine::open`].
pub fn lineage(file: &File) -> Result<Lineage, StateError> {
    replay(file).map(|found| found.slot.lineage)
}

/// Reads and checks the whole file, and says what is in it.
///
/// # Errors
/// As [`crate::Engine::open`].
pub fn inspect(file: &File) -> Result<Summary, StateError> {
    replay(file).map(|found| summary_of(found.seq, &found.index))
}
