//! What the leader does with each frame: assemble inputs, let calls in, deliver news to running ones.
//!
//! It owns the reading side of the socket. A whole input is read straight into the aligned buffer that its function will see. Nothing
//! here waits for anything but the socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use denizen_protocol::TraceParent;
use denizen_wire::{
    Builtin, CallHead, CancelReason, Durability, FailKind, Failure, Header, Kind, LENGTH_UNKNOWN,
    MAX_CALL_HEAD, SegmentUse, SpareRefusal, WINDOW, WireError,
};

use crate::buffers::Body;
use crate::call::Call;
use crate::debts::Debt;
use crate::declare::Function;
use crate::direct::Reading;
use crate::inbox::{Inbox, Mail};
use crate::link::Gone;
use crate::locked;
use crate::plugin::end_process;
use crate::serve::{Runner, draining, fault};
use crate::source::Source;

/// So many calls may be waiting and running in one process.
pub(crate) const MAX_CALLS: usize = 1024;

/// The leader's own: what it has read and not handed on.
#[derive(Debug)]
pub(crate) struct Intake {
    source: Source,
    assembling: Waiting,
    reading: Reading,
}

/// Calls whose input is still coming.
type Waiting = BTreeMap<u64, Assembling>;

/// What handling a frame came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// This call may run.
    Run(Call),
    /// The frame is dealt with.
    Done,
    /// Something is to be done before the next frame is waited for.
    Pause,
    /// Nothing runs any more and nothing will.
    Drained,
}

#[derive(Debug)]
struct Assembling {
    call: Call,
    body: Body,
    /// Received and not yet returned as credit.
    uncredited: usize,
}

/// Why reading cannot go on.
enum Stop {
    Gone,
    Broken(WireError),
    /// The number of a segment.
    Segment(u64),
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Stop {
        Stop::Gone
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Stop {
        Stop::Broken(error)
    }
}

impl Intake {
    pub(crate) fn new(source: Source) -> Intake {
        Intake { source, assembling: BTreeMap::new(), reading: Reading::default() }
    }
}

impl Runner {
    /// Handles one frame. With something left to do it does not wait for one.
    pub(crate) fn handle_frame(&'static self) -> Step {
        let mut intake = locked(&self.intake);
        match self.handle(&mut intake) {
            Ok(step) => step,
            // Nobody is left to answer to.
            Err(Stop::Gone) => end_process(0),
            Err(Stop::Broken(error)) => fault(&format!("the agent sent what it never sends: {error}")),
            Err(Stop::Segment(id)) => {
                fault(&format!("segment {id} came without two descriptors that can be used"))
            }
        }
    }

    fn handle(&'static self, intake: &mut Intake) -> Result<Step, Stop> {
        if self.debts.overdue() {
            return Ok(Step::Pause);
        }
        loop {
            let Intake { source, assembling, reading } = &mut *intake;
            match source.frames.peek()?.map(|header| header.kind) {
                Some(Kind::Invoke) => {
                    if let Some(frame) = source.frames.split_after(MAX_CALL_HEAD)? {
                        let header = frame.header;
                        let (head, part) = CallHead::decode(frame.payload)?;
                        let rest = header.len() - frame.payload.len();
                        let sink = self.accept(&header, &head, part, rest);
                        return self.finish_frame(&header, rest, sink, source, assembling);
                    }
                }
                Some(Kind::Data) => {
                    if let Some(frame) = source.frames.split()? {
                        let header = frame.header;
                        let rest = header.len() - frame.payload.len();
                        let sink = self.more_input(&header, frame.payload, assembling);
                        return self.finish_frame(&header, rest, sink, source, assembling);
                    }
                }
                Some(_) => {
                    if let Some(frame) = source.frames.frame()? {
                        let header = frame.header;
                        if header.kind == Kind::Caller {
                            self.accept_caller(&header, frame.payload, reading);
                            return Ok(Step::Done);
                        }
                        return self.news(&header, source, assembling, reading);
                    }
                }
                None => {}
            }
            if self.direct.is_used() {
                if let Some(step) = self.next_direct(source, reading)? {
                    return Ok(step);
                }
            } else if !self.has_more_to_do() {
                source.read()?;
            } else if !source.read_now()? {
                return Ok(Step::Pause);
            }
        }
    }

