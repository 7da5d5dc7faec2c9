//! The serving end of a connection after its handshake: what a runner needs, and an agent that relays.
//!
//! Pure: bytes in, events out; commands in, bytes out. It owns the order of the client's frames, the calls in flight and
//! the credit of both directions. What must hold: each call that becomes an event ends with exactly one
//! [`Connection::fail`] or last piece of a reply, made by the caller; and no sequence of bytes makes it keep more than an
//! entry for each call in flight and one head.
//!
//! Bodies are not copied. What comes in is a slice of what was given, or is received elsewhere ([`Connection::rest`]).
//! What goes out is the frame up to its body; the caller sends the body from where it lies, and [`crate::padding`] zero
//! bytes behind it.

use std::collections::BTreeMap;

use crate::body::{Part, Rest, part, remaining, within};
use crate::command::CommandError;
use crate::credit::{Granted, Incoming, Receiving, Sending};
use crate::fields::bare;
use crate::frame::{CallHead, CancelReason, Drain, Final, Problem, ReplyHead};
use crate::header::{Header, Kind, LENGTH_UNKNOWN, Sender};
use crate::intake::{HeadAt, Intake, Step};
use crate::limits::MAX_FRAME_BODY;
use crate::violation::Violation;

use super::parked::{Parked, Terms};

/// What came from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A call begins.
    Call {
        /// Its id: what every command about it names.
        id: u64,
        /// What is asked for. Whether the function exists, and whether [`Terms::permit`] it, is for the caller to see.
        head: CallHead<'a>,
        /// The beginning of its body.
        part: Part<'a>,
    },
    /// More of a body.
    Body {
        /// The call.
        id: u64,
        /// The bytes.
        part: Part<'a>,
    },
    /// The caller gives the call up. It still wants an end: a FAIL, or the reply if that is there.
    Cancel {
        /// The call.
        id: u64,
        /// Why.
        reason: CancelReason,
    },
    /// More may be sent: for one call, or for the connection.
    Credit {
        /// The call.
        id: Option<u64>,
    },
    /// The answer to a ping.
    Pong {
        /// What the ping carried.
        value: u64,
    },
    /// The client gives the connection up. Close it.
    Failed(Problem),
}

/// One call in flight.
#[derive(Debug)]
struct Call {
    receiving: Receiving,
    /// Body bytes still to be announced, if the length was declared.
    undeclared: Option<u64>,
    request_ended: bool,
    sending: Sending,
    reply: Reply,
}

/// How far the reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Unsent,
    /// Begun; so many bytes of it are to come, if that was said.
    Begun(Option<u64>),
}

/// What a step is to the caller.
enum Meaning {
    Nothing,
    Frame { header: Header, head: HeadAt, body: std::ops::Range<usize>, rest: usize },
    Body { header: Header, body: std::ops::Range<usize>, rest: usize },
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    intake: Intake,
    ledger: Ledger,
    broken: Option<Violation>,
}

/// Everything but the stream itself.
#[derive(Debug)]
struct Ledger {
    terms: Terms,
    calls: BTreeMap<u64, Call>,
    /// The last call that came.
    last: u64,
    /// Calls above this are not accepted any more.
    drained_at: Option<u64>,
    sending: Sending,
    granted: Granted,
    /// Only the newest ping is answered, so that a flood of them costs nothing.
    pong: Option<u64>,
}

impl Connection {
    /// Goes on with a connection that was accepted or parked.
    pub fn resume(parked: Parked) -> Connection {
        let header = parked.skipped_header();
        let (open, untold) = parked.receiving;
        let window = parked.terms.connection_window;
        let receiving = Receiving::restore(window, open, untold).unwrap_or_else(|| Receiving::new(window));
        let ledger = Ledger {
            calls: BTreeMap::new(),
            last: parked.last,
            drained_at: None,
            sending: Sending::new(parked.sending),
            granted: Granted::new(receiving),
            pong: None,
            terms: parked.terms,
        };
        let (body, padding) = (parked.skip.0 as usize, parked.skip.1 as usize);
        Connection { intake: Intake::skipping(Sender::Client, header, body, padding), ledger, broken: None }
    }

