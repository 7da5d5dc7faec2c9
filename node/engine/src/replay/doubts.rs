//! Values that may have been written over: which commit the log ends with.
//!
//! While nobody syncs, the place of a dead value is written anew (`crate::slots`). So above the durable watermark a value that does not fit
//! its checksum says nothing yet: it may be dead. What has to fit is what is live in the commit that the log ends with. If something there
//! does not, because the power went, the log ends with the last commit in which all that was live does; there is one, at the watermark
//! or above it, because what was live when a sync began is not written over.

use std::collections::{BTreeMap, HashMap};

use super::reader::{Found, Records};
use crate::StateError;
use crate::format::{Effect, RecordHead};
use crate::tables::Table;

/// Lives to the end of the log.
const ALIVE: u64 = u64::MAX;
/// Gaps are joined when there are twice as many as there were, and at least so many.
const GAPS: usize = 1024;

/// A value of a commit above the watermark that does not fit its checksum, or is not looked at yet.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// It is live from this commit on.
    born: u64,
    /// To before this one.
    died: u64,
    len: u64,
    crc: u64,
    /// It does not fit its checksum.
    bad: bool,
}

/// Where a value lies: the slot of its segment, and an offset.
type Spot = (u32, u64);

#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// The last value that was written to a spot, if there is a doubt about it.
    spots: BTreeMap<Spot, Doubt>,
    /// Where the value of a key lies, if there is a doubt about it.
    live: HashMap<(Table, Box<[u8]>), Spot>,
    /// Commits (from one, to before another) that the log cannot end with: something is live in them that is not there any more.
    gaps: Vec<(u64, u64)>,
    joined: usize,
}

impl Doubts {
    /// Notes what a part of a commit above the watermark does, the one after the other. `fits`: what is known of its value.
    pub(crate) fn note(&mut self, slot: u32, head: &RecordHead, part: &Found, fits: Option<bool>) {
        let (table, sets) = match part.head.kind.effect() {
            Effect::Set(table) => (table, true),
            Effect::Remove(table) => (table, false),
            Effect::Log => return,
        };
        let doubtful = sets && fits != Some(true);
        if self.live.is_empty() && !doubtful {
            return;
        }
        let key = (table, part.key.clone());
        if let Some(before) = self.live.remove(&key).and_then(|spot| self.spots.get_mut(&spot)) {
            before.died = head.seq;
        }
        if !doubtful {
            return;
        }
        let spot = (slot, part.value_at);
        let (len, crc, bad) = (part.head.value_len, part.head.value_crc, fits == Some(false));
        let doubt = Doubt { born: head.seq, died: ALIVE, len, crc, bad };
        if let Some(under) = self.spots.insert(spot, doubt) {
            self.gap(&under);
        }
        self.live.insert(key, spot);
    }

    fn gap(&mut self, gone: &Doubt) {
        self.gaps.push((gone.born, gone.died));
        if self.gaps.len() > 2 * self.joined + GAPS {
            self.join_gaps();
        }
    }

    fn join_gaps(&mut self) {
        self.gaps.sort_unstable();
        self.gaps.dedup_by(|next, before| {
            let joins = next.0 <= before.1;
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        self.joined = self.gaps.len();
    }

    /// The commit that the log ends with: at most `last`, which it was read up to, and at least `durable`. `records_of` reads a segment by
    /// its slot.
    pub(crate) fn end<'a>(
        mut self,
        durable: u64,
        last: u64,
        records_of: impl Fn(u32) -> Records<'a>,
    ) -> Result<u64, StateError> {
        // Nearly always the process ended and the power did not: then what is live fits, and nothing else has to be looked at.
        self.look(&records_of, |doubt| doubt.died == ALIVE)?;
        let is_gone = |doubt: &Doubt| doubt.bad && doubt.died == ALIVE;
        if !self.spots.values().any(is_gone) && self.gaps.iter().all(|gap| gap.1 <= last) {
            return Ok(last);
        }
        self.look(&records_of, |_| true)?;
        let gone = self.spots.values().filter(|doubt| doubt.bad).map(|doubt| (doubt.born, doubt.died));
        self.gaps.extend(gone);
        self.join_gaps();
        let gap = self.gaps.iter().find(|gap| (gap.0..gap.1).contains(&last));
        // Joined, so what is before a gap is in none.
        Ok(gap.map_or(last, |gap| gap.0 - 1).max(durable))
    }

    /// Compares values with their checksums, in the order of their places.
    fn look<'a>(
        &mut self,
        records_of: &impl Fn(u32) -> Records<'a>,
        which: impl Fn(&Doubt) -> bool,
    ) -> Result<(), StateError> {
        let mut open: Option<(u32, Records<'a>, u64)> = None;
        for ((slot, at), doubt) in &mut self.spots {
            if doubt.bad || !which(doubt) {
                continue;
            }
            if open.as_ref().is_none_or(|open| open.0 != *slot) {
                let records = records_of(*slot);
                let capacity = records.segment.capacity();
                open = Some((*slot, records, capacity));
            }
            // Values that lie over each other are a forgery. It costs no more than the segment is long.
            let fits = match &mut open {
                Some((_, records, left)) if *left >= doubt.len => {
                    *left -= doubt.len;
                    records.fits(*at, doubt.len, doubt.crc)?
                }
                _ => false,
            };
            doubt.bad = !fits;
        }
        Ok(())
    }
}
