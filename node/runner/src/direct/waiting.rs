//! The leader's wait on the ring, and what it does with what that brings.
//!
//! Connections with something to read stand in a queue. As many of them as fit are read together, with one system call that also sends
//! what was answered meanwhile and brings news of all others: so nobody who sends without end keeps the rest from being heard, and in
//! each round everybody has a portion. Calls are handed out one by one, so whoever leads next goes on in the middle of what was read.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use denizen_protocol::limits::MAX_UNSENT;
use denizen_protocol::server::Parked;
use denizen_ring::locked::{Locked, MOST_TOGETHER, News, Receive, is_of_the_ring};
use denizen_ring::maker::{CONTROL_SLOT, SLOTS};
use denizen_wire::{AtRest, CallerEnd, CancelReason, Header};

use super::TICK;
use super::caller::{Assembling, Caller, Talk};
use super::portions::Portions;
use super::sending::{STALL, ring_lost};
use crate::call::Call;
use crate::inbox::Inbox;
use crate::intake::Step;
use crate::link::Gone;
use crate::locked;
use crate::serve::{Runner, fault};
use crate::source::Source;

/// So many bytes are read at a time: calls of others wait behind those in them.
const CHUNK: usize = 16 << 10;
/// And so many within a body, where there are none.
const BODY_CHUNK: usize = 64 << 10;
/// A header, read alone because a large body follows it.
const HEADER: usize = denizen_protocol::limits::HEADER_LEN;

/// The leader's own: what was read of connections, and which are to be read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    portions: Portions,
    /// Those that have something to read.
    ready: VecDeque<Arc<Caller>>,
    /// There may be something on the control connection.
    control: bool,
    /// By slot.
    pub(super) callers: Vec<Option<Arc<Caller>>>,
    /// Calls that may run because others have ended.
    pub(super) runnable: VecDeque<Call>,
    news: Vec<News>,
    /// Empty between two system calls.
    flights: Vec<Arc<Caller>>,
    /// Likewise: who is read, and how many bytes at most.
    wanted: Vec<(Arc<Caller>, usize)>,
}

/// What is to be received of a connection.
enum Wanted {
    Nothing,
    /// Bytes that were taken off its socket before.
    Kept(Vec<u8>),
    /// The body of this call, where it belongs.
    Body(u64, Assembling, usize),
    /// So many bytes at most.
    Bytes(usize),
}

impl Reading {
    /// What was read and nobody has looked at goes back to its connections.
    pub(super) fn put_back(&mut self) {
        self.portions.put_back();
    }

    /// Whether there is something to do before the next wait.
    fn has_more(&self) -> bool {
        !self.portions.is_empty() || self.control || !self.ready.is_empty() || !self.runnable.is_empty()
    }

    pub(super) fn queue(&mut self, caller: &Arc<Caller>, talk: &mut Talk) {
        if !std::mem::replace(&mut talk.queued, true) {
            self.ready.push_back(caller.clone());
        }
    }
}

impl Runner {
    /// A connection is ours.
    pub(crate) fn accept_caller(&'static self, header: &Header, payload: &[u8], reading: &mut Reading) {
        let bad = |why: &dyn std::fmt::Display| -> ! {
            fault(&format!("the agent gave a connection that cannot be served: {why}"))
        };
        let at_rest = AtRest::decode(payload).unwrap_or_else(|error| bad(&error));
        let parked = Parked::decode(at_rest.record).unwrap_or_else(|error| bad(&error));
        let slot = header.a;
        if slot == CONTROL_SLOT || slot >= SLOTS {
            bad(&"its slot is out of range");
        }
        self.open_ring(reading);
        let caller = Arc::new(Caller::new(header.id, slot, parked, at_rest.residue.to_vec()));
        if reading.callers.is_empty() {
            reading.callers.resize(SLOTS as usize, None);
            reading.portions.prepare();
        }
        if let Some(before) = reading.callers[slot as usize].replace(caller.clone()) {
            bad(&format_args!("its slot is that of connection {}", before.number));
        }
        self.direct.open.fetch_add(1, SeqCst);
        if let Err(error) = self.direct.ring().watch(slot) {
            ring_lost(&error);
        }
        let mut talk = caller.talk();
        // What came while nobody looked is not always news.
        talk.readable = true;
        reading.queue(&caller, &mut talk);
    }

