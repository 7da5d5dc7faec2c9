//! Answers that wait until a commit is durable.
//!
//! Group commit without anybody being woken for it. A call whose reply is to be durable is done when it has committed: others run, and
//! its answer is *owed*. The leader goes on with frames that are there already, and when there are none, it syncs once for all that is
//! owed by then. Who owes something and does not lead settles it at once. While one thread settles, others only add: it goes round
//! again until nothing is left. What must hold: nobody who has added a debt goes to wait for frames or work before it is settled, or
//! another thread is settling.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use denizen_engine::{Durability, StateError};
use denizen_wire::{FailKind, Failure, Header, Kind};

use crate::call::Outcome;
use crate::inbox::Inbox;
use crate::link::Gone;
use crate::locked;
use crate::plugin::end_process;
use crate::serve::Runner;

/// So long a debt may wait for more frames that are there already.
const PATIENCE: Duration = Duration::from_millis(1);

/// An answer that waits.
#[derive(Debug)]
pub(crate) enum Debt {
    Reply {
        id: u64,
        inbox: Arc<Inbox>,
        outcome: Outcome,
    },
    /// Of a `Sync` frame.
    News {
        id: u64,
        commit: u64,
    },
}

impl Debt {
    fn commit(&self) -> u64 {
        match self {
            Debt::Reply { outcome, .. } => outcome.commit(),
            Debt::News { commit, .. } => *commit,
        }
    }

    fn call(&self) -> Option<u64> {
        match self {
            Debt::Reply { id, .. } => Some(*id),
            Debt::News { .. } => None,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Debts {
    /// Whether there is something to settle and nobody does. Changed under the lock.
    open: AtomicBool,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    owed: Vec<Debt>,
    since: Option<Instant>,
    settling: bool,
}

impl Debts {
    fn add(&self, debt: Debt) {
        let mut list = locked(&self.list);
        list.since.get_or_insert_with(Instant::now);
        list.owed.push(debt);
        self.open.store(!list.settling, SeqCst);
    }

    /// Whether there is something to settle, and nobody does.
    pub(crate) fn open(&self) -> bool {
        self.open.load(SeqCst)
    }

    /// The same, and it has waited long enough.
    pub(crate) fn overdue(&self) -> bool {
        self.open() && locked(&self.list).since.is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// All that is owed, for the one who settles; `None` if there is nothing or somebody else does. `again` is for who settled before.
    fn take(&self, again: bool) -> Option<Vec<Debt>> {
        let mut list = locked(&self.list);
        if list.settling && !again {
            return None;
        }
        list.settling = !list.owed.is_empty();
        list.since = None;
        self.open.store(false, SeqCst);
        list.settling.then(|| std::mem::take(&mut list.owed))
    }
}

impl Runner {
    /// Keeps an answer back until its commit is durable. The caller settles, or leads and settles before it waits.
    pub(crate) fn owe(&self, debt: Debt) {
        self.debts.add(debt);
    }

    /// Syncs for all answers that wait, and sends them, unless another thread does.
    pub(crate) fn settle(&'static self) {
        let mut again = false;
        while let Some(debts) = self.debts.take(again) {
            again = true;
            let commit = debts.iter().map(Debt::commit).max().unwrap_or(0);
            let synced = self.engine().wait(commit, Durability::Node);
            let ids: Vec<u64> = debts.iter().filter_map(Debt::call).collect();
            for debt in debts {
                if self.pay(debt, synced.as_ref().err()).is_err() {
                    end_process(0);
                }
            }
            if let Err(error) = synced {
                for id in ids {
                    let _ = self.remove_call(id);
                }
                self.break_aside(&error);
                continue;
            }
            // Only now: the last call of a draining process ends it.
            ids.into_iter().for_each(|id| self.forget(id));
        }
    }

    fn pay(&'static self, debt: Debt, error: Option<&StateError>) -> Result<(), Gone> {
        match debt {
            Debt::Reply { id, inbox, outcome } => {
                let outcome = error.map_or(outcome, |error| not_synced(error, self.last_commit()));
                self.answer(id, &inbox, outcome)
            }
            Debt::News { id, commit } => match error {
                None => {
                    let commit = commit.max(self.engine().durable());
                    self.link.send_frame(&Header { c: commit, ..Header::new(Kind::Durable, id) }.encode())
                }
                Some(error) => self.send_failure(id, &sync_failed(error), self.last_commit()),
            },
        }
    }
}

/// The end of a call that committed and whose commit could not be made durable.
pub(crate) fn not_synced(error: &StateError, commit: u64) -> Outcome {
    Outcome::Failed { failure: sync_failed(error), commit }
}

fn sync_failed(error: &StateError) -> Failure {
    Failure::of_function(FailKind::StoreBroken, error.to_string(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(commit: u64) -> Debt {
        Debt::News { id: 1, commit }
    }

    #[test]
    fn one_settles_and_takes_what_came_meanwhile() {
        let debts = Debts::default();
        assert!(!debts.open());
        assert!(debts.take(false).is_none());
        debts.add(news(1));
        debts.add(news(2));
        assert!(debts.open());
        assert_eq!(debts.take(false).unwrap().len(), 2);
        assert!(!debts.open());
        debts.add(news(3));
        assert!(!debts.open(), "who settles will see it");
        assert!(debts.take(false).is_none(), "two would settle");
        assert_eq!(debts.take(true).unwrap().len(), 1);
        assert!(debts.take(true).is_none());
        debts.add(news(4));
        assert!(debts.open(), "nobody settles any more");
    }
}
