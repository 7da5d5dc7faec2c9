//! Processes and their lives: `placed → starting → active ⇄ draining → swapped`, as `denizen_sched::lifecycle` has it.
//!
//! A process belongs to one executor, its home, and everything about it happens there. Whatever changes its stage holds its *turn*, so that
//! starting, stopping, swapping and deleting follow one another; calls only look whether a sandbox serves. Transitions run in tasks of
//! their own: a caller that goes away ends its call, never a swap in the middle.
//!
//! At most one sandbox acts for a process: a start waits until the kernel has confirmed the death of the one before.

mod active;
mod direct;
mod end;
mod failure;
pub(crate) mod files;
mod input;
mod invocation;
mod keep;
mod lasting;
mod lineage;
mod link;
mod load;
mod output;
mod reply;
pub(crate) mod rest;
mod room;
mod segments;
mod serve;
mod start;
mod state;
mod stop;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_image::Isolation;
use denizen_sched::{Create, Epoch, ProcessName, Settled};
use denizen_wire::{Header, Kind as Frame};
use futures_channel::oneshot;
use hyper::header::HeaderValue;

use crate::data::OfProcess;
use crate::executor;
use crate::home::{App, Home};
use crate::local::Turns;
use crate::logs::Log;
use crate::problem::{Kind, Problem};
use crate::process::lineage::Whose;
use crate::side::SideThread;

pub(crate) use active::Active;
pub(crate) use direct::{Direct, Ended as DirectEnded, Left};
pub(crate) use end::Killing;
pub(crate) use input::{Source, broken_off, discard};
pub(crate) use invocation::RestsOn;
pub(crate) use load::{LOAD_LIMIT, assign, assignment, probe};
pub(crate) use reply::{RemoteBody, ReplyBody};
pub(crate) use serve::{Asked, Parts, Replied, call};
pub(crate) use start::refused_claim;
pub(crate) use state::{Ask, AtRestBody, AtRestReply, Told};
pub(crate) use stop::MOST_WRITING;

/// Calls that may wait for a process to start.
const WAITING_LIMIT: usize = 1024;
/// Crashes in a row that have no consequence yet.
const FREE_CRASHES: u32 = 3;
/// The first pause after them; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a process is doing.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// No sandbox.
    Resting,
    Starting,
    Active(Rc<Active>),
    Draining(Rc<Active>),
    /// It is gone, and this object stands for nothing any more.
    Deleted,
}

/// A process on its home executor.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) app: Rc<App>,
    pub(crate) name: ProcessName,
    /// The name as a reply carries it.
    pub(crate) header: HeaderValue,
    pub(crate) log: Arc<Log>,
    stage: RefCell<Stage>,
    turns: Rc<Turns>,
    starters: RefCell<Vec<oneshot::Sender<Started>>>,
    waiting: Cell<usize>,
    crashes: RefCell<Crashes>,
    /// The last commit that any of its sandboxes reported as durable on the node, as far as this node was told since it started.
    durable: Cell<u64>,
    /// What is known of a sync that failed under its state.
    suspicion: Cell<Suspicion>,
    /// It was swapped out since it last had a sandbox: what is known of its commits is in its record.
    is_swapped: Cell<bool>,
    /// It is on its application's list of free processes.
    pub(crate) listed_free: Cell<bool>,
    /// A call that named no process is on its way to it.
    pub(crate) chosen: Cell<bool>,
    /// Its connections that are given to its sandboxes.
    pub(crate) bound: OfProcess,
}

/// What is known of the files under a process's state; the mark on the disk ([`files::mark`]) is what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    None,
    /// They are to be marked, and that has not succeeded: nothing may be begun with them.
    Unmarked,
    /// They are marked: the next start takes as long as a copy.
    Marked,
}

/// How an attempt to start went. `strict`: it was not allowed to create the process.
#[derive(Debug, Clone)]
struct Started {
    result: Result<Rc<Active>, Problem>,
    strict: bool,
}

#[derive(Debug, Default)]
struct Crashes {
    in_a_row: u32,
    not_before: Option<Instant>,
    last: Option<Problem>,
}

