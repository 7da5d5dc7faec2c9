//! A process that a sandbox runs: its calls, its deadlines, and everything that comes from the sandbox.
//!
//! All of that is an allegation. Frames were decoded with limits; here each is checked against what was asked: an invocation that
//! exists, one reply each, no more bytes than credit, commit numbers that do not go back, the durability that was asked for. What cannot
//! be is a [`Broken`] rule, and its sandbox ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_protocol::TraceParent;
use denizen_sandbox::Life;
use denizen_sched::Epoch;
use denizen_wire::{
    CancelReason, DrainCause, Durability, FailKind, Failure, Frame, Header, Kind, LastCapture, ReplyHead,
    direct_name, is_direct, split_log_line,
};
use futures_channel::oneshot;
use hyper::body::Bytes;
use hyper::header::HeaderValue;

use crate::data;
use crate::deployed::Deployed;
use crate::executor;
use crate::local::Changes;
use crate::logs::{Log, Speaker, Stream};
use crate::problem::{Blame, Kind as ProblemKind, Problem};
use crate::process::direct::{Census, Direct};
use crate::process::end::{Death, Killing};
use crate::process::failure::problem_of;
use crate::process::invocation::{Broken, Head, Invocation, RestsOn, Wanted};
use crate::process::keep::Keeping;
use crate::process::lasting::Lasting;
use crate::process::link::Link;
use crate::process::output::Output;
use crate::process::segments::Segments;

/// How long a function that was told to stop may go on before its sandbox is ended.
const GRACE: Duration = Duration::from_millis(100);
/// Calls that may run or wait inside one sandbox.
pub(crate) const CALLS_LIMIT: usize = 1024;

/// A sandbox that serves a process for one ownership term.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) image: Arc<Deployed>,
    pub(crate) epoch: Epoch,
    pub(crate) born: Epoch,
    pub(crate) epoch_header: HeaderValue,
    pub(crate) link: Rc<Link>,
    pub(crate) life: Arc<Life>,
    pub(crate) log: Arc<Log>,
    pub(crate) output: Rc<Output>,
    calls: RefCell<BTreeMap<u64, Rc<Invocation>>>,
    next_id: Cell<u64>,
    /// The last commit that was heard of.
    commit: Cell<u64>,
    /// The last one that was heard of as durable on the node.
    durable: Cell<u64>,
    /// Live bytes, as it last said.
    state_bytes: Cell<u64>,
    pub(crate) segments: Rc<Segments>,
    pub(crate) lasting: Lasting,
    /// What was durable when it began.
    durable_at_first: u64,
    /// What it was given, if it takes connections.
    pub(crate) direct: Option<Direct>,
    invocations: Cell<u64>,
    quiet_since: Cell<Instant>,
    /// When deadlines are looked at next.
    next_look: Cell<Option<Instant>>,
    /// Why the agent ended the sandbox, if it did.
    pub(crate) killing: RefCell<Option<Killing>>,
    /// The sandbox was asked to finish what it has, and to begin nothing more.
    asked_to_drain: Cell<bool>,
    /// It did, and says what became of its files.
    drained: Cell<Option<LastCapture>>,
    pub(crate) keeping: Keeping,
    /// It said that the disk failed under its state.
    pub(crate) state_failed: Cell<bool>,
    pub(crate) death: RefCell<Option<Death>>,
    /// Announced when `death` is known.
    pub(crate) changes: Changes,
    /// Deadlines are to be looked at earlier than was planned.
    sooner: Changes,
    /// The last content type of a reply: mostly the next one is the same.
    content_type: RefCell<Option<HeaderValue>>,
    /// Dropped with this, which ends what watches it.
    gone: RefCell<Option<oneshot::Sender<()>>>,
}

/// What a new sandbox is made of.
pub(crate) struct Parts {
    pub(crate) image: Arc<Deployed>,
    pub(crate) epoch: Epoch,
    pub(crate) born: Epoch,
    pub(crate) link: Rc<Link>,
    pub(crate) life: Arc<Life>,
    pub(crate) log: Arc<Log>,
    pub(crate) output: Rc<Output>,
    pub(crate) segments: Rc<Segments>,
    /// The ring, if it takes connections.
    pub(crate) ring: Option<OwnedFd>,
    pub(crate) commit: u64,
    pub(crate) durable: u64,
    pub(crate) state_bytes: u64,
}