    /// Decides where the body bytes of a new call go, and puts there what has arrived of them.
    fn accept(&self, header: &Header, head: &CallHead<'_>, part: &[u8], rest: usize) -> Sink {
        let (function, wanted) = match self.may_accept(header) {
            Ok(accepted) => accepted,
            Err(failure) => return Sink::Refused(failure),
        };
        let inbox = Inbox::new(deadline_of(header), function.body_limit(self.limits()));
        let trace = head.trace.as_ref().and_then(|trace| TraceParent::from_bytes(trace));
        let inbox = Arc::new(inbox.of_trace(trace));
        let call = Call {
            id: header.id,
            function,
            inbox: inbox.clone(),
            input: None,
            content_type: head.content_type.into(),
            invocation: head.invocation.into(),
            wanted,
            key: head.key.map(Into::into),
            known: None,
        };
        let sink = if function.streams_input() {
            Sink::NewStream(call, part.to_vec())
        } else {
            let Some(mut body) = self.body_for(header, part.len() + rest) else {
                return Sink::Refused(no_memory());
            };
            body.push(part);
            Sink::Whole(Assembling { call, body, uncredited: part.len() })
        };
        locked(&self.calls).insert(header.id, inbox);
        sink
    }

    /// Room for the whole input where its length is known, for what is here where it is not.
    fn body_for(&self, header: &Header, here: usize) -> Option<Body> {
        let declared = if header.is_end() || header.c == LENGTH_UNKNOWN { 0 } else { header.c };
        self.buffers().with_room(usize::try_from(declared).ok()?.max(here))
    }

    fn function_of(&self, index: u32) -> Option<&'static Function> {
        match Builtin::from_index(index) {
            None => self.functions.get(index as usize),
            Some(builtin) => self.builtins.iter().find(|function| function.is_builtin(builtin)),
        }
    }

    fn may_accept(&self, header: &Header) -> Result<(&'static Function, Durability), Failure> {
        if self.draining.load(SeqCst) {
            return Err(draining());
        }
        let function = self.function_of(header.a).ok_or_else(|| {
            let message = format!("no function has the index {}", header.a);
            Failure::unstarted(FailKind::UnknownFunction, message)
        })?;
        let wanted = Durability::from_code(header.code).ok_or_else(|| {
            let message = format!("this node has no durability of the number {}", header.code);
            Failure::unstarted(FailKind::Internal, message)
        })?;
        let limit = function.body_limit(self.limits());
        let declared = if header.c == LENGTH_UNKNOWN { 0 } else { header.c };
        // What is in this frame counts too, whatever was declared; its head is not worth subtracting.
        if declared.max((header.len().saturating_sub(MAX_CALL_HEAD)) as u64) > limit {
            return Err(too_large(limit));
        }
        if locked(&self.calls).len() >= MAX_CALLS {
            let message = format!("{MAX_CALLS} calls wait in this process already");
            return Err(Failure::unstarted(FailKind::Overloaded, message));
        }
        Ok((function, wanted))
    }

    /// Decides where more body bytes go, and puts there what has arrived of them. Those of a call that is done go nowhere.
    fn more_input(&self, header: &Header, part: &[u8], assembling: &mut Waiting) -> Sink {
        let Some(mut input) = assembling.remove(&header.id) else {
            return match self.inbox_of(header.id) {
                Some(inbox) => Sink::Stream(inbox, part.to_vec()),
                None => Sink::Nowhere,
            };
        };
        let limit = input.call.inbox.body_limit();
        if (input.body.len() + header.len()) as u64 > limit {
            return Sink::Refused(too_large(limit));
        }
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        if self.buffers().grow(&mut input.body, header.len(), most).is_none() {
            return Sink::Refused(no_memory());
        }
        input.body.push(part);
        input.uncredited += part.len();
        Sink::Whole(input)
    }

