//! The running process: its threads, its state, and the calls that it has.
//!
//! It owns the life of a call from the moment it may run: run the function, commit, let the next ones in, answer. The order matters:
//! the gate opens after the commit and before the reply, so that a slow reader of a large reply holds nobody up.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use denizen_state::Engine;
use denizen_wire::{Assignment, FailKind, Failure, Header, Kind, MAX_FRAME_PAYLOAD, RunnerLimits, WINDOW};

use crate::buffers::Buffers;
use crate::call::{Access, Active, Call, Outcome};
use crate::confinement::Sealed;
use crate::crew::{Crew, Duty};
use crate::declare::Function;
use crate::gate::{Gate, Mode};
use crate::inbox::{Inbox, Mail};
use crate::intake::{Intake, cancelled_before_start};
use crate::link::{Gone, Link};
use crate::plugin::end_process;
use crate::{host, locked};

/// Stack of a serving thread in bytes: what Rust gives its threads. Only what is touched becomes memory.
const STACK_BYTES: usize = 2 << 20;
/// Exit code for a fault of ours, or of the agent.
const EXIT_FAULT: i32 = 70;
/// The level of an error in the ABI.
const LEVEL_ERROR: u32 = 0;
const LEVEL_LEAST: u32 = 3;

static RUNNING: OnceLock<&'static Runner> = OnceLock::new();
static LINK: OnceLock<&'static Link> = OnceLock::new();

/// A process that serves. It lives until the process ends.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) link: &'static Link,
    assignment: Assignment,
    sealed: Sealed,
    pub(crate) functions: &'static [Function],
    engine: RwLock<Engine>,
    buffers: Buffers,
    pub(crate) crew: Crew<Call>,
    pub(crate) gate: Mutex<Gate<Call>>,
    /// Every call that was accepted and has not been answered.
    pub(crate) calls: Mutex<BTreeMap<u64, Arc<Inbox>>>,
    /// Only the leader takes it.
    pub(crate) intake: Mutex<Intake>,
    pub(crate) draining: AtomicBool,
    ended: AtomicBool,
    last_commit: AtomicU64,
}

/// What it takes to begin.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) link: &'static Link,
    pub(crate) assignment: Assignment,
    pub(crate) sealed: Sealed,
    pub(crate) functions: &'static [Function],
    pub(crate) engine: Engine,
    pub(crate) intake: Intake,
}

