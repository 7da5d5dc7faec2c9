//! What leaves on a connection: replies, streamed ones, failures; cut into frames as the caller's credit allows.
//!
//! Any thread sends, under the lock of the connection, and never waits for the socket: what it does not take stays with the connection, and
//! the leader goes on when there is room. Only who streams a reply waits, in its function. Small answers of the leader are gathered, and
//! leave together with its next wait; large bodies are sent from where they lie.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use denizen_abi as abi;
use denizen_protocol::limits::{MAX_FRAME_BODY, MAX_UNSENT, STALL_MS};
use denizen_protocol::server::Connection;
use denizen_protocol::{CommandError, Durability as Level, Final, PADDING, Problem, ReplyHead, padding};
use denizen_ring::locked::{MOST_QUEUED, is_of_the_ring};
use denizen_wire::{CancelReason, Durability, EXIT_RING_SPOILED, FailKind, Failure};

use super::caller::{Caller, Cut, Outgoing, Reply, ReplyFacts, Talk};
use super::{Ours, SMALL};
use crate::call::Outcome;
use crate::inbox::Inbox;
use crate::reply::Begins;
use crate::serve::{Runner, end_saying};

/// A streamed reply may be so far ahead of its caller, in bytes.
const AHEAD: usize = 256 << 10;
/// Answers that are gathered leave at the latest after so long.
const GATHER: Duration = Duration::from_micros(100);
/// Or when they are so many bytes.
const GATHERED: usize = 32 << 10;
/// The most that leaves along with a wait.
const ALONG: usize = 64 << 10;
pub(super) const STALL: Duration = Duration::from_millis(STALL_MS as u64);

/// The reply cannot be sent on.
enum Over {
    /// The connection or the call has ended.
    Gone,
    Cancelled(CancelReason),
}

impl Over {
    fn status(&self) -> i32 {
        match self {
            Over::Gone | Over::Cancelled(CancelReason::CallerGone) => abi::DZ_E_CLOSED,
            Over::Cancelled(CancelReason::Deadline) => abi::DZ_E_CANCELLED,
        }
    }
}

impl Runner {
    /// Whether answering has to wait for memory, so that nobody should wait behind it.
    pub(crate) fn answer_may_wait(&self, inbox: &Inbox, outcome: &Outcome) -> bool {
        match (&inbox.direct, outcome) {
            (None, _) => outcome.may_wait(),
            (Some(_), Outcome::Reply { body: Some(body), .. }) => {
                body.len() > SMALL && !self.direct.has_room(body.len() as u64)
            }
            (Some(_), _) => false,
        }
    }

    /// The end of a direct call.
    pub(crate) fn answer_direct(&'static self, inbox: &Arc<Inbox>, ours: &Ours, outcome: Outcome) {
        let reserved = match &outcome {
            Outcome::Reply { body: Some(body), .. } if body.len() > SMALL => {
                let len = body.len() as u64;
                if self.wait_for_memory(inbox, ours, len).is_err() {
                    let text = "nobody waits for the reply any more";
                    let failure = Failure::of_function(FailKind::Cancelled, text, true);
                    let commit = outcome.commit();
                    self.end_with_failure(ours, failure, commit);
                    self.give_reply_back(outcome);
                    return;
                }
                len
            }
            _ => 0,
        };
        match outcome {
            Outcome::Failed { failure, commit } => self.end_with_failure(ours, failure, commit),
            Outcome::StreamEnd { commit } => {
                let last = self.rests_on(commit);
                self.end_with(ours, |talk| talk.protocol.data(ours.id, 0, Some(last), talk.out.end()));
            }
            Outcome::Reply { body, content_type, commit, replayed } => {
                let invocation = ours.name.clone();
                let head = ReplyFacts { content_type, replayed, commit, invocation, place: ours.place };
                let reply = Reply { id: ours.id, head, body, at: 0, begun: false, reserved };
                let mut talk = ours.caller.talk();
                if talk.gone || talk.calls.remove(&ours.id).is_none() {
                    drop(talk);
                    return self.drop_reply(reply);
                }
                talk.out.replies.push_back(reply);
                self.cut_replies(&mut talk);
                // Whoever is owed small replies takes the room of new calls.
                if let Some(reply) = talk.out.replies.back_mut().filter(|reply| reply.reserved == 0) {
                    reply.reserved = reply.len() as u64;
                    self.direct.take(reply.reserved);
                }
                self.leaves(&ours.caller, talk);
            }
        }
    }

