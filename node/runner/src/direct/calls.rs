//! From what a client says to calls: admits them, puts their inputs together, and lets them go on or end.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use denizen_protocol::server::Event;
use denizen_protocol::token::Refusal as TokenRefusal;
use denizen_protocol::{CallHead, Part, Problem, Violation};
use denizen_wire::problem::{Kind, size};
use denizen_wire::{CallerEnd, CancelReason, FailKind, Failure};

use super::caller::{Assembling, Caller, Talk};
use super::problems::{Refusal, refusal};
use super::waiting::Reading;
use super::{Ours, SMALL, Told};
use crate::buffers::Body;
use crate::call::Call;
use crate::inbox::{Inbox, Mail};
use crate::intake::{MAX_CALLS, Step, cancelled_before_start};
use crate::locked;
use crate::serve::{Runner, draining};

/// What a call takes beside its input, about, in bytes.
const CALL_BYTES: u64 = 4 << 10;

/// What an event of the protocol is to the leader.
pub(super) enum Done {
    /// There is no more for now.
    AllRead,
    Nothing,
    Call(u64, Result<New, Refusal>, usize),
    /// More of an input that is put together, or its end.
    Assembled {
        id: u64,
        len: usize,
        result: Result<bool, Failure>,
    },
    /// More of an input that streams.
    Streamed {
        inbox: Arc<Inbox>,
        bytes: Vec<u8>,
        end: bool,
    },
    Dropped(u64, usize),
    Cancel(u64),
    Room,
    Closed,
    Violated(Violation),
}

/// A call that may be.
pub(super) struct New {
    call: Call,
    inbox: Arc<Inbox>,
    input: NewInput,
}

enum NewInput {
    Whole(Body),
    /// More is to come; so many bytes may come at once.
    Part(Body, u64),
    Stream(Vec<u8>, bool),
}

/// What comes after an event.
pub(super) enum Next {
    Step(Step),
    Goes,
}

impl Runner {
    /// Reads one event, and copies out what is to be kept of it.
    pub(super) fn next_event(&self, caller: &Arc<Caller>, talk: &mut Talk, input: &mut &[u8]) -> Done {
        let Talk { protocol, calls, assembling, moved, .. } = talk;
        let event = match protocol.next(input) {
            Ok(Some(event)) => event,
            Ok(None) => return Done::AllRead,
            Err(violation) => return Done::Violated(violation),
        };
        match event {
            Event::Call { id, head, part } => {
                Done::Call(id, self.admit_call(caller, id, &head, part, *moved), part.bytes.len())
            }
            Event::Body { id, part } => {
                let len = part.bytes.len();
                if let Some(input) = assembling.get_mut(&id) {
                    return Done::Assembled { id, len, result: self.assemble(input, part) };
                }
                match calls.get(&id) {
                    Some(inbox) => {
                        Done::Streamed { inbox: inbox.clone(), bytes: part.bytes.to_vec(), end: part.end }
                    }
                    None => Done::Dropped(id, len),
                }
            }
            Event::Cancel { id, .. } => Done::Cancel(id),
            Event::Credit { .. } => Done::Room,
            Event::Failed(_) => Done::Closed,
            _ => Done::Nothing,
        }
    }