    /// What was agreed on in the handshake.
    pub fn terms(&self) -> &Terms {
        &self.ledger.terms
    }

    /// The next event in `input`, which is shortened by what was used; `None` until there is more input.
    ///
    /// Give it none while more than [`crate::limits::MAX_UNSENT`] bytes wait to be sent: what is appended is the caller's
    /// to keep, and a client that asks without reading the answers is to be left waiting.
    ///
    /// # Errors
    /// [`Violation`], and the same one for ever after. Tell the client with a [`Problem`] about id 0, and close.
    pub fn next<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Result<Option<Event<'a>>, Violation> {
        if let Some(violation) = &self.broken {
            return Err(violation.clone());
        }
        loop {
            let given = *input;
            let meaning = match self.intake.advance(input) {
                Ok(None) => return Ok(None),
                Ok(Some(step)) => self.ledger.enter(step),
                Err(violation) => Err(violation),
            };
            let event = match meaning {
                Ok(Meaning::Nothing) => continue,
                Ok(Meaning::Body { header, body, rest }) => {
                    Ok(Event::Body { id: header.id, part: part(&header, &given[body], rest) })
                }
                Ok(Meaning::Frame { header, head, body, rest }) => {
                    let part = part(&header, &given[body], rest);
                    read(&header, self.intake.head(&head, given), part, &self.ledger.terms)
                }
                Err(violation) => Err(violation),
            };
            return event.map(Some).inspect_err(|violation| self.broken = Some(violation.clone()));
        }
    }

    /// The client closed its side: gives the calls that are now without a caller.
    ///
    /// # Errors
    /// [`Violation::CutShort`] if that was within a frame.
    pub fn ended(&mut self) -> Result<Vec<u64>, Violation> {
        let clean = self.intake.is_between_frames() && self.broken.is_none();
        self.broken = Some(Violation::CutShort);
        if clean { Ok(self.ledger.calls.keys().copied().collect()) } else { Err(Violation::CutShort) }
    }

    /// Whether bytes of a begun frame are missing. A client may leave it so for [`crate::limits::STALL_MS`].
    pub fn is_within_frame(&self) -> bool {
        !self.intake.is_between_frames()
    }

    /// The rest of a body that is the next on the stream after everything that was given, if there is one.
    pub fn rest(&self) -> Option<Rest> {
        let (header, body, padding) = self.intake.unread().filter(|(_, body, _)| *body > 0)?;
        Some(Rest { id: header.id, body, padding, wanted: self.ledger.calls.contains_key(&header.id) })
    }

    /// `len` bytes of [`Connection::rest`] were received elsewhere. Gives the part that they are, with no bytes in it; `None` if nobody
    /// wants them any more.
    ///
    /// # Panics
    /// When `len` is more than the rest: the caller's own count is wrong.
    pub fn received(&mut self, len: usize) -> Option<(u64, Part<'static>)> {
        let (header, body, rest) = self.intake.received(len).filter(|(_, body, _)| *body > 0)?;
        if !self.ledger.calls.contains_key(&header.id) {
            self.ledger.granted.connection.release(body as u64);
            return None;
        }
        Some((header.id, part(&header, &[], rest)))
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.ledger.calls.len()
    }

    /// Whether a call came and has not ended.
    pub fn is_in_flight(&self, id: u64) -> bool {
        self.ledger.calls.contains_key(&id)
    }

    /// About how many bytes of memory the connection keeps besides itself: an entry for each call in flight, and a part of a head.
    pub fn kept_bytes(&self) -> usize {
        let entries = self.ledger.calls.len() * size_of::<(u64, Call)>();
        self.intake.kept_bytes() + entries + self.ledger.granted.kept_bytes()
    }

    /// How many body bytes of a reply may be sent in one frame now; 0 for a call that has ended.
    pub fn sendable(&self, id: u64) -> usize {
        let connection = self.ledger.sending.open();
        let call = self.ledger.calls.get(&id).map_or(0, |call| call.sending.open());
        usize::try_from(connection.min(call)).unwrap_or(usize::MAX).min(MAX_FRAME_BODY)
    }

    /// `len` bytes of parts of call `id` are dealt with. Every byte of every part is to be counted, ended call or not.
    pub fn consumed(&mut self, id: u64, len: usize) {
        self.ledger.granted.consumed(&mut self.ledger.calls, id, len);
    }

    /// Lets the client send `len` more bytes of call `id` at once, on both windows: for a large input whose place is ready. Less where a
    /// window would go over its limit.
    pub fn grant(&mut self, id: u64, len: u64) {
        self.ledger.granted.grant(&mut self.ledger.calls, id, len);
    }

    /// Appends what the connection has to say by itself: the answer to a ping, and credit. Call it before waiting.
    pub fn control(&mut self, out: &mut Vec<u8>) {
        let ledger = &mut self.ledger;
        if let Some(value) = ledger.pong.take() {
            bare(Header { c: value, ..Header::new(Kind::Pong, 0) }, out);
        }
        ledger.granted.tell(&mut ledger.calls, out);
    }

    /// Appends the beginning of a reply; with `end` the `body_len` bytes are all of it, and the call has ended.
    ///
    /// # Errors
    /// [`CommandError`]; nothing is appended then and nothing has changed.
    pub fn reply(
        &mut self,
        id: u64,
        head: &ReplyHead<'_>,
        body_len: usize,
        end: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), CommandError> {
        let open = self.sendable(id);
        let call = self.ledger.calls.get_mut(&id).ok_or(CommandError::UnknownCall { id })?;
        if call.reply != Reply::Unsent {
            return Err(CommandError::OutOfOrder { id });
        }
        let len = within(body_len, open)?;
        let left = match head.length {
            Some(length) if !end => {
                Some(length.checked_sub(u64::from(len)).ok_or(CommandError::LengthMismatch { id })?)
            }
            _ => None,
        };
        head.encode(id, len, end, out)?;
        call.reply = Reply::Begun(left);
        self.ledger.sent(id, len, end);
        Ok(())
    }

    /// Appends a further piece of a reply. With `done` it is the last, and the call has ended.
    ///
    /// # Errors
    /// [`CommandError`]; nothing is appended then and nothing has changed.
    pub fn data(
        &mut self,
        id: u64,
        body_len: usize,
        done: Option<Final>,
        out: &mut Vec<u8>,
    ) -> Result<(), CommandError> {
        let open = self.sendable(id);
        let call = self.ledger.calls.get_mut(&id).ok_or(CommandError::UnknownCall { id })?;
        let Reply::Begun(left) = call.reply else { return Err(CommandError::OutOfOrder { id }) };
        if body_len == 0 && done.is_none() {
            return Err(CommandError::Empty { id });
        }
        let len = within(body_len, open)?;
        let left = remaining(left, len, done.is_some()).ok_or(CommandError::LengthMismatch { id })?;
        Final::encode_data(id, len, done, out);
        call.reply = Reply::Begun(left);
        self.ledger.sent(id, len, done.is_some());
        Ok(())
    }

    /// Appends the failure of a call, which ends it, even in the middle of a reply.
    ///
    /// # Errors
    /// [`CommandError`]; nothing is appended then and nothing has changed.
    pub fn fail(&mut self, id: u64, problem: &Problem, out: &mut Vec<u8>) -> Result<(), CommandError> {
        if !self.ledger.calls.contains_key(&id) {
            return Err(CommandError::UnknownCall { id });
        }
        problem.encode(id, out)?;
        self.ledger.calls.remove(&id);
        Ok(())
    }

    /// Appends the notice that no further calls are accepted. Those in flight go on; the connection is done with when none is left.
    ///
    /// # Errors
    /// [`CommandError::Draining`] the second time; [`CommandError::Refused`] for a bad address.
    pub fn drain(&mut self, notice: &Drain, out: &mut Vec<u8>) -> Result<(), CommandError> {
        if self.ledger.drained_at.is_some() {
            return Err(CommandError::Draining);
        }
        let last = self.ledger.last;
        Drain { last, ..notice.clone() }.encode(out)?;
        self.ledger.drained_at = Some(last);
        Ok(())
    }

    /// Appends a ping. [`Event::Pong`] brings the value back.
    pub fn ping(&self, value: u64, out: &mut Vec<u8>) {
        bare(Header { c: value, ..Header::new(Kind::Ping, 0) }, out);
    }

    /// Puts the connection to rest, so that another can [`Connection::resume`] it: gives its record, and the bytes that were taken from the
    /// stream and belong to a frame that is not whole. They come before whatever input was not used, and that before what is in the socket.
    ///
    /// Appends what is to be said before. `None` while calls are in flight, or after a DRAIN or a violation: such a connection cannot be
    /// given on.
    pub fn park(&mut self, out: &mut Vec<u8>) -> Option<(Parked, Vec<u8>)> {
        let ledger = &self.ledger;
        if !ledger.calls.is_empty() || ledger.drained_at.is_some() || self.broken.is_some() {
            return None;
        }
        // Whoever held bytes of bodies goes now, and what is skipped is skipped uncounted.
        self.ledger.granted.connection.release(u64::MAX);
        self.control(out);
        let (body, padding) = self.intake.unread().map_or((0, 0), |(_, body, padding)| (body, padding));
        let narrow = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let parked = Parked {
            terms: self.ledger.terms.clone(),
            last: self.ledger.last,
            sending: self.ledger.sending.open(),
            receiving: (self.ledger.granted.connection.open(), self.ledger.granted.connection.untold()),
            skip: (narrow(body), narrow(padding)),
        };
        Some((parked, self.intake.leftover().to_vec()))
    }
}

