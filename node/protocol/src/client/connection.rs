//! The calling end of one connection: what a client library needs, an HTTP front, and an agent that relays.
//!
//! Pure, like the serving end, with the same rules for bodies. It owns the order of the server's frames, the calls in
//! flight, their credit, and the check that no answer comes from an owner whose term is over. What must hold: each call
//! ends with exactly one event (the end of a reply, or a failure), or is told by [`Connection::lost`].

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use crate::body::{Part, Rest, part, remaining, within};
use crate::command::CommandError;
use crate::credit::{Granted, Incoming, Receiving, Sending};
use crate::fields::bare;
use crate::frame::{
    Accepted, CallHead, CancelReason, Drain, DrainHead, Final, FunctionRef, Hello, Moved, Problem, ReplyHead,
    problem, read_table,
};
use crate::header::{FLAG_END, Header, Kind, Sender};
use crate::intake::{HeadAt, Intake, Step};
use crate::limits::{EARLY_BYTES, EARLY_CALLS, MAX_FRAME_BODY};
use crate::trace::TraceParent;
use crate::violation::Violation;
use denizen_abi::Durability;

use super::memory::Memory;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// Name of the function. It travels once; then its index does.
    pub function: &'a str,
    /// On an unbound connection: the process.
    pub process: Option<&'a str>,
    /// Time for the call in milliseconds.
    pub deadline_ms: Option<NonZeroU32>,
    /// Length of the whole body in bytes, if known.
    pub length: Option<u64>,
    /// What the commit must survive.
    pub durability: Option<Durability>,
    /// Do not create the process.
    pub create_never: bool,
    /// Visible ASCII.
    pub content_type: Option<&'a str>,
    /// Makes the call safe to repeat. Visible ASCII.
    pub idempotency_key: Option<&'a str>,
    /// The trace that this is part of.
    pub traceparent: Option<TraceParent>,
}

impl<'a> Call<'a> {
    /// A call of `function` that leaves everything else to the image.
    pub const fn new(function: &'a str) -> Call<'a> {
        Call {
            function,
            process: None,
            deadline_ms: None,
            length: None,
            durability: None,
            create_never: false,
            content_type: None,
            idempotency_key: None,
            traceparent: None,
        }
    }
}

/// What came from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The connection stands.
    Accepted(Accepted),
    /// Connect elsewhere. Nothing that was sent was executed. Close.
    Moved(Moved),
    /// A reply begins.
    Reply {
        /// The call.
        id: u64,
        /// What the server says about it.
        head: ReplyHead<'a>,
        /// The beginning of its body.
        part: Part<'a>,
        /// What it rests on, with the end of the body: then the call has ended.
        done: Option<Final>,
    },
    /// More of a reply.
    Body {
        /// The call.
        id: u64,
        /// The bytes.
        part: Part<'a>,
        /// What the reply rests on, with the end of the body: then the call has ended.
        done: Option<Final>,
    },
    /// The call has ended without a reply, or within one.
    Failed {
        /// The call.
        id: u64,
        /// Why.
        problem: Problem,
    },
    /// More may be sent: for one call, or for the connection.
    Credit {
        /// The call.
        id: Option<u64>,
    },
    /// The server takes no more calls. Those above [`Drain::last`] were not executed; [`Connection::refused`] names them.
    Draining(Drain),
    /// The answer to a ping.
    Pong {
        /// What the ping carried.
        value: u64,
    },
    /// The server gives the connection up, or refuses it. Close.
    Refused(Problem),
}

/// What may have become of a call whose connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was not executed, and will not be.
    NotExecuted,
    /// It may have been.
    Unknown,
}

/// A call that had no end when its connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id on that connection.
    pub id: u64,
    /// What may have become of it.
    pub fate: Fate,
    /// Whether it carried an idempotency key.
    pub keyed: bool,
    /// Whether a part of its reply was handed out already.
    pub reply_begun: bool,
}

/// What is left of a connection.
#[derive(Debug)]
pub struct Lost {
    /// For the next connection.
    pub memory: Memory,
    /// In the order in which they were made.
    pub unfinished: Vec<Unfinished>,
    /// Whether the server had accepted this connection.
    pub accepted: bool,
}