    /// Decides whether there is such a call, and makes room for its input.
    fn admit_call(
        &self,
        caller: &Arc<Caller>,
        id: u64,
        head: &CallHead<'_>,
        part: Part<'_>,
        came: Instant,
    ) -> Result<New, Refusal> {
        let found = self.direct.policies.find(self.functions, head.function)?;
        let function = found.function;
        let wanted = found.policy.level(head.durability)?;
        if !caller.terms.permit(&function.decl.name) {
            return Err(Box::new(Problem::from(&TokenRefusal::WrongFunction)));
        }
        if self.draining.load(SeqCst) {
            // It came along with credit for what is still to be sent.
            return Err(refusal(Kind::Draining, draining().message));
        }
        let limit = found.policy.body_bytes;
        let declared = if part.end { Some(part.bytes.len() as u64) } else { head.length };
        if declared.unwrap_or(0).max((part.bytes.len() + part.rest) as u64) > limit {
            return Err(too_large(limit));
        }
        if locked(&self.calls).len() >= MAX_CALLS {
            let text = format!("{MAX_CALLS} calls wait in this process already");
            return Err(refusal(Kind::Overloaded, text));
        }
        let window = u64::from(caller.terms.call_window);
        let here = if function.streams_input() { window } else { declared.unwrap_or(window) };
        let reserved = CALL_BYTES + here.min(declared.unwrap_or(u64::MAX));
        if !self.direct.reserve(reserved) {
            let text = "the inputs and replies of this process take as much memory as they may";
            return Err(refusal(Kind::Overloaded, text));
        }
        let asked = head.deadline_ms.map(|ms| Duration::from_millis(u64::from(ms.get())));
        let time = asked.map_or(found.policy.deadline, |asked| asked.min(found.policy.deadline));
        let number = self.direct.new_number();
        let name: Box<str> = self.direct.name_of(number).into();
        let ours = Ours {
            caller: caller.clone(),
            id,
            number,
            name: name.clone(),
            place: found.place,
            reserved: AtomicU64::new(reserved),
            begun: AtomicBool::new(false),
            seen: AtomicBool::new(false),
            told: Mutex::new(Told::Nothing),
            open: AtomicBool::new(!part.end),
            uncounted: AtomicU64::new(0),
            cut_off: AtomicBool::new(false),
        };
        let inbox = Inbox::of_direct(came.checked_add(time), limit, ours);
        let inbox = Arc::new(inbox.of_trace(head.traceparent));
        let call = Call {
            id: number,
            function,
            inbox: inbox.clone(),
            input: None,
            content_type: head.content_type.unwrap_or_default().into(),
            invocation: name,
            wanted,
            key: head.idempotency_key.map(Into::into),
            known: None,
        };
        let input = if function.streams_input() {
            NewInput::Stream(part.bytes.to_vec(), part.end)
        } else {
            let room = declared.unwrap_or(0).max((part.bytes.len() + part.rest) as u64);
            let Some(mut body) = usize::try_from(room).ok().and_then(|room| self.buffers().with_room(room))
            else {
                self.direct.release(reserved);
                return Err(refusal(Kind::Overloaded, "the process has no memory for this input"));
            };
            body.push(part.bytes);
            match part.end {
                true => NewInput::Whole(body),
                false => NewInput::Part(body, declared.unwrap_or(0).saturating_sub(window)),
            }
        };
        Ok(New { call, inbox, input })
    }

    /// More of an input. Whether it is whole now.
    fn assemble(&self, input: &mut Assembling, part: Part<'_>) -> Result<bool, Failure> {
        let limit = input.call.inbox.body_limit();
        let more = part.bytes.len() + part.rest;
        let len = (input.body.len() + more) as u64;
        if len > limit {
            let text = format!("the body is over the limit of {}", size(limit));
            return Err(Failure::unstarted(FailKind::TooLarge, text));
        }
        let no_memory =
            || Failure::unstarted(FailKind::Overloaded, "the process has no memory for this input");
        if let Some(ours) = &input.call.inbox.direct {
            let grown = (len + CALL_BYTES).saturating_sub(ours.reserved.load(Relaxed));
            if grown > 0 {
                if !self.direct.reserve(grown) {
                    return Err(no_memory());
                }
                ours.reserved.fetch_add(grown, Relaxed);
            }
        }
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        self.buffers().grow(&mut input.body, more, most).ok_or_else(no_memory)?;
        input.body.push(part.bytes);
        Ok(part.end)
    }

    /// Does what an event asks for. `None`: there is no more for now.
    pub(super) fn act(
        &'static self,
        caller: &Arc<Caller>,
        mut talk: MutexGuard<'_, Talk>,
        done: Done,
        reading: &mut Reading,
    ) -> Option<Next> {
        match done {
            Done::AllRead => {
                self.direct.gather(caller, &mut talk);
                return None;
            }
            Done::Nothing => {}
            Done::Call(id, Err(problem), len) => {
                let problem = self.standing(*problem, self.last_commit());
                self.fail_call(&mut talk, id, &problem);
                talk.protocol.consumed(id, len);
            }
            Done::Call(id, Ok(new), len) => return Some(self.begin_call(talk, id, new, len)),
            Done::Assembled { id, len, result } => {
                talk.protocol.consumed(id, len);
                return Some(self.assembled_more(talk, id, result));
            }
            Done::Streamed { inbox, bytes, end } => {
                drop(talk);
                self.streamed(&inbox, bytes, end);
            }
            Done::Dropped(id, len) => talk.protocol.consumed(id, len),
            Done::Cancel(id) => self.cancelled(talk, id, reading),
            Done::Room => {
                drop(talk);
                // Replies may be waiting for it, and those who stream.
                self.flush_one(caller);
            }
            Done::Closed => {
                drop(talk);
                self.end_caller(caller, CallerEnd::Closed, reading);
                return None;
            }
            Done::Violated(violation) => {
                self.violated(caller, talk, &violation, reading);
                return None;
            }
        }
        Some(Next::Goes)
    }

