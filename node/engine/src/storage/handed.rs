//! Segments that somebody else opens and hands in: the engine's side of a sandbox, where nothing can be opened.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Segment, Storage};

type Ask = Box<dyn Fn(u64) + Send + Sync>;

/// A queue of spares that its owner fills, and two messages to that owner.
pub struct Handed {
    present: Mutex<Vec<Arc<dyn Segment>>>,
    spares: Mutex<Vec<Arc<dyn Segment>>>,
    ask: Ask,
    retire: Ask,
}

impl Handed {
    /// Begins with the segments of the log. `ask` is called with the bytes of a spare that is wanted, `retire` with the id of a segment
    /// that may be deleted; both return at once and do not call back.
    pub fn new(present: Vec<Arc<dyn Segment>>, ask: Ask, retire: Ask) -> Handed {
        Handed { present: Mutex::new(present), spares: Mutex::default(), ask, retire }
    }

    /// Hands a spare in.
    pub fn push_spare(&self, spare: Arc<dyn Segment>) {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
    }
}

impl Storage for Handed {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        Ok(std::mem::take(&mut self.present.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spares.iter().position(|spare| spare.capacity() >= min_bytes);
        Ok(fitting.map(|at| spares.remove(at)))
    }

    fn request_spare(&self, wanted_bytes: u64) {
        (self.ask)(wanted_bytes);
    }

    fn retire(&self, id: u64) {
        (self.retire)(id);
    }
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handed").field("spares", &self.spares).finish_non_exhaustive()
    }
}
