//! What is written down after a process has begun to serve: the names of its segments, and that it is active.
//!
//! A reply of level `process` needs neither: both are in the system's memory, which a dead node does not take along. Whatever says more
//! waits here first: calls that want `node`, questions about commits, connections that are given away, and the end of the term. So a first
//! call does not wait for the disk more often than its claim asks for.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_lite::future;

use crate::executor;
use crate::local::Changes;
use crate::problem::Problem;

/// How long it is put off if nobody waits for it: longer than a first call takes.
const PAUSE: Duration = Duration::from_millis(2);

/// Whether it is written down.
#[derive(Debug, Default)]
pub(crate) struct Lasting {
    outcome: RefCell<Option<Result<(), Problem>>>,
    wanted: Cell<bool>,
    changes: Changes,
}

impl Lasting {
    pub(crate) fn is_reached(&self) -> bool {
        matches!(*self.outcome.borrow(), Some(Ok(())))
    }

    /// Waits until it is.
    ///
    /// # Errors
    /// Why it cannot be. Its sandbox is ended then.
    pub(crate) async fn wait(&self) -> Result<(), Problem> {
        if self.outcome.borrow().is_none() && !self.wanted.replace(true) {
            self.changes.announce();
        }
        self.changes.until(|| self.outcome.borrow().clone()).await
    }

    /// It was written down already.
    pub(crate) fn reached(&self) {
        self.end(Ok(()));
    }

    /// Writes it down, a little later unless somebody waits.
    pub(crate) async fn write(&self, work: impl Future<Output = Result<(), Problem>>) -> Result<(), Problem> {
        let asked = self.changes.until(|| self.wanted.get().then_some(()));
        future::or(executor::sleep(PAUSE), asked).await;
        let outcome = work.await;
        self.end(outcome.clone());
        outcome
    }

    fn end(&self, outcome: Result<(), Problem>) {
        *self.outcome.borrow_mut() = Some(outcome);
        self.changes.announce();
    }
}