    fn begin_call(&'static self, mut talk: MutexGuard<'_, Talk>, id: u64, new: New, len: usize) -> Next {
        let New { mut call, inbox, input } = new;
        locked(&self.calls).insert(call.id, inbox.clone());
        talk.calls.insert(id, inbox.clone());
        match input {
            NewInput::Whole(body) => {
                talk.protocol.consumed(id, len);
                drop(talk);
                call.input = Some(body);
                self.let_in(call)
            }
            NewInput::Part(body, grant) => {
                talk.protocol.consumed(id, len);
                talk.protocol.grant(id, grant);
                talk.pouring = talk.protocol.rest().is_some_and(|rest| rest.body > SMALL) || grant > 0;
                talk.assembling.insert(id, Assembling { call, body });
                drop(talk);
                self.note_deadline(&inbox);
                Next::Goes
            }
            NewInput::Stream(bytes, end) => {
                drop(talk);
                self.streamed(&inbox, bytes, end);
                self.let_in(call)
            }
        }
    }

    /// Lets a call with its input in.
    fn let_in(&'static self, call: Call) -> Next {
        let inbox = call.inbox.clone();
        match self.enter_gate(call) {
            Step::Run(call) => Next::Step(Step::Run(call)),
            _ => {
                self.note_deadline(&inbox);
                Next::Goes
            }
        }
    }

    fn note_deadline(&self, inbox: &Inbox) {
        if let Some(deadline) = inbox.deadline() {
            self.note_due(deadline);
        }
    }

    fn assembled_more(
        &'static self,
        mut talk: MutexGuard<'_, Talk>,
        id: u64,
        result: Result<bool, Failure>,
    ) -> Next {
        match result {
            Ok(false) => {
                talk.pouring = talk.protocol.rest().is_some_and(|rest| rest.body > SMALL) || talk.pouring;
                Next::Goes
            }
            Ok(true) => {
                talk.pouring = false;
                let Some(Assembling { mut call, body }) = talk.assembling.remove(&id) else {
                    return Next::Goes;
                };
                if let Some(ours) = &call.inbox.direct {
                    ours.open.store(false, SeqCst);
                }
                drop(talk);
                call.input = Some(body);
                self.let_in(call)
            }
            Err(failure) => {
                talk.pouring = false;
                let Some(Assembling { call, body }) = talk.assembling.remove(&id) else { return Next::Goes };
                talk.calls.remove(&id);
                let problem = self.problem_of(failure, &call.invocation, self.last_commit());
                self.fail_call(&mut talk, id, &problem);
                drop(talk);
                self.give_back(body);
                self.forget_unbegun(call.id);
                Next::Goes
            }
        }
    }

    /// Bytes of a body were received where they belong.
    pub(super) fn received_body(
        &'static self,
        caller: &Arc<Caller>,
        mut talk: MutexGuard<'_, Talk>,
        id: u64,
        input: Assembling,
        count: usize,
        reading: &mut Reading,
    ) -> Option<Step> {
        talk.assembling.insert(id, input);
        if count == 0 {
            if !talk.gone && talk.ended && !talk.readable {
                self.ended(caller, talk, reading);
            }
            return None;
        }
        let whole = talk.protocol.received(count).is_some_and(|(_, part)| part.end);
        talk.protocol.consumed(id, count);
        if talk.protocol.rest().is_none() {
            // Credit that came together is told with what leaves next.
            self.direct.gather(caller, &mut talk);
        }
        match self.assembled_more(talk, id, Ok(whole)) {
            Next::Step(step) => Some(step),
            Next::Goes => None,
        }
    }

