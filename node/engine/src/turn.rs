//! Who may write: one exclusive transaction at a time, any number of concurrent ones beside it, and nobody beside a sole one.
//!
//! Who holds what is one number, changed without a lock; the lock and the condition variable are only for those who wait.
//!
//! `tests/loom.rs` includes this file, as it does `publish.rs`.

use std::sync::PoisonError;

use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// How a transaction writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// One at a time. Runs beside concurrent transactions, and can only meet a conflict with one of those.
    Exclusive,
    /// Any number at once, each with a private write set; the first to commit a key wins.
    Concurrent,
    /// As exclusive, and concurrent transactions wait with their commits until it ends: it never meets a conflict. For running an
    /// exclusive function again that met one.
    Sole,
}

/// An exclusive or sole transaction is there.
const EXCLUSIVE: u64 = 1;
/// It is a sole one.
const SOLE: u64 = 2;
/// Somebody waits for a change: waking nobody would still be a system call.
const WAITING: u64 = 4;
/// One concurrent transaction that is committing now. All higher bits count them.
const COMMITTING: u64 = 8;

#[derive(Debug)]
pub(crate) struct Turn {
    holders: AtomicU64,
    waiters: Mutex<()>,
    changed: Condvar,
}

impl Turn {
    pub(crate) fn new() -> Turn {
        Turn { holders: AtomicU64::new(0), waiters: Mutex::new(()), changed: Condvar::new() }
    }

    fn waiters(&self) -> MutexGuard<'_, ()> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `what` to the holders unless one of `busy` is there.
    fn try_add(&self, busy: u64, what: u64) -> bool {
        let mut holders = self.holders.load(Ordering::Relaxed);
        while holders & busy == 0 {
            let next = holders + what;
            match self.holders.compare_exchange_weak(holders, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => holders = now,
            }
        }
        false
    }

    fn add(&self, busy: u64, what: u64) {
        if self.try_add(busy, what) {
            return;
        }
        let mut waiters = self.waiters();
        loop {
            // Said before looking again: whoever leaves after that look knows that it has to wake somebody, and cannot before this
            // waits, because that takes the lock.
            self.holders.fetch_or(WAITING, Ordering::Relaxed);
            if self.try_add(busy, what) {
                return;
            }
            waiters = self.changed.wait(waiters).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn remove(&self, what: u64) {
        if self.holders.fetch_sub(what, Ordering::Release) & WAITING != 0 {
            let waiters = self.waiters();
            self.holders.fetch_and(!WAITING, Ordering::Relaxed);
            self.changed.notify_all();
            drop(waiters);
        }
    }

    /// Waits for the turn that `access` needs. Concurrent transactions need none until they commit.
    pub(crate) fn take(&self, access: Access) -> Option<Held> {
        let what = match access {
            Access::Concurrent => return None,
            Access::Exclusive => EXCLUSIVE,
            Access::Sole => EXCLUSIVE + SOLE,
        };
        self.add(EXCLUSIVE, what);
        if access == Access::Sole {
            // Nobody begins to commit from now on; those who have begun end soon.
            self.add(!(EXCLUSIVE | SOLE | WAITING), 0);
        }
        Some(Held { what })
    }

    /// Ends a turn.
    pub(crate) fn end(&self, turn: Held) {
        self.remove(turn.what);
    }

    /// Lets a concurrent transaction commit: not beside a sole one.
    pub(crate) fn pass(&self) -> Passing<'_> {
        self.add(SOLE, COMMITTING);
        Passing { turn: self }
    }
}

/// The turn of an exclusive or sole transaction, to be given to [`Turn::end`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Held {
    what: u64,
}

/// A concurrent transaction that commits; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Passing<'a> {
    turn: &'a Turn,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.turn.remove(COMMITTING);
    }
}
