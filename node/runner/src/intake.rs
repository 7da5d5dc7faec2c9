//! What the leader does with each frame: assemble inputs, let calls in, deliver news to running ones.
//!
//! It owns the reading side of the socket. A whole input is read straight into the aligned buffer that its function will see. Nothing
//! here waits for anything but the socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use denizen_wire::{
    CallHead, CancelReason, FailKind, Failure, FrameReader, Header, Kind, LENGTH_UNKNOWN, MAX_CONTENT_TYPE,
    MAX_INVOCATION_ID, WINDOW, WireError,
};

use crate::buffers::Body;
use crate::call::Call;
use crate::inbox::{Inbox, Mail};
use crate::link::{Gone, Link};
use crate::locked;
use crate::plugin::end_process;
use crate::serve::{Runner, draining, fault};

/// The longest head of an `Invoke` frame in bytes.
const MAX_HEAD: usize = 4 + MAX_CONTENT_TYPE + MAX_INVOCATION_ID;
/// So many calls may be waiting and running in one process.
const MAX_CALLS: usize = 1024;

/// The leader's own: what it has read and not handed on.
#[derive(Debug)]
pub(crate) struct Intake {
    frames: FrameReader,
    /// Calls whose input is still coming.
    assembling: BTreeMap<u64, Assembling>,
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
    pub(crate) fn new(frames: FrameReader) -> Intake {
        Intake { frames, assembling: BTreeMap::new() }
    }
}

impl Runner {
    /// Handles frames until a call may run.
    pub(crate) fn next_call(&'static self) -> Call {
        loop {
            if let Some(call) = self.handle_frame() {
                return call;
            }
        }
    }

    /// Handles one frame, and gives back the call that may run because of it.
    pub(crate) fn handle_frame(&'static self) -> Option<Call> {
        let mut intake = locked(&self.intake);
        match self.handle(&mut intake) {
            Ok(call) => call,
            // Nobody is left to answer to.
            Err(Stop::Gone) => end_process(0),
            Err(Stop::Broken(error)) => fault(&format!("the agent sent what it never sends: {error}")),
        }
    }

    fn handle(&'static self, intake: &mut Intake) -> Result<Option<Call>, Stop> {
        loop {
            let Intake { frames, assembling } = &mut *intake;
            match frames.peek()?.map(|header| header.kind) {
                Some(Kind::Invoke) => {
                    if let Some(frame) = frames.split_after(MAX_HEAD)? {
                        let header = frame.header;
                        let (head, part) = CallHead::decode(frame.payload)?;
                        let rest = header.len() - frame.payload.len();
                        let sink = self.accept(&header, &head, part, rest);
                        return self.finish_frame(&header, rest, sink, frames, assembling);
                    }
                }
                Some(Kind::Data) => {
                    if let Some(frame) = frames.split()? {
                        let header = frame.header;
                        let rest = header.len() - frame.payload.len();
                        let sink = self.more_input(&header, frame.payload, assembling);
                        return self.finish_frame(&header, rest, sink, frames, assembling);
                    }
                }
                Some(_) => {
                    if let Some(frame) = frames.frame()? {
                        let header = frame.header;
                        return self.news(&header, assembling).map(|()| None);
                    }
                }
                None => {}
            }
            let count = self.link.read(frames.space())?;
            frames.filled(count);
        }
    }