impl Incoming for Call {
    fn receiving(&mut self) -> &mut Receiving {
        &mut self.receiving
    }

    fn is_incomplete(&self) -> bool {
        !self.request_ended
    }
}

impl Ledger {
    /// Checks a step against the state, and enters it.
    fn enter(&mut self, step: Step) -> Result<Meaning, Violation> {
        match step {
            Step::Body { header, body, rest } => {
                if self.calls.contains_key(&header.id) {
                    return Ok(Meaning::Body { header, body, rest });
                }
                self.granted.connection.release(body.len() as u64);
                Ok(Meaning::Nothing)
            }
            Step::Frame { header, head, body, rest } => {
                if self.enter_frame(&header)? {
                    return Ok(Meaning::Frame { header, head, body, rest });
                }
                self.granted.connection.release(body.len() as u64);
                Ok(Meaning::Nothing)
            }
        }
    }

    /// Whether the frame means something to the caller.
    fn enter_frame(&mut self, header: &Header) -> Result<bool, Violation> {
        match header.kind {
            Kind::Call => self.enter_call(header),
            Kind::Data => self.enter_data(header),
            Kind::Cancel => {
                self.must_have_come(header)?;
                Ok(self.calls.contains_key(&header.id))
            }
            Kind::Credit => self.enter_credit(header),
            Kind::Ping => {
                self.pong = Some(header.c);
                Ok(false)
            }
            Kind::Pong | Kind::Fail => Ok(true),
            Kind::Hello | Kind::Accepted | Kind::Moved | Kind::Reply | Kind::Drain => {
                Err(Violation::Unexpected { kind: header.kind, when: "after the handshake" })
            }
        }
    }