impl Active {
    pub(crate) fn new(parts: Parts) -> Rc<Active> {
        let Parts { image, epoch, born, link, life, log, output, segments, ring, commit, .. } = parts;
        let (durable, state_bytes) = (parts.durable, parts.state_bytes);
        Rc::new(Active {
            image,
            epoch,
            born,
            epoch_header: HeaderValue::from(epoch.get()),
            link,
            life,
            log,
            output,
            calls: RefCell::default(),
            next_id: Cell::new(1),
            commit: Cell::new(commit),
            durable: Cell::new(durable),
            durable_at_first: durable,
            lasting: Lasting::default(),
            segments,
            direct: ring.map(Direct::new),
            state_bytes: Cell::new(state_bytes),
            invocations: Cell::new(0),
            quiet_since: Cell::new(Instant::now()),
            next_look: Cell::new(None),
            killing: RefCell::default(),
            asked_to_drain: Cell::new(false),
            drained: Cell::new(None),
            keeping: Keeping::default(),
            state_failed: Cell::new(false),
            death: RefCell::default(),
            changes: Changes::default(),
            sooner: Changes::default(),
            content_type: RefCell::default(),
            gone: RefCell::default(),
        })
    }

    /// Resolves when this object is dropped, for one who watches it.
    pub(super) fn until_gone(&self) -> oneshot::Receiver<()> {
        let (gone, watched) = oneshot::channel();
        *self.gone.borrow_mut() = Some(gone);
        watched
    }

    pub(crate) fn commit(&self) -> u64 {
        self.commit.get()
    }

    /// The last commit that it reported as durable on the node.
    pub(crate) fn durable(&self) -> u64 {
        // What it has synced is found again only once that is written down.
        if self.lasting.is_reached() { self.durable.get() } else { self.durable_at_first }
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.state_bytes.get()
    }

    /// Calls on connections that it was given, as it last said.
    pub(crate) fn direct_calls(&self) -> u64 {
        self.direct.as_ref().map_or(0, |direct| direct.census().calls)
    }

    pub(crate) fn invocations(&self) -> u64 {
        self.invocations.get()
    }

    /// Calls that run or wait: those on connections that it was given as far as it is known.
    pub(crate) fn in_flight(&self) -> usize {
        self.calls.borrow().len() + self.direct.as_ref().map_or(0, Direct::in_flight)
    }