    /// From now on the leader waits on the ring.
    fn open_ring(&self, reading: &mut Reading) {
        if self.direct.is_used() {
            return;
        }
        let sealed = locked(&self.direct.sealed).take();
        let opened = sealed.ok_or_else(|| ErrorKind::NotFound.into()).and_then(Locked::open);
        let ring = opened.unwrap_or_else(|error| fault(&format!("the ring cannot be opened: {error}")));
        if let Err(error) = ring.watch(CONTROL_SLOT) {
            ring_lost(&error);
        }
        let _ = self.direct.ring.set(ring);
        self.buffers().keep_large(self.direct.most_kept);
        reading.control = true;
    }

    /// Takes the next step with direct connections or with the control connection. `None`: look at that first.
    pub(crate) fn next_direct(
        &'static self,
        source: &mut Source,
        reading: &mut Reading,
    ) -> Result<Option<Step>, Gone> {
        if reading.has_more() {
            self.flush_gathered(false);
        }
        loop {
            if let Some(call) = reading.runnable.pop_front() {
                return Ok(Some(Step::Run(call)));
            }
            if reading.control {
                if source.read_now()? {
                    return Ok(None);
                }
                reading.control = false;
            }
            if !reading.portions.is_empty() {
                // Somebody may wait for what came, this very thread perhaps.
                return Ok(Some(self.converse(reading).unwrap_or(Step::Done)));
            }
            // Whoever sends without end keeps nobody else's time from running out.
            self.attend(reading);
            self.expire(reading);
            if !reading.runnable.is_empty() {
                continue;
            }
            if !reading.ready.is_empty() {
                let step = self.receive(reading);
                if step.is_none() && !reading.portions.is_empty() {
                    continue;
                }
                return Ok(Some(step.unwrap_or(Step::Done)));
            }
            if self.draining.load(SeqCst) && self.part_with_callers(reading) {
                return Ok(Some(Step::Drained));
            }
            if !reading.ready.is_empty() || !reading.runnable.is_empty() {
                continue;
            }
            let more_to_do = self.has_more_to_do();
            let came = self.wait_for_news(reading, !more_to_do);
            return Ok(Some(if more_to_do && !came { Step::Pause } else { Step::Done }));
        }
    }

    /// Waits on the ring, or only looks. Whether something came.
    fn wait_for_news(&'static self, reading: &mut Reading, wait: bool) -> bool {
        let flights = self.depart(reading, wait);
        // What was sent may have made room to read.
        let wait = wait && locked(&self.direct.noted).is_empty();
        let ring = self.direct.ring();
        let waited = if wait {
            let due = *locked(&self.direct.due);
            let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
            ring.wait(timeout, &mut reading.news)
        } else {
            ring.look(&mut reading.news)
        };
        if let Err(error) = waited {
            ring_lost(&error);
        }
        self.arrive(flights, reading);
        let came = !reading.news.is_empty();
        self.hear(reading);
        self.expire(reading);
        came || !reading.runnable.is_empty()
    }

    /// What was gathered leaves along with the next system call of this thread, or at once. Those whose answers fly.
    fn depart(&self, reading: &mut Reading, along: bool) -> Vec<Arc<Caller>> {
        let mut gathered = std::mem::take(&mut reading.flights);
        self.direct.take_gathered(&mut gathered);
        if !along {
            self.flush_together(&gathered);
            gathered.drain(..).for_each(|caller| self.note_debts(&caller));
        }
        gathered.retain(|caller| {
            let flies = self.send_along(caller);
            if !flies {
                self.note_debts(caller);
            }
            flies
        });
        gathered
    }

    fn arrive(&self, mut flights: Vec<Arc<Caller>>, reading: &mut Reading) {
        for caller in flights.drain(..) {
            self.landed(&caller);
            self.note_debts(&caller);
        }
        reading.flights = flights;
    }

    /// A caller that owes something is looked at when its time is over.
    fn note_debts(&self, caller: &Caller) {
        let talk = caller.talk();
        if talk.owes() {
            self.note_due(talk.moved + STALL);
        }
    }

    fn hear(&'static self, reading: &mut Reading) {
        let mut news = std::mem::take(&mut reading.news);
        for one in news.drain(..) {
            match one {
                News::Readable { slot: CONTROL_SLOT, .. } => reading.control = true,
                News::Lost { slot: CONTROL_SLOT } => fault("the connection to the agent cannot be watched"),
                News::Readable { slot, ended } => {
                    let Some(caller) = reading.callers[slot as usize].clone() else { continue };
                    let mut talk = caller.talk();
                    talk.readable = true;
                    talk.ended |= ended;
                    reading.queue(&caller, &mut talk);
                }
                News::Room { slot } => {
                    let Some(caller) = reading.callers.get(slot as usize).cloned().flatten() else {
                        continue;
                    };
                    caller.talk().out.full = false;
                    self.flush_one(&caller);
                    self.note_debts(&caller);
                }
                News::Lost { slot } => {
                    let Some(caller) = reading.callers[slot as usize].clone() else { continue };
                    self.end_caller(&caller, CallerEnd::Broken, reading);
                }
            }
        }
        reading.news = news;
    }