    fn give_reply_back(&self, outcome: Outcome) {
        if let Outcome::Reply { body: Some(body), .. } = outcome {
            self.give_back(body);
        }
    }

    pub(super) fn drop_reply(&self, reply: Reply) {
        self.direct.release(reply.reserved);
        reply.body.into_iter().for_each(|body| self.give_back(body));
    }

    fn end_with_failure(&'static self, ours: &Ours, failure: Failure, commit: u64) {
        let failure = match failure.kind {
            // Its input was cut off by a drain, whatever the function made of that.
            _ if ours.cut_off.load(SeqCst) => Failure { kind: FailKind::Draining, ..failure },
            _ => failure,
        };
        let problem = self.problem_of(failure, &ours.name, commit);
        self.end_with(ours, |talk| talk.protocol.fail(ours.id, &problem, talk.out.end()));
    }

    /// Appends the last frame of a call.
    fn end_with(&'static self, ours: &Ours, last: impl FnOnce(&mut Talk) -> Result<(), CommandError>) {
        let mut talk = ours.caller.talk();
        if talk.gone || talk.calls.remove(&ours.id).is_none() {
            return;
        }
        let _ = last(&mut talk);
        self.leaves(&ours.caller, talk);
    }

    /// Ends a call that has not begun, or is not wanted any more.
    pub(super) fn fail_call(&self, talk: &mut Talk, id: u64, problem: &Problem) {
        let _ = talk.protocol.fail(id, problem, talk.out.end());
    }

    /// Something is to be sent: now, unless the leader has it leave with its next wait.
    pub(super) fn leaves(&'static self, caller: &Arc<Caller>, mut talk: std::sync::MutexGuard<'_, Talk>) {
        let unsent = talk.out.bytes.len() - talk.out.sent;
        let plain = talk.out.cut.is_none() && unsent < GATHERED && !talk.leaving;
        if plain && self.crew.leads() && !self.draining.load(SeqCst) {
            return self.direct.gather(caller, &mut talk);
        }
        self.flush(caller, &mut talk);
        let waiters = self.after_flush(caller, &mut talk);
        drop(talk);
        self.wake(waiters);
    }

    /// Sends what was gathered long enough.
    pub(super) fn flush_gathered(&self, all: bool) {
        if all || self.direct.gathered_for(GATHER) {
            let mut gathered = Vec::new();
            self.direct.take_gathered(&mut gathered);
            self.flush_together(&gathered);
        }
    }

    /// Sends on several connections with one system call.
    pub(super) fn flush_together(&self, callers: &[Arc<Caller>]) {
        // Where it is one, the answers need not be moved.
        if let [caller] = callers {
            return self.flush_one(caller);
        }
        let mut flies = [false; MOST_QUEUED];
        for callers in callers.chunks(MOST_QUEUED) {
            for (flies, caller) in flies.iter_mut().zip(callers) {
                *flies = self.send_along(caller);
            }
            for (_, caller) in flies.iter().zip(callers).filter(|(flies, _)| **flies) {
                self.landed(caller);
            }
        }
    }

    /// What this thread has gathered, and nobody else knows of: it does not lead any more.
    pub(crate) fn flush_what_is_left(&self) {
        if self.direct.has_gathered() {
            self.flush_gathered(true);
        }
    }

    pub(super) fn flush_one(&self, caller: &Arc<Caller>) {
        let mut talk = caller.talk();
        talk.dirty = false;
        let Talk { protocol, out, .. } = &mut *talk;
        protocol.control(out.end());
        self.flush(caller, &mut talk);
        let waiters = self.after_flush(caller, &mut talk);
        drop(talk);
        self.wake(waiters);
    }

    /// Has small frames leave along with this thread's wait. False: they were sent, or stay.
    pub(super) fn send_along(&self, caller: &Arc<Caller>) -> bool {
        let mut talk = caller.talk();
        talk.dirty = false;
        let Talk { protocol, out, gone, .. } = &mut *talk;
        if *gone {
            return false;
        }
        protocol.control(out.end());
        let unsent = out.bytes.len() - out.sent;
        let fits = out.flying.is_none() && !out.full && out.cut.is_none() && out.replies.is_empty();
        if fits && (1..=ALONG).contains(&unsent) {
            let mut bytes = std::mem::take(&mut out.bytes);
            bytes.drain(..std::mem::take(&mut out.sent));
            match self.direct.ring().queue(caller.slot, bytes, 0) {
                Ok(ticket) => {
                    out.flying = Some(ticket);
                    return true;
                }
                Err(bytes) => out.bytes = bytes,
            }
        }
        self.flush(caller, &mut talk);
        let waiters = self.after_flush(caller, &mut talk);
        drop(talk);
        self.wake(waiters);
        false
    }