    /// Whether others than the agent may have it run calls.
    pub(crate) fn has_callers(&self) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.connections() > 0)
    }

    /// Asks how busy it is with calls that others have it run. Gives the number of the question.
    pub(crate) fn ask_census(&self) -> u64 {
        self.link.send_header(&Header::new(Kind::AskCensus, 0));
        self.direct.as_ref().map_or(0, Direct::ask)
    }

    /// How busy it says that it is with such calls, and whether it began any since it last said so. `None`: it does not answer, or is dead.
    pub(crate) async fn census(&self, limit: Duration) -> Option<(Census, bool)> {
        let Some(direct) = &self.direct else { return Some(Default::default()) };
        let before = direct.census().calls;
        let question = self.ask_census();
        let census = direct.answer(question, limit).await?;
        Some((census, census.calls > before))
    }

    pub(crate) fn quiet_since(&self) -> Instant {
        self.quiet_since.get()
    }

    /// What it did last was no call.
    pub(crate) fn be_quiet_since(&self, since: Instant) {
        self.quiet_since.set(since);
    }

    pub(crate) fn has_drained(&self) -> bool {
        self.drained.get().is_some()
    }

    /// Whether it takes no new calls because it is dead or dying.
    pub(crate) fn is_ending(&self) -> bool {
        self.link.is_broken() || self.killing.borrow().is_some() || self.death.borrow().is_some()
    }

    /// It is dead. Whoever waits for that learns of it with the next change.
    pub(crate) fn died(&self, death: Death) {
        *self.death.borrow_mut() = Some(death);
        self.sooner.announce();
    }

    /// Whether it is dead, and was asked to end.
    pub(crate) fn ended_orderly(&self) -> bool {
        self.death.borrow().as_ref().is_some_and(|death| death.problem.is_none())
    }

    /// The problem of a sandbox that is dead and may have taken files with it that were in no capture: it has `/state`, and never said that
    /// it kept what is there, or said that it could not. Objects need no such word: each commit is in the log, which outlives the sandbox
    /// however it ends.
    pub(crate) fn lost_files(&self) -> Option<Problem> {
        if self.image.files_bytes() == 0 {
            return None;
        }
        if let Some(last) = self.drained.get() {
            return lost_at_the_end(last);
        }
        let text = "the sandbox ended before it kept what had changed in /state: that is lost, and what was captured before is kept";
        let lost = Problem::new(ProblemKind::FilesLost, text);
        let crash = self.death.borrow().as_ref().and_then(|death| death.problem.clone());
        Some(match crash {
            Some(crash) => lost.cause(crash),
            None => lost.cause("it did not end in time when it was told to"),
        })
    }

    /// The latest deadline of what runs.
    pub(crate) fn last_deadline(&self) -> Option<Instant> {
        let direct = self.direct.as_ref().and_then(Direct::last_deadline);
        self.calls.borrow().values().map(|call| call.deadline).chain(direct).max()
    }

    /// Whether it was asked to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.asked_to_drain.get()
    }

    /// Begins an invocation, before its frame is sent.
    pub(crate) fn begin(
        self: &Rc<Active>,
        name: Arc<str>,
        deadline: Instant,
        wanted: Wanted,
    ) -> Rc<Invocation> {
        let id = self.next_id.replace(self.next_id.get() + 1);
        let call = Rc::new(Invocation::new(id, name, deadline, self.commit.get(), wanted));
        self.calls.borrow_mut().insert(id, Rc::clone(&call));
        self.invocations.set(self.invocations.get() + 1);
        self.look_by(deadline);
        call
    }

    /// Tells the sandbox that nobody waits for a call any more.
    pub(crate) fn abandon(&self, call: &Invocation) {
        call.abandon();
        if !call.has_ended() && call.cancelled.get().is_none() {
            self.cancel(call, CancelReason::CallerGone);
        }
    }

    fn cancel(&self, call: &Invocation, reason: CancelReason) {
        call.cancelled.set(Some(Instant::now()));
        self.link.send_header(&Header { code: reason as u16, ..Header::new(Kind::Cancel, call.id) });
    }

    /// Asks the sandbox to finish what it has, to begin nothing more, and to end.
    pub(crate) fn drain(&self, cause: DrainCause) {
        self.asked_to_drain.set(true);
        self.link.send_header(&Header { code: cause as u16, ..Header::new(Kind::Drain, 0) });
    }

    /// Ends the sandbox at once. The first reason counts.
    pub(crate) fn kill(&self, why: Killing) {
        self.killing.borrow_mut().get_or_insert(why);
        self.life.kill();
    }

    /// Takes all calls out, to be told how they ended.
    pub(crate) fn take_calls(&self) -> Vec<Rc<Invocation>> {
        self.calls.take().into_values().collect()
    }

    /// The name of the only call that runs.
    pub(crate) fn only_call(&self) -> Option<Speaker> {
        let calls = self.calls.borrow();
        if calls.len() != 1 {
            return None;
        }
        calls.values().next().map(|call| call.speaker())
    }

    /// Takes a frame from the sandbox.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn take(self: &Rc<Active>, frame: &Frame<'_>) -> Result<(), Broken> {
        let header = &frame.header;
        match header.kind {
            Kind::Reply => self.begin_reply(frame),
            Kind::ReplyData => self.more_reply(frame),
            Kind::Fail => self.failed(frame),
            Kind::LogLine => self.log_line(frame),
            Kind::Credit => match self.call(header.id)? {
                Some(call) => call.add_input_credit(header.a),
                None => Ok(()),
            },
            Kind::Durable => self.commit_is_durable(header),
            Kind::WantSpare | Kind::Retired | Kind::StateNews => self.about_segments(header),
            // An end that was not asked for is no orderly one, whatever the sandbox calls it.
            Kind::Drained if !self.asked_to_drain.get() => Err("it drained and was not asked to".to_owned()),
            Kind::Drained => {
                self.hear_commit(header.c, Durability::reached(header.b))?;
                self.drained.set(Some(LastCapture::from_number(header.a)));
                Ok(())
            }
            other => match &self.direct {
                Some(direct) => self.about_callers(direct, frame),
                None => Err(format!("a {other:?} frame came when it could not")),
            },
        }
    }

    /// Takes a frame that is about connections that it was given, or calls on them.
    fn about_callers(self: &Rc<Active>, direct: &Direct, frame: &Frame<'_>) -> Result<(), Broken> {
        let header = &frame.header;
        match header.kind {
            Kind::CallerDone => {
                data::done(self, direct.done(header)?);
                self.quiet_if_idle();
                Ok(())
            }
            Kind::CallerParked if !self.asked_to_drain.get() => {
                Err("it gave a connection back and was not asked to".to_owned())
            }
            Kind::CallerParked => direct.take_back(frame),
            Kind::Census => {
                if direct.hear_census(header)? {
                    self.quiet_since.set(Instant::now());
                }
                Ok(())
            }
            Kind::Overrun => {
                let deadline = direct.overran(header, self.image.longest_deadline())?;
                self.look_by(deadline);
                Ok(())
            }
            Kind::Finished => {
                direct.finished(header)?;
                self.quiet_if_idle();
                Ok(())
            }
            other => Err(format!("a {other:?} frame came when it could not")),
        }
    }

    /// What it does not see the agent counts from here on.
    pub(crate) fn quiet_if_idle(&self) {
        if self.in_flight() == 0 {
            self.quiet_since.set(Instant::now());
        }
    }

    /// Takes a frame that is about the state and not about a call.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn about_segments(&self, header: &Header) -> Result<(), Broken> {
        match header.kind {
            Kind::WantSpare => self.segments.want(header.c),
            Kind::Retired => self.segments.retired(header.c),
            _ => {
                self.state_bytes.set(header.c);
                Ok(())
            }
        }
    }

    /// The answer to [`Wanted::Durable`].
    fn commit_is_durable(&self, header: &Header) -> Result<(), Broken> {
        let ended = || format!("invocation {} has ended and is answered again", header.id);
        let call = self.call(header.id)?.ok_or_else(ended)?;
        let Wanted::Durable { commit, level } = call.wanted else {
            return Err(format!("invocation {} was not asked how durable a commit is", header.id));
        };
        if header.c < commit {
            return Err(format!("commit {commit} was asked for, and it answers for {}", header.c));
        }
        self.hear_commit(header.c, level)?;
        let head =
            Head { content_type: None, commit: header.c, durability: level, replayed: false, whole: None };
        call.begin_reply(head, Bytes::new(), true)?;
        self.over(&call);
        Ok(())
    }

    fn begin_reply(&self, frame: &Frame<'_>) -> Result<(), Broken> {
        let header = &frame.header;
        let call = self.running(header)?;
        let (head, part) = ReplyHead::decode(frame.payload).map_err(|error| error.to_string())?;
        let content_type = self.content_type(head.content_type)?;
        let durability = self.reached(header, &call)?;
        let replayed = header.is_replayed();
        let head = Head { content_type, commit: header.c, durability, replayed, whole: None };
        // First this: a call that is off the table is not told when its sandbox ends for a reply that cannot be.
        call.begin_reply(head, Bytes::copy_from_slice(part), header.is_end())?;
        if header.is_end() {
            self.over(&call);
        }
        Ok(())
    }

    fn more_reply(&self, frame: &Frame<'_>) -> Result<(), Broken> {
        let header = &frame.header;
        let call = self.running(header)?;
        let durability = self.reached(header, &call)?;
        if header.is_end() {
            call.ends_on(RestsOn { commit: header.c, durability });
        }
        call.more_reply(Bytes::copy_from_slice(frame.payload), header.is_end())?;
        if header.is_end() {
            self.over(&call);
        }
        Ok(())
    }

    fn failed(&self, frame: &Frame<'_>) -> Result<(), Broken> {
        let call = self.running(&frame.header)?;
        let failure: Failure = frame.document().map_err(|error| error.to_string())?;
        if failure.kind == FailKind::StoreBroken {
            self.state_failed.set(true);
        }
        if failure.replayed && !call.is_keyed() {
            return Err(format!(
                "invocation {} has no idempotency key, and a failure is remembered",
                call.id
            ));
        }
        let refused_to_begin = failure.kind == FailKind::Draining && !failure.started;
        // Such a call is sent again: a sandbox could have it sent for ever.
        if refused_to_begin && !self.asked_to_drain.get() {
            return Err(format!(
                "invocation {} was refused by a sandbox that was not asked to drain",
                call.id
            ));
        }
        self.over(&call);
        if refused_to_begin {
            call.refused_to_begin();
        }
        call.fail(problem_of(failure, &call, &self.image));
        Ok(())
    }

    fn log_line(&self, frame: &Frame<'_>) -> Result<(), Broken> {
        let header = &frame.header;
        let (trace, text) = traced(frame)?;
        let speaker = match header.id {
            0 => None,
            id if is_direct(id) && self.direct.is_some() => {
                Some(Speaker { invocation: direct_name(self.epoch.get(), id).into(), trace })
            }
            id => self.call(id)?.map(|call| call.speaker()),
        };
        let level =
            ["ERROR ", "WARN ", "", "DEBUG "].get(usize::from(header.code)).copied().unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        self.log.add(Stream::Log, speaker, format!("{level}{text}"));
        Ok(())
    }

    /// A call that was begun; `None` if it has ended.
    fn call(&self, id: u64) -> Result<Option<Rc<Invocation>>, Broken> {
        if id >= self.next_id.get() {
            return Err(format!("invocation {id} was never begun"));
        }
        Ok(self.calls.borrow().get(&id).map(Rc::clone))
    }

    /// The call that a frame replies to, with a commit number that can be.
    fn running(&self, header: &Header) -> Result<Rc<Invocation>, Broken> {
        let call = self
            .call(header.id)?
            .ok_or_else(|| format!("invocation {} has ended and replies again", header.id))?;
        let says_commit = header.kind != Kind::ReplyData || header.is_end();
        if header.is_replayed() {
            if !call.is_keyed() {
                return Err(format!(
                    "invocation {} has no idempotency key, and a reply is remembered",
                    call.id
                ));
            }
            call.replays();
        }
        if says_commit && header.c < call.base_commit && !call.is_replayed() {
            return Err(format!("commit {} came after commit {}", header.c, call.base_commit));
        }
        if says_commit {
            self.hear_commit(header.c, Durability::Process)?;
        }
        Ok(call)
    }

    /// How durable a reply is: at its end no less than was asked for. Before, what it will be then.
    fn reached(&self, header: &Header, call: &Invocation) -> Result<Durability, Broken> {
        let Wanted::Reply { level: wanted, .. } = call.wanted else {
            return Err(format!("invocation {} is no call, and replies", call.id));
        };
        if !header.is_end() {
            return Ok(wanted);
        }
        let reached = Durability::reached(header.b);
        if reached < wanted {
            return Err(format!(
                "invocation {} was to reply once its commit is durable, and does before",
                call.id
            ));
        }
        self.hear_commit(header.c, reached)?;
        // More than was asked for is said once it is true.
        Ok(if self.lasting.is_reached() { reached } else { reached.min(wanted) })
    }

    /// # Errors
    /// There can be no such commit.
    fn hear_commit(&self, commit: u64, level: Durability) -> Result<(), Broken> {
        self.segments.can_have(commit)?;
        self.commit.set(self.commit.get().max(commit));
        if level >= Durability::Node {
            self.durable.set(self.durable.get().max(commit));
        }
        Ok(())
    }

    /// The sandbox has said its last word on a call.
    fn over(&self, call: &Invocation) {
        self.output.call_ends(call.speaker());
        self.calls.borrow_mut().remove(&call.id);
        self.quiet_if_idle();
    }

    fn content_type(&self, text: &str) -> Result<Option<HeaderValue>, Broken> {
        if text.is_empty() {
            return Ok(None);
        }
        let mut last = self.content_type.borrow_mut();
        if last.as_ref().is_none_or(|last| last != text) {
            *last = Some(
                HeaderValue::from_str(text)
                    .map_err(|_| "a content type that no header can carry".to_owned())?,
            );
        }
        Ok(last.clone())
    }

    /// Makes sure that deadlines are looked at by `when`.
    fn look_by(self: &Rc<Active>, when: Instant) {
        match self.next_look.get() {
            Some(next) if next <= when => return,
            // There is one task for this, however often an earlier deadline comes: a sandbox and its callers choose them.
            Some(_) => self.sooner.announce(),
            None => executor::spawn(keep_deadlines(Rc::downgrade(self))),
        }
        self.next_look.set(Some(when));
    }

    /// Cancels what is late and ends the sandbox if it does not listen. When to look again.
    fn enforce(&self, now: Instant) -> Option<Instant> {
        let calls: Vec<_> = self.calls.borrow().values().map(Rc::clone).collect();
        let (mut deaf, mut next) =
            self.direct.as_ref().map(|direct| direct.late(now, GRACE)).unwrap_or_default();
        for call in calls {
            if call.cancelled.get().is_none() && now >= call.deadline {
                self.cancel(&call, CancelReason::Deadline);
            }
            let due = match call.cancelled.get() {
                // A caller that went away costs nobody anything before the deadline.
                Some(at) if now >= call.deadline => at.max(call.deadline) + GRACE,
                _ => call.deadline,
            };
            if now >= due {
                deaf.push(call.id);
            }
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        if !deaf.is_empty() {
            self.kill(Killing::Deaf(deaf));
            return None;
        }
        next
    }
}

