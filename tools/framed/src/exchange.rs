//! The calls of one connection as bytes to send and bytes received, without a socket and without a clock: what the blocking and the
//! asynchronous client have in common.
//!
//! What must hold: input is never sent beyond its credit; reply bytes are credited once they are in the hands of the caller (a stream) or
//! stored for one who asked for the whole; and what comes for a call that nobody wants any more is dropped and credited, so that an
//! abandoned call cannot stop the others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use denizen_protocol::client::{self, Event, Lost, Unfinished};
use denizen_protocol::{
    CancelReason, CommandError, Drain, Final, Moved, PADDING, Part, Problem, Violation, padding,
};

use crate::error::Error;
use crate::request::{ReplyHead, Request};

/// Unsent bytes from which on no more input is copied behind them: the socket is the bottleneck then.
const ENOUGH_UNSENT: usize = 256 << 10;

/// Why the server wants this connection to end.
#[derive(Debug)]
pub(crate) enum Turn {
    Moved(Moved),
    Refused(Problem),
}

/// How a call ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Done,
    Failed(Box<Problem>),
    /// Longer than what is taken whole. The call was cancelled.
    TooLong,
    /// The connection ended before it.
    Over(Error),
}

/// What has come of one reply.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    pub(crate) head: Option<ReplyHead>,
    pub(crate) body: Vec<u8>,
    /// How much of `body` was read already.
    pub(crate) at: usize,
    pub(crate) end: Option<End>,
    /// Credit is given as the caller reads.
    streamed: bool,
}

/// Input that waits for credit.
#[derive(Debug)]
struct Outgoing {
    id: u64,
    input: Arc<[u8]>,
    at: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Exchange {
    protocol: client::Connection,
    out: Vec<u8>,
    sent: usize,
    calls: HashMap<u64, Incoming>,
    /// Calls that have ended since they were last asked for.
    ended: Vec<u64>,
    outgoing: VecDeque<Outgoing>,
    reply_limit: usize,
    is_accepted: bool,
    turn: Option<Turn>,
    drain: Option<Drain>,
}

impl Exchange {
    /// `out` holds the HELLO.
    pub(crate) fn new(protocol: client::Connection, out: Vec<u8>, reply_limit: usize) -> Exchange {
        Exchange {
            protocol,
            out,
            sent: 0,
            calls: HashMap::new(),
            ended: Vec::new(),
            outgoing: VecDeque::new(),
            reply_limit,
            is_accepted: false,
            turn: None,
            drain: None,
        }
    }

    /// Whether the OK is here.
    pub(crate) fn is_accepted(&self) -> bool {
        self.is_accepted
    }

    pub(crate) fn turn(&mut self) -> Option<Turn> {
        self.turn.take()
    }

    pub(crate) fn drain(&self) -> Option<&Drain> {
        self.drain.as_ref()
    }

    /// Drained, and the last call has ended.
    pub(crate) fn is_drained(&self) -> bool {
        self.drain.is_some() && self.protocol.in_flight() == 0
    }

    /// The calls that a DRAIN refused.
    pub(crate) fn refused(&mut self) -> Vec<Unfinished> {
        self.protocol.refused()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.protocol.has_room()
    }

    /// Begins a call whose whole input is here.
    pub(crate) fn begin(
        &mut self,
        request: &Request,
        left: Option<std::time::Duration>,
        input: &Arc<[u8]>,
    ) -> Result<u64, CommandError> {
        let first = self.protocol.room_for_new().min(input.len());
        let end = first == input.len();
        let call = request.as_call(left, Some(input.len() as u64));
        let id = self.protocol.call(&call, first, end, &mut self.out)?;
        push_body(&mut self.out, &input[..first]);
        if !end {
            self.outgoing.push_back(Outgoing { id, input: Arc::clone(input), at: first });
        }
        self.calls.insert(id, Incoming::default());
        Ok(id)
    }

    /// Begins a call whose input comes later, and whose reply is read as it comes.
    pub(crate) fn begin_stream(
        &mut self,
        request: &Request,
        left: Option<std::time::Duration>,
        length: Option<u64>,
    ) -> Result<u64, CommandError> {
        let id = self.protocol.call(&request.as_call(left, length), 0, false, &mut self.out)?;
        self.calls.insert(id, Incoming { streamed: true, ..Incoming::default() });
        Ok(id)
    }

    /// Sends as much input of a stream as there is credit for; with `end` and nothing left over, its end.
    pub(crate) fn write(&mut self, id: u64, bytes: &[u8], end: bool) -> Result<usize, CommandError> {
        let busy = self.unsent().len() >= ENOUGH_UNSENT && !bytes.is_empty();
        let len = if busy { 0 } else { self.protocol.sendable(id).min(bytes.len()) };
        let end = end && len == bytes.len();
        if len > 0 || end {
            self.protocol.data(id, len, end, &mut self.out)?;
            push_body(&mut self.out, &bytes[..len]);
        }
        Ok(len)
    }

    /// Nobody wants this call any more.
    pub(crate) fn abandon(&mut self, id: u64, reason: CancelReason) {
        self.outgoing.retain(|outgoing| outgoing.id != id);
        self.ended.retain(|ended| *ended != id);
        let Some(incoming) = self.calls.remove(&id) else { return };
        if incoming.streamed {
            self.protocol.consumed(id, incoming.unread());
        }
        if incoming.end.is_none() {
            // It may have ended on the wire, or the connection may be over: nothing is to be told then.
            let _ = self.protocol.cancel(id, reason, &mut self.out);
        }
    }

