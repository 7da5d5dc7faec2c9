//! The part that remembers: a thread that owns the database, and the handles that ask it.
//!
//! Requests queue up while what others changed is being made durable, and the next write takes all of them: a
//! hundred claims at once cost about as many disk flushes as two. They are carried out
//! in the order in which they came. No answer leaves before what was changed so far is durable, a refusal included,
//! since it may rest on what an earlier request did.
//!
//! Records of processes are made durable by the [`journal`], everything else by a transaction of the database, which takes over what is
//! in the journal.
//!
//! When the disk fails, every request of that write gets the error, database and journal are closed, and the
//! next request opens them again, as they stood after the last write that was made durable. A request that
//! failed so may therefore have happened or not; claims and settlements may be repeated.

mod database;
mod error;
mod journal;
mod ledger;
mod service;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc;

use denizen_image::Manifest;
use futures_channel::oneshot;

pub use error::SchedError;

use crate::placement::NodeView;
use crate::{
    AppName, AppRecord, Claim, Create, Epoch, ImageRecord, ImageUse, ProcessName, ProcessRecord, Settled,
};
use database::Opener;
use ledger::Ledger;
use service::{Request, Work};

/// How the scheduler keeps its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Memory for cached pages, in bytes. Default 8 MiB.
    pub cache_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { cache_bytes: 8 << 20 }
    }
}

/// Where a scheduler comes from; what it answers through is [`SchedulerHandle`].
#[derive(Debug)]
pub struct Scheduler;

impl Scheduler {
    /// Opens the database at `path`, which is made if it is not there, and its journal beside it (`.journal`), and starts the thread that
    /// owns them.
    /// The thread ends with [`SchedulerHandle::stop`] or with the last handle.
    ///
    /// The owners of this database's processes are taken for dead: a process that they left starting, active
    /// or draining is `placed` again, or `swapped` where its state never left the swap store. Their epochs
    /// are over with the next claim.
    ///
    /// Blocks while it reads and checks the whole database.
    ///
    /// # Errors
    /// [`SchedError::InUse`], [`SchedError::Corrupt`], [`SchedError::NewerFormat`], [`SchedError::Store`].
    pub fn open(path: &Path, config: Config) -> Result<SchedulerHandle, SchedError> {
        Self::open_with(Opener::file(path, config))
    }

    fn open_with(opener: Opener) -> Result<SchedulerHandle, SchedError> {
        let store = opener.open_and_recover()?;
        let (requests, queue) = mpsc::channel();
        service::start(opener, store, queue)?;
        Ok(SchedulerHandle { requests })
    }
}

/// Asks a scheduler. Cheap to clone; its futures run on any executor.
///
/// Every method answers [`SchedError::Store`] when the disk fails, and [`SchedError::Stopped`] after
/// [`SchedulerHandle::stop`].
#[derive(Debug, Clone)]
pub struct SchedulerHandle {
    requests: mpsc::Sender<Request>,
}

impl SchedulerHandle {
    /// Makes `image` the application's image, and the application if there is none. Processes get it with
    /// their next claim.
    ///
    /// # Errors
    /// [`SchedError::BadManifest`] where `image.manifest` is not the JSON form of a manifest.
    pub async fn deploy(&self, app: AppName, image: ImageRecord) -> Result<(), SchedError> {
        let manifest: Manifest = serde_json::from_value(image.manifest.clone())
            .map_err(|error| SchedError::BadManifest { why: error.to_string() })?;
        self.ask(move |ledger| ledger.deploy(&app, &image, &manifest.limits)).await
    }

    /// The application's image.
    ///
    /// # Errors
    /// [`SchedError::UnknownApp`].
    pub async fn image_of(&self, app: AppName) -> Result<ImageRecord, SchedError> {
        self.ask(move |ledger| ledger.image_of(&app)).await
    }

    /// The images that applications run or ran before, and those of every process's last claim, in the order of their ids.
    ///
    /// # Errors
    /// None of its own.
    pub async fn images(&self) -> Result<Vec<ImageUse>, SchedError> {
        self.ask(|ledger| ledger.images()).await
    }

    /// The applications, in the order of their names.
    ///
    /// # Errors
    /// None of its own.
    pub async fn apps(&self) -> Result<Vec<AppRecord>, SchedError> {
        self.ask(|ledger| ledger.apps()).await
    }

    /// Begins an ownership term of a process, with an epoch above all before it. Whoever held the process is
    /// shut out: it can settle nothing any more. The process is `starting` until [`SchedulerHandle::settled`]
    /// says otherwise.
    ///
    /// For a term in which nothing runs, such as the moving of its state. See [`SchedulerHandle::claim_on`].
    ///
    /// # Errors
    /// [`SchedError::UnknownApp`], [`SchedError::UnknownProcess`], [`SchedError::ProcessExists`],
    /// [`SchedError::TooManyProcesses`].
    pub async fn claim(
        &self,
        app: AppName,
        process: ProcessName,
        create: Create,
    ) -> Result<Claim, SchedError> {
        let (claim, durable) = self.begin_term(app, process, create, None).await?;
        durable.wait().await?;
        Ok(claim)
    }