    /// Decides where the body bytes of a new call go, and puts there what has arrived of them.
    fn accept(&self, header: &Header, head: &CallHead<'_>, part: &[u8], rest: usize) -> Sink {
        if let Err(failure) = self.may_accept(header) {
            return Sink::Refused(failure);
        }
        let function = &self.functions[header.a as usize];
        let inbox = Arc::new(Inbox::new(deadline_of(header)));
        let call = Call {
            id: header.id,
            function,
            inbox: inbox.clone(),
            input: None,
            content_type: head.content_type.into(),
            invocation: head.invocation.into(),
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

    fn may_accept(&self, header: &Header) -> Result<(), Failure> {
        let limit = self.limits().body_bytes;
        if self.draining.load(SeqCst) {
            return Err(draining());
        }
        if header.a as usize >= self.functions.len() {
            let message = format!("no function has the index {}", header.a);
            return Err(Failure::unstarted(FailKind::UnknownFunction, message));
        }
        let declared = if header.c == LENGTH_UNKNOWN { 0 } else { header.c };
        // What is in this frame counts too, whatever was declared; its head is not worth subtracting.
        if declared.max((header.len().saturating_sub(MAX_HEAD)) as u64) > limit {
            return Err(too_large(limit));
        }
        if locked(&self.calls).len() >= MAX_CALLS {
            let message = format!("{MAX_CALLS} calls wait in this process already");
            return Err(Failure::unstarted(FailKind::Overloaded, message));
        }
        Ok(())
    }

    /// Decides where more body bytes go, and puts there what has arrived of them. Those of a call that is done go nowhere.
    fn more_input(&self, header: &Header, part: &[u8], assembling: &mut BTreeMap<u64, Assembling>) -> Sink {
        let Some(mut input) = assembling.remove(&header.id) else {
            return match self.inbox_of(header.id) {
                Some(inbox) => Sink::Stream(inbox, part.to_vec()),
                None => Sink::Nowhere,
            };
        };
        let limit = self.limits().body_bytes;
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
        frames: &mut FrameReader,
        assembling: &mut BTreeMap<u64, Assembling>,
    ) -> Result<Option<Call>, Stop> {
        match sink {
            Sink::Nowhere => drop(read_rest(self.link, frames, Vec::new(), rest)?),
            Sink::Refused(failure) => {
                read_rest(self.link, frames, Vec::new(), rest)?;
                self.refuse(header.id, &failure)?;
                self.forget(header.id);
            }
            Sink::Whole(mut input) => {
                fill(self.link, frames, &mut input.body, rest)?;
                input.uncredited += rest;
                return self.assembled(input, header.is_end(), assembling);
            }
            Sink::Stream(inbox, part) => {
                let bytes = read_rest(self.link, frames, part, rest)?;
                inbox.tell(|mail| mail.arrived(bytes, header.is_end(), self.limits().body_bytes));
            }
            Sink::NewStream(call, part) => {
                let bytes = read_rest(self.link, frames, part, rest)?;
                call.inbox.tell(|mail| mail.arrived(bytes, header.is_end(), self.limits().body_bytes));
                return Ok(self.enter_gate(call));
            }
        }
        Ok(None)
    }

    /// More of an input: the call goes on to the gate when it is whole.
    fn assembled(
        &'static self,
        mut input: Assembling,
        end: bool,
        assembling: &mut BTreeMap<u64, Assembling>,
    ) -> Result<Option<Call>, Stop> {
        if end {
            input.call.input = Some(input.body);
            return Ok(self.enter_gate(input.call));
        }
        if input.uncredited >= WINDOW / 2 {
            self.return_credit(input.call.id, std::mem::take(&mut input.uncredited))?;
        }
        assembling.insert(input.call.id, input);
        Ok(None)
    }

    fn enter_gate(&self, call: Call) -> Option<Call> {
        locked(&self.gate).enter(call.mode(), call)
    }

    /// Frames without a body.
    fn news(&'static self, header: &Header, assembling: &mut BTreeMap<u64, Assembling>) -> Result<(), Stop> {
        match header.kind {
            Kind::Cancel => self.cancel(header.id, CancelReason::from_code(header.code), assembling)?,
            Kind::AbortInput => self.abort_input(header.id, assembling)?,
            Kind::Credit => {
                if let Some(inbox) = self.inbox_of(header.id) {
                    inbox.tell(|mail| mail.credit = mail.credit.saturating_add(header.a as usize));
                }
            }
            Kind::Drain => self.drain(assembling)?,
            other => return Err(Stop::Broken(WireError::WrongDirection(other))),
        }
        Ok(())
    }

    fn cancel(
        &self,
        id: u64,
        reason: CancelReason,
        assembling: &mut BTreeMap<u64, Assembling>,
    ) -> Result<(), Stop> {
        let waiting = assembling.remove(&id).map(|input| input.call);
        let waiting = waiting.or_else(|| locked(&self.gate).remove(|call| call.id == id));
        if waiting.is_some() {
            self.refuse(id, &cancelled_before_start(reason))?;
            self.forget(id);
        } else if let Some(inbox) = self.inbox_of(id) {
            inbox.cancel(reason);
        }
        Ok(())
    }

    fn abort_input(&self, id: u64, assembling: &mut BTreeMap<u64, Assembling>) -> Result<(), Stop> {
        if assembling.remove(&id).is_some() {
            let failure = Failure::unstarted(FailKind::InputBroken, "the input broke off before its end");
            self.refuse(id, &failure)?;
            self.forget(id);
        } else if let Some(inbox) = self.inbox_of(id) {
            inbox.tell(Mail::broke_off);
        }
        Ok(())
    }

    /// What has not started will not; the last that runs ends the process.
    fn drain(&'static self, assembling: &mut BTreeMap<u64, Assembling>) -> Result<(), Stop> {
        self.draining.store(true, SeqCst);
        let waiting = locked(&self.gate).clear();
        let unstarted = std::mem::take(assembling).into_values().map(|input| input.call).chain(waiting);
        for call in unstarted {
            self.refuse(call.id, &draining())?;
            locked(&self.calls).remove(&call.id);
        }
        if locked(&self.calls).is_empty() {
            self.drained();
        }
        Ok(())
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

/// Reads the rest of a payload straight to where it belongs; what comes behind it goes to the reader.
fn fill(link: &Link, frames: &mut FrameReader, body: &mut Body, mut rest: usize) -> Result<(), Gone> {
    while rest > 0 {
        let count = link.read_two(&mut body.room()[..rest], frames.space())?;
        let here = count.min(rest);
        body.filled(here);
        frames.filled(count - here);
        rest -= here;
    }
    Ok(())
}

fn read_rest(
    link: &Link,
    frames: &mut FrameReader,
    mut bytes: Vec<u8>,
    rest: usize,
) -> Result<Vec<u8>, Gone> {
    let mut have = bytes.len();
    bytes.resize(have + rest, 0);
    while have < bytes.len() {
        let room = &mut bytes[have..];
        let most = room.len();
        let count = link.read_two(room, frames.space())?;
        let here = count.min(most);
        frames.filled(count - here);
        have += here;
    }
    Ok(bytes)
}