#[derive(Debug)]
enum Phase {
    /// HELLO is sent; the answer is not here.
    Greeting {
        sent_early: u64,
    },
    /// The OK is here, its function table not yet.
    Listing {
        accepted: Accepted,
        table: Vec<u8>,
    },
    Open,
    Draining,
    /// Nothing of what was sent was executed.
    Turned,
    /// The server gave it up.
    GivenUp,
}

/// One call in flight.
#[derive(Debug)]
struct Entry {
    /// The name, where it was sent and its index is to be learned.
    named: Option<String>,
    process: Option<String>,
    keyed: bool,
    sending: Sending,
    /// Request bytes sent, before the OK opens the window properly.
    sent: u64,
    left: Option<u64>,
    request_ended: bool,
    cancelled: bool,
    receiving: Receiving,
    reply: Reply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Waiting,
    /// So many bytes are to come, if that was said.
    Begun(Option<u64>),
    /// The last frame of it is here, its last bytes are not.
    Ending(Final),
}

enum Meaning {
    Nothing,
    Frame { header: Header, head: HeadAt, body: std::ops::Range<usize>, rest: usize },
    Body { header: Header, body: std::ops::Range<usize>, rest: usize },
    Accepted(Accepted),
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    intake: Intake,
    ledger: Ledger,
    broken: Option<Violation>,
}

#[derive(Debug)]
struct Ledger {
    phase: Phase,
    memory: Memory,
    /// The process that the connection is bound to.
    process: Option<String>,
    calls: BTreeMap<u64, Entry>,
    /// Not executed, as a DRAIN said.
    refused: Vec<Unfinished>,
    last: u64,
    max_calls: u32,
    max_body_bytes: u64,
    call_window: u32,
    reply_call_window: u32,
    sending: Sending,
    granted: Granted,
    pong: Option<u64>,
}

impl Connection {
    /// Appends a HELLO and waits for its answer. Up to [`EARLY_CALLS`] calls with [`EARLY_BYTES`] of bodies may follow at once.
    ///
    /// # Errors
    /// [`Violation`] if a text of the HELLO breaks its rule.
    pub fn open(hello: &Hello, memory: Memory, out: &mut Vec<u8>) -> Result<Connection, Violation> {
        hello.encode(out)?;
        let ledger = Ledger {
            phase: Phase::Greeting { sent_early: 0 },
            memory,
            process: hello.process.clone(),
            calls: BTreeMap::new(),
            refused: Vec::new(),
            last: 0,
            max_calls: EARLY_CALLS,
            max_body_bytes: u64::MAX,
            call_window: EARLY_BYTES,
            reply_call_window: hello.call_window,
            sending: Sending::new(u64::from(EARLY_BYTES)),
            granted: Granted::new(Receiving::new(hello.connection_window)),
            pong: None,
        };
        Ok(Connection { intake: Intake::new(Sender::Server), ledger, broken: None })
    }

    /// A connection that needs no greeting, because both ends belong to one node and know the answer.
    ///
    /// # Errors
    /// [`Violation`] for a HELLO or OK that could not be sent, or of an epoch that is over.
    pub fn established(hello: &Hello, accepted: &Accepted, memory: Memory) -> Result<Connection, Violation> {
        accepted.encode(&mut Vec::new())?;
        let mut connection = Connection::open(hello, memory, &mut Vec::new())?;
        connection.ledger.agree(accepted, 0)?;
        connection.ledger.memory.learn_table(accepted.table, &accepted.functions);
        connection.ledger.phase = Phase::Open;
        Ok(connection)
    }