    /// As [`SchedulerHandle::claim`], for a process that is to run on `node`, if it has room for it: see [`crate::placement`].
    ///
    /// Gives the claim as soon as it is decided, so that a sandbox can be prepared while the disk
    /// writes. Until [`Durable::wait`] says that it is written, nothing that rests on it may leave the node, and no function may run:
    /// after a crash the claim never was, and its epoch may be handed out again. A refusal comes only when it is durable what it
    /// rests on.
    ///
    /// # Errors
    /// As [`SchedulerHandle::claim`], and [`SchedError::NoRoom`], which comes last: a process that cannot be at all is never said to
    /// lack room. Nothing has changed then.
    pub async fn claim_on(
        &self,
        app: AppName,
        process: ProcessName,
        create: Create,
        node: NodeView,
    ) -> Result<(Claim, Durable), SchedError> {
        self.begin_term(app, process, create, Some(node)).await
    }

    async fn begin_term(
        &self,
        app: AppName,
        process: ProcessName,
        create: Create,
        node: Option<NodeView>,
    ) -> Result<(Claim, Durable), SchedError> {
        let (tell, decided) = oneshot::channel();
        let durable = Durable(self.send(move |ledger| {
            // Whoever asked may have given up; the claim counts all the same.
            let _ = tell.send(ledger.claim(&app, &process, create, node.as_slice())?);
            Ok(())
        })?);
        match decided.await {
            Ok(claim) => Ok((claim, durable)),
            // It was refused, and `tell` dropped.
            Err(_) => Err(durable.wait().await.err().unwrap_or(SchedError::Stopped)),
        }
    }

    /// At most `most` processes of the application that no sandbox runs and that did not fail, in the order of their names.
    ///
    /// # Errors
    /// [`SchedError::UnknownApp`].
    pub async fn resting(&self, app: AppName, most: usize) -> Result<Vec<ProcessName>, SchedError> {
        self.ask(move |ledger| ledger.resting(&app, most)).await
    }

    /// Says what became of a process in the term `epoch`. It may be repeated when an answer is lost.
    ///
    /// Until [`Settled::Active`] is answered a process from the swap store is taken to be there: **no reply of it may leave the node before
    /// that if the swap store still has its state**, or what a dead owner committed beside that would be lost.
    ///
    /// # Errors
    /// [`SchedError::StaleEpoch`] where the term is over: stop at once, another owner acts for the process.
    /// [`SchedError::UnknownProcess`] where it was deleted. [`SchedError::Illegal`] where the lifecycle has
    /// no such step.
    pub async fn settled(
        &self,
        app: AppName,
        process: ProcessName,
        epoch: Epoch,
        settled: Settled,
    ) -> Result<(), SchedError> {
        self.ask(move |ledger| ledger.settled(&app, &process, epoch, settled)).await
    }

    /// The processes of one application, or of all, in the order of their names.
    ///
    /// # Errors
    /// [`SchedError::UnknownApp`].
    pub async fn list(&self, app: Option<AppName>) -> Result<Vec<ProcessRecord>, SchedError> {
        self.ask(move |ledger| ledger.list(app.as_ref())).await
    }

    /// One process.
    ///
    /// # Errors
    /// [`SchedError::UnknownApp`], [`SchedError::UnknownProcess`].
    pub async fn get(&self, app: AppName, process: ProcessName) -> Result<ProcessRecord, SchedError> {
        self.ask(move |ledger| ledger.get(&app, &process)).await
    }

    /// Forgets a process, whatever it is doing, and gives its last record: what lies at its `home` is now
    /// nobody's, and is for the caller to remove. Whoever held it can settle nothing any more, even if a
    /// process of the same name is made anew.
    ///
    /// # Errors
    /// [`SchedError::UnknownApp`], [`SchedError::UnknownProcess`].
    pub async fn delete(&self, app: AppName, process: ProcessName) -> Result<ProcessRecord, SchedError> {
        self.ask(move |ledger| ledger.delete(&app, &process)).await
    }

    /// Closes the database, after all that was asked before; resolves when another scheduler may open it.
    ///
    /// # Errors
    /// [`SchedError::Stopped`] where somebody else stopped it.
    pub async fn stop(&self) -> Result<(), SchedError> {
        let (done, answer) = oneshot::channel();
        self.requests.send(Request::Stop(done)).map_err(|_| SchedError::Stopped)?;
        answer.await.map_err(|_| SchedError::Stopped)
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Ledger<'_>) -> Result<T, SchedError> + Send + 'static,
    ) -> Result<T, SchedError> {
        self.send(what)?.await.map_err(|_| SchedError::Stopped)?
    }

    fn send<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Ledger<'_>) -> Result<T, SchedError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, SchedError>>, SchedError> {
        let (reply, answer) = oneshot::channel();
        let work = Work::new(what, reply);
        self.requests.send(Request::Work(Box::new(work))).map_err(|_| SchedError::Stopped)?;
        Ok(answer)
    }
}

/// Resolves when a claim is on the disk.
#[derive(Debug)]
pub struct Durable(oneshot::Receiver<Result<(), SchedError>>);

impl Durable {
    /// # Errors
    /// [`SchedError::Store`], [`SchedError::Stopped`]: the claim may have happened or not; nothing may rest on it.
    pub async fn wait(self) -> Result<(), SchedError> {
        self.0.await.map_err(|_| SchedError::Stopped)?
    }
}
