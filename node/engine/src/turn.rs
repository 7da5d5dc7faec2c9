//! Who may write: one exclusive transaction at a time, any number of concurrent ones beside it, and nobody beside a sole one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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

#[derive(Debug, Default)]
struct Holders {
    exclusive: bool,
    sole: bool,
    /// Concurrent transactions that are committing now.
    committing: usize,
    /// Threads that wait for a change: waking nobody would still be a system call.
    waiting: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Turn {
    holders: Mutex<Holders>,
    changed: Condvar,
}

impl Turn {
    fn lock(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, busy: impl Fn(&Holders) -> bool) -> MutexGuard<'_, Holders> {
        let mut holders = self.lock();
        while busy(&holders) {
            holders.waiting += 1;
            holders = self.changed.wait(holders).unwrap_or_else(PoisonError::into_inner);
            holders.waiting -= 1;
        }
        holders
    }

    fn change(&self, change: impl FnOnce(&mut Holders)) {
        let mut holders = self.lock();
        change(&mut holders);
        if holders.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Waits for the turn that `access` needs. Concurrent transactions need none until they commit.
    pub(crate) fn take(self: &Arc<Turn>, access: Access) -> Option<Held> {
        let sole = match access {
            Access::Concurrent => return None,
            Access::Exclusive => false,
            Access::Sole => true,
        };
        let mut holders = self.wait(|holders| holders.exclusive);
        holders.exclusive = true;
        if sole {
            holders.sole = true;
            drop(holders);
            drop(self.wait(|holders| holders.committing > 0));
        }
        Some(Held { turn: self.clone() })
    }

    /// Lets a concurrent transaction commit: not beside a sole one.
    pub(crate) fn pass(self: &Arc<Turn>) -> Passing {
        self.wait(|holders| holders.sole).committing += 1;
        Passing { turn: self.clone() }
    }
}

/// The turn of an exclusive or sole transaction; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Held {
    turn: Arc<Turn>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.turn.change(|holders| (holders.exclusive, holders.sole) = (false, false));
    }
}

/// A concurrent transaction that commits; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Passing {
    turn: Arc<Turn>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.turn.change(|holders| holders.committing -= 1);
    }
}
