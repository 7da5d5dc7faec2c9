//! The files of a process kept while its sandbox can still go on.
//!
//! What is in `/state` is lost with its sandbox unless it was captured, and a capture can be refused: a full state, a file that nobody can
//! read. So a sandbox is not ended before its files are captured. If they cannot be, it goes on with them, whoever wanted its end hears
//! why, and nothing is lost. What must hold besides:
//!
//! - **It does not live for ever.** A process without calls tries again each time that it has been idle for as long as its image says;
//!   after [`TRIES`] of those, or [`LONGEST`], it is ended all the same. That is told: in its log, in the node's, and in its record, which
//!   is `failed` until the next call.
//! - **It blocks nobody else's room.** Where another process needs a seat, it was not quiet longest any more once it was asked.
//! - A stop of the node does not wait for a remedy. What it loses is told in the same places.
//!
//! A capture is also asked for when the calls of a process have paused ([`QUIET`]): the runner captures beside calls only, so the last of
//! them may have left something.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use denizen_sched::Settled;
use denizen_wire::{Builtin, Durability};

use crate::executor;
use crate::home::Home;
use crate::problem::{Kind, Problem};
use crate::process::Process;
use crate::process::active::Active;
use crate::process::end::Killing;
use crate::process::input::Input;
use crate::process::invocation::Limit;
use crate::process::serve::{Order, attempt};

/// So long without a call, and files that may have changed are captured.
const QUIET: Duration = Duration::from_secs(5);
/// So often a swap-out of an idle process is given up for its files.
const TRIES: u32 = 30;
/// And for so long.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What is said of a capture that failed.
const NOT_KEPT: &str =
    "what has changed in /state cannot be captured, so the sandbox goes on with it: nothing is lost";

/// Who wants the end of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Somebody who waits for the answer.
    Asked,
    /// Nobody: it has been idle.
    Idle,
    /// Another process that needs the room.
    Room,
}

/// How often the files of a sandbox could not be captured, and since when.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    /// In a row, and when first.
    refused: Cell<Option<(u32, Instant)>>,
    /// The calls that there had been at the last of them: with another, the count begins anew.
    calls: Cell<u64>,
    /// Captures that were asked for: invocations, but no calls.
    own: Cell<u64>,
}

impl Keeping {
    fn kept(&self) {
        self.refused.set(None);
    }

    /// Counts a refusal after so many calls. Whether the sandbox is to end all the same.
    fn refused(&self, calls: u64, now: Instant) -> bool {
        let going_on = self.calls.replace(calls) == calls;
        let (count, since) = self.refused.get().filter(|_| going_on).unwrap_or((0, now));
        self.refused.set(Some((count + 1, since)));
        count + 1 >= TRIES || now.saturating_duration_since(since) >= LONGEST
    }
}

/// What came of a capture.
enum Kept {
    Yes,
    Not(Problem),
    /// The sandbox does not answer, or ends.
    Silent,
}

/// Captures the files of a process before its sandbox is ended; `quota` is what its state may take from now on. The caller has the turn.
/// After this the sandbox may be ended, whatever there was to keep.
///
/// # Errors
/// `files-not-kept` and `no-space`: it is to go on.
pub(super) async fn before_the_end(
    home: &Rc<Home>,
    process: &Rc<Process>,
    wish: Wish,
    quota: u64,
    patience: Duration,
) -> Result<(), Problem> {
    let Some(active) = process.serving().filter(|active| active.image.files_bytes() > 0) else {
        return Ok(());
    };
    match capture(home, &active, quota, patience).await {
        Kept::Yes => active.keeping.kept(),
        // It has had as long as for its end.
        Kept::Silent if !active.is_ending() => active.kill(Killing::Stopping),
        Kept::Silent => {}
        Kept::Not(problem) => {
            let is_over = active.keeping.refused(calls_of(&active), Instant::now());
            if !is_over || wish != Wish::Idle {
                return Err(not_kept(problem));
            }
            process.log.host(format!(
                "{problem}. It is ended all the same: this was tried {TRIES} times, or for {LONGEST:?}"
            ));
        }
    }
    Ok(())
}

