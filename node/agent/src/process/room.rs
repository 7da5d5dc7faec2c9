//! The room on the disk, watched while processes have sandboxes.
//!
//! A sandbox can write behind the ends of its segments ([`super::files::Shelf`]), and that is looked for every half minute. Until then it
//! could take much of a disk that others need, so all are looked at sooner when room goes: what takes none hurts nobody. One look at the
//! disk a second for each executor, and none while nothing runs there.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::executor;
use crate::home::Home;
use crate::process::Active;

/// How often the room is asked for.
const EVERY: Duration = Duration::from_secs(1);
/// Room has gone when there is less by one part in so many.
const PART: u64 = 8;

thread_local! {
    /// Whether this executor watches.
    static WATCHES: Cell<bool> = const { Cell::new(false) };
}

/// Watches for as long as processes of this executor have sandboxes. One has one now.
pub(super) fn watch(home: &Rc<Home>) {
    if !WATCHES.replace(true) {
        executor::spawn(look_when_room_goes(Rc::clone(home)));
    }
}

async fn look_when_room_goes(home: Rc<Home>) {
    let mut room = Room::default();
    loop {
        let root = home.node.dir.root().to_owned();
        let Ok(free) = home.node.segments.run(move || rustix::fs::statvfs(&root)).await else { break };
        let gone = free.is_ok_and(|disk| room.has_gone(disk.f_bavail.saturating_mul(disk.f_frsize)));
        if gone {
            for active in serving(&home) {
                active.segments.look().await;
            }
        }
        executor::sleep(EVERY).await;
        // Not before: the first one is about to serve.
        if serving(&home).is_empty() {
            break;
        }
    }
    WATCHES.set(false);
}

fn serving(home: &Home) -> Vec<Rc<Active>> {
    let processes = home.apps().into_iter().flat_map(|app| app.processes());
    processes.filter_map(|process| process.serving()).collect()
}

/// The free bytes that were seen when it was looked last, or since, if that was more.
#[derive(Debug, Default)]
struct Room(u64);

impl Room {
    fn has_gone(&mut self, free: u64) -> bool {
        let gone = free < self.0 - self.0 / PART;
        if gone || free > self.0 {
            self.0 = free;
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
        assert!(!room.has_gone(800));
        assert!(!room.has_gone(750) && !room.has_gone(700));
        assert!(room.has_gone(699));
        assert!(!room.has_gone(699) && !room.has_gone(900), "it came back");
        assert!(room.has_gone(0) && !room.has_gone(0));
    }
}