    /// The next event in `input`, which is shortened by what was used; `None` until there is more input.
    ///
    /// # Errors
    /// [`Violation`], and the same one for ever after. Close the connection, and see what is [`Connection::lost`].
    pub fn next<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Result<Option<Event<'a>>, Violation> {
        if let Some(violation) = &self.broken {
            return Err(violation.clone());
        }
        loop {
            let given = *input;
            let meaning = match self.intake.advance(input) {
                Ok(None) => return Ok(None),
                Ok(Some(step)) => self.ledger.enter(step, &self.intake, given),
                Err(violation) => Err(violation),
            };
            let event = match meaning {
                Ok(Meaning::Nothing) => continue,
                Ok(Meaning::Accepted(accepted)) => Ok(Event::Accepted(accepted)),
                Ok(Meaning::Body { header, body, rest }) => {
                    Ok(self.ledger.body(&header, part(&header, &given[body], rest)))
                }
                Ok(Meaning::Frame { header, head, body, rest }) => {
                    let part = part(&header, &given[body], rest);
                    self.ledger.frame(&header, self.intake.head(&head, given), part)
                }
                Err(violation) => Err(violation),
            };
            return event.map(Some).inspect_err(|violation| self.broken = Some(violation.clone()));
        }
    }

    /// The connection is gone, whoever closed it: what is left.
    pub fn lost(self) -> Lost {
        let mut ledger = self.ledger;
        let nothing_ran = matches!(ledger.phase, Phase::Turned);
        let mut unfinished = std::mem::take(&mut ledger.refused);
        for (id, entry) in &ledger.calls {
            let fate = if nothing_ran { Fate::NotExecuted } else { Fate::Unknown };
            unfinished.push(entry.unfinished(*id, fate));
        }
        unfinished.sort_by_key(|call| call.id);
        let accepted =
            matches!(ledger.phase, Phase::Open | Phase::Draining | Phase::GivenUp | Phase::Listing { .. });
        Lost { memory: ledger.memory, unfinished, accepted }
    }

    /// Whether bytes of a begun frame are missing: an end of the stream now is not an orderly one.
    pub fn is_within_frame(&self) -> bool {
        !self.intake.is_between_frames()
    }

    /// What is remembered of functions and epochs.
    pub fn memory(&self) -> &Memory {
        &self.ledger.memory
    }

    /// Whether the OK is here and no DRAIN is.
    pub fn is_open(&self) -> bool {
        matches!(self.ledger.phase, Phase::Open) && self.broken.is_none()
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.ledger.calls.len()
    }

    /// Whether another call may be made now.
    pub fn has_room(&self) -> bool {
        self.ledger.calls.len() < self.ledger.max_calls as usize && self.ledger.may_call()
    }

    /// The calls that a DRAIN says were not executed, and which have no other end. They can be made again on another connection.
    pub fn refused(&mut self) -> Vec<Unfinished> {
        std::mem::take(&mut self.ledger.refused)
    }

    /// How many body bytes a new call may begin with.
    pub fn room_for_new(&self) -> usize {
        let call = u64::from(self.ledger.call_window);
        usize::try_from(self.ledger.sending.open().min(call)).unwrap_or(usize::MAX).min(MAX_FRAME_BODY)
    }

    /// How many body bytes of a call may be sent in one frame now; 0 for a call that has ended.
    pub fn sendable(&self, id: u64) -> usize {
        let connection = self.ledger.sending.open();
        let call = self.ledger.calls.get(&id).map_or(0, |call| call.sending.open());
        usize::try_from(connection.min(call)).unwrap_or(usize::MAX).min(MAX_FRAME_BODY)
    }

    /// Appends a call up to its body, which begins with `body_len` bytes; with `end` they are all of it. Gives the id.
    ///
    /// # Errors
    /// [`CommandError`]; nothing is appended then and nothing has changed.
    pub fn call(
        &mut self,
        call: &Call<'_>,
        body_len: usize,
        end: bool,
        out: &mut Vec<u8>,
    ) -> Result<u64, CommandError> {
        self.usable()?;
        let room = self.room_for_new();
        let ledger = &mut self.ledger;
        ledger.may_begin(call, body_len, end)?;
        let len = within(body_len, room)?;
        let id = ledger.last + 1;
        let declared = if end { Some(u64::from(len)) } else { call.length };
        let left = declared
            .map(|all| all.checked_sub(u64::from(len)).ok_or(CommandError::LengthMismatch { id }))
            .transpose()?;
        let known = ledger.memory.function(call.function);
        let function = match known {
            Some((table, index)) => FunctionRef::Index { table, index },
            None => FunctionRef::Name(call.function),
        };
        let head = CallHead {
            process: call.process,
            deadline_ms: call.deadline_ms,
            length: call.length,
            durability: call.durability,
            create_never: call.create_never,
            content_type: call.content_type,
            idempotency_key: call.idempotency_key,
            traceparent: call.traceparent,
            ..CallHead::new(function)
        };
        head.encode(id, len, end, out)?;
        let entry = Entry {
            named: known.is_none().then(|| call.function.to_owned()),
            process: call.process.map(str::to_owned),
            keyed: call.idempotency_key.is_some(),
            sending: Sending::new(u64::from(ledger.call_window)),
            sent: 0,
            left,
            request_ended: end,
            cancelled: false,
            receiving: Receiving::new(ledger.reply_call_window),
            reply: Reply::Waiting,
        };
        ledger.last = id;
        ledger.calls.insert(id, entry);
        ledger.sent(id, len);
        Ok(id)
    }

    /// Appends a further piece of a call's body; with `end` it is the last.
    ///
    /// # Errors
    /// [`CommandError`]; nothing is appended then and nothing has changed. [`CommandError::UnknownCall`] also where the server ended the
    /// call before it had the whole body: stop sending.
    pub fn data(
        &mut self,
        id: u64,
        body_len: usize,
        end: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), CommandError> {
        self.usable()?;
        let open = self.sendable(id);
        let entry = self.ledger.calls.get_mut(&id).ok_or(CommandError::UnknownCall { id })?;
        if entry.request_ended {
            return Err(CommandError::OutOfOrder { id });
        }
        if body_len == 0 && !end {
            return Err(CommandError::Empty { id });
        }
        let len = within(body_len, open)?;
        let left = remaining(entry.left, len, end).ok_or(CommandError::LengthMismatch { id })?;
        let flags = if end { FLAG_END } else { 0 };
        bare(Header { body_len: len, flags, ..Header::new(Kind::Data, id) }, out);
        entry.left = left;
        entry.request_ended = end;
        self.ledger.sent(id, len);
        Ok(())
    }

    /// Appends a cancellation. The call still ends with an event: usually a failure, or the reply if that was quicker.
    ///
    /// # Errors
    /// [`CommandError::UnknownCall`]; [`CommandError::OutOfOrder`] the second time.
    pub fn cancel(&mut self, id: u64, reason: CancelReason, out: &mut Vec<u8>) -> Result<(), CommandError> {
        self.usable()?;
        let entry = self.ledger.calls.get_mut(&id).ok_or(CommandError::UnknownCall { id })?;
        if entry.cancelled {
            return Err(CommandError::OutOfOrder { id });
        }
        entry.cancelled = true;
        // The server drops what is left of the input.
        entry.request_ended = true;
        bare(Header { a: reason as u32, ..Header::new(Kind::Cancel, id) }, out);
        Ok(())
    }

    /// Appends a ping. [`Event::Pong`] brings the value back. Not before the OK: it would reach nobody.
    pub fn ping(&self, value: u64, out: &mut Vec<u8>) {
        bare(Header { c: value, ..Header::new(Kind::Ping, 0) }, out);
    }

    /// `len` bytes of parts of call `id` are dealt with. Every byte of every part is to be counted, ended call or not.
    pub fn consumed(&mut self, id: u64, len: usize) {
        self.ledger.granted.consumed(&mut self.ledger.calls, id, len);
    }

    /// Lets the server send `len` more bytes of this reply at once: for a large reply whose place is ready.
    pub fn grant(&mut self, id: u64, len: u64) {
        self.ledger.granted.grant(&mut self.ledger.calls, id, len);
    }

    /// Appends what the connection has to say by itself: the answer to a ping, and credit. Call it before waiting.
    pub fn control(&mut self, out: &mut Vec<u8>) {
        if self.usable().is_err() {
            return;
        }
        let ledger = &mut self.ledger;
        if let Some(value) = ledger.pong.take() {
            bare(Header { c: value, ..Header::new(Kind::Pong, 0) }, out);
        }
        ledger.granted.tell(&mut ledger.calls, out);
    }

    /// The rest of a body that is the next on the stream after everything that was given, if there is one.
    pub fn rest(&self) -> Option<Rest> {
        let (header, body, padding) = self.intake.unread().filter(|(_, body, _)| *body > 0)?;
        let wanted = self.ledger.calls.contains_key(&header.id);
        wanted.then_some(Rest { id: header.id, body, padding, wanted })
    }

    /// `len` bytes of [`Connection::rest`] were received elsewhere. Gives what they are, with no bytes in the part.
    ///
    /// # Panics
    /// When `len` is more than the rest: the caller's own count is wrong.
    pub fn received(&mut self, len: usize) -> Option<Event<'static>> {
        let (header, _, rest) = self.intake.received(len).filter(|(_, body, _)| *body > 0)?;
        self.ledger
            .calls
            .contains_key(&header.id)
            .then(|| self.ledger.body(&header, part(&header, &[], rest)))
    }

    fn usable(&self) -> Result<(), CommandError> {
        let over = matches!(self.ledger.phase, Phase::Turned | Phase::GivenUp) || self.broken.is_some();
        if over { Err(CommandError::NotOpen) } else { Ok(()) }
    }
}

