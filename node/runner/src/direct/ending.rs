//! The end of a connection in this process: closed, broken, refused, or given back to go on in another.
//!
//! Only the leader ends a connection. From then on nobody touches its slot, which is why what flies on it is collected first.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use denizen_protocol::{Drain, DrainReason, Problem, Violation};
use denizen_wire::{AtRest, CallerEnd, Header, Kind};

use super::caller::{Caller, Parting, Talk};
use super::sending::ring_lost;
use super::waiting::Reading;
use crate::locked;
use crate::plugin::end_process;
use crate::serve::{Runner, log_of_host};

/// So long callers may take to read what is to be sent before a drain.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Runner {
    /// The stream of a client has come to its end.
    pub(super) fn ended(
        &'static self,
        caller: &Arc<Caller>,
        mut talk: MutexGuard<'_, Talk>,
        reading: &mut Reading,
    ) {
        let clean = talk.protocol.ended().is_ok();
        drop(talk);
        self.end_caller(caller, if clean { CallerEnd::Closed } else { CallerEnd::Broken }, reading);
    }

    /// A client broke a rule: it is told, as far as its socket takes it.
    pub(super) fn violated(
        &'static self,
        caller: &Arc<Caller>,
        mut talk: MutexGuard<'_, Talk>,
        violation: &Violation,
        reading: &mut Reading,
    ) {
        let problem = self.standing(Problem::from(violation), 0);
        let _ = problem.encode(0, talk.out.end());
        self.flush(caller, &mut talk);
        drop(talk);
        self.end_caller(caller, CallerEnd::Violation, reading);
    }

    /// The token of a connection expires: it ends with the last call that runs, and its client is told.
    pub(crate) fn caller_expires(&'static self, header: &Header, reading: &Reading) {
        let found = reading.callers.iter().flatten().find(|caller| caller.number == header.id);
        let Some(caller) = found.cloned() else { return };
        let mut talk = caller.talk();
        let notice = Drain { within_ms: header.b, ..Drain::new(DrainReason::TokenExpires) };
        let Talk { protocol, out, leaving, .. } = &mut *talk;
        *leaving |= protocol.drain(&notice, out.end()).is_ok();
        drop(talk);
        self.flush_one(&caller);
    }

    /// Lets go of a connection; its calls are told that nobody waits for them.
    pub(super) fn end_caller(&'static self, caller: &Arc<Caller>, end: CallerEnd, reading: &mut Reading) {
        let mut talk = caller.talk();
        if talk.gone {
            return;
        }
        self.leave_slot(caller, &mut talk, reading);
        let calls = std::mem::take(&mut talk.calls);
        let mut assembling = std::mem::take(&mut talk.assembling);
        let waiters = std::mem::take(&mut talk.waiters);
        let cut = talk.out.cut.take().map(|cut| cut.reply);
        let replies = std::mem::take(&mut talk.out.replies).into_iter().chain(cut);
        talk.out = Default::default();
        drop(talk);
        replies.for_each(|reply| self.drop_reply(reply));
        for (id, inbox) in calls {
            self.abandon(&inbox, assembling.remove(&id), reading);
        }
        self.wake(waiters);
        let done =
            Header { code: end as u16, a: caller.slot, ..Header::new(Kind::CallerDone, caller.number) };
        if self.link.send_frame(&done.encode()).is_err() {
            end_process(0);
        }
    }

    /// Nobody touches the slot of a connection after this.
    fn leave_slot(&self, caller: &Arc<Caller>, talk: &mut Talk, reading: &mut Reading) {
        self.land(caller, talk);
        talk.gone = true;
        reading.callers[caller.slot as usize] = None;
        self.direct.open.fetch_sub(1, SeqCst);
        if let Err(error) = self.direct.ring().unwatch(caller.slot) {
            ring_lost(&error);
        }
    }

    /// This process drains: nothing more is read, but for the credit that a reply still needs, and what is not whole ends.
    pub(crate) fn drain_callers(&'static self, reading: &mut Reading) {
        reading.put_back();
        for caller in reading.callers.clone().into_iter().flatten() {
            self.cut_off(&caller);
            self.flush_one(&caller);
        }
    }

    /// Gives back each connection that is quiet. Whether the process is drained.
    pub(super) fn part_with_callers(&'static self, reading: &mut Reading) -> bool {
        for caller in reading.callers.clone().into_iter().flatten() {
            self.part_with(&caller, reading);
        }
        self.direct.is_empty() && locked(&self.calls).is_empty()
    }

    fn part_with(&'static self, caller: &Arc<Caller>, reading: &mut Reading) {
        let mut talk = caller.talk();
        if !talk.gone && !talk.held && talk.needs_credit() && (talk.readable || !talk.kept.is_empty()) {
            reading.queue(caller, &mut talk);
        }
        if talk.gone || !talk.calls.is_empty() || !talk.assembling.is_empty() {
            return;
        }
        let now = Instant::now();
        if talk.parting.is_none() {
            talk.parting = Some(Parting { by: now + LAST_WORDS, parked: None });
            self.note_due(now + LAST_WORDS);
        }
        let Talk { protocol, out, parting, .. } = &mut *talk;
        let Some(parting) = parting else { return };
        let late = parting.by <= now;
        if parting.parked.is_none() && out.replies.is_empty() && out.cut.is_none() {
            // What it has to say before goes behind all the rest.
            parting.parked = protocol.park(out.end());
        }
        self.flush(caller, &mut talk);
        if talk.broken {
            drop(talk);
            return self.end_caller(caller, CallerEnd::Broken, reading);
        }
        if talk.has_left() {
            drop(talk);
            return self.end_caller(caller, CallerEnd::Closed, reading);
        }
        let sent = talk.out.is_empty();
        let parting = talk.parting.as_mut().filter(|_| sent);
        match parting.and_then(|parting| parting.parked.take()) {
            Some((parked, mut residue)) => {
                residue.append(&mut talk.kept);
                let (taken, moved) = (talk.taken, talk.moved);
                self.leave_slot(caller, &mut talk, reading);
                drop(talk);
                self.send_parked(caller, &parked.encode(), &residue, taken, moved);
            }
            None if late => {
                drop(talk);
                self.end_caller(caller, CallerEnd::Unsent, reading);
            }
            None => {}
        }
    }

    fn send_parked(&self, caller: &Caller, record: &[u8], residue: &[u8], taken: u64, moved: Instant) {
        let mut payload = Vec::new();
        if let Err(error) = (AtRest { record, residue }).encode(&mut payload) {
            // It cannot be: what is kept is bounded by what is read at a time.
            log_of_host(&format!("a connection cannot be given back: {error}"));
            let done = Header {
                code: CallerEnd::Broken as u16,
                a: caller.slot,
                ..Header::new(Kind::CallerDone, caller.number)
            };
            let _ = self.link.send_frame(&done.encode());
            return;
        }
        let still_ms = u32::try_from(moved.elapsed().as_millis()).unwrap_or(u32::MAX);
        let header = Header {
            a: caller.slot,
            b: still_ms,
            c: taken,
            ..Header::new(Kind::CallerParked, caller.number)
        };
        let header = header.with_payload(payload.len()).encode();
        let mut pieces = [std::io::IoSlice::new(&header), std::io::IoSlice::new(&payload)];
        if self.link.send(&mut pieces).is_err() {
            end_process(0);
        }
    }
}
