//! The running process: its threads, its state, and the calls that it has.
//!
//! It owns the life of a call from the moment it may run: run the function, commit, let the next ones in, answer. The order matters:
//! the gate opens after the commit and before the reply, so that a slow reader of a large reply holds nobody up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use denizen_engine::{Access as Turn, Compaction, Engine, StateError, Transaction};
use denizen_protocol::TraceParent;
use denizen_ring::maker::Ring;
use denizen_wire::{
    Assignment, Builtin, Durability, EXIT_FAULT, FailKind, Failure, Header, Kind, LastCapture,
    MAX_FRAME_PAYLOAD, RunnerLimits, WINDOW, log_line_head,
};

use crate::buffers::Buffers;
use crate::call::{Access, Active, Call, Ended, Outcome};
use crate::confinement::Sealed;
use crate::crew::{Crew, Duty};
use crate::debts::{Debt, Debts, not_synced};
use crate::declare::{Function, Mode};
use crate::direct::Direct;
use crate::gate::Gate;
use crate::inbox::{Inbox, Mail};
use crate::intake::{Intake, Step, cancelled_before_start};
use crate::link::{Gone, Link};
use crate::memory::Memory;
use crate::plugin::end_process;
use crate::spares::{Shelf, Spare};
use crate::trouble::{NotCommitted, ends_the_process};
use crate::{files, host, locked};

/// Stack of a serving thread in bytes: what Rust gives its threads. Only what is touched becomes memory.
const STACK_BYTES: usize = 2 << 20;
/// The level of an error in the ABI.
const LEVEL_ERROR: u32 = 0;
const LEVEL_LEAST: u32 = 3;
/// What one step of compaction copies, in bytes, between two calls: about as long as a call takes.
const BUSY_STEP: u64 = 16 << 10;
/// And while there is nothing else to do: well below the millisecond after which another thread would take over the reading.
const QUIET_STEP: u64 = 256 << 10;
/// The agent is told of a change of the live bytes by this much, and by an eighth.
const NOTABLE_BYTES: u64 = 64 << 10;

static RUNNING: OnceLock<&'static Runner> = OnceLock::new();
static LINK: OnceLock<&'static Link> = OnceLock::new();

/// A process that serves. It lives until the process ends.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) link: &'static Link,
    assignment: Assignment,
    sealed: Sealed,
    pub(crate) functions: &'static [Function],
    pub(crate) builtins: &'static [Function],
    engine: Engine,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) debts: Debts,
    buffers: Buffers,
    pub(crate) crew: &'static Crew<Call>,
    pub(crate) gate: Mutex<Gate<Call>>,
    /// Calls with idempotency keys.
    pub(crate) memory: Memory,
    /// Every call that was accepted and has not been answered.
    pub(crate) calls: Mutex<BTreeMap<u64, Arc<Inbox>>>,
    /// Only the leader takes it.
    pub(crate) intake: Mutex<Intake>,
    pub(crate) draining: AtomicBool,
    pub(crate) direct: Direct,
    ended: AtomicBool,
    /// The last commit when this process began.
    first_commit: u64,
    /// Segments were retired that no sync has let go yet.
    retired: AtomicBool,
    /// The live bytes that the agent was told of last.
    told_live: AtomicU64,
    /// Why this process takes no more calls.
    broken: OnceLock<StateError>,
}

/// What it takes to begin.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) link: &'static Link,
    pub(crate) assignment: Assignment,
    pub(crate) sealed: Sealed,
    pub(crate) functions: &'static [Function],
    pub(crate) engine: Engine,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) intake: Intake,
    /// Threads that wait already.
    pub(crate) crew: Option<&'static Crew<Call>>,
    /// For direct connections.
    pub(crate) ring: Option<Ring>,
}

/// Begins a crew, and its second thread: for a sandbox that has time before it knows its process. The caller begins as its leader.
pub(crate) fn prepare_crew(sealed: Sealed, threads: u32) -> &'static Crew<Call> {
    let crew = new_crew(threads);
    if crew.hire() {
        let thread = std::thread::Builder::new().name("denizen-call".into()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            sealed.thread_start();
            let duty = crew.wait_as_new();
            // There is something to do only once it serves.
            if let Some(runner) = Runner::running() {
                runner.serve_on_this_thread(|| duty);
            }
        });
        if started.is_err() {
            crew.not_hired();
        }
    }
    crew
}