    /// The wait is over: what became of what left along with it.
    pub(super) fn landed(&self, caller: &Arc<Caller>) {
        let mut talk = caller.talk();
        if talk.gone || talk.out.flying.is_none() {
            return;
        }
        self.land(caller, &mut talk);
        if talk.out.full || !talk.out.bytes.is_empty() {
            self.flush(caller, &mut talk);
        }
        let waiters = self.after_flush(caller, &mut talk);
        drop(talk);
        self.wake(waiters);
    }

    /// Collects what left along with a wait.
    pub(super) fn land(&self, caller: &Arc<Caller>, talk: &mut Talk) {
        let Some(ticket) = talk.out.flying.take() else { return };
        let collected = self.direct.ring().collect(ticket).unwrap_or_else(|error| ring_lost(&error));
        match collected.sent {
            Ok(count) => self.flew(caller, talk, collected.bytes, count),
            Err(error) => self.breaks(caller, talk, &error),
        }
    }

    fn flew(&self, caller: &Arc<Caller>, talk: &mut Talk, bytes: Vec<u8>, count: usize) {
        let whole = count == bytes.len();
        talk.out.put_back(bytes, count);
        if !whole {
            self.is_full(caller, talk);
        }
    }

    fn is_full(&self, caller: &Arc<Caller>, talk: &mut Talk) {
        talk.out.full = true;
        // Its time begins now, or anew: it has taken something since.
        talk.moved = Instant::now();
        if let Err(error) = self.direct.ring().await_room(caller.slot) {
            ring_lost(&error);
        }
        self.note_due(talk.moved + STALL);
    }

    fn breaks(&self, caller: &Arc<Caller>, talk: &mut Talk, error: &std::io::Error) {
        if is_of_the_ring(error) {
            ring_lost(error);
        }
        talk.broken = true;
        self.look_at(caller);
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&self, caller: &Arc<Caller>, talk: &mut Talk) {
        if talk.gone {
            return;
        }
        self.land(caller, talk);
        while !talk.out.full && !talk.broken {
            let Outgoing { bytes, sent, cut, .. } = &mut talk.out;
            let (piece, more) = match cut {
                _ if *sent < bytes.len() => (&bytes[*sent..], cut.is_some()),
                Some(Cut { reply, end }) if reply.at < *end => {
                    let body = reply.body.as_ref().map_or(&[][..], |body| body.bytes());
                    (&body[reply.at..*end], false)
                }
                Some(_) => {
                    self.finish_cut(talk);
                    continue;
                }
                None => {
                    if self.cut_replies(talk) {
                        continue;
                    }
                    return;
                }
            };
            let offered = piece.len();
            match self.direct.ring().send(caller.slot, piece, more) {
                Ok(0) => self.is_full(caller, talk),
                Ok(count) => {
                    let out = &mut talk.out;
                    if out.sent < out.bytes.len() {
                        out.advance(count);
                    } else if let Some(cut) = &mut out.cut {
                        cut.reply.at += count;
                    }
                    // A socket that took less than it was offered is full, unless that was too much for once.
                    if count < offered && count < AHEAD {
                        self.is_full(caller, talk);
                    }
                }
                Err(error) => self.breaks(caller, talk, &error),
            }
        }
    }

    /// The body of a frame was sent.
    fn finish_cut(&self, talk: &mut Talk) {
        let Some(Cut { reply, .. }) = talk.out.cut.take() else { return };
        talk.out.bytes = std::mem::take(&mut talk.out.behind);
        talk.out.sent = 0;
        if reply.at < reply.len() {
            talk.out.replies.push_back(reply);
        } else {
            self.drop_reply(reply);
        }
    }