    /// Looks at connections that other threads have noted.
    fn attend(&'static self, reading: &mut Reading) {
        for caller in std::mem::take(&mut *locked(&self.direct.noted)) {
            let mut talk = caller.talk();
            if talk.gone {
                continue;
            }
            if talk.broken {
                drop(talk);
                self.end_caller(&caller, CallerEnd::Broken, reading);
                continue;
            }
            if talk.has_left() {
                drop(talk);
                self.end_caller(&caller, CallerEnd::Closed, reading);
                continue;
            }
            if talk.held && talk.backlog() < MAX_UNSENT {
                talk.held = false;
                reading.queue(&caller, &mut talk);
            }
        }
    }

    /// Takes what is there of those connections whose turn it is, and puts it where it belongs. Meanwhile what was answered leaves.
    fn receive(&'static self, reading: &mut Reading) -> Option<Step> {
        let mut wanted = std::mem::take(&mut reading.wanted);
        while wanted.len() < MOST_TOGETHER
            && let Some(caller) = reading.ready.pop_front()
        {
            let mut talk = caller.talk();
            let alone = wanted.is_empty();
            match self.wants(&mut talk, alone) {
                None => {
                    // It comes first in the next round.
                    reading.ready.push_front(caller.clone());
                    break;
                }
                Some(want) => {
                    talk.queued = false;
                    match want {
                        Wanted::Nothing => {}
                        Wanted::Bytes(most) => wanted.push((caller.clone(), most)),
                        Wanted::Kept(kept) => {
                            reading.queue(&caller, &mut talk);
                            reading.portions.load(&caller, &kept);
                            break;
                        }
                        Wanted::Body(id, input, most) => {
                            reading.wanted = wanted;
                            return self.receive_body(&caller, talk, (id, input, most), reading);
                        }
                    }
                }
            }
        }
        if !wanted.is_empty() {
            self.receive_together(&mut wanted, reading);
        }
        reading.wanted = wanted;
        None
    }

    /// What is to be received of a connection. `None`: what cannot be received along with others is, and this is not `alone`.
    fn wants(&self, talk: &mut Talk, alone: bool) -> Option<Wanted> {
        if talk.gone || (self.draining.load(SeqCst) && !talk.needs_credit()) {
            return Some(Wanted::Nothing);
        }
        if talk.backlog() >= MAX_UNSENT {
            // Whoever does not read is not read.
            talk.held = true;
            return Some(Wanted::Nothing);
        }
        if !talk.kept.is_empty() {
            return alone.then(|| Wanted::Kept(std::mem::take(&mut talk.kept)));
        }
        if !talk.readable {
            return Some(Wanted::Nothing);
        }
        if let Some(body) = talk.protocol.rest().filter(|rest| rest.wanted && rest.body > HEADER)
            && let Some(input) = talk.assembling.get_mut(&body.id)
        {
            let most = input.body.room().len().min(body.body);
            if most > 0 && !alone {
                return None;
            }
            if most > 0
                && let Some(input) = talk.assembling.remove(&body.id)
            {
                return Some(Wanted::Body(body.id, input, most));
            }
        }
        Some(Wanted::Bytes(match talk.protocol.rest() {
            None if talk.pouring => HEADER,
            Some(rest) if rest.body > CHUNK => BODY_CHUNK,
            _ => CHUNK,
        }))
    }

    fn receive_body(
        &'static self,
        caller: &Arc<Caller>,
        mut talk: MutexGuard<'_, Talk>,
        (id, mut input, most): (u64, Assembling, usize),
        reading: &mut Reading,
    ) -> Option<Step> {
        let mut receives =
            [Receive { slot: caller.slot, into: &mut input.body.room()[..most], result: Ok(None) }];
        if let Err(error) = self.direct.ring().receive_many(&mut receives, &mut reading.news) {
            ring_lost(&error);
        }
        let [Receive { result, .. }] = receives;
        let count = self.received(caller, &mut talk, result, most, reading);
        input.body.filled(count);
        let step = self.received_body(caller, talk, id, input, count, reading);
        self.hear(reading);
        step
    }