impl Runner {
    /// Serves, this thread being the first leader.
    pub(crate) fn begin(beginning: Beginning) -> ! {
        let last_commit = beginning.engine.commit_number();
        let runner: &'static Runner = Box::leak(Box::new(Runner {
            link: beginning.link,
            sealed: beginning.sealed,
            functions: beginning.functions,
            engine: RwLock::new(beginning.engine),
            buffers: Buffers::new(),
            crew: Crew::led_by_this_thread(serving_threads(beginning.assignment.limits.threads)),
            gate: Mutex::new(Gate::new()),
            calls: Mutex::new(BTreeMap::new()),
            intake: Mutex::new(beginning.intake),
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            last_commit: AtomicU64::new(last_commit),
            assignment: beginning.assignment,
        }));
        let _ = RUNNING.set(runner);
        runner.serve_on_this_thread(|| Duty::Lead)
    }

    /// The process's runner, once it serves.
    pub(crate) fn running() -> Option<&'static Runner> {
        RUNNING.get().copied()
    }

    pub(crate) fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    pub(crate) fn limits(&self) -> &RunnerLimits {
        &self.assignment.limits
    }

    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    pub(crate) fn last_commit(&self) -> u64 {
        self.last_commit.load(SeqCst)
    }

    pub(crate) fn inbox_of(&self, id: u64) -> Option<Arc<Inbox>> {
        locked(&self.calls).get(&id).cloned()
    }

    /// A panic of ours ends the process, after it was said: nobody waits for a thread that is gone.
    fn serve_on_this_thread(&'static self, first: impl FnOnce() -> Duty<Call>) -> ! {
        let result = catch_unwind(AssertUnwindSafe(|| self.serve_from(first())));
        let Err(payload) = result;
        let what = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let what = what.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        fault(&format!("the runner panicked: {what}. This is a bug of Denizen"))
    }

    fn serve_from(&'static self, mut duty: Duty<Call>) -> std::convert::Infallible {
        loop {
            match duty {
                Duty::Lead => self.lead(),
                Duty::Run { work, hire } => {
                    if hire {
                        self.start_thread();
                    }
                    self.run_on(work);
                }
            }
            self.run_what_is_ready();
            duty = self.crew.wait();
        }
    }

    /// Reads and runs until another thread has taken over.
    fn lead(&'static self) {
        loop {
            let call = self.next_call();
            if !self.crew.has_spare() && !self.hire() && !self.crew.is_alone() {
                // Every thread runs something. Whichever is done first takes it; this one must go on reading.
                self.crew.offer(call);
                continue;
            }
            let mut next = Some(call);
            while let Some(call) = next {
                self.crew.begin_running();
                self.run_on(call);
                if !self.crew.stop_running() {
                    return;
                }
                next = self.crew.take();
            }
        }
    }

    fn run_what_is_ready(&'static self) {
        while let Some(call) = self.crew.take() {
            self.run_on(call);
        }
    }

    /// Another thread, if there may be one more.
    fn hire(&'static self) -> bool {
        self.crew.hire() && self.start_thread()
    }

    /// Starts the thread for a place that was taken.
    fn start_thread(&'static self) -> bool {
        let thread = std::thread::Builder::new().name("denizen-call".into()).stack_size(STACK_BYTES);
        let started = thread.spawn(|| {
            self.sealed.thread_start();
            self.serve_on_this_thread(|| self.crew.wait_as_new());
        });
        if started.is_err() {
            self.crew.not_hired();
        }
        started.is_ok()
    }

    /// Gives a call to another thread.
    pub(crate) fn offer(&'static self, call: Call) {
        if !self.crew.has_spare() {
            // If it cannot be had, the call waits for a thread that is done.
            self.hire();
        }
        self.crew.offer(call);
    }

    /// Runs a call that was let in, and those that it held up as long as they need no other thread.
    fn run_on(&'static self, call: Call) {
        let mut next = Some(call);
        while let Some(call) = next {
            next = self.run(call);
        }
    }

    fn run(&'static self, call: Call) -> Option<Call> {
        let (id, mode, inbox) = (call.id, call.mode(), call.inbox.clone());
        let outcome = match self.reason_not_to_start(&call) {
            Some(failure) => Outcome::Failed { failure, commit: self.last_commit() },
            None => self.execute(call),
        };
        let admitted = locked(&self.gate).leave(mode);
        let next = self.hand_out(admitted, outcome.may_wait());
        if self.answer(id, &inbox, outcome).is_err() {
            end_process(0);
        }
        self.forget(id);
        next
    }

    fn reason_not_to_start(&self, call: &Call) -> Option<Failure> {
        if self.draining.load(SeqCst) {
            return Some(draining());
        }
        call.inbox.cancelled().map(cancelled_before_start)
    }

    fn execute(&'static self, call: Call) -> Outcome {
        match call.mode() {
            Mode::Exclusive => {
                let mut engine = self.engine.write().unwrap_or_else(|broken| broken.into_inner());
                self.enter(call, Access::Write(engine.begin()))
            }
            Mode::Shared => {
                let engine = self.engine.read().unwrap_or_else(|broken| broken.into_inner());
                self.enter(call, Access::Read(engine.read()))
            }
        }
    }

    fn enter(&'static self, call: Call, access: Access<'_>) -> Outcome {
        let _words = self.sealed.running(call.id);
        let active = RefCell::new(Active::new(self, call, access));
        let status = host::enter(&active);
        let outcome = active.into_inner().end(status);
        self.last_commit.fetch_max(outcome.commit(), SeqCst);
        outcome
    }

    /// The first of them is for this thread, unless its reply may have to wait.
    fn hand_out(&'static self, mut admitted: VecDeque<Call>, may_wait: bool) -> Option<Call> {
        let own = if may_wait { None } else { admitted.pop_front() };
        admitted.into_iter().for_each(|call| self.offer(call));
        own
    }

    /// The call is answered. The last one of a draining process ends it.
    pub(crate) fn forget(&self, id: u64) {
        let idle = {
            let mut calls = locked(&self.calls);
            calls.remove(&id);
            calls.is_empty()
        };
        if idle && self.draining.load(SeqCst) {
            self.drained();
        }
    }

    /// Nothing runs and nothing will. Two threads may find that out at once; it is said once.
    pub(crate) fn drained(&self) -> ! {
        while self.ended.swap(true, SeqCst) {
            std::thread::park();
        }
        let header = Header { c: self.last_commit(), ..Header::new(Kind::Drained, 0) };
        let _ = self.link.send_frame(&header.encode());
        end_process(0)
    }

    /// Waits until the inbox has what is wanted. A thread that leads reads on while it waits, and gives away what it may not run itself.
    pub(crate) fn wait_for<T>(
        &'static self,
        inbox: &Inbox,
        mut look: impl FnMut(&mut Mail) -> Option<T>,
    ) -> T {
        if let Some(found) = inbox.look(&mut look) {
            return found;
        }
        if !self.crew.stop_running() {
            return inbox.wait(look);
        }
        let found = loop {
            if let Some(call) = self.handle_frame() {
                self.offer(call);
            }
            if let Some(found) = inbox.look(&mut look) {
                break found;
            }
        };
        if !self.crew.has_spare() {
            self.hire();
        }
        self.crew.begin_running();
        found
    }

    /// Tells the agent that input was passed on.
    pub(crate) fn return_credit(&self, id: u64, bytes: usize) -> Result<(), Gone> {
        if bytes == 0 {
            return Ok(());
        }
        let header = Header { a: u32::try_from(bytes).unwrap_or(u32::MAX), ..Header::new(Kind::Credit, id) };
        self.link.send_frame(&header.encode())
    }
}