    fn enter_call(&mut self, header: &Header) -> Result<bool, Violation> {
        let id = header.id;
        let len = u64::from(header.body_len);
        if id <= self.last {
            return Err(Violation::IdNotIncreasing { id, last: self.last });
        }
        self.last = id;
        self.granted.connection.charge(0, len)?;
        if self.drained_at.is_some() {
            // Sent before the client saw the DRAIN, which tells it that this call was not accepted.
            return Ok(false);
        }
        if self.calls.len() >= self.terms.max_calls as usize {
            return Err(Violation::TooManyCalls { max: self.terms.max_calls });
        }
        let mut receiving = Receiving::new(self.terms.call_window);
        receiving.charge(id, len)?;
        let declared = (header.c != LENGTH_UNKNOWN).then_some(header.c);
        let undeclared =
            remaining(declared, header.body_len, header.is_end()).ok_or(Violation::LengthMismatch { id })?;
        let sending = Sending::new(u64::from(self.terms.reply_call_window));
        let request_ended = header.is_end();
        let call = Call { receiving, undeclared, request_ended, sending, reply: Reply::Unsent };
        self.calls.insert(id, call);
        Ok(true)
    }

    fn enter_data(&mut self, header: &Header) -> Result<bool, Violation> {
        let id = header.id;
        let len = u64::from(header.body_len);
        self.must_have_come(header)?;
        if len == 0 && !header.is_end() {
            return Err(Violation::EmptyData { id });
        }
        self.granted.connection.charge(0, len)?;
        // What was sent before the client saw the end of the call, or the DRAIN.
        let Some(call) = self.calls.get_mut(&id) else { return Ok(false) };
        if call.request_ended {
            return Err(Violation::OutsideBody { id });
        }
        call.receiving.charge(id, len)?;
        call.undeclared = remaining(call.undeclared, header.body_len, header.is_end())
            .ok_or(Violation::LengthMismatch { id })?;
        call.request_ended = header.is_end();
        Ok(true)
    }

