//! One connection: what the two threads that may deal with it share, and what leaves on it.
//!
//! Locks are taken in this order: an inbox's mail, a connection's talk, and then whatever does not take another. So nothing is told to an
//! inbox while the talk is locked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use denizen_protocol::server::{Connection, Parked, Terms};
use denizen_ring::locked::Ticket;

use crate::buffers::Body;
use crate::call::Call;
use crate::inbox::Inbox;
use crate::locked;

/// A connection that this process was given.
#[derive(Debug)]
pub(crate) struct Caller {
    /// As the agent calls it.
    pub(super) number: u64,
    /// Where its socket is in the ring.
    pub(super) slot: u32,
    pub(super) terms: Terms,
    talk: Mutex<Talk>,
}

/// How it stands.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) protocol: Connection,
    pub(super) out: Outgoing,
    /// Accepted and not answered, by the ids of the connection.
    pub(super) calls: BTreeMap<u64, Arc<Inbox>>,
    /// Calls whose whole input is still coming.
    pub(super) assembling: BTreeMap<u64, Assembling>,
    /// A large body comes: its frames are read header by header, so that their bodies can be received where they belong.
    pub(super) pouring: bool,
    /// Calls that wait for credit or room.
    pub(super) waiters: Vec<Arc<Inbox>>,
    /// Bytes taken off the socket.
    pub(super) taken: u64,
    /// Of those, the ones that nobody has looked at.
    pub(super) kept: Vec<u8>,
    /// There may be more on the socket.
    pub(super) readable: bool,
    /// Behind that comes the end.
    pub(super) ended: bool,
    /// It is in the leader's queue.
    pub(super) queued: bool,
    /// It is not read because it does not read.
    pub(super) held: bool,
    /// It is on the list of those with something to send.
    pub(super) dirty: bool,
    /// An error of the socket; the leader ends it.
    pub(super) broken: bool,
    /// It has ended, or is parked: the slot is another's now.
    pub(super) gone: bool,
    /// When bytes came last, or the socket took no more.
    pub(super) moved: Instant,
    /// Ready to be parked once everything is sent, at the latest then.
    pub(super) parting: Option<Parting>,
    /// Its client was told that it ends with the last call that runs.
    pub(super) leaving: bool,
}

/// A call whose input is still coming.
#[derive(Debug)]
pub(super) struct Assembling {
    pub(super) call: Call,
    pub(super) body: Body,
}

/// A connection on its way out of this process.
#[derive(Debug)]
pub(super) struct Parting {
    pub(super) by: Instant,
    /// Its record and what was read of a frame that is not whole.
    pub(super) parked: Option<(Parked, Vec<u8>)>,
}

/// What is to be sent, in the order of the stream: `flying`, `bytes`, `cut`, `behind`.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Bytes that go along with the leader's wait.
    pub(super) flying: Option<Ticket>,
    /// Frames.
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    /// The body of the last of them, sent from where it lies.
    pub(super) cut: Option<Cut>,
    /// What comes after that.
    pub(super) behind: Vec<u8>,
    /// Replies that are not yet in frames: they wait for credit, or their turn.
    pub(super) replies: VecDeque<Reply>,
    /// The socket takes no more at the moment.
    pub(super) full: bool,
}

/// A frame's body.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) reply: Reply,
    /// Where the frame ends in the reply's body.
    pub(super) end: usize,
}

/// A whole reply on its way.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) id: u64,
    pub(super) head: ReplyFacts,
    pub(super) body: Option<Body>,
    /// So much of the body is in frames.
    pub(super) at: usize,
    pub(super) begun: bool,
    /// Of the memory for bodies.
    pub(super) reserved: u64,
}

/// What a reply says beside its body.
#[derive(Debug)]
pub(super) struct ReplyFacts {
    pub(super) content_type: String,
    pub(super) replayed: bool,
    pub(super) commit: u64,
    pub(super) invocation: Box<str>,
    pub(super) place: Option<(u64, u32)>,
}

impl Reply {
    pub(super) fn len(&self) -> usize {
        self.body.as_ref().map_or(0, Body::len)
    }
}

