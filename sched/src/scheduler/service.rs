//! The thread that owns the database: it gathers requests into transactions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;

use futures_channel::oneshot;
use redb::Database;

use super::SchedError;
use super::database::{Opener, guard};
use super::ledger::Ledger;

/// The most requests in one transaction: a bound on how long the first of them waits for the last.
const MAX_BATCH: usize = 256;

/// What comes through the channel.
pub(super) enum Request {
    Work(Box<dyn Job>),
    /// Close the database, then tell.
    Stop(oneshot::Sender<()>),
}

/// A request on its way through a transaction: carried out first, answered when the transaction is durable.
pub(super) trait Job: Send {
    /// # Errors
    /// The database's only. What the ledger refuses is an answer like any other.
    fn run(&mut self, ledger: &mut Ledger<'_>) -> Result<(), SchedError>;

    fn answer(self: Box<Self>, durable: Result<(), SchedError>);
}

/// The one kind of [`Job`].
pub(super) struct Work<T, F> {
    what: Option<F>,
    outcome: Option<Result<T, SchedError>>,
    reply: oneshot::Sender<Result<T, SchedError>>,
}

impl<T, F> Work<T, F> {
    pub(super) fn new(what: F, reply: oneshot::Sender<Result<T, SchedError>>) -> Self {
        Self { what: Some(what), outcome: None, reply }
    }
}

impl<T, F> Job for Work<T, F>
where
    T: Send,
    F: FnOnce(&mut Ledger<'_>) -> Result<T, SchedError> + Send,
{
    fn run(&mut self, ledger: &mut Ledger<'_>) -> Result<(), SchedError> {
        let Some(what) = self.what.take() else { return Ok(()) };
        let outcome = what(ledger);
        let broken = outcome.as_ref().err().filter(|error| error.is_store()).cloned();
        self.outcome = Some(outcome);
        broken.map_or(Ok(()), Err)
    }

    fn answer(self: Box<Self>, durable: Result<(), SchedError>) {
        let Self { outcome, reply, .. } = *self;
        let answer = durable.and_then(|()| outcome.unwrap_or(Err(SchedError::Stopped)));
        // Whoever asked may have given up; what was done stays done.
        let _ = reply.send(answer);
    }
}

/// Starts the thread. It ends when told to, or when nobody can ask it any more.
pub(super) fn start(opener: Opener, database: Database, queue: Receiver<Request>) -> Result<(), SchedError> {
    let path = opener.path().to_owned();
    let service = Service { opener, database: Some(database), queue };
    let spawned = thread::Builder::new().name("denizen-sched".to_owned()).spawn(move || service.run());
    spawned
        .map(drop)
        .map_err(|error| SchedError::Store { path, why: format!("its thread cannot start: {error}") })
}

struct Service {
    opener: Opener,
    /// `None` after a failure, until it could be opened again.
    database: Option<Database>,
    queue: Receiver<Request>,
}

impl Service {
    fn run(mut self) {
        while let Ok(first) = self.queue.recv() {
            let (batch, stop) = self.gather(first);
            if !batch.is_empty() {
                self.serve(batch);
            }
            if let Some(done) = stop {
                self.write_traces();
                self.close();
                let _ = done.send(());
                return;
            }
        }
    }

    /// `first` and what has queued up behind it, up to a stop.
    fn gather(&self, first: Request) -> (Vec<Box<dyn Job>>, Option<oneshot::Sender<()>>) {
        let mut batch = Vec::new();
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Request::Work(job)) => batch.push(job),
                Ok(Request::Stop(done)) => return (batch, Some(done)),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return (batch, None),
            }
            if batch.len() == MAX_BATCH {
                return (batch, None);
            }
            next = self.queue.try_recv();
        }
    }

    fn serve(&mut self, mut batch: Vec<Box<dyn Job>>) {
        let durable = self.carry_out(&mut batch);
        if let Err(error) = &durable {
            tracing::error!("{} requests failed: {error}", batch.len());
            self.close();
        }
        for job in batch {
            job.answer(durable.clone());
        }
    }

    fn carry_out(&mut self, batch: &mut [Box<dyn Job>]) -> Result<(), SchedError> {
        let database = match &self.database {
            Some(database) => database,
            None => self.database.insert(self.opener.open()?),
        };
        let path = self.opener.path();
        guard(path, || {
            Ledger::once(database, path, |ledger| batch.iter_mut().try_for_each(|job| job.run(ledger)))
        })
    }

    /// What only later writes would have taken to the disk.
    fn write_traces(&self) {
        let Some(database) = &self.database else { return };
        let path = self.opener.path();
        let written = guard(path, || {
            Ledger::once(database, path, |ledger| {
                ledger.insist();
                Ok(())
            })
        });
        if let Err(error) = written {
            tracing::warn!("which processes were active was not written: {error}");
        }
    }

    /// A database that has failed may fail, or even panic, once more while it is closed.
    fn close(&mut self) {
        let database = self.database.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}
