//! Looks at segments, while there are sandboxes that could make theirs longer.
//!
//! A sandbox can write behind the ends of those of its segments that are shorter than its longest ([`super::files::Shelf`]), from a thread
//! of its own and without a word to anybody. So they are looked at in turn, [`AT_ONCE`] sandboxes a second on each executor: all within
//! half a minute where they are some hundreds, and never more work than that where they are thousands. Until it is a sandbox's turn it
//! could take much of a disk that others need: so when room goes, all are looked at, and what takes none hurts nobody.
//!
//! A process of which all segments are of one length (every one that has little state) is not watched at all, because the system stops its
//! writes at that length; while there are no others, nothing here runs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::executor;
use crate::process::segments::Segments;
use crate::side::SideThread;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);
/// How many sandboxes are looked at each time.
const AT_ONCE: usize = 16;
/// Room has gone when there is less by one part in so many.
const PART: u64 = 8;

thread_local! {
    /// Those whose turn it is come first.
    static WATCHED: RefCell<VecDeque<Weak<Segments>>> = RefCell::default();
    /// Whether this executor looks.
    static LOOKS: Cell<bool> = const { Cell::new(false) };
}

/// Watches segments from now on, for as long as they could be made longer.
pub(super) fn watch(segments: &Rc<Segments>, side: &SideThread) {
    WATCHED.with_borrow_mut(|watched| watched.push_back(Rc::downgrade(segments)));
    if !LOOKS.replace(true) {
        executor::spawn(look_in_turn(side.clone()));
    }
}

async fn look_in_turn(side: SideThread) {
    let mut room = Room::default();
    loop {
        let Some(free) = look_at_some(&side).await else { break };
        if room.has_gone(free) {
            look_at_all(&side).await;
        }
        executor::sleep(EVERY).await;
    }
    LOOKS.set(false);
}

/// Looks at those whose turn it is. The free bytes on the disk, if it tells; `None` where nobody is watched.
async fn look_at_some(side: &SideThread) -> Option<Option<u64>> {
    let turn = next_turn();
    let looks: Vec<_> = turn.iter().map(|segments| segments.to_look_at()).collect();
    if looks.is_empty() {
        return None;
    }
    let looked = side.run(move || {
        let free = looks.first().and_then(|first| first.disk_free());
        (free, looks.into_iter().map(|to_look_at| to_look_at.look()).collect::<Vec<_>>())
    });
    let (free, found) = looked.await.ok()?;
    for (segments, stretched) in turn.iter().zip(found) {
        stretched.into_iter().for_each(|stretched| segments.breaks(stretched));
        go_on_watching(segments);
    }
    Some(free)
}

/// Each of them once, in pieces: who wants another segment waits for no more than one of these.
async fn look_at_all(side: &SideThread) {
    let rounds = WATCHED.with_borrow(VecDeque::len).div_ceil(AT_ONCE);
    for _ in 0..rounds {
        if look_at_some(side).await.is_none() {
            break;
        }
    }
}

/// Takes those out that are looked at next.
fn next_turn() -> Vec<Rc<Segments>> {
    WATCHED.with_borrow_mut(|watched| {
        let mut turn = Vec::new();
        while turn.len() < AT_ONCE
            && let Some(next) = watched.pop_front()
        {
            turn.extend(next.upgrade().filter(|segments| !segments.is_over()));
        }
        turn
    })
}

fn go_on_watching(segments: &Rc<Segments>) {
    let still = segments.can_stretch() && !segments.is_over();
    segments.watched.set(still);
    if still {
        WATCHED.with_borrow_mut(|watched| watched.push_back(Rc::downgrade(segments)));
    }
}

/// The free bytes that were seen when it was looked last, or since, if that was more.
#[derive(Debug, Default)]
struct Room {
    free: u64,
    warned: bool,
}

impl Room {
    /// `free`: `None` where the disk does not tell. All of it may have gone then.
    fn has_gone(&mut self, free: Option<u64>) -> bool {
        let Some(free) = free else {
            if !std::mem::replace(&mut self.warned, true) {
                tracing::warn!(
                    "the disk does not tell how much room it has: all segments are looked at each time"
                );
            }
            return true;
        };
        let gone = free < self.free - self.free / PART;
        if gone || free > self.free {
            self.free = free;
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_goes_little_by_little_goes_too() {
        let mut room = Room::default();
        let mut has_gone = |free| room.has_gone(Some(free));
        assert!(!has_gone(800));
        assert!(!has_gone(750) && !has_gone(700));
        assert!(has_gone(699));
        assert!(!has_gone(699) && !has_gone(900), "it came back");
        assert!(has_gone(0) && !has_gone(0));
    }

    #[test]
    fn a_disk_that_does_not_tell_may_have_no_room() {
        let mut room = Room::default();
        assert!(room.has_gone(None));
        assert!(!room.has_gone(Some(800)));
        assert!(room.has_gone(None) && room.has_gone(None));
        assert!(!room.has_gone(Some(750)), "as much as before");
    }
}