impl Process {
    pub(crate) fn new(app: &Rc<App>, name: ProcessName, log: Arc<Log>) -> Rc<Process> {
        // A checked name is visible ASCII.
        let header = HeaderValue::from_str(name.as_str()).unwrap_or_else(|_| HeaderValue::from_static(""));
        Rc::new(Process {
            app: Rc::clone(app),
            name,
            header,
            log,
            stage: RefCell::new(Stage::Resting),
            turns: Rc::default(),
            starters: RefCell::default(),
            waiting: Cell::new(0),
            crashes: RefCell::default(),
            durable: Cell::new(0),
            suspicion: Cell::new(Suspicion::None),
            is_swapped: Cell::new(false),
            listed_free: Cell::new(false),
            chosen: Cell::new(false),
            bound: OfProcess::default(),
        })
    }

    /// Whose its state is.
    fn whose(&self, born: Epoch) -> Whose {
        Whose { app: self.app.name.to_string(), process: self.name.to_string(), born }
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    pub(crate) fn is_deleted(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Deleted)
    }

    /// Whether it has a sandbox, or is getting one.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(*self.stage.borrow(), Stage::Resting | Stage::Deleted)
    }

    /// Whether nothing of it is here: no sandbox, and nobody who waits for one.
    pub(crate) fn is_at_rest(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Resting) && self.starters.borrow().is_empty()
    }

    /// Whether a new object for it would be as good as this: nothing of it is here, and nothing is remembered that is not in its record.
    pub(crate) fn is_as_recorded(&self) -> bool {
        let crashes = self.crashes.borrow();
        self.is_at_rest()
            && self.is_swapped.get()
            && self.waiting.get() == 0
            && (crashes.in_a_row, crashes.last.is_none()) == (0, true)
            && self.suspicion.get() == Suspicion::None
            && !self.chosen.get()
            && self.bound.count() == 0
    }

    /// Whether its next sandbox is to take connections.
    pub(crate) fn wants_ring(&self, home: &Home) -> bool {
        home.node.isolation_of(&self.app.image().manifest) == Isolation::Ring
    }

    /// Connections that its sandbox has, and those that are at rest.
    pub(crate) fn connections(&self) -> (usize, usize) {
        let given =
            self.sandbox().and_then(|active| Some(active.direct.as_ref()?.connections())).unwrap_or(0);
        (given, self.bound.count().saturating_sub(given))
    }

    /// Ends a connection that its sandbox has.
    pub(crate) fn shut(&self, number: u64) {
        if let Some(active) = self.sandbox() {
            active.direct.as_ref().map(|direct| direct.shut(number)).unwrap_or_default();
        }
    }

    /// Has a connection's sandbox tell its client that its token expires within so many milliseconds.
    pub(crate) fn caller_expires(&self, number: u64, within_ms: u32) {
        if let Some(active) = self.sandbox()
            && active.direct.as_ref().is_some_and(|direct| direct.has(number))
        {
            active.link.send_header(&Header { b: within_ms, ..Header::new(Frame::CallerExpires, number) });
        }
    }

    /// The sandbox that there is, whatever it does.
    fn sandbox(&self) -> Option<Rc<Active>> {
        match &*self.stage.borrow() {
            Stage::Active(active) | Stage::Draining(active) => Some(Rc::clone(active)),
            _ => None,
        }
    }

    /// The thread that copies and removes its state: always the same, so that one thing happens after the other.
    fn copying<'n>(&self, home: &'n Home) -> &'n SideThread {
        home.node.copying.of((self.app.name.as_str(), self.name.as_str()))
    }

    /// Marks the state: a sync of it may have failed. The sandbox is dead, and the caller has the turn.
    ///
    /// # Errors
    /// The mark is not on the disk; it is owed then.
    async fn suspect(&self, home: &Home) -> Result<(), Problem> {
        self.suspicion.set(Suspicion::Unmarked);
        let paths = home.node.dir.process(self.app.name.as_str(), self.name.as_str());
        let marked = self.copying(home).run(move || files::mark(&paths.local)).await;
        marked.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))?;
        self.suspicion.set(Suspicion::Marked);
        self.log.host("the disk failed under the state: it is recovered into new files".to_owned());
        Ok(())
    }

    /// Makes the mark that is owed, before anything is begun with the state.
    ///
    /// # Errors
    /// As [`Process::suspect`].
    async fn mark_if_owed(&self, home: &Home) -> Result<(), Problem> {
        if self.suspicion.get() == Suspicion::Unmarked { self.suspect(home).await } else { Ok(()) }
    }

    fn set_stage(&self, stage: Stage) {
        self.is_swapped.set(false);
        *self.stage.borrow_mut() = stage;
    }

    /// The sandbox that takes calls, if one does.
    pub(crate) fn serving(&self) -> Option<Rc<Active>> {
        match &*self.stage.borrow() {
            Stage::Active(active) if !active.is_ending() => Some(Rc::clone(active)),
            _ => None,
        }
    }

    /// A sandbox that takes calls; starts one where none does. All that is to be written down about it is.
    ///
    /// # Errors
    /// Why there is none; `overloaded` when as many calls wait as may.
    pub(crate) async fn active(
        self: &Rc<Process>,
        home: &Rc<Home>,
        create: Create,
    ) -> Result<Rc<Active>, Problem> {
        let active = self.active_soon(home, create).await?;
        active.lasting.wait().await?;
        Ok(active)
    }

    /// The same, maybe before its [`lasting::Lasting`] is reached.
    ///
    /// # Errors
    /// As [`Process::active`].
    pub(crate) async fn active_soon(
        self: &Rc<Process>,
        home: &Rc<Home>,
        create: Create,
    ) -> Result<Rc<Active>, Problem> {
        loop {
            if let Some(active) = self.serving() {
                return Ok(active);
            }
            if self.waiting.get() >= WAITING_LIMIT {
                let text = format!("{WAITING_LIMIT} calls wait for {} to start", self.name);
                return Err(Problem::new(Kind::Overloaded, text).retry_after_s(1));
            }
            let Started { result, strict } = self.wait_for_start(home, create).await;
            match result {
                // The attempt was somebody else's, who forbade to create the process.
                Err(problem)
                    if problem.kind() == Kind::UnknownProcess && strict && create != Create::Never => {}
                result => return result,
            }
        }
    }

    async fn wait_for_start(self: &Rc<Process>, home: &Rc<Home>, create: Create) -> Started {
        let (tell, told) = oneshot::channel();
        let first = {
            let mut starters = self.starters.borrow_mut();
            starters.push(tell);
            starters.len() == 1
        };
        if first {
            executor::spawn(start_for_all(Rc::clone(home), Rc::clone(self), create));
        }
        let _waits = Counted::new(&self.waiting);
        let gone = |_| {
            let result = Err(Problem::new(Kind::HostFault, "the attempt to start the process broke off"));
            Started { result, strict: false }
        };
        told.await.unwrap_or_else(gone)
    }

    /// Runs a transition in a task of its own, with the turn; its outcome comes even if the caller goes away meanwhile.
    pub(crate) async fn transition<T, F, R>(
        self: &Rc<Process>,
        home: &Rc<Home>,
        work: F,
    ) -> Result<T, Problem>
    where
        T: 'static,
        F: FnOnce(Rc<Home>, Rc<Process>) -> R + 'static,
        R: Future<Output = Result<T, Problem>> + 'static,
    {
        let (tell, told) = oneshot::channel();
        let (home, process) = (Rc::clone(home), Rc::clone(self));
        executor::spawn(async move {
            let _turn = process.turns.take().await;
            let _ = tell.send(work(home, Rc::clone(&process)).await);
        });
        told.await.unwrap_or_else(|_| Err(Problem::new(Kind::HostFault, "the transition broke off")))
    }

    fn crashed(&self, problem: Problem) {
        let mut crashes = self.crashes.borrow_mut();
        crashes.in_a_row += 1;
        let over = crashes.in_a_row.checked_sub(FREE_CRASHES).filter(|over| *over > 0);
        crashes.not_before = over.map(|over| Instant::now() + pause(over));
        crashes.last = Some(problem);
    }

    /// A call succeeded: whatever went wrong before is over.
    pub(crate) fn works(&self) {
        let mut crashes = self.crashes.borrow_mut();
        if crashes.in_a_row > 0 || crashes.last.is_some() {
            *crashes = Crashes::default();
        }
    }

    /// A new image may do better.
    pub(crate) fn forgive(&self) {
        *self.crashes.borrow_mut() = Crashes::default();
    }

    /// # Errors
    /// `crash-looping` while it is not to be started.
    fn may_start(&self) -> Result<(), Problem> {
        let crashes = self.crashes.borrow();
        let wait = crashes
            .not_before
            .map(|at| at.saturating_duration_since(Instant::now()))
            .filter(|wait| !wait.is_zero());
        let Some(wait) = wait else { return Ok(()) };
        let text = format!(
            "{} failed {} times in a row; it is started again in {wait:.1?}",
            self.name, crashes.in_a_row
        );
        let problem = Problem::new(Kind::CrashLooping, text).retry_after_s(wait.as_secs() + 1);
        Err(match &crashes.last {
            Some(last) => problem.cause(last),
            None => problem,
        })
    }

    /// Tells the scheduler; what it says is only logged, for cases in which nothing can be done about it.
    async fn settle(&self, home: &Home, active: &Active, settled: Settled) {
        let told = home
            .node
            .scheduler
            .settled(self.app.name.clone(), self.name.clone(), active.epoch, settled)
            .await;
        if let Err(error) = told {
            tracing::warn!("the scheduler was not told about {}/{}: {error}", self.app.name, self.name);
        }
    }
}

