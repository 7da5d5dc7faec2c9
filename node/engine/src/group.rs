//! Group commit: whoever waits for durability while no sync runs becomes the leader and syncs for all; the others wait.
//!
//! There is one sync in flight. A sync covers what was written when it began, so a commit that arrives during one is covered by the
//! next. After the first error nothing is ever synced again: what the disk holds is unknown from then on, and trying again would
//! report pages as durable that the kernel has already given up on.
//!
//! `tests/loom.rs` includes this file, as it does `publish.rs`.

use std::sync::PoisonError;

use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// Who may sync now, and how far it got.
#[derive(Debug)]
pub(crate) struct Group<E> {
    turn: Mutex<Turn<E>>,
    ended: Condvar,
    durable: AtomicU64,
}

#[derive(Debug)]
struct Turn<E> {
    in_flight: bool,
    failed: Option<E>,
}

/// What a caller has to do to see a commit durable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing: it is.
    Done,
    /// Sync, and then say how it went with [`Group::finish`].
    Lead,
}

impl<E: Clone> Group<E> {
    pub(crate) fn new(durable: u64) -> Group<E> {
        let turn = Turn { in_flight: false, failed: None };
        Group { turn: Mutex::new(turn), ended: Condvar::new(), durable: AtomicU64::new(durable) }
    }

    fn lock(&self) -> MutexGuard<'_, Turn<E>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All commits up to this one are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Waits until commit `seq` is durable or until it is this caller's turn to sync.
    pub(crate) fn join(&self, seq: u64) -> Result<Role, E> {
        let mut turn = self.lock();
        loop {
            if self.durable() >= seq {
                return Ok(Role::Done);
            }
            if let Some(error) = &turn.failed {
                return Err(error.clone());
            }
            if !turn.in_flight {
                turn.in_flight = true;
                return Ok(Role::Lead);
            }
            turn = self.ended.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`Group::join`], without waiting: `None` if another sync is in flight.
    pub(crate) fn try_join(&self, seq: u64) -> Result<Option<Role>, E> {
        let mut turn = self.lock();
        if self.durable() >= seq {
            return Ok(Some(Role::Done));
        }
        if let Some(error) = &turn.failed {
            return Err(error.clone());
        }
        if turn.in_flight {
            return Ok(None);
        }
        turn.in_flight = true;
        Ok(Some(Role::Lead))
    }

    /// Ends the leader's sync: everything up to a commit is durable, or nothing will be any more.
    pub(crate) fn finish(&self, outcome: Result<u64, E>) {
        let mut turn = self.lock();
        match outcome {
            Ok(seq) => {
                self.durable.fetch_max(seq, Ordering::Release);
            }
            Err(error) => {
                turn.failed.get_or_insert(error);
            }
        }
        turn.in_flight = false;
        self.ended.notify_all();
    }
}
