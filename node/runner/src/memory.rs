//! Calls with idempotency keys: who has a key, what is known under it, and when that is forgotten.
//!
//! What must hold, so that a key stands for one execution:
//! - Of the calls with one key at most one is beyond [`Runner::enter_key`] and before [`Runner::leave_key`].
//! - Whether an earlier one is remembered is looked up by whoever has the key, so after the commit of whoever had it before.
//! - A reply is forgotten only while nobody has its key: who has it may be about to replace it.
//!
//! Expired replies go a few at a time, now and then after calls with keys, and all of them where new ones find no room or the process
//! drains.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use denizen_engine::Engine;
use denizen_wire::{CancelReason, FailKind, Failure};

use crate::call::Call;
use crate::declare::Mode;
use crate::intake::cancelled_before_start;
use crate::keys::Keys;
use crate::locked;
use crate::serve::{Runner, log_of_host};
use crate::trouble::ends_the_process;

/// Remembered replies may take this part of what the state may take.
const SHARE: u64 = 4;
/// After so many calls with keys some remembered replies are looked at. The first step comes with the first one.
const CALLS_A_STEP: u64 = 32;
/// So many are looked at in a step: more of them than came since the last one.
const STEP: usize = 256;
/// At the end of a process so many steps are made at most: about a million replies.
const STEPS_AT_THE_END: usize = 4096;
/// All are looked at no more often than this.
const WHOLE_SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Memory {
    keys: Mutex<Keys<Call>>,
    /// Calls with keys that were run.
    calls: AtomicU64,
    sweep: Mutex<Sweep>,
}

#[derive(Debug)]
struct Sweep {
    /// The key that was looked at last; empty at the beginning.
    after: Vec<u8>,
    /// When all were looked at.
    whole: Option<Instant>,
}

impl Memory {
    pub(crate) const fn new() -> Memory {
        Memory {
            keys: Mutex::new(Keys::new()),
            calls: AtomicU64::new(0),
            sweep: Mutex::new(Sweep { after: Vec::new(), whole: None }),
        }
    }

    /// Takes out all calls that wait for their keys.
    pub(crate) fn clear(&self) -> Vec<Call> {
        locked(&self.keys).clear()
    }
}

impl Runner {
    /// Gives a call back that has its key now, or has none, and keeps it otherwise.
    pub(crate) fn enter_key(&self, call: Call) -> Option<Call> {
        let Some(key) = call.key.clone() else { return Some(call) };
        let mut call = locked(&self.memory.keys).enter(&key, call)?;
        self.look_up(&mut call);
        Some(call)
    }

    /// Its call is done with the key. The next one of that key comes back, if it may run now.
    pub(crate) fn leave_key(&self, key: &str) -> Option<Call> {
        let mut call = locked(&self.memory.keys).leave(key)?;
        self.look_up(&mut call);
        self.admit(call)
    }

    /// Finds what is remembered under the key that a call has.
    fn look_up(&self, call: &mut Call) {
        let snapshot = self.engine().snapshot();
        let expires_ms = call.key.as_deref().and_then(|key| snapshot.reply_expires_ms(key.as_bytes()));
        let now_ms = self.engine().now_ms();
        call.known = expires_ms.is_some_and(|at| at > now_ms).then_some(snapshot);
    }

    /// Only exclusive calls wait for one another. One that is answered from memory waits for nobody.
    pub(crate) fn admit(&self, call: Call) -> Option<Call> {
        match call.mode() {
            Mode::Exclusive => locked(&self.gate).enter(call),
            Mode::ReadOnly | Mode::Concurrent => Some(call),
        }
    }

    /// Takes out a call that waits for its turn or for its key: how it fails, and one that may run because of that.
    pub(crate) fn withdraw(&self, id: u64, reason: CancelReason) -> Option<(Failure, Option<Call>)> {
        if locked(&self.memory.keys).remove(|call| call.id == id).is_some() {
            return Some((in_progress(reason), None));
        }
        let call = locked(&self.gate).remove(|call| call.id == id)?;
        let next = call.key.and_then(|key| self.leave_key(&key));
        Some((cancelled_before_start(reason), next))
    }

    /// Whether a reply of this length may be remembered beside those that are.
    pub(crate) fn has_room_for_reply(&self, key: &str, len: usize) -> bool {
        let needed = Engine::reply_cost(key.len(), len);
        let fits = || self.engine().replies_bytes().saturating_add(needed) <= self.most_replies_bytes();
        fits() || {
            self.forget_all_expired();
            fits()
        }
    }

    /// The most that remembered replies may take of the state, in bytes.
    pub(crate) fn most_replies_bytes(&self) -> u64 {
        self.limits().state_bytes / SHARE
    }

    /// A call with this key was run: now and then some of the replies that have expired are forgotten.
    pub(crate) fn forget_some(&self, key: &str) {
        if !self.memory.calls.fetch_add(1, Relaxed).is_multiple_of(CALLS_A_STEP) {
            return;
        }
        // Whoever sweeps does it for all.
        let Ok(mut sweep) = self.memory.sweep.try_lock() else { return };
        if self.memory.calls.load(Relaxed) == 1 {
            // Not the same ones in each life of a process that lives for a call or two.
            sweep.after = key.as_bytes().to_vec();
        }
        self.forget_step(&mut sweep.after);
    }

    fn forget_all_expired(&self) {
        let mut sweep = locked(&self.memory.sweep);
        if sweep.whole.is_some_and(|at| at.elapsed() < WHOLE_SWEEP) {
            return;
        }
        sweep.after.clear();
        while self.forget_step(&mut sweep.after) && !sweep.after.is_empty() {}
        sweep.whole = Some(Instant::now());
    }

    /// The process ends, and everything that it keeps is about to be copied: what has expired is not.
    pub(crate) fn forget_at_the_end(&self) {
        if self.engine().replies_bytes() == 0 {
            return;
        }
        let mut after = Vec::new();
        for _ in 0..STEPS_AT_THE_END {
            if !self.forget_step(&mut after) || after.is_empty() {
                break;
            }
        }
    }

    /// One step; false if it could not be written.
    fn forget_step(&self, after: &mut Vec<u8>) -> bool {
        let mut expired = self.engine().expired_replies(after, STEP);
        if expired.is_empty() {
            return true;
        }
        let keys = locked(&self.memory.keys);
        expired.retain(|(key, _)| !keys.is_taken(key));
        let forgotten = self.engine().forget_replies(&expired);
        drop(keys);
        match forgotten {
            Ok(_) => true,
            Err(error) if ends_the_process(&error) => {
                self.break_aside(&error);
                false
            }
            // Without room it is tried again with the next step.
            Err(_) => false,
        }
    }

    /// A failure that should have been remembered was not.
    pub(crate) fn say_forgotten(&self, invocation: &str, why: &dyn std::fmt::Display) {
        log_of_host(&format!(
            "invocation {invocation} failed after a commit of its own, and how could not be remembered: whoever comes with its \
             idempotency key is told that it was interrupted ({why})"
        ));
    }
}

fn in_progress(reason: CancelReason) -> Failure {
    match reason {
        CancelReason::Deadline => Failure::unstarted(
            FailKind::InProgress,
            "an earlier call with this idempotency key still runs; this one waited for it until its deadline",
        ),
        CancelReason::CallerGone => cancelled_before_start(reason),
    }
}