impl Outgoing {
    /// Where the next frame goes.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        if self.cut.is_some() { &mut self.behind } else { &mut self.bytes }
    }

    /// Bytes in frames.
    pub(super) fn unsent(&self) -> usize {
        let cut = self.cut.as_ref().map_or(0, |cut| cut.end - cut.reply.at);
        self.bytes.len() - self.sent + cut + self.behind.len()
    }

    /// Whether everything was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.flying.is_none()
            && self.sent == self.bytes.len()
            && self.cut.is_none()
            && self.behind.is_empty()
            && self.replies.is_empty()
    }

    /// Whether nothing is in the way of what is sent past all this.
    pub(super) fn is_clear(&self) -> bool {
        self.flying.is_none() && self.bytes.is_empty() && self.cut.is_none() && !self.full
    }

    /// So many of `bytes` were sent.
    pub(super) fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(RESTING_BYTES);
            self.sent = 0;
        }
    }

    /// What was not sent of bytes that flew comes before everything else.
    pub(super) fn put_back(&mut self, mut bytes: Vec<u8>, sent: usize) {
        if sent == bytes.len() {
            if self.bytes.capacity() == 0 && bytes.capacity() <= RESTING_BYTES {
                bytes.clear();
                self.bytes = bytes;
            }
            return;
        }
        bytes.drain(..sent);
        bytes.extend_from_slice(&self.bytes[self.sent..]);
        (self.bytes, self.sent) = (bytes, 0);
    }
}

/// What a connection at rest keeps of its buffer.
const RESTING_BYTES: usize = 4 << 10;

impl Caller {
    /// A connection that goes on from its record and the bytes that were taken off its socket before.
    pub(super) fn new(number: u64, slot: u32, parked: Parked, kept: Vec<u8>) -> Caller {
        let terms = parked.terms().clone();
        let talk = Talk {
            protocol: Connection::resume(parked),
            out: Outgoing::default(),
            calls: BTreeMap::new(),
            assembling: BTreeMap::new(),
            pouring: false,
            waiters: Vec::new(),
            taken: 0,
            kept,
            readable: false,
            ended: false,
            queued: false,
            held: false,
            dirty: false,
            broken: false,
            gone: false,
            moved: Instant::now(),
            parting: None,
            leaving: false,
        };
        Caller { number, slot, terms, talk: Mutex::new(talk) }
    }

    pub(super) fn talk(&self) -> MutexGuard<'_, Talk> {
        locked(&self.talk)
    }
}

impl Talk {
    /// Nothing runs for it, and nothing is to be sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.calls.is_empty() && self.assembling.is_empty() && self.out.is_empty()
    }

    /// Its client was told that it ends, and nothing keeps it any more.
    pub(super) fn has_left(&self) -> bool {
        self.leaving && !self.gone && self.is_quiet()
    }

    /// Bytes that wait for nothing but that the caller reads. Replies without credit are not among them: to get that it has to be read.
    pub(super) fn backlog(&self) -> usize {
        let within_credit = |reply: &Reply| (reply.len() - reply.at).min(self.protocol.sendable(reply.id));
        self.out.unsent() + self.out.replies.iter().map(within_credit).sum::<usize>()
    }

    /// What is to be sent waits for credit, which only reading brings.
    pub(super) fn needs_credit(&self) -> bool {
        !(self.out.full || self.out.replies.is_empty() && self.waiters.is_empty())
    }

    /// It owes something: the rest of a frame, or taking what it is sent.
    pub(super) fn owes(&self) -> bool {
        !self.gone && (self.protocol.is_within_frame() || !self.out.is_empty())
    }

    pub(super) fn wait(&mut self, inbox: &Arc<Inbox>) {
        if !self.waiters.iter().any(|waiting| Arc::ptr_eq(waiting, inbox)) {
            self.waiters.push(inbox.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_sent_comes_first() {
        let mut out = Outgoing { bytes: b"later".to_vec(), ..Outgoing::default() };
        out.put_back(b"sent, not sent, ".to_vec(), 6);
        assert_eq!(out.bytes, b"not sent, later");
        out.advance(10);
        out.put_back(b"x".to_vec(), 0);
        assert_eq!((out.bytes.as_slice(), out.sent), (&b"xlater"[..], 0));
        out.advance(6);
        assert!(out.is_empty());
    }
}
