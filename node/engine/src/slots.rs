//! Slots: places of values in the segment that is being written, which are dead and may be written over. What costs of a commit of a few
//! kilobytes is the fresh page; the bytes of a value that just died lie in pages that are there, and dirty already.
//!
//! A value may be written over when nobody can need it any more:
//!
//! - **no reader**: whoever reads holds an [`Era`], through a state or a transaction. What dies counts for the current era, and is free
//!   when that one and all before it are held by nobody else;
//! - **no recovery**: a loss of power may take the log back to any commit from the last sync on, and a sync that has begun may be the last.
//!   So only what was written after the last sync *began* is written over, by a commit after that which made it dead: the log can always go
//!   back to where the sync began. It should seldom have to go that far, so every second the same is done without a sync.
//!
//! `tests/loom.rs` includes this file with loom's types under `crate::sync`.
//!
//! The segment stays the one in use: where another is begun, the slots of the old one are forgotten.

use std::collections::{BTreeMap, VecDeque};

use crate::format::{PLACED, aligned};
use crate::index::Item;
use crate::sync::Arc;

/// What readers hold. States of one era are told apart by nothing that matters here.
#[derive(Debug)]
pub(crate) struct Era;

/// A new era begins when so many values died in one.
pub(crate) const ERA_LEN: usize = 8;
/// So many eras are kept apart; while a reader holds an old one, nothing more is gained by more.
pub(crate) const ERAS: usize = 64;
/// How old what is written over may be: its pages are certainly there, and a loss of power costs little more than it would anyway.
pub(crate) const SPAN_MS: u64 = 1000;

/// What died in an era.
#[derive(Debug)]
struct Dead {
    era: Arc<Era>,
    /// Position and length, both in bytes.
    places: Vec<(u64, u64)>,
}

#[derive(Debug)]
pub(crate) struct Slots {
    /// What was written up to this commit stays.
    floor: u64,
    floor_ms: u64,
    /// Places by their length. The last to be free is the first to be used: it is still in the processor's cache.
    free: BTreeMap<u64, Vec<u64>>,
    /// By era; the last is the current one.
    eras: VecDeque<Dead>,
    /// Something died since somebody asked.
    wanted: bool,
}

impl Slots {
    /// For a log whose commits up to `floor` stay.
    pub(crate) fn new(floor: u64) -> Slots {
        let (free, eras) = (BTreeMap::new(), VecDeque::new());
        let mut slots = Slots { floor, floor_ms: 0, free, eras, wanted: false };
        slots.begin_era();
        slots
    }

    fn begin_era(&mut self) -> Arc<Era> {
        let era = Arc::new(Era);
        self.eras.push_back(Dead { era: era.clone(), places: Vec::new() });
        era
    }

    /// What the state that is published is of.
    pub(crate) fn era(&mut self) -> Arc<Era> {
        self.eras.back().map(|dead| dead.era.clone()).unwrap_or_else(|| self.begin_era())
    }

    /// Everything up to commit `seq` stays from now on.
    pub(crate) fn keep(&mut self, seq: u64) {
        self.floor = seq;
        self.forget();
    }

    /// As [`Slots::keep`], if it is time to.
    pub(crate) fn keep_at_times(&mut self, seq: u64, now_ms: u64) {
        if now_ms.wrapping_sub(self.floor_ms) >= SPAN_MS {
            self.floor_ms = now_ms;
            self.keep(seq);
        }
    }

    /// Forgets all places. Eras stay: whoever holds one of them may yet see what dies later.
    pub(crate) fn forget(&mut self) {
        self.free.clear();
        self.eras.iter_mut().for_each(|dead| dead.places.clear());
    }

    /// Notes that a value in the segment in use died with the commit that is being published.
    pub(crate) fn died(&mut self, item: &Item) {
        let len = aligned(item.len);
        if item.version <= self.floor || !PLACED.contains(&len) {
            return;
        }
        self.wanted = true;
        let room = self.eras.len() < ERAS;
        if let Some(dead) = self.eras.back_mut().filter(|dead| room || dead.places.len() < ERA_LEN) {
            dead.places.push((item.offset(), len));
        }
    }

    /// The era of the state that is being published, if that is to be a new one.
    pub(crate) fn next_era(&mut self) -> Option<Arc<Era>> {
        let full = self.eras.back().is_some_and(|dead| dead.places.len() >= ERA_LEN);
        (full && self.eras.len() < ERAS).then(|| self.begin_era())
    }

    /// Whether there was anything to be had since this was asked last.
    pub(crate) fn are_wanted(&mut self) -> bool {
        std::mem::take(&mut self.wanted)
    }

    /// A place for a value of `len` bytes that is `reached`; those that are not are forgotten.
    pub(crate) fn take(&mut self, len: u64, reached: impl Fn(u64, u64) -> bool) -> Option<u64> {
        let len = aligned(len);
        if !PLACED.contains(&len) {
            return None;
        }
        self.collect();
        // What a shorter value leaves of a place is not used again.
        let (_, places) = self.free.range_mut(len..=len + len / 4).find(|(_, places)| !places.is_empty())?;
        std::iter::from_fn(|| places.pop()).find(|place| reached(*place, len))
    }

    /// Frees what died in eras that nobody holds any more.
    fn collect(&mut self) {
        while self.eras.len() > 1 {
            let Some(oldest) = self.eras.front_mut() else { return };
            // Not only a count: what its last holder read is read before this.
            if Arc::get_mut(&mut oldest.era).is_none() {
                return;
            }
            for (place, len) in oldest.places.drain(..) {
                self.free.entry(len).or_default().push(place);
            }
            self.eras.pop_front();
        }
    }

    /// How many eras are kept apart, and how many places that are not free yet.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> (usize, usize) {
        (self.eras.len(), self.eras.iter().map(|dead| dead.places.len()).sum())
    }
}