    /// The calls that have ended since the last time.
    pub(crate) fn take_ended(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ended)
    }

    /// A call that has ended, with what came of it.
    pub(crate) fn take(&mut self, id: u64) -> Option<Incoming> {
        self.calls.remove(&id)
    }

    pub(crate) fn incoming(&self, id: u64) -> Option<&Incoming> {
        self.calls.get(&id)
    }

    /// Reads from a stream's reply; 0 while nothing is there.
    pub(crate) fn read(&mut self, id: u64, into: &mut [u8]) -> usize {
        let Some(incoming) = self.calls.get_mut(&id) else { return 0 };
        let len = incoming.read(into);
        self.protocol.consumed(id, len);
        len
    }

    /// What is to be sent now. Takes in credit, answers and input that may go.
    pub(crate) fn fill(&mut self) -> &[u8] {
        self.send_inputs();
        self.protocol.control(&mut self.out);
        self.unsent()
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    pub(crate) fn was_sent(&mut self, len: usize) {
        self.sent += len;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > ENOUGH_UNSENT {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    fn send_inputs(&mut self) {
        let mut waiting = self.outgoing.len();
        while waiting > 0 && self.out.len() - self.sent < ENOUGH_UNSENT {
            waiting -= 1;
            let Some(mut outgoing) = self.outgoing.pop_front() else { return };
            let rest = &outgoing.input[outgoing.at..];
            let len = self.protocol.sendable(outgoing.id).min(rest.len()).min(ENOUGH_UNSENT);
            let end = len == rest.len();
            if len > 0 {
                // A call that has ended meanwhile takes no more input, and needs none.
                if self.protocol.data(outgoing.id, len, end, &mut self.out).is_err() {
                    continue;
                }
                push_body(&mut self.out, &rest[..len]);
                outgoing.at += len;
                waiting += 1;
            }
            if !end && self.calls.get(&outgoing.id).is_some_and(|call| call.end.is_none()) {
                self.outgoing.push_back(outgoing);
            }
        }
    }

    /// Takes in what was received.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut input = bytes;
        loop {
            let credit = match self.protocol.next(&mut input)? {
                None => return Ok(()),
                Some(Event::Reply { id, head, part, done }) => {
                    let head = ReplyHead::of(&head);
                    take_part(&mut self.calls, &mut self.ended, self.reply_limit, id, Some(head), &part, done)
                }
                Some(Event::Body { id, part, done }) => {
                    take_part(&mut self.calls, &mut self.ended, self.reply_limit, id, None, &part, done)
                }
                Some(Event::Failed { id, problem }) => {
                    if let Some(incoming) = self.calls.get_mut(&id) {
                        incoming.end = Some(End::Failed(Box::new(problem)));
                        self.ended.push(id);
                    }
                    Credit::default()
                }
                Some(Event::Accepted(_)) => {
                    self.is_accepted = true;
                    Credit::default()
                }
                Some(Event::Moved(moved)) => {
                    self.turn = Some(Turn::Moved(moved));
                    Credit::default()
                }
                Some(Event::Refused(problem)) => {
                    self.turn = Some(Turn::Refused(problem));
                    Credit::default()
                }
                Some(Event::Draining(drain)) => {
                    self.drain = Some(drain);
                    Credit::default()
                }
                Some(_) => Credit::default(),
            };
            self.protocol.consumed(credit.id, credit.len);
            if credit.too_long {
                let _ = self.protocol.cancel(credit.id, CancelReason::Unwanted, &mut self.out);
            }
        }
    }

    /// The connection is gone: what is left of it, and of the replies.
    pub(crate) fn lost(self) -> (Lost, HashMap<u64, Incoming>) {
        (self.protocol.lost(), self.calls)
    }
}

impl Incoming {
    /// What is there and was not read.
    pub(crate) fn unread(&self) -> usize {
        self.body.len() - self.at
    }

    /// Hands out what is there, and nothing twice.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> usize {
        let len = self.unread().min(into.len());
        into[..len].copy_from_slice(&self.body[self.at..self.at + len]);
        self.at += len;
        if self.at == self.body.len() {
            self.body.clear();
            self.at = 0;
        }
        len
    }
}

/// What is to be told about a part that was taken in.
#[derive(Default)]
struct Credit {
    id: u64,
    len: usize,
    too_long: bool,
}

/// Stores a part for whoever asked for it.
fn take_part(
    calls: &mut HashMap<u64, Incoming>,
    ended: &mut Vec<u64>,
    limit: usize,
    id: u64,
    head: Option<ReplyHead>,
    part: &Part<'_>,
    done: Option<Final>,
) -> Credit {
    let dropped = Credit { id, len: part.bytes.len(), too_long: false };
    let Some(incoming) = calls.get_mut(&id).filter(|incoming| incoming.end.is_none()) else { return dropped };
    if head.is_some() {
        incoming.head = head;
    }
    if !incoming.streamed && incoming.body.len() + part.bytes.len() > limit {
        incoming.body = Vec::new();
        incoming.end = Some(End::TooLong);
        ended.push(id);
        return Credit { too_long: done.is_none(), ..dropped };
    }
    incoming.body.extend_from_slice(part.bytes);
    if let Some(done) = done {
        if let Some(head) = &mut incoming.head {
            head.finish(done);
        }
        incoming.end = Some(End::Done);
        ended.push(id);
    }
    if incoming.streamed { Credit { len: 0, ..dropped } } else { dropped }
}

fn push_body(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(body);
    out.extend_from_slice(&PADDING[..padding(body.len())]);
}