    /// The caller gives a call up. It hears of the end at once; the function is told.
    fn cancelled(&'static self, mut talk: MutexGuard<'_, Talk>, id: u64, reading: &mut Reading) {
        let text = "the call was cancelled";
        let Some(inbox) = talk.calls.remove(&id) else {
            // Its reply is being sent.
            let problem = self.standing(*refusal(Kind::CallerGone, text), self.last_commit());
            return self.fail_call(&mut talk, id, &problem);
        };
        let assembling = talk.assembling.remove(&id);
        let name = inbox.direct.as_ref().map(|ours| ours.name.clone().into());
        let problem = Problem { invocation: name, ..*refusal(Kind::CallerGone, text) };
        let problem = self.standing(problem, self.last_commit());
        self.fail_call(&mut talk, id, &problem);
        drop(talk);
        self.abandon(&inbox, assembling, reading);
    }

    /// Nobody waits for a call any more that its connection knows no more of.
    pub(super) fn abandon(
        &'static self,
        inbox: &Arc<Inbox>,
        assembling: Option<Assembling>,
        reading: &mut Reading,
    ) {
        let Some(ours) = &inbox.direct else { return };
        if let Some(Assembling { body, .. }) = assembling {
            self.give_back(body);
            return self.forget_unbegun(ours.number);
        }
        if let Some((_, next)) = self.withdraw(ours.number, CancelReason::CallerGone) {
            reading.runnable.extend(next);
            return self.forget_unbegun(ours.number);
        }
        inbox.cancel(CancelReason::CallerGone);
    }

    /// The time of a call is over.
    pub(super) fn give_up(&'static self, inbox: &Arc<Inbox>, reason: CancelReason, reading: &mut Reading) {
        let Some(ours) = &inbox.direct else { return };
        let assembling = {
            let mut talk = ours.caller.talk();
            let input = talk.assembling.remove(&ours.id);
            talk.pouring &= input.is_none();
            input
        };
        if let Some(Assembling { body, .. }) = assembling {
            self.give_back(body);
            return self.end_unbegun(inbox, ours, cancelled_before_start(reason));
        }
        if let Some((failure, next)) = self.withdraw(ours.number, reason) {
            reading.runnable.extend(next);
            return self.end_unbegun(inbox, ours, failure);
        }
        inbox.cancel(reason);
    }

    fn end_unbegun(&'static self, inbox: &Arc<Inbox>, ours: &Ours, failure: Failure) {
        let outcome = crate::call::Outcome::Failed { failure, commit: self.last_commit() };
        self.answer_direct(inbox, ours, outcome);
        self.forget_unbegun(ours.number);
    }

    /// A call is over that has not begun. Only the leader comes by here, and sees by itself when the process is drained.
    pub(super) fn forget_unbegun(&'static self, number: u64) {
        let _ = self.remove_call(number);
    }

    /// Ends the calls of a connection whose input will not be whole, because this process drains.
    pub(super) fn cut_off(&'static self, caller: &Arc<Caller>) {
        let mut talk = caller.talk();
        let mut ended = Vec::new();
        for (id, Assembling { call, body }) in std::mem::take(&mut talk.assembling) {
            talk.calls.remove(&id);
            let problem = self.problem_of(draining(), &call.invocation, self.last_commit());
            self.fail_call(&mut talk, id, &problem);
            self.give_back(body);
            ended.push(call.id);
        }
        talk.pouring = false;
        let open = |inbox: &&Arc<Inbox>| inbox.direct.as_ref().is_some_and(|ours| ours.open.load(SeqCst));
        let streaming: Vec<_> = talk.calls.values().filter(open).cloned().collect();
        drop(talk);
        ended.into_iter().for_each(|number| self.forget_unbegun(number));
        for inbox in streaming {
            if let Some(ours) = &inbox.direct {
                ours.cut_off.store(true, SeqCst);
            }
            inbox.tell(Mail::broke_off);
        }
    }
}

fn too_large(limit: u64) -> Refusal {
    let problem = refusal(Kind::BodyTooLarge, format!("the body is over the limit of {}", size(limit)));
    let remedy = "Send less, or raise `body` under [limits] or [functions.NAME] in denizen.toml";
    Box::new(Problem { remedy: Some(remedy.to_owned()), ..*problem })
}