fn new_crew(threads: u32) -> &'static Crew<Call> {
    Box::leak(Box::new(Crew::led_by_this_thread(serving_threads(threads))))
}

impl Runner {
    /// Serves, this thread being the first leader.
    pub(crate) fn begin(beginning: Beginning) -> ! {
        let summary = beginning.engine.summary();
        let builtins: Vec<Function> = Builtin::ALL.into_iter().map(Function::builtin).collect();
        let runner: &'static Runner = Box::leak(Box::new(Runner {
            link: beginning.link,
            sealed: beginning.sealed,
            functions: beginning.functions,
            builtins: builtins.leak(),
            engine: beginning.engine,
            shelf: beginning.shelf,
            debts: Debts::default(),
            buffers: Buffers::new(),
            crew: beginning.crew.unwrap_or_else(|| new_crew(beginning.assignment.limits.threads)),
            gate: Mutex::new(Gate::new()),
            memory: Memory::new(),
            calls: Mutex::new(BTreeMap::new()),
            intake: Mutex::new(beginning.intake),
            draining: AtomicBool::new(false),
            direct: Direct::new(beginning.ring, &beginning.assignment, beginning.functions),
            ended: AtomicBool::new(false),
            first_commit: summary.commit,
            retired: AtomicBool::new(false),
            told_live: AtomicU64::new(summary.live_bytes),
            broken: OnceLock::new(),
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

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// When what is remembered now may be forgotten.
    pub(crate) fn expires_ms(&self) -> u64 {
        self.engine.now_ms().saturating_add(self.assignment.remember_ms)
    }

    /// The last commit that was made, by whatever made it: also by a call that still runs, or by a capture of files. The agent may have
    /// heard of any of them, and takes an answer with an earlier one for a lie.
    pub(crate) fn last_commit(&self) -> u64 {
        self.engine.snapshot().commit_number()
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
                Duty::Lead => {
                    self.took_the_lead();
                    self.lead();
                }
                Duty::Run { work, hire } => {
                    if hire {
                        self.start_thread();
                    }
                    self.run_on(work);
                }
            }
            self.run_what_is_ready();
            // What it owed when it lost the lead.
            if self.debts.open() {
                self.settle();
            }
            self.flush_what_is_left();
            duty = self.crew.wait();
        }
    }

    /// Reads and runs until another thread has taken over.
    fn lead(&'static self) {
        while let Some(call) = self.next_call() {
            if !self.crew.has_spare() && !self.hire() && !self.crew.is_alone() {
                // Every thread runs something. Whichever is done first takes it; this one must go on reading.
                self.crew.offer(call);
                continue;
            }
            let mut next = Some(call);
            while let Some(call) = next {
                self.crew.begin_running();
                self.run_on(call);
                if self.shelf.changed() {
                    self.compact(BUSY_STEP);
                }
                if !self.crew.stop_running() {
                    return;
                }
                next = self.crew.take();
            }
        }
    }

    /// Handles frames until a call may run; `None` if another thread leads now.
    fn next_call(&'static self) -> Option<Call> {
        loop {
            match self.handle_frame() {
                Step::Run(call) => return Some(call),
                Step::Done => {}
                Step::Pause if self.use_pause() => {}
                Step::Drained if self.as_running(|| self.end_drained()) => {}
                Step::Pause | Step::Drained => return None,
            }
        }
    }

    /// Does something, as this thread does that leads, that may take long. Whether it still leads then.
    fn as_running(&'static self, work: impl FnOnce()) -> bool {
        if !self.crew.has_spare() {
            self.hire();
        }
        self.crew.begin_running();
        work();
        self.crew.stop_running()
    }

    /// Whether a leader that finds no frame has something else to do.
    pub(crate) fn has_more_to_do(&self) -> bool {
        self.debts.open() || self.shelf.changed() || self.link.has_later()
    }

    /// Does what was put off until there is no frame to read. Whether this thread still leads.
    fn use_pause(&'static self) -> bool {
        if self.link.flush().is_err() {
            end_process(0);
        }
        if self.debts.open() {
            return self.as_running(|| self.settle());
        }
        !self.shelf.changed() || self.as_running(|| self.compact(QUIET_STEP))
    }

    /// One step of compaction, and what comes after the last one.
    fn compact(&'static self, max_bytes: u64) {
        self.shelf.looks();
        match self.engine.compact_step(max_bytes) {
            Ok(Compaction::Copied(_)) => self.shelf.look_again(),
            Ok(Compaction::Retired(_)) => {
                self.retired.store(true, SeqCst);
                self.shelf.look_again();
            }
            Ok(Compaction::NotDue) => self.let_go(max_bytes == QUIET_STEP),
            Err(error) if ends_the_process(&error) => self.break_aside(&error),
            // It goes on when a spare comes.
            Err(StateError::NoSpare { .. }) => {}
            // The engine leaves that segment alone from now on.
            Err(error) => {
                log_of_host(&format!("compaction: {error}"));
                self.shelf.look_again();
            }
        }
    }

    /// Retired segments are deleted after a sync. While there is work, somebody may ask for one anyway.
    fn let_go(&self, quiet: bool) {
        if !self.retired.load(SeqCst) {
            return self.tell_live(NOTABLE_BYTES);
        }
        if !quiet {
            return self.shelf.look_again();
        }
        self.retired.store(false, SeqCst);
        self.tell_live(NOTABLE_BYTES);
        if let Err(error) = self.wait_durable(u64::MAX, Durability::Node) {
            self.break_aside(&error);
        }
    }

    /// Tells the agent how much is live, if that has changed by so many bytes, or is more than nothing for the first time.
    fn tell_live(&self, notable: u64) {
        let live = self.engine.summary().live_bytes;
        let told = self.told_live.load(SeqCst);
        let notable = if notable == 0 || told == 0 { 0 } else { notable.max(told / 8) };
        if live.abs_diff(told) >= notable && live != told {
            self.told_live.store(live, SeqCst);
            self.link.send_later(Header { c: live, ..Header::new(Kind::StateNews, 0) });
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

    /// Runs a call that was let in, and those that it held up as long as they need no other thread. What it owes is settled, unless this
    /// thread leads: then it goes on with frames that are there already.
    fn run_on(&'static self, call: Call) {
        let mut next = Some(call);
        while let Some(call) = next {
            let key = call.key.clone().filter(|_| call.known.is_none());
            next = self.run(call);
            if self.debts.open() && !self.crew.leads() {
                self.settle();
            }
            if !self.crew.leads() {
                self.flush_what_is_left();
            }
            if let Some(key) = key {
                self.forget_some(&key);
            }
        }
    }

    fn run(&'static self, call: Call) -> Option<Call> {
        let (id, mode, wanted, inbox) = (call.id, call.mode(), call.wanted, call.inbox.clone());
        let key = call.key.clone();
        self.begins(&inbox);
        let outcome = match self.reason_not_to_start(&call) {
            Some(failure) => Outcome::Failed { failure, commit: self.last_commit() },
            None => self.execute(call),
        };
        if self.assignment.files_bytes > 0 {
            files::after_call(self);
        }
        let owes =
            wanted == Durability::Node && outcome.is_reply() && self.engine.durable() < outcome.commit();
        // The next one may run at once where this thread does not have to wait for anything.
        let may_wait = self.answer_may_wait(&inbox, &outcome);
        let free = !may_wait && (!owes || self.crew.leads());
        let same_key = key.and_then(|key| self.leave_key(&key));
        let next = if mode == Mode::Exclusive { self.leave_gate(free) } else { None };
        let next = self.one_of(next, same_key, free);
        if owes && !may_wait {
            self.owe(Debt::Reply { id, inbox, outcome });
            return next;
        }
        let outcome = if owes { self.synced(outcome) } else { outcome };
        let tells = outcome.tells_of_a_broken_store();
        if self.answer(id, &inbox, outcome).is_err() {
            end_process(0);
        }
        self.forget(id);
        self.end_if_broken(tells);
        next
    }

    /// Ends a process whose state is broken, if somebody was told or there is nobody to tell. Another call may be about to say it.
    fn end_if_broken(&self, told: bool) {
        if let Some(error) = self.broken.get()
            && (told || locked(&self.calls).is_empty())
        {
            self.end_broken(error);
        }
    }

    /// Lets the next exclusive call in; it comes back if this thread is free to run it.
    fn leave_gate(&'static self, free: bool) -> Option<Call> {
        let next = locked(&self.gate).leave();
        if free {
            return next;
        }
        next.into_iter().for_each(|call| self.offer(call));
        None
    }

    /// Of two calls that may run, one comes back if this thread is free to run it.
    fn one_of(&'static self, next: Option<Call>, other: Option<Call>, free: bool) -> Option<Call> {
        match other {
            Some(other) if free && next.is_none() => return Some(other),
            Some(other) => self.offer(other),
            None => {}
        }
        next
    }

    fn reason_not_to_start(&self, call: &Call) -> Option<Failure> {
        if self.draining.load(SeqCst) && call.inbox.direct.is_none() {
            return Some(draining());
        }
        call.inbox.cancelled().map(cancelled_before_start)
    }

    fn execute(&'static self, mut call: Call) -> Outcome {
        if let Some(known) = call.known.take() {
            return Active::new(self, call, Access::Read(known.clone()), false).replay(&known);
        }
        let (first, alone) = match call.mode() {
            Mode::ReadOnly => (Access::Read(self.engine.snapshot()), false),
            Mode::Concurrent => (Access::Write(self.engine.begin(Turn::Concurrent)), false),
            Mode::Exclusive => (Access::Write(self.engine.begin(Turn::Exclusive)), true),
        };
        let mut ended = self.enter(call, first, alone);
        loop {
            match ended {
                Ended::Done(outcome) => return outcome,
                // A concurrent call was faster. Now those wait with their commits, so that it cannot happen again.
                Ended::Again(call) => {
                    ended = self.enter(call, Access::Write(self.engine.begin(Turn::Sole)), false);
                }
            }
        }
    }

    fn enter(&'static self, call: Call, access: Access, may_rerun: bool) -> Ended {
        let _words = self.sealed.running(call.id);
        let active = RefCell::new(Active::new(self, call, access, may_rerun));
        let status = host::enter(&active);
        active.into_inner().end(status)
    }

    /// Commits a transaction. If the log has no room it waits until the agent gives some, or says that there is none.
    pub(crate) fn commit(
        &'static self,
        transaction: &mut Transaction,
        inbox: &Arc<Inbox>,
    ) -> Result<u64, NotCommitted> {
        loop {
            let ticket = self.shelf.ticket();
            let needed = match transaction.commit() {
                Err(StateError::NoSpare { needed }) => needed,
                result => return Ok(result?),
            };
            if self.link.flush().is_err() {
                end_process(0);
            }
            let answer = self.wait_for(inbox, |_| match inbox.cancelled() {
                Some(reason) => Some(Err(NotCommitted::Cancelled(reason))),
                None => self.shelf.news(ticket, needed, inbox).map(Ok),
            });
            if let Spare::Refused(why) = answer? {
                return Err(NotCommitted::NoSpare(why));
            }
        }
    }

    /// Waits until a commit is durable.
    pub(crate) fn wait_durable(&self, seq: u64, level: Durability) -> Result<(), StateError> {
        let level = match level {
            Durability::Process => denizen_engine::Durability::Process,
            Durability::Node => denizen_engine::Durability::Node,
        };
        self.engine.wait(seq, level)
    }

    /// For a reply that this thread has to wait for anyway.
    fn synced(&'static self, outcome: Outcome) -> Outcome {
        match self.wait_durable(outcome.commit(), Durability::Node) {
            Ok(()) => outcome,
            Err(error) => {
                self.note_broken(&error);
                not_synced(&error, outcome.commit())
            }
        }
    }

    /// The state can no longer be relied on: when what there is to say is said, the process ends.
    pub(crate) fn note_broken(&self, error: &StateError) {
        let _ = self.broken.set(error.clone());
    }

    /// The same for what no call has asked for. Calls that run have their say first: the next one that fails of it ends the process.
    pub(crate) fn break_aside(&self, error: &StateError) {
        self.note_broken(error);
        self.end_if_broken(false);
    }

    /// Ends the process because of its state. The next one recovers what was durable.
    pub(crate) fn end_broken(&self, error: &StateError) -> ! {
        self.flush_what_is_left();
        fault(&format!(
            "the state can no longer be relied on, so this process ends and is recovered: {error}"
        ))
    }

    /// The call is answered. The last one of a draining process ends it.
    pub(crate) fn forget(&'static self, id: u64) {
        if self.remove_call(id) {
            self.end_drained();
        }
    }

    /// Whether this was the last call of a draining process.
    pub(crate) fn remove_call(&'static self, id: u64) -> bool {
        let removed = locked(&self.calls).remove(&id);
        removed.iter().for_each(|inbox| self.is_over(inbox));
        self.draining.load(SeqCst) && self.is_drained()
    }

    /// Whether nothing runs, and no caller is left that is to be given back.
    pub(crate) fn is_drained(&self) -> bool {
        locked(&self.calls).is_empty() && self.direct.is_empty()
    }

    /// Nothing runs and nothing will: keeps what is to be kept, says so, and ends the process. Two threads may find that out at once; the
    /// second comes back, and may be needed to read.
    fn end_drained(&'static self) {
        if self.ended.swap(true, SeqCst) {
            return;
        }
        self.settle();
        self.forget_at_the_end();
        let kept = if self.assignment.files_bytes > 0 { files::at_the_end(self) } else { LastCapture::Kept };
        let commit = self.last_commit();
        let commit = if commit == self.first_commit { commit } else { self.seal(commit) };
        self.tell_live(0);
        let level = if self.engine.durable() >= commit { Durability::Node } else { Durability::Process };
        let (a, b) = (kept as u32, u32::from(level.code()));
        let header = Header { a, b, c: commit, ..Header::new(Kind::Drained, 0) };
        let _ = self.link.send_frame(&header.encode());
        end_process(0)
    }

    /// Makes everything durable, and writes down that it is.
    fn seal(&self, commit: u64) -> u64 {
        match self.engine.seal() {
            Ok(sealed) => sealed,
            Err(error) if ends_the_process(&error) => self.end_broken(&error),
            // No room for the mark; everything is durable all the same.
            Err(_) => commit,
        }
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
        self.waits(inbox);
        if !self.crew.stop_running() {
            self.flush_what_is_left();
            return inbox.wait(look);
        }
        let found = loop {
            match self.handle_frame() {
                Step::Run(call) => self.offer(call),
                Step::Pause if !self.use_pause() => {
                    self.flush_what_is_left();
                    return inbox.wait(look);
                }
                // Only while this thread itself ends the process.
                Step::Drained | Step::Pause | Step::Done => {}
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

    pub(crate) fn is_reply(&self) -> bool {
        !matches!(self, Outcome::Failed { .. })
    }

    fn tells_of_a_broken_store(&self) -> bool {
        matches!(self, Outcome::Failed { failure, .. } if failure.kind == FailKind::StoreBroken)
    }

    /// Whether answering may need credit that is not there yet.
    pub(crate) fn may_wait(&self) -> bool {
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

/// Sends one line of a function's log; a level that does not exist counts as the least. `trace`: that of a direct call, of which the agent
/// knows nothing.
pub(crate) fn log_line(id: u64, trace: Option<TraceParent>, level: u32, text: &str) {
    let Some(link) = LINK.get() else { return };
    let code = u16::try_from(level.min(LEVEL_LEAST)).unwrap_or(0);
    let trace = trace.map(|trace| trace.to_bytes());
    let (header, head) = log_line_head(Header { code, ..Header::new(Kind::LogLine, id) }, trace.as_ref());
    let most = text.len().min(MAX_FRAME_PAYLOAD - head.len());
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let header = header.with_payload(head.len() + end).encode();
    let pieces = [&header, head, &text.as_bytes()[..end]];
    let _ = link.send(&mut pieces.map(std::io::IoSlice::new));
}

/// A line of ours, about no call in particular.
pub(crate) fn log_of_host(text: &str) {
    log_line(0, None, LEVEL_ERROR, text);
}

/// Says what is wrong, and ends the process.
pub(crate) fn fault(text: &str) -> ! {
    end_saying(text, EXIT_FAULT)
}

/// The same, with a code that says whose fault it is.
pub(crate) fn end_saying(text: &str, exit_code: i32) -> ! {
    eprintln!("{text}");
    log_of_host(text);
    end_process(exit_code)
}