    /// Receives from several connections with one system call.
    fn receive_together(&'static self, wanted: &mut Vec<(Arc<Caller>, usize)>, reading: &mut Reading) {
        let flights = self.depart(reading, true);
        let of = wanted.len();
        let pieces = reading.portions.pieces(of).zip(wanted.iter());
        let mut receives: Vec<Receive<'_>> = pieces
            .map(|(piece, (caller, most))| {
                let most = piece.len().min(*most);
                Receive { slot: caller.slot, into: &mut piece[..most], result: Ok(None) }
            })
            .collect();
        if let Err(error) = self.direct.ring().receive_many(&mut receives, &mut reading.news) {
            ring_lost(&error);
        }
        let results: Vec<_> = receives.into_iter().map(|one| (one.result, one.into.len())).collect();
        for (piece, ((caller, _), (result, most))) in wanted.drain(..).zip(results).enumerate() {
            let mut talk = caller.talk();
            let count = self.received(&caller, &mut talk, result, most, reading);
            if count > 0 {
                drop(talk);
                reading.portions.push(caller, piece, of, count);
            } else if !talk.gone && talk.ended && !talk.readable {
                self.ended(&caller, talk, reading);
            }
        }
        self.arrive(flights, reading);
        // Behind the results: what came since is not to be forgotten over them.
        self.hear(reading);
    }

    /// How many bytes came; what that says of the connection is noted.
    fn received(
        &self,
        caller: &Arc<Caller>,
        talk: &mut Talk,
        result: std::io::Result<Option<usize>>,
        wanted: usize,
        reading: &mut Reading,
    ) -> usize {
        let count = match result {
            Ok(Some(0)) => {
                (talk.readable, talk.ended) = (false, true);
                return 0;
            }
            Ok(Some(count)) => count,
            // Whether the end was seen or not: without bytes it comes as such.
            Ok(None) => {
                (talk.readable, talk.ended) = (false, false);
                return 0;
            }
            Err(error) if is_of_the_ring(&error) => ring_lost(&error),
            Err(_) => {
                (talk.readable, talk.broken) = (false, true);
                self.look_at(caller);
                return 0;
            }
        };
        talk.taken += count as u64;
        talk.moved = Instant::now();
        talk.readable = count == wanted || talk.ended;
        if talk.readable {
            reading.queue(caller, talk);
        }
        count
    }

    /// Deals with what was read of one connection, until there is a call to run.
    fn converse(&'static self, reading: &mut Reading) -> Option<Step> {
        let caller = reading.portions.first()?.clone();
        loop {
            let mut talk = caller.talk();
            if talk.gone {
                reading.portions.finish();
                return None;
            }
            if talk.backlog() >= MAX_UNSENT {
                talk.held = true;
                drop(talk);
                reading.portions.put_back_first();
                return None;
            }
            let mut input = reading.portions.bytes();
            let done = self.next_event(&caller, &mut talk, &mut input);
            let left = input.len();
            reading.portions.leave(left);
            match self.act(&caller, talk, done, reading) {
                Some(super::calls::Next::Step(step)) => return Some(step),
                Some(super::calls::Next::Goes) => {}
                None => {
                    reading.portions.finish();
                    return None;
                }
            }
        }
    }

    /// Looks at what takes its time, if it is time to.
    fn expire(&'static self, reading: &mut Reading) {
        let Some(due) = *locked(&self.direct.due) else { return };
        let now = Instant::now();
        if now < due {
            return;
        }
        *locked(&self.direct.due) = None;
        let mut next: Option<Instant> = None;
        let mut note = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        if let Some(at) = self.buffers().let_go(now) {
            note(at);
        }
        // Whoever begins a call after this sees it; the others are on the list.
        self.direct.ticking.store(false, SeqCst);
        let direct: Vec<Arc<Inbox>> =
            locked(&self.calls).values().filter(|inbox| inbox.direct.is_some()).cloned().collect();
        if self.look_at_running(&direct) {
            self.direct.ticking.store(true, SeqCst);
            note(now + TICK);
        }
        for inbox in direct {
            match inbox.deadline() {
                Some(at) if at > now => note(at),
                Some(_) if !inbox.is_told() => self.give_up(&inbox, CancelReason::Deadline, reading),
                _ => {}
            }
        }
        for caller in reading.callers.clone().into_iter().flatten() {
            let talk = caller.talk();
            let over = talk.moved + STALL;
            let waits = !talk.waiters.is_empty();
            match talk.owes() {
                true if over <= now => {
                    drop(talk);
                    self.end_caller(&caller, CallerEnd::Stalled, reading);
                    continue;
                }
                true => note(over),
                false => {}
            }
            if let Some(parting) = &talk.parting {
                note(parting.by.max(now));
            }
            drop(talk);
            if waits {
                // They look at their own time.
                self.flush_one(&caller);
            }
        }
        if let Some(at) = next {
            self.note_due(at);
        }
    }
}