    /// Takes the rest of a frame's body bytes off the socket, straight to where they go.
    fn finish_frame(
        &'static self,
        header: &Header,
        rest: usize,
        sink: Sink,
        source: &mut Source,
        assembling: &mut Waiting,
    ) -> Result<Step, Stop> {
        match sink {
            Sink::Nowhere => drop(source.read_rest(Vec::new(), rest)?),
            Sink::Refused(failure) => {
                source.read_rest(Vec::new(), rest)?;
                return self.end_unstarted(header.id, &failure);
            }
            Sink::Whole(mut input) => {
                source.fill(&mut input.body, rest)?;
                input.uncredited += rest;
                return self.assembled(input, header.is_end(), assembling);
            }
            Sink::Stream(inbox, part) => {
                let bytes = source.read_rest(part, rest)?;
                inbox.arrived(bytes, header.is_end());
            }
            Sink::NewStream(call, part) => {
                let bytes = source.read_rest(part, rest)?;
                call.inbox.arrived(bytes, header.is_end());
                return Ok(self.enter_gate(call));
            }
        }
        Ok(Step::Done)
    }

    /// More of an input: the call goes on to the gate when it is whole.
    fn assembled(
        &'static self,
        mut input: Assembling,
        end: bool,
        assembling: &mut Waiting,
    ) -> Result<Step, Stop> {
        if end {
            input.call.input = Some(input.body);
            return Ok(self.enter_gate(input.call));
        }
        if input.uncredited >= WINDOW / 2 {
            self.return_credit(input.call.id, std::mem::take(&mut input.uncredited))?;
        }
        assembling.insert(input.call.id, input);
        Ok(Step::Done)
    }

    /// A call whose key is taken waits for that, and an exclusive one for its turn.
    pub(crate) fn enter_gate(&self, call: Call) -> Step {
        let admitted = self.enter_key(call).and_then(|call| self.admit(call));
        admitted.map_or(Step::Done, Step::Run)
    }

    /// Frames without a body.
    fn news(
        &'static self,
        header: &Header,
        source: &mut Source,
        assembling: &mut Waiting,
        reading: &mut Reading,
    ) -> Result<Step, Stop> {
        match header.kind {
            Kind::Cancel => {
                return self.cancel(header.id, CancelReason::from_code(header.code), assembling);
            }
            Kind::AbortInput => return self.abort_input(header.id, assembling),
            Kind::Credit => {
                if let Some(inbox) = self.inbox_of(header.id) {
                    inbox.tell(|mail| mail.credit = mail.credit.saturating_add(header.a as usize));
                }
            }
            Kind::Segment => {
                let spare = source.segment(header).ok_or(Stop::Segment(header.c))?;
                if SegmentUse::from_number(header.a) != Some(SegmentUse::Spare) {
                    return Err(Stop::Segment(header.c));
                }
                self.shelf.put(spare);
            }
            Kind::SpareRefused => self.shelf.refuse(SpareRefusal::from_code(header.code)),
            Kind::Sync => self.sync(header)?,
            Kind::AskCensus => self.send_census(reading)?,
            Kind::CallerExpires => self.caller_expires(header, reading),
            Kind::Drain => return self.drain(assembling, reading),
            other => return Err(Stop::Broken(WireError::WrongDirection(other))),
        }
        Ok(Step::Done)
    }

    /// The agent wants to hear when a commit is durable.
    fn sync(&self, header: &Header) -> Result<(), Stop> {
        let commit = header.c;
        if commit > self.engine().snapshot().commit_number() {
            let message = format!("commit {commit} is not made yet");
            return self.refuse(header.id, &Failure::unstarted(FailKind::NotFound, message));
        }
        match Durability::from_code(header.code) {
            Some(Durability::Node) if self.engine().durable() < commit => {
                self.owe(Debt::News { id: header.id, commit });
                Ok(())
            }
            Some(_) => {
                let answer = Header { c: commit, ..Header::new(Kind::Durable, header.id) };
                Ok(self.link.send_frame(&answer.encode())?)
            }
            None => {
                let message = format!("this node has no durability of the number {}", header.code);
                self.refuse(header.id, &Failure::unstarted(FailKind::Internal, message))
            }
        }
    }

