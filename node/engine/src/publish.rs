//! The one place where a writer and its readers meet: the current value, which readers take and the writer replaces.
//!
//! A reader takes an `Arc` under a lock that is never held for longer than a bounded change. The writer has two ways. A **short**
//! change is made in place under the lock if nobody else holds the value, and on a copy otherwise; a **long** one is made on a copy
//! without the lock, and only put in place under it. Either way a reader sees all of a change or nothing.
//!
//! `tests/loom.rs` includes this file with loom's types under `crate::sync`, so that loom runs this very code.

use std::sync::PoisonError;

use crate::sync::{Arc, Mutex, MutexGuard};

/// A value that many read and one replaces.
#[derive(Debug)]
pub(crate) struct Published<T> {
    current: Mutex<Arc<T>>,
}

impl<T: Clone> Published<T> {
    pub(crate) fn new(value: T) -> Published<T> {
        Published { current: Mutex::new(Arc::new(value)) }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<T>> {
        // A panic in a short change leaves a value that is whole in memory terms; the engine poisons itself before it can be used.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value as it is now; it stays as it is.
    pub(crate) fn snapshot(&self) -> Arc<T> {
        self.lock().clone()
    }

    /// Changes the value under the lock. There is one writer at a time: its callers hold the log's lock.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut current = self.lock();
        let (result, old) = change_in_place(&mut current, change);
        drop(current);
        // Outside of the lock: freeing the pages of a snapshot that ended meanwhile may take long.
        drop(old);
        result
    }

    /// As [`Published::change`], for a writer who holds the value himself: without letting go of it first, it would never be changed in
    /// place. `mine` is the new value afterwards; `before` is shown the one it was and the current one.
    pub(crate) fn change_mine(
        &self,
        mine: &mut Option<Arc<T>>,
        before: impl FnOnce(&T, &T),
        change: impl FnOnce(&mut T),
    ) {
        let mut current = self.lock();
        if let Some(mine) = mine.take() {
            before(&mine, &current);
        }
        let ((), old) = change_in_place(&mut current, change);
        *mine = Some(current.clone());
        drop(current);
        drop(old);
    }

    /// Changes a copy without the lock and then puts it in place. There is one writer at a time, as above.
    pub(crate) fn change_aside<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut copy = T::clone(&self.snapshot());
        let result = change(&mut copy);
        let old = std::mem::replace(&mut *self.lock(), Arc::new(copy));
        drop(old);
        result
    }
}

/// Changes a value that nobody else holds, and a copy of any other. Returns what the copy replaced.
fn change_in_place<T: Clone, R>(
    current: &mut Arc<T>,
    change: impl FnOnce(&mut T) -> R,
) -> (R, Option<Arc<T>>) {
    if let Some(value) = Arc::get_mut(current) {
        return (change(value), None);
    }
    let mut copy = T::clone(current);
    let result = change(&mut copy);
    (result, Some(std::mem::replace(current, Arc::new(copy))))
}