impl Entry {
    fn unfinished(&self, id: u64, fate: Fate) -> Unfinished {
        Unfinished { id, fate, keyed: self.keyed, reply_begun: self.reply != Reply::Waiting }
    }

    /// The process whose epoch an answer to this call carries.
    fn process<'e>(&'e self, told: Option<&'e str>, bound: Option<&'e str>) -> Option<&'e str> {
        told.or(self.process.as_deref()).or(bound)
    }
}

impl Incoming for Entry {
    fn receiving(&mut self) -> &mut Receiving {
        &mut self.receiving
    }

    fn is_incomplete(&self) -> bool {
        !matches!(self.reply, Reply::Ending(_))
    }
}

impl Ledger {
    fn may_call(&self) -> bool {
        matches!(self.phase, Phase::Greeting { .. } | Phase::Listing { .. } | Phase::Open)
    }

    fn may_begin(&self, call: &Call<'_>, body_len: usize, end: bool) -> Result<(), CommandError> {
        if !self.may_call() {
            return Err(CommandError::Draining);
        }
        if self.calls.len() >= self.max_calls as usize {
            return Err(CommandError::TooManyCalls { max: self.max_calls });
        }
        let len = if end { Some(body_len as u64) } else { call.length };
        if let Some(len) = len.filter(|len| *len > self.max_body_bytes) {
            return Err(CommandError::BodyTooLong { len, max: self.max_body_bytes });
        }
        if call.process.is_some() && self.process.is_some() {
            let why = "the connection is bound to a process";
            return Err(Violation::BadField { kind: Kind::Call, field: "process", why }.into());
        }
        Ok(())
    }