    fn cancel(&'static self, id: u64, reason: CancelReason, assembling: &mut Waiting) -> Result<Step, Stop> {
        if assembling.remove(&id).is_some() {
            return self.end_unstarted(id, &cancelled_before_start(reason));
        }
        if let Some((failure, next)) = self.withdraw(id, reason) {
            let step = self.end_unstarted(id, &failure)?;
            return Ok(next.map_or(step, Step::Run));
        }
        if let Some(inbox) = self.inbox_of(id) {
            inbox.cancel(reason);
        }
        Ok(Step::Done)
    }

    fn abort_input(&'static self, id: u64, assembling: &mut Waiting) -> Result<Step, Stop> {
        if assembling.remove(&id).is_some() {
            let failure = Failure::unstarted(FailKind::InputBroken, "the input broke off before its end");
            return self.end_unstarted(id, &failure);
        }
        if let Some(inbox) = self.inbox_of(id) {
            inbox.tell(Mail::broke_off);
        }
        Ok(Step::Done)
    }

    /// What has not started will not; the last that runs ends the process.
    fn drain(&'static self, assembling: &mut Waiting, reading: &mut Reading) -> Result<Step, Stop> {
        self.draining.store(true, SeqCst);
        // Those that wait for a key have not got it; those that wait for their turn have.
        let unkeyed = std::mem::take(assembling).into_values().map(|input| input.call);
        for call in unkeyed.chain(self.memory.clear()) {
            if let Some(call) = self.only_direct(call)?
                && let Step::Run(call) = self.enter_gate(call)
            {
                self.offer(call);
            }
        }
        let turns = locked(&self.gate).clear();
        for call in turns {
            let key = call.key.clone();
            let next = match self.only_direct(call)? {
                Some(call) => self.admit(call),
                None => key.and_then(|key| self.leave_key(&key)),
            };
            if let Some(call) = next {
                self.offer(call);
            }
        }
        self.drain_callers(reading);
        Ok(if self.is_drained() { Step::Drained } else { Step::Done })
    }

    /// Refuses a call that has not begun, unless it was accepted whole, and its caller cannot ask another sandbox: that one waits on.
    fn only_direct(&self, call: Call) -> Result<Option<Call>, Stop> {
        if call.inbox.direct.is_some() {
            return Ok(Some(call));
        }
        self.refuse(call.id, &draining())?;
        locked(&self.calls).remove(&call.id);
        Ok(None)
    }

    fn end_unstarted(&'static self, id: u64, failure: &Failure) -> Result<Step, Stop> {
        self.refuse(id, failure)?;
        Ok(if self.remove_call(id) { Step::Drained } else { Step::Done })
    }

    fn refuse(&self, id: u64, failure: &Failure) -> Result<(), Stop> {
        Ok(self.link.send_frame(&failure.frame(id, self.last_commit())?)?)
    }
}

/// Where the body bytes of a frame go.
#[derive(Debug)]
enum Sink {
    /// Nobody wants them.
    Nowhere,
    /// The call fails because of them.
    Refused(Failure),
    /// A buffer with room for them.
    Whole(Assembling),
    /// A function that reads them as they come.
    Stream(Arc<Inbox>, Vec<u8>),
    /// The same, and it begins now.
    NewStream(Call, Vec<u8>),
}

fn deadline_of(header: &Header) -> Option<Instant> {
    let after = Duration::from_millis(u64::from(header.b));
    if header.b == 0 { None } else { Instant::now().checked_add(after) }
}

pub(crate) fn cancelled_before_start(reason: CancelReason) -> Failure {
    match reason {
        CancelReason::Deadline => {
            Failure::unstarted(FailKind::Deadline, "the deadline passed before the function began")
        }
        CancelReason::CallerGone => Failure::unstarted(FailKind::Cancelled, "the caller went away"),
    }
}

fn too_large(limit: u64) -> Failure {
    Failure::unstarted(FailKind::TooLarge, format!("the input is over the limit of {limit} bytes"))
}

fn no_memory() -> Failure {
    Failure::unstarted(FailKind::TooLarge, "the process has no memory for this input")
}