async fn capture(home: &Rc<Home>, active: &Rc<Active>, quota: u64, patience: Duration) -> Kept {
    active.segments.allow(quota);
    active.keeping.own.set(active.keeping.own.get() + 1);
    let policy = active.image.builtin(Builtin::FilesKeep);
    let limit = Limit { image: 2 * patience + QUIET, caller: None };
    let order = Order {
        index: policy.index,
        content_type: "",
        body_bytes: policy.body_bytes,
        durability: Durability::Process,
        key: None,
        trace: None,
        // Whoever waits is gone by then.
        deadline: Instant::now() + limit.time(),
        limit,
    };
    let mut input = Input::whole(quota.to_le_bytes().to_vec());
    match executor::within(patience, attempt(home, active, order, &mut input)).await {
        Some(Ok(Some(_))) => Kept::Yes,
        Some(Err(problem)) if !active.is_ending() => Kept::Not(problem),
        _ => Kept::Silent,
    }
}

/// Calls that a sandbox has had, those that came without the agent as it last said.
fn calls_of(active: &Active) -> u64 {
    let own = active.keeping.own.get().min(active.invocations());
    active.invocations() - own + active.direct_calls()
}

/// Whether it is quiet and has been for a while, its own callers asked.
async fn has_paused(active: &Active) -> bool {
    if active.in_flight() > 0 || active.quiet_since().elapsed() < QUIET {
        return false;
    }
    if !active.has_callers() {
        return true;
    }
    let census = active.census(QUIET).await;
    let busy = census.is_none_or(|(census, began)| began || census.in_flight > 0);
    if busy {
        active.be_quiet_since(Instant::now());
    }
    !busy
}

fn not_kept(problem: Problem) -> Problem {
    if problem.kind() == Kind::NoSpace {
        return problem;
    }
    Problem::new(Kind::FilesNotKept, NOT_KEPT).cause(problem)
}

/// Notes in the record of a process that is dead that files were lost, where nobody waits who could be told.
pub(super) async fn note_lost(home: &Rc<Home>, process: &Rc<Process>, active: &Rc<Active>) {
    if let Some(lost) = active.lost_files() {
        let settled = Settled::Failed { problem: lost.to_json(), durable: process.durable.get() };
        process.settle(home, active, settled).await;
    }
}

/// Captures files when the calls of a process have paused.
pub(super) fn watch_quiet(home: &Rc<Home>, process: &Rc<Process>, active: &Rc<Active>) {
    if active.image.files_bytes() > 0 {
        executor::spawn(keep_when_quiet(Rc::clone(home), Rc::downgrade(process), Rc::downgrade(active)));
    }
}

async fn keep_when_quiet(home: Rc<Home>, process: Weak<Process>, active: Weak<Active>) {
    // The calls before the last capture.
    let mut captured = 0;
    loop {
        executor::sleep(QUIET).await;
        let (Some(process), Some(active)) = (process.upgrade(), active.upgrade()) else { break };
        if active.is_ending() {
            break;
        }
        if !has_paused(&active).await {
            continue;
        }
        let (calls, quiet_since) = (calls_of(&active), active.quiet_since());
        if calls == captured {
            continue;
        }
        captured = calls;
        if let Kept::Not(problem) = capture(&home, &active, 0, QUIET).await {
            process.log.host(format!("{NOT_KEPT} yet: {problem}"));
        }
        // It was no call: whoever waits for the process to be idle has waited all the same.
        if active.in_flight() == 0 && calls_of(&active) == calls {
            active.be_quiet_since(quiet_since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_whose_files_cannot_be_kept_is_ended_after_many_tries_without_a_call() {
        let (keeping, now) = (Keeping::default(), Instant::now());
        for tried in 1..TRIES {
            assert!(!keeping.refused(7, now), "{tried}");
        }
        assert!(!keeping.refused(8, now), "there was a call in between");
        for tried in 2..TRIES {
            assert!(!keeping.refused(8, now), "{tried}");
        }
        keeping.kept();
        assert!(!keeping.refused(8, now), "it was kept meanwhile");
        for tried in 2..TRIES {
            assert!(!keeping.refused(8, now), "{tried}");
        }
        assert!(keeping.refused(8, now));
    }

    #[test]
    fn a_sandbox_whose_files_cannot_be_kept_is_ended_after_a_day() {
        let (keeping, now) = (Keeping::default(), Instant::now());
        assert!(!keeping.refused(7, now));
        assert!(!keeping.refused(7, now + LONGEST / 2));
        assert!(keeping.refused(7, now + LONGEST));
    }
}