    fn sent(&mut self, id: u64, len: u32) {
        let len = u64::from(len);
        self.sending.spend(len);
        if let Phase::Greeting { sent_early } = &mut self.phase {
            *sent_early += len;
        }
        if let Some(entry) = self.calls.get_mut(&id) {
            entry.sending.spend(len);
            entry.sent += len;
        }
    }

    /// Checks a step against the state, and enters it.
    fn enter(&mut self, step: Step, intake: &Intake, given: &[u8]) -> Result<Meaning, Violation> {
        match step {
            Step::Frame { header, head, body, rest } => {
                if header.kind == Kind::Accepted {
                    return self.enter_accepted(&header, intake.head(&head, given), &given[body], rest);
                }
                self.must_fit_phase(&header)?;
                self.enter_frame(&header)?;
                let silent = header.kind == Kind::Ping;
                Ok(if silent { Meaning::Nothing } else { Meaning::Frame { header, head, body, rest } })
            }
            Step::Body { header, body, rest } if header.kind == Kind::Accepted => {
                self.list(&given[body], rest)
            }
            Step::Body { header, body, rest } => {
                if self.calls.contains_key(&header.id) {
                    return Ok(Meaning::Body { header, body, rest });
                }
                self.granted.connection.release(body.len() as u64);
                Ok(Meaning::Nothing)
            }
        }
    }

