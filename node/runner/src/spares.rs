//! The segments of the state: those that the agent hands in, and the messages about them.
//!
//! It owns the accounts of spares: which lie ready, which were asked for, and whether the agent refused. Messages go out with the next
//! frame that is sent (see [`Link::send_later`]), because the engine asks under the lock of its log, where nothing may wait.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use denizen_engine::storage::{FileSegment, Segment, Storage};
use denizen_wire::{Header, Kind, SpareRefusal};

use crate::inbox::Inbox;
use crate::link::Link;
use crate::locked;

/// Spares that may be asked for at one time: the next one, and a larger one for a commit that needs it now.
const MOST_ASKED: usize = 2;

/// What the engine takes its segments from.
#[derive(Debug)]
pub(crate) struct Shelf {
    link: &'static Link,
    stock: Mutex<Stock>,
    /// The log has begun a segment, or could begin one again: there may be garbage to collect.
    changed: AtomicBool,
}

#[derive(Debug, Default)]
struct Stock {
    present: Vec<Arc<dyn Segment>>,
    ready: Vec<Arc<dyn Segment>>,
    /// Bytes of each spare that was asked for and has not come.
    asked: Vec<u64>,
    answers: u64,
    /// What the last answer was, if it was no.
    refused: Option<SpareRefusal>,
    /// Nothing was committed yet: the spare that came with the assignment is enough.
    begun: bool,
    waiting: Vec<Arc<Inbox>>,
}

/// What waiting for a spare came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spare {
    /// Try again.
    Perhaps,
    /// There is none.
    Refused(SpareRefusal),
}

impl Shelf {
    /// With the segments of the log, and blank ones, that came with the assignment.
    pub(crate) fn new(
        link: &'static Link,
        present: Vec<Arc<dyn Segment>>,
        ready: Vec<Arc<dyn Segment>>,
    ) -> Shelf {
        let stock = Mutex::new(Stock { present, ready, ..Stock::default() });
        Shelf { link, stock, changed: AtomicBool::new(false) }
    }

    /// A spare has come.
    pub(crate) fn put(&self, spare: Arc<dyn Segment>) {
        let capacity = spare.capacity();
        self.answered(|stock| {
            let asked = stock.asked.iter().position(|bytes| *bytes <= capacity).unwrap_or(0);
            stock.ready.push(spare);
            stock.refused = None;
            asked
        });
        // What had stopped for want of one may go on.
        self.look_again();
    }

    /// The spare that was asked for first cannot be had.
    pub(crate) fn refuse(&self, why: SpareRefusal) {
        self.answered(|stock| {
            stock.refused = Some(why);
            0
        });
    }

    fn answered(&self, answer: impl FnOnce(&mut Stock) -> usize) {
        let waiting = {
            let mut stock = locked(&self.stock);
            let asked = answer(&mut stock);
            if asked < stock.asked.len() {
                stock.asked.remove(asked);
            }
            stock.answers += 1;
            std::mem::take(&mut stock.waiting)
        };
        waiting.into_iter().for_each(|inbox| inbox.tell(|_| {}));
    }

    /// To be taken before a commit that may find no room; [`Shelf::news`] tells what came after it.
    pub(crate) fn ticket(&self) -> u64 {
        locked(&self.stock).answers
    }

    /// Whether something has come since a ticket that is of use to who needs `bytes`, or nothing is to come. If not, the inbox is told
    /// when it does.
    pub(crate) fn news(&self, ticket: u64, bytes: u64, inbox: &Arc<Inbox>) -> Option<Spare> {
        let mut stock = locked(&self.stock);
        if stock.ready.iter().any(|spare| spare.capacity() >= bytes) {
            return Some(Spare::Perhaps);
        }
        if stock.answers != ticket || stock.asked.is_empty() {
            let coming = stock.asked.iter().any(|asked| *asked >= bytes);
            return Some(match stock.refused {
                Some(why) if !coming => Spare::Refused(why),
                _ => Spare::Perhaps,
            });
        }
        if !stock.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, inbox)) {
            stock.waiting.push(inbox.clone());
        }
        None
    }

    /// Whether the log has changed so much that it is worth a look.
    pub(crate) fn changed(&self) -> bool {
        self.changed.load(SeqCst)
    }

    /// Somebody looks: what changes from now on is worth another look.
    pub(crate) fn looks(&self) {
        self.changed.store(false, SeqCst);
    }

    /// There is more to look at.
    pub(crate) fn look_again(&self) {
        self.changed.store(true, SeqCst);
    }
}

impl Storage for Shelf {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        Ok(std::mem::take(&mut locked(&self.stock).present))
    }

    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        let mut stock = locked(&self.stock);
        stock.begun = true;
        let fitting = stock.ready.iter().position(|spare| spare.capacity() >= min_bytes);
        Ok(fitting.map(|at| stock.ready.remove(at)))
    }

    fn request_spare(&self, wanted_bytes: u64) {
        let mut stock = locked(&self.stock);
        if stock.begun {
            self.look_again();
        }
        let ready = stock.ready.iter().any(|spare| spare.capacity() >= wanted_bytes || !stock.begun);
        let coming = stock.asked.iter().any(|asked| *asked >= wanted_bytes);
        if ready || coming || stock.asked.len() >= MOST_ASKED {
            return;
        }
        stock.asked.push(wanted_bytes);
        self.link.send_later(Header { c: wanted_bytes, ..Header::new(Kind::WantSpare, 0) });
    }

    fn retire(&self, id: u64) {
        self.link.send_later(Header { c: id, ..Header::new(Kind::Retired, 0) });
    }
}

/// A segment from the two descriptors that came with its frame.
pub(crate) fn segment(id: u64, writable: OwnedFd, read_only: OwnedFd) -> io::Result<Arc<dyn Segment>> {
    Ok(Arc::new(FileSegment::new(id, Some(File::from(writable)), File::from(read_only))?))
}
