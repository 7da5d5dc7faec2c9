//! The thread that owns the database: it gathers requests, has the journal make them durable, and the database follow.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use futures_channel::oneshot;

use super::SchedError;
use super::database::{Opener, Store, guard};
use super::journal::Journal;
use super::ledger::Ledger;

/// The most requests in one transaction: a bound on how long the first of them waits for the last.
const MAX_BATCH: usize = 256;
/// So long without a request, and the database takes over what the journal has: one write after a burst, and none while nothing happens.
/// No decision rests on it.
const PAUSE: Duration = Duration::from_secs(1);
/// The same when the journal fills up: a full one would have to be taken over while somebody waits.
const SHORT_PAUSE: Duration = Duration::from_millis(15);

/// What comes through the channel.
pub(super) enum Request {
    Work(Box<dyn Job>),
    /// Close the database, then tell.
    Stop(oneshot::Sender<()>),
}

/// A request on its way: carried out first, answered when what it changed is durable.
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
pub(super) fn start(opener: Opener, store: Store, queue: Receiver<Request>) -> Result<(), SchedError> {
    let path = opener.path().to_owned();
    let service = Service { opener, store: Some(store), queue };
    let spawned = thread::Builder::new().name("denizen-sched".to_owned()).spawn(move || service.run());
    spawned
        .map(drop)
        .map_err(|error| SchedError::Store { path, why: format!("its thread cannot start: {error}") })
}

struct Service {
    opener: Opener,
    /// `None` after a failure, until it could be opened again.
    store: Option<Store>,
    queue: Receiver<Request>,
}

/// Requests that are not answered.
#[derive(Default)]
struct Waiting {
    batch: Vec<Box<dyn Job>>,
    stop: Option<oneshot::Sender<()>>,
    /// Nobody can ask any more.
    deserted: bool,
}

impl Service {
    fn run(mut self) {
        loop {
            let mut waiting = Waiting::default();
            let outcome = self.transaction(&mut waiting);
            if let Err(error) = &outcome {
                tracing::error!("{} requests failed: {error}", waiting.batch.len());
                self.close();
            }
            for job in waiting.batch {
                job.answer(outcome.clone());
            }
            if let Some(done) = waiting.stop {
                self.close();
                let _ = done.send(());
                return;
            }
            if waiting.deserted {
                return;
            }
        }
    }

    /// Serves requests until what they have changed is to be written to the database, and writes it. Leaves those that are to be answered
    /// then.
    fn transaction(&mut self, waiting: &mut Waiting) -> Result<(), SchedError> {
        if self.store.is_none() {
            // Not before somebody asks.
            waiting.receive(&self.queue, None);
            if waiting.batch.is_empty() {
                return Ok(());
            }
            self.store = Some(self.opener.open()?);
        }
        let Some(Store { database, journal, apps }) = &mut self.store else { return Ok(()) };
        let (path, queue) = (self.opener.path(), &self.queue);
        guard(path, || {
            let written = Ledger::once(database, path, apps, |ledger| {
                serve(ledger, journal, queue, waiting)?;
                if ledger.has_changed() {
                    ledger.set_generation(journal.next_generation())?;
                }
                Ok(())
            })?;
            if written {
                journal.begin();
            }
            Ok(())
        })
    }

    /// A database that has failed may fail, or even panic, once more while it is closed.
    fn close(&mut self) {
        let store = self.store.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(store)));
    }
}

/// Carries out requests and answers them as soon as the journal has what they changed. Returns when the transaction is to end, with
/// those that wait for that.
fn serve(
    ledger: &mut Ledger<'_>,
    journal: &mut Journal,
    queue: &Receiver<Request>,
    waiting: &mut Waiting,
) -> Result<(), SchedError> {
    loop {
        if waiting.batch.is_empty() && !waiting.receive(queue, pause(ledger, journal)) {
            return Ok(());
        }
        waiting.batch.iter_mut().try_for_each(|job| job.run(ledger))?;
        let records = ledger.take_records();
        if ledger.must_end() || waiting.is_last() || !(records.is_empty() || journal.append(&records)?) {
            return Ok(());
        }
        waiting.batch.drain(..).for_each(|job| job.answer(Ok(())));
    }
}

/// How long to wait for another request before what there is goes to the database.
fn pause(ledger: &Ledger<'_>, journal: &Journal) -> Option<Duration> {
    let pause = if journal.is_half_full() { SHORT_PAUSE } else { PAUSE };
    ledger.has_changed().then_some(pause)
}

impl Waiting {
    /// Waits for a request, for ever or as long as this, and takes what has queued up behind it, up to a stop. Whether there is one.
    fn receive(&mut self, queue: &Receiver<Request>, at_most: Option<Duration>) -> bool {
        let first = match at_most {
            Some(pause) => queue.recv_timeout(pause),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        self.deserted = matches!(first, Err(RecvTimeoutError::Disconnected));
        let mut next = first.ok();
        while let Some(request) = next {
            match request {
                Request::Work(job) => self.batch.push(job),
                Request::Stop(done) => self.stop = Some(done),
            }
            if self.stop.is_some() || self.batch.len() == MAX_BATCH {
                break;
            }
            next = queue.try_recv().ok();
        }
        !self.batch.is_empty()
    }

    /// Whether no request follows.
    fn is_last(&self) -> bool {
        self.stop.is_some() || self.deserted
    }
}
