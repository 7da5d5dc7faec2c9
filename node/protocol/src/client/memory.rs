//! What a client remembers from one connection to the next: where functions stand in their table, and the highest epoch of each process.
//!
//! The epochs belong to the client and not to a connection: what one of its connections has seen, none of the others may go back
//! behind, also while both are open. Where functions stand is each connection's own, since two processes may run two images.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::{MAX_EPOCHS, MAX_FUNCTIONS};
use crate::violation::Violation;

/// See the module. One belongs to one application.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Tag of the table; 0 if none is known.
    table: u64,
    functions: HashMap<String, u32>,
    epochs: Epochs,
}

/// The highest epoch that was seen of each process of an application. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Epochs(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    epochs: HashMap<String, u64>,
    /// Names in `epochs`, the one that was added first in front.
    order: VecDeque<String>,
}

impl Memory {
    /// One that shares what other connections of the same client have seen.
    pub fn sharing(epochs: &Epochs) -> Memory {
        Memory { epochs: epochs.clone(), ..Memory::default() }
    }

    /// What this one shares with others.
    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// The table and index of a function, if they are known.
    pub fn function(&self, name: &str) -> Option<(u64, u32)> {
        self.functions.get(name).map(|index| (self.table, *index))
    }

    /// The highest epoch seen of a process; 0 if none was.
    pub fn epoch(&self, process: &str) -> u64 {
        self.epochs.of(process)
    }

    pub(crate) fn learn_function(&mut self, table: u64, name: &str, index: u32) {
        if table != self.table {
            self.forget_functions();
            self.table = table;
        }
        if self.functions.len() < MAX_FUNCTIONS as usize {
            self.functions.insert(name.to_owned(), index);
        }
    }

    pub(crate) fn learn_table(&mut self, table: u64, names: &[String]) {
        for (index, name) in (0..).zip(names) {
            self.learn_function(table, name, index);
        }
    }

    pub(crate) fn forget_functions(&mut self) {
        self.table = 0;
        self.functions.clear();
    }

    /// An answer of `epoch` came; 0 says nothing.
    ///
    /// # Errors
    /// [`Violation::StaleEpoch`] if a higher one was seen.
    pub(crate) fn saw(&self, process: &str, epoch: u64) -> Result<(), Violation> {
        if epoch == 0 { Ok(()) } else { self.epochs.seen().saw(process, epoch) }
    }
}

impl Epochs {
    /// The highest epoch seen of a process; 0 if none was.
    pub fn of(&self, process: &str) -> u64 {
        self.seen().of(process)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nothing in here is half done when something panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn of(&self, process: &str) -> u64 {
        self.epochs.get(process).copied().unwrap_or(0)
    }

    fn saw(&mut self, process: &str, epoch: u64) -> Result<(), Violation> {
        let seen = self.of(process);
        if epoch == seen {
            return Ok(());
        }
        if epoch < seen {
            return Err(Violation::StaleEpoch { got: epoch, seen });
        }
        if self.epochs.insert(process.to_owned(), epoch).is_none() {
            self.order.push_back(process.to_owned());
        }
        if self.order.len() > MAX_EPOCHS
            && let Some(oldest) = self.order.pop_front()
        {
            self.epochs.remove(&oldest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_only_grow() {
        let memory = Memory::default();
        memory.saw("p", 5).unwrap();
        memory.saw("p", 5).unwrap();
        memory.saw("p", 0).unwrap();
        assert_eq!(memory.saw("p", 4), Err(Violation::StaleEpoch { got: 4, seen: 5 }));
        memory.saw("q", 1).unwrap();
        memory.saw("p", 9).unwrap();
        assert_eq!((memory.epoch("p"), memory.epoch("q"), memory.epoch("r")), (9, 1, 0));
    }

    #[test]
    fn what_one_connection_has_seen_holds_for_the_others() {
        let (one, stranger) = (Memory::default(), Memory::default());
        let (other, again) = (Memory::sharing(one.epochs()), one.clone());
        other.saw("p", 5).unwrap();
        assert_eq!(one.saw("p", 4), Err(Violation::StaleEpoch { got: 4, seen: 5 }));
        assert_eq!((one.epoch("p"), again.epoch("p"), stranger.epoch("p")), (5, 5, 0));
        one.saw("p", 6).unwrap();
        other.saw("p", 5).unwrap_err();
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::default();
        for n in 0..2 * MAX_EPOCHS {
            memory.saw(&n.to_string(), 1).unwrap();
        }
        let seen = memory.epochs.seen();
        assert_eq!((seen.epochs.len(), seen.order.len()), (MAX_EPOCHS, MAX_EPOCHS));
        drop(seen);
        for n in 0..2 * MAX_FUNCTIONS {
            memory.learn_function(1, &n.to_string(), 0);
        }
        assert_eq!(memory.functions.len(), MAX_FUNCTIONS as usize);
    }

    #[test]
    fn another_table_makes_the_old_places_void() {
        let mut memory = Memory::default();
        memory.learn_function(1, "f", 3);
        assert_eq!(memory.function("f"), Some((1, 3)));
        memory.learn_table(2, &["g".to_owned(), "h".to_owned()]);
        assert_eq!((memory.function("f"), memory.function("h")), (None, Some((2, 1))));
    }
}