    /// Makes frames of replies that wait, as credit allows: small ones into the buffer, then one large one to be sent from where it lies.
    /// Whether there are any.
    fn cut_replies(&self, talk: &mut Talk) -> bool {
        if talk.out.cut.is_some() {
            return false;
        }
        let mut any = false;
        let mut at = 0;
        while at < talk.out.replies.len() {
            let Talk { protocol, out, .. } = talk;
            let reply = &out.replies[at];
            let (id, left) = (reply.id, reply.len() - reply.at);
            if !protocol.is_in_flight(id) {
                // It was given up.
                out.replies.remove(at).into_iter().for_each(|reply| self.drop_reply(reply));
            } else if left <= SMALL && protocol.sendable(id) >= left {
                let Some(mut reply) = out.replies.remove(at) else { continue };
                any = true;
                if self.frame(protocol, &mut reply, left, &mut out.bytes) {
                    let body = reply.body.as_ref().map_or(&[][..], |body| body.bytes());
                    out.bytes.extend_from_slice(&body[reply.at..]);
                    out.bytes.extend_from_slice(&PADDING[..padding(left)]);
                }
                self.drop_reply(reply);
            } else {
                at += 1;
            }
        }
        let large = |reply: &Reply| reply.len() - reply.at > SMALL && talk.protocol.sendable(reply.id) > 0;
        let Some(mut reply) =
            talk.out.replies.iter().position(large).and_then(|at| talk.out.replies.remove(at))
        else {
            return any;
        };
        let Talk { protocol, out, .. } = talk;
        let count = (reply.len() - reply.at).min(protocol.sendable(reply.id)).min(MAX_FRAME_BODY);
        if self.frame(protocol, &mut reply, count, &mut out.bytes) {
            out.behind.extend_from_slice(&PADDING[..padding(count)]);
            let end = reply.at + count;
            out.cut = Some(Cut { reply, end });
        } else {
            self.drop_reply(reply);
        }
        true
    }

    /// The frame of the next `count` bytes of a reply, up to its body. False: the call has failed instead.
    fn frame(&self, protocol: &mut Connection, reply: &mut Reply, count: usize, out: &mut Vec<u8>) -> bool {
        let rests_on = self.rests_on(reply.head.commit);
        let end = reply.at + count == reply.len();
        let framed = if reply.begun {
            protocol.data(reply.id, count, end.then_some(rests_on), out)
        } else {
            let head = ReplyHead { length: Some(reply.len() as u64), ..self.head_of(&reply.head, rests_on) };
            protocol.reply(reply.id, &head, count, end, out)
        };
        reply.begun = true;
        if framed.is_err() {
            let text = "the reply has a head that no frame carries";
            let failure = Failure::of_function(FailKind::Internal, text, true);
            let problem = self.problem_of(failure, &reply.head.invocation, reply.head.commit);
            let _ = protocol.fail(reply.id, &problem, out);
        }
        framed.is_ok()
    }