    fn enter_credit(&mut self, header: &Header) -> Result<bool, Violation> {
        let id = header.id;
        if header.a == 0 {
            return Err(Violation::BadValue { kind: Kind::Credit, what: "credit", value: 0 });
        }
        if id == 0 {
            self.sending.add(0, header.a)?;
            return Ok(true);
        }
        self.must_have_come(header)?;
        let Some(call) = self.calls.get_mut(&id) else { return Ok(false) };
        call.sending.add(id, header.a)?;
        Ok(true)
    }

    fn must_have_come(&self, header: &Header) -> Result<(), Violation> {
        let (kind, id) = (header.kind, header.id);
        if id > self.last { Err(Violation::UnknownCall { kind, id }) } else { Ok(()) }
    }

    fn sent(&mut self, id: u64, len: u32, end: bool) {
        let len = u64::from(len);
        self.sending.spend(len);
        if end {
            self.calls.remove(&id);
        } else if let Some(call) = self.calls.get_mut(&id) {
            call.sending.spend(len);
        }
    }
}

/// A frame as an event.
fn read<'a>(header: &Header, head: &'a [u8], part: Part<'a>, terms: &Terms) -> Result<Event<'a>, Violation> {
    let id = header.id;
    Ok(match header.kind {
        Kind::Call => {
            let head = CallHead::decode(header, head)?;
            if head.process.is_some() && terms.process.is_some() {
                let why = "the connection is bound to a process";
                return Err(Violation::BadField { kind: Kind::Call, field: "process", why });
            }
            Event::Call { id, head, part }
        }
        Kind::Cancel => Event::Cancel { id, reason: CancelReason::from_number(header.a)? },
        Kind::Credit => Event::Credit { id: (id != 0).then_some(id) },
        Kind::Pong => Event::Pong { value: header.c },
        Kind::Fail => Event::Failed(Problem::decode(header, head)?),
        _ => Event::Body { id, part },
    })
}