/// The trace that the runner says a direct call belongs to, and the line itself.
fn traced<'f>(frame: &Frame<'f>) -> Result<(Option<TraceParent>, &'f [u8]), Broken> {
    let (trace, text) = split_log_line(frame).map_err(|error| error.to_string())?;
    Ok((trace.and_then(|trace| TraceParent::from_bytes(trace)), text))
}

/// What an orderly end says that was no end of its files.
fn lost_at_the_end(last: LastCapture) -> Option<Problem> {
    let text = "what had changed in /state could not be captured at the end: that is lost, and what was captured before is kept";
    let lost = Problem::new(ProblemKind::FilesLost, text);
    match last {
        LastCapture::Kept => None,
        LastCapture::NoRoom => Some(lost.cause("the node has no room for it").remedy("Free some space in the node's directory")),
        LastCapture::Refused => Some(
            lost.blame(Blame::Function)
                .cause("the state has no room for it, or a file cannot be read: the process's log says which")
                .remedy("Delete objects or files, or raise `limits.state` in denizen.toml; then make the files anew"),
        ),
    }
}

/// Looks at deadlines for as long as there are any. Costs a call nothing while an earlier look is planned; and mostly there is no call any
/// more when its deadline comes, so that is found out together with others.
async fn keep_deadlines(active: Weak<Active>) {
    while let Some(active) = active.upgrade() {
        let Some(when) = active.next_look.get() else { break };
        if active.death.borrow().is_some() {
            active.next_look.set(None);
            break;
        }
        let other =
            || (active.next_look.get() != Some(when) || active.death.borrow().is_some()).then_some(());
        let is_due = async {
            executor::sleep_together(when).await;
            true
        };
        let planned_anew = async {
            active.sooner.until(other).await;
            false
        };
        if futures_lite::future::or(planned_anew, is_due).await {
            active.next_look.set(active.enforce(Instant::now()));
        }
    }
}