    /// The first frame is an answer to the HELLO, and no other is.
    fn must_fit_phase(&self, header: &Header) -> Result<(), Violation> {
        let kind = header.kind;
        let answer = kind == Kind::Moved || (kind == Kind::Fail && header.id == 0);
        match (&self.phase, answer) {
            (Phase::Greeting { .. }, false) => {
                Err(Violation::Unexpected { kind, when: "before the answer to the HELLO" })
            }
            (Phase::Open | Phase::Draining, _) if kind != Kind::Moved => Ok(()),
            (Phase::Greeting { .. }, true) => Ok(()),
            _ => Err(Violation::Unexpected { kind, when: "after the answer to the HELLO" }),
        }
    }

    fn enter_accepted(
        &mut self,
        header: &Header,
        head: &[u8],
        body: &[u8],
        rest: usize,
    ) -> Result<Meaning, Violation> {
        let Phase::Greeting { sent_early } = self.phase else {
            return Err(Violation::Unexpected { kind: header.kind, when: "a second time" });
        };
        let accepted = Accepted::decode(header, head)?;
        self.agree(&accepted, sent_early)?;
        self.phase = Phase::Listing { accepted, table: Vec::new() };
        self.list(body, rest)
    }

    /// From now on the limits of the OK hold. What was sent before counts against its windows.
    fn agree(&mut self, accepted: &Accepted, sent_early: u64) -> Result<(), Violation> {
        if let Some(process) = &self.process {
            self.memory.saw(process, accepted.epoch)?;
        }
        self.max_calls = accepted.max_calls;
        self.max_body_bytes = accepted.max_body_bytes;
        self.call_window = accepted.call_window;
        self.sending = Sending::new(u64::from(accepted.connection_window) - sent_early);
        for entry in self.calls.values_mut() {
            entry.sending = Sending::new(u64::from(accepted.call_window) - entry.sent);
        }
        Ok(())
    }

    /// More of the function table in the OK.
    fn list(&mut self, body: &[u8], rest: usize) -> Result<Meaning, Violation> {
        let Phase::Listing { accepted, table } = &mut self.phase else { return Ok(Meaning::Nothing) };
        table.extend_from_slice(body);
        if rest > 0 {
            return Ok(Meaning::Nothing);
        }
        let functions = read_table(table)?;
        self.memory.learn_table(accepted.table, &functions);
        let accepted = Accepted { functions, ..accepted.clone() };
        self.phase = Phase::Open;
        Ok(Meaning::Accepted(accepted))
    }

    fn enter_frame(&mut self, header: &Header) -> Result<(), Violation> {
        match header.kind {
            Kind::Reply | Kind::Data => self.enter_reply(header),
            Kind::Credit => self.enter_credit(header),
            Kind::Ping => {
                self.pong = Some(header.c);
                Ok(())
            }
            Kind::Fail if header.id != 0 => self.entry(header).map(drop),
            _ => Ok(()),
        }
    }

    fn entry(&mut self, header: &Header) -> Result<&mut Entry, Violation> {
        let (kind, id) = (header.kind, header.id);
        self.calls.get_mut(&id).ok_or(Violation::UnknownCall { kind, id })
    }

    fn enter_reply(&mut self, header: &Header) -> Result<(), Violation> {
        let id = header.id;
        let len = u64::from(header.body_len);
        let entry = self.entry(header)?;
        match (header.kind, entry.reply) {
            (Kind::Reply, Reply::Waiting) | (Kind::Data, Reply::Begun(_)) => {}
            _ => return Err(Violation::OutsideBody { id }),
        }
        if header.kind == Kind::Data && len == 0 && !header.is_end() {
            return Err(Violation::EmptyData { id });
        }
        entry.receiving.charge(id, len)?;
        self.granted.connection.charge(0, len)
    }

    fn enter_credit(&mut self, header: &Header) -> Result<(), Violation> {
        if header.a == 0 {
            return Err(Violation::BadValue { kind: Kind::Credit, what: "credit", value: 0 });
        }
        if header.id == 0 {
            return self.sending.add(0, header.a);
        }
        let bytes = header.a;
        self.entry(header)?.sending.add(header.id, bytes)
    }