impl Outcome {
    pub(crate) fn commit(&self) -> u64 {
        match self {
            Outcome::Reply { commit, .. }
            | Outcome::StreamEnd { commit }
            | Outcome::Failed { commit, .. } => *commit,
        }
    }

    /// Whether answering may need credit that is not there yet.
    fn may_wait(&self) -> bool {
        matches!(self, Outcome::Reply { body: Some(body), .. } if body.len() > WINDOW)
    }
}

pub(crate) fn draining() -> Failure {
    Failure::unstarted(FailKind::Draining, "the process is being moved; call again")
}

/// How many of its threads a process serves with at most: half, the rest is the function's own. Two at least, one to run and one to
/// read; not more than what their stacks leave of the runner's own memory.
fn serving_threads(limit: u32) -> usize {
    usize::try_from(limit / 2).unwrap_or(usize::MAX).clamp(2, 16)
}

/// Log lines go here from now on.
pub(crate) fn log_to(link: &'static Link) {
    let _ = LINK.set(link);
}

/// Sends one line of a function's log; a level that does not exist counts as the least.
pub(crate) fn log_line(id: u64, level: u32, text: &str) {
    let Some(link) = LINK.get() else { return };
    let end =
        (0..=text.len().min(MAX_FRAME_PAYLOAD)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let code = u16::try_from(level.min(LEVEL_LEAST)).unwrap_or(0);
    let header = Header { code, ..Header::new(Kind::LogLine, id) }.with_payload(end).encode();
    let _ = link.send(&mut [std::io::IoSlice::new(&header), std::io::IoSlice::new(&text.as_bytes()[..end])]);
}

/// A line of ours, about no call in particular.
pub(crate) fn log_of_host(text: &str) {
    log_line(0, LEVEL_ERROR, text);
}

/// Says what is wrong, and ends the process.
pub(crate) fn fault(text: &str) -> ! {
    eprintln!("{text}");
    log_of_host(text);
    end_process(EXIT_FAULT)
}