    fn head_of<'a>(&self, facts: &'a ReplyFacts, rests_on: Final) -> ReplyHead<'a> {
        ReplyHead {
            replayed: facts.replayed,
            content_type: Some(facts.content_type.as_str()).filter(|text| !text.is_empty()),
            invocation: Some(&facts.invocation),
            function: facts.place,
            ..ReplyHead::new(self.assignment().epoch, rests_on)
        }
    }

    fn rests_on(&self, commit: u64) -> Final {
        let durability = match self.level_of(commit) {
            Durability::Process => Level::Process,
            Durability::Node => Level::Node,
        };
        Final { commit, durability }
    }

    /// Wakes those who waited for a connection, which is not locked now, or for memory.
    pub(super) fn wake(&self, waiters: Vec<Arc<Inbox>>) {
        waiters.into_iter().for_each(|inbox| inbox.tell(|_| {}));
        self.direct.fed().into_iter().for_each(|inbox| inbox.tell(|_| {}));
    }

    /// Who can go on now that something was sent. The leader is told where there is something to read.
    fn after_flush(&self, caller: &Arc<Caller>, talk: &mut Talk) -> Vec<Arc<Inbox>> {
        if talk.held && talk.backlog() < MAX_UNSENT {
            self.look_at(caller);
        }
        if talk.has_left() || (self.draining.load(SeqCst) && talk.is_quiet() && !self.crew.leads()) {
            self.look_at(caller);
        }
        if !talk.waiters.is_empty() && !talk.out.full {
            return std::mem::take(&mut talk.waiters);
        }
        Vec::new()
    }

    /// Sends the next bytes of a streamed reply, and waits while there is no credit or no room. Errors are the ABI's.
    pub(crate) fn stream_direct(
        &'static self,
        inbox: &Arc<Inbox>,
        ours: &Ours,
        mut head: Option<Begins<'_>>,
        mut bytes: &[u8],
        commit: u64,
    ) -> Result<(), i32> {
        while head.is_some() || !bytes.is_empty() {
            let needed = bytes.len();
            let count = self.wait_for_room(inbox, ours, needed).map_err(|over| over.status())?;
            let (now, later) = bytes.split_at(count);
            self.stream_piece(ours, head.take(), now, commit).map_err(|over| over.status())?;
            bytes = later;
        }
        Ok(())
    }

    fn stream_piece(
        &'static self,
        ours: &Ours,
        head: Option<Begins<'_>>,
        mut piece: &[u8],
        commit: u64,
    ) -> Result<(), Over> {
        let caller = &ours.caller;
        let mut talk = caller.talk();
        if talk.gone || !talk.calls.contains_key(&ours.id) {
            return Err(Over::Gone);
        }
        let len = piece.len();
        let mut frame = Vec::new();
        let framed = match head {
            Some(begins) => {
                let facts = ReplyFacts {
                    content_type: begins.content_type.to_owned(),
                    replayed: begins.replayed,
                    commit,
                    invocation: ours.name.clone(),
                    place: ours.place,
                };
                let head = self.head_of(&facts, self.rests_on(commit));
                talk.protocol.reply(ours.id, &head, len, false, &mut frame)
            }
            None if len == 0 => Ok(()),
            None => talk.protocol.data(ours.id, len, None, &mut frame),
        };
        framed.map_err(|_| Over::Gone)?;
        let mut frame = &frame[..];
        if len > SMALL {
            self.flush(caller, &mut talk);
            // Straight from where it lies, as far as the socket takes it.
            frame = self.send_straight(caller, &mut talk, frame, true);
            if frame.is_empty() {
                piece = self.send_straight(caller, &mut talk, piece, false);
            }
        }
        let end = talk.out.end();
        end.extend_from_slice(frame);
        end.extend_from_slice(piece);
        end.extend_from_slice(&PADDING[..padding(len)]);
        self.flush(caller, &mut talk);
        let waiters = self.after_flush(caller, &mut talk);
        drop(talk);
        self.wake(waiters);
        Ok(())
    }

    /// Sends bytes past the buffer, if nothing is to be sent before them. What the socket did not take comes back.
    fn send_straight<'a>(
        &self,
        caller: &Arc<Caller>,
        talk: &mut Talk,
        mut bytes: &'a [u8],
        more: bool,
    ) -> &'a [u8] {
        while !bytes.is_empty() && talk.out.is_clear() && !talk.broken && !talk.gone {
            match self.direct.ring().send(caller.slot, bytes, more) {
                Ok(0) => self.is_full(caller, talk),
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.breaks(caller, talk, &error),
            }
        }
        bytes
    }

    /// Waits until a piece of a streamed reply may be sent: how much of it.
    fn wait_for_room(&'static self, inbox: &Arc<Inbox>, ours: &Ours, most: usize) -> Result<usize, Over> {
        let until = Instant::now() + STALL;
        self.wait_for(inbox, |_| {
            let mut talk = ours.caller.talk();
            if talk.gone || !talk.calls.contains_key(&ours.id) {
                return Some(Err(Over::Gone));
            }
            if let Some(reason) = inbox.cancelled() {
                return Some(Err(Over::Cancelled(reason)));
            }
            let open = talk.protocol.sendable(ours.id).min(AHEAD).min(most);
            if (open > 0 || most == 0) && !talk.out.full && talk.out.unsent() < AHEAD {
                return Some(Ok(open));
            }
            if Instant::now() >= until {
                return Some(Err(Over::Gone));
            }
            talk.wait(inbox);
            self.note_due(until);
            None
        })
    }

    /// Waits until so many bytes of reply may be kept.
    fn wait_for_memory(&'static self, inbox: &Arc<Inbox>, ours: &Ours, len: u64) -> Result<(), Over> {
        let until = Instant::now() + STALL;
        self.wait_for(inbox, |_| {
            if self.direct.reserve(len) {
                return Some(Ok(()));
            }
            let mut talk = ours.caller.talk();
            if talk.gone || !talk.calls.contains_key(&ours.id) || Instant::now() >= until {
                return Some(Err(Over::Gone));
            }
            talk.wait(inbox);
            drop(talk);
            self.direct.starves(inbox);
            self.note_due(until);
            None
        })
    }
}

/// The ring cannot be used any more: nobody could be answered.
pub(super) fn ring_lost(error: &std::io::Error) -> ! {
    let text =
        format!("the plugin took the ring of its host away (descriptor 4), so this process ends: {error}");
    end_saying(&text, EXIT_RING_SPOILED)
}