    /// A frame as an event.
    fn frame<'a>(&mut self, header: &Header, head: &'a [u8], part: Part<'a>) -> Result<Event<'a>, Violation> {
        let id = header.id;
        Ok(match header.kind {
            Kind::Moved => {
                let moved = Moved::decode(header, head)?;
                self.phase = Phase::Turned;
                Event::Moved(moved)
            }
            Kind::Fail if id == 0 => self.refusal(Problem::decode(header, head)?),
            Kind::Fail => Event::Failed { id, problem: self.failure(id, Problem::decode(header, head)?)? },
            Kind::Reply => self.reply(header, ReplyHead::decode(header, head)?, part)?,
            Kind::Drain => Event::Draining(self.drain(DrainHead::decode(header, head)?)?),
            Kind::Credit => Event::Credit { id: (id != 0).then_some(id) },
            Kind::Pong => Event::Pong { value: header.c },
            _ => self.data(header, part)?,
        })
    }

    fn refusal(&mut self, problem: Problem) -> Event<'static> {
        let greeting = matches!(self.phase, Phase::Greeting { .. });
        self.phase = if greeting { Phase::Turned } else { Phase::GivenUp };
        Event::Refused(problem)
    }

    fn reply<'a>(
        &mut self,
        header: &Header,
        head: ReplyHead<'a>,
        part: Part<'a>,
    ) -> Result<Event<'a>, Violation> {
        let id = header.id;
        self.check_epoch(id, head.process, head.epoch)?;
        let Some(entry) = self.calls.get_mut(&id) else {
            return Err(Violation::UnknownCall { kind: header.kind, id });
        };
        if let (Some(name), Some((table, index))) = (entry.named.take(), head.function) {
            self.memory.learn_function(table, &name, index);
        }
        entry.reply = if header.is_end() {
            Reply::Ending(head.rests_on)
        } else {
            let left = head.length.map(|all| all.checked_sub(u64::from(header.body_len)));
            Reply::Begun(left.map(|left| left.ok_or(Violation::LengthMismatch { id })).transpose()?)
        };
        let done = self.finish(id, part.end);
        Ok(Event::Reply { id, head, part, done })
    }

    fn data<'a>(&mut self, header: &Header, part: Part<'a>) -> Result<Event<'a>, Violation> {
        let id = header.id;
        let done = Final::of_data(header)?;
        let entry = self.entry(header)?;
        let Reply::Begun(left) = entry.reply else { return Err(Violation::OutsideBody { id }) };
        let left =
            remaining(left, header.body_len, done.is_some()).ok_or(Violation::LengthMismatch { id })?;
        entry.reply = done.map_or(Reply::Begun(left), Reply::Ending);
        Ok(self.body(header, part))
    }

    fn body<'a>(&mut self, header: &Header, part: Part<'a>) -> Event<'a> {
        let done = self.finish(header.id, part.end);
        Event::Body { id: header.id, part, done }
    }

    /// Ends a call with the last byte of its reply.
    fn finish(&mut self, id: u64, end: bool) -> Option<Final> {
        let done = match self.calls.get(&id)?.reply {
            Reply::Ending(done) if end => done,
            _ => return None,
        };
        self.calls.remove(&id);
        Some(done)
    }

    fn failure(&mut self, id: u64, problem: Problem) -> Result<Problem, Violation> {
        self.check_epoch(id, problem.process.as_deref(), problem.epoch)?;
        self.calls.remove(&id);
        if problem.kind == problem::FUNCTIONS_CHANGED {
            self.memory.forget_functions();
        }
        Ok(problem)
    }

    fn check_epoch(&mut self, id: u64, told: Option<&str>, epoch: u64) -> Result<(), Violation> {
        let Some(entry) = self.calls.get(&id) else { return Ok(()) };
        let Some(process) = entry.process(told, self.process.as_deref()) else { return Ok(()) };
        self.memory.saw(process, epoch)
    }

    fn drain(&mut self, notice: Drain) -> Result<Drain, Violation> {
        let kind = Kind::Drain;
        if matches!(self.phase, Phase::Draining) {
            return Err(Violation::Unexpected { kind, when: "a second time" });
        }
        if notice.last > self.last {
            return Err(Violation::UnknownCall { kind, id: notice.last });
        }
        let refused = self.calls.split_off(&(notice.last + 1));
        self.refused = refused.iter().map(|(id, entry)| entry.unfinished(*id, Fate::NotExecuted)).collect();
        self.phase = Phase::Draining;
        Ok(notice)
    }
}