const fn pause(over: u32) -> Duration {
    let exponent = if over > 16 { 16 } else { over - 1 };
    let pause = FIRST_PAUSE.saturating_mul(1 << exponent);
    if pause.as_millis() > LONGEST_PAUSE.as_millis() { LONGEST_PAUSE } else { pause }
}

async fn start_for_all(home: Rc<Home>, process: Rc<Process>, create: Create) {
    let batch = Batch(Rc::clone(&process));
    let result = {
        let _turn = process.turns.take().await;
        match process.serving() {
            Some(active) => Ok(active),
            None => start::start(&home, &process, create).await,
        }
    };
    let started = Started { result, strict: create == Create::Never };
    for starter in batch.0.starters.take() {
        let _ = starter.send(started.clone());
    }
}

/// Those who wait for one attempt. Should it panic, they hear that it broke off, and the next caller begins another.
struct Batch(Rc<Process>);

impl Drop for Batch {
    fn drop(&mut self) {
        self.0.starters.take();
    }
}

/// Counts one up for as long as it lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<usize>) -> Counted<'a> {
        count.set(count.get() + 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> Rc<App> {
        let manifest = denizen_image::Manifest::default_for("a");
        let record = denizen_sched::ImageRecord {
            image: "ab".repeat(32).parse().unwrap(),
            manifest: serde_json::to_value(manifest).unwrap(),
            declarations: serde_json::json!({
                "abi_version": 1, "functions": [], "types": [],
                "state": {"commit": 0, "live_bytes": 0, "keys": 0, "durable": 0, "log_bytes": 0},
            }),
            created_at_ms: 0,
        };
        let image = crate::deployed::Deployed::from_record(&record).unwrap();
        App::new(denizen_sched::AppName::new("a").unwrap(), Arc::new(image))
    }

    /// A process on the table that was swapped out.
    fn swapped(app: &Rc<App>) -> Rc<Process> {
        let log = crate::logs::Logs::default().unlisted("a", "p");
        let process = Process::new(app, ProcessName::new("p").unwrap(), log);
        app.list(&process);
        process.set_stage(Stage::Resting);
        process.is_swapped.set(true);
        process
    }

    #[test]
    fn a_swapped_process_takes_no_memory() {
        let app = app();
        for _ in 0..100 {
            let process = swapped(&app);
            let gone = Rc::downgrade(&process);
            assert!(app.release(process));
            assert!(gone.upgrade().is_none() && app.processes().is_empty());
        }
    }

    #[test]
    fn what_is_in_no_record_stays_in_memory() {
        let stays = |change: &dyn Fn(&Process)| {
            let app = app();
            let process = swapped(&app);
            change(&process);
            assert!(!app.release(process));
            assert_eq!(app.processes().len(), 1);
        };
        stays(&|process| process.crashed(Problem::new(Kind::HostFault, "it ended")));
        stays(&|process| process.suspicion.set(Suspicion::Unmarked));
        stays(&|process| process.chosen.set(true));
        stays(&|process| process.waiting.set(1));
        stays(&|process| process.set_stage(Stage::Starting));
        // It has rested without being swapped out: what it made durable may be known here only.
        stays(&|process| process.set_stage(Stage::Resting));
        let app = app();
        let (process, _somebody) = {
            let it = swapped(&app);
            (Rc::clone(&it), it)
        };
        assert!(!app.release(process), "somebody is about to use it");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert_eq!(pause(1), FIRST_PAUSE);
        assert_eq!(pause(2), FIRST_PAUSE * 2);
        assert_eq!(pause(100), LONGEST_PAUSE);
    }
}
