//! The ways out of being active: swapped out, moved to another image, deleted, stopped with the node. All of them drain first.
//!
//! Draining: new calls wait, those that run finish within their deadlines, the sandbox exits, and the kernel confirms that. Only then
//! is the state touched.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use denizen_image::ImageId;
use denizen_sched::idle::{Activity, Verdict, verdict};
use denizen_sched::{Create, Epoch, Home as Place, Origin, Settled};
use denizen_wire::DrainCause;
use futures_channel::oneshot;

use crate::data;
use crate::executor;
use crate::home::Home;
use crate::problem::{Kind, Problem};
use crate::process::active::Active;
use crate::process::end::Killing;
use crate::process::files::{AtRest, Lies, Summary};
use crate::process::keep::{self, Wish};
use crate::process::start::{Tell, bury, refused_claim};
use crate::process::{Process, Stage, files};

/// How long a sandbox may take to end beyond the deadlines of its calls, when there is nothing to write.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// How long callers on connections that it was given may take, beyond that, to take what there is for them: a little longer than the
/// sandbox gives them.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How soon a swap-out of an idle process that failed is tried again, at least.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Bytes that a disk is trusted to take in a second: a slow one that others use too.
const DISK_SPEED: u64 = 64 << 20;
/// How long a sandbox may take to say how busy it is. It has threads of its own for that.
const CENSUS_LIMIT: Duration = Duration::from_secs(5);
/// How long a process whose room is wanted is watched for calls that the agent does not see.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
/// The longest that a node that stops waits for what one process has to write.
pub(crate) const MOST_WRITING: Duration = Duration::from_secs(60);

/// How long it may take to write what an orderly end writes at most: all files, and all that is live, should none of it be synced. The
/// sandbox says how much is live; it gains no time by claiming more than it may have.
fn writing_time(files: u64, live: u64, live_limit: u64) -> Duration {
    Duration::from_secs(files.saturating_add(live.min(live_limit)) / DISK_SPEED)
}

/// How long a sandbox may take for its calls, and how long to write what it has to.
fn time_to_end(active: &Active) -> (Duration, Duration) {
    let now = Instant::now();
    let calls = active.last_deadline().map_or(Duration::ZERO, |last| last.saturating_duration_since(now));
    let limits = &active.image.manifest.limits;
    let writing = writing_time(active.image.files_bytes(), active.state_bytes(), limits.state.bytes());
    let callers = if active.has_callers() { LAST_WORDS } else { Duration::ZERO };
    (calls + DRAIN_GRACE + callers, writing)
}

/// The longest that a sandbox may take: what begins while it drains has no later deadline than what began last before.
fn longest_end(active: &Active) -> Duration {
    let (calls, writing) = time_to_end(active);
    calls.max(active.image.longest_deadline() + DRAIN_GRACE + LAST_WORDS) + writing
}

/// What is left of `longest` for a wait of `patience`; `None` where all of it is spent.
fn left_of(longest: Duration, waited: Duration, patience: Duration) -> Option<Duration> {
    let left = longest.saturating_sub(waited);
    (!left.is_zero()).then(|| patience.min(left))
}

/// Waits for the end of a sandbox that was asked to end, and ends it when it is overdue: also one that says again and again that a call
/// takes a while.
async fn await_end(active: &Active, limit: Option<Duration>) {
    let (begun, longest) = (Instant::now(), longest_end(active));
    loop {
        let (last, (calls, writing)) = (active.last_deadline(), time_to_end(active));
        // What a stopping node breaks off early are calls, not the keeping of files.
        let patience = match limit {
            Some(limit) => calls.min(limit) + writing.min(MOST_WRITING),
            None => calls + writing,
        };
        let Some(patience) = left_of(longest, begun.elapsed(), patience) else {
            tracing::warn!(
                "a sandbox of {} was asked to end {longest:?} ago, and no call may run that long: it is ended",
                active.image.manifest.name
            );
            return active.kill(Killing::Stopping);
        };
        let dead = active.changes.until(|| active.death.borrow().is_some().then_some(()));
        if executor::within(patience, dead).await.is_some() {
            return;
        }
        // Of a call on a connection that it was given the agent hears after a while.
        if limit.is_some() || active.last_deadline() <= last {
            return active.kill(Killing::Stopping);
        }
    }
}

/// Captures the files of a process that is to end, as [`keep::before_the_end`] has it.
async fn keep_files(home: &Rc<Home>, process: &Rc<Process>, wish: Wish, quota: u64) -> Result<(), Problem> {
    let patience = process.serving().map(|active| time_to_end(&active));
    let patience = patience.map_or(Duration::ZERO, |(calls, writing)| calls + writing);
    let kept = keep::before_the_end(home, process, wish, quota, patience).await;
    kept.inspect_err(|problem| process.log.host(format!("not ended: {problem}")))
}

/// Ends the sandbox in an orderly way, if there is one, and gives it. The caller has the turn.
async fn drain(
    home: &Rc<Home>,
    process: &Rc<Process>,
    cause: DrainCause,
    limit: Option<Duration>,
    tell: Tell,
) -> Result<Option<Rc<Active>>, Problem> {
    let active = match process.stage() {
        Stage::Active(active) | Stage::Draining(active) => active,
        _ => return Ok(None),
    };
    process.set_stage(Stage::Draining(Rc::clone(&active)));
    active.drain(cause);
    await_end(&active, limit).await;
    bury(home, process, &active, tell).await?;
    if let Some(lost) = active.lost_files() {
        process.log.host(lost.to_string());
        tracing::error!("{}/{}: {lost}", process.app.name, process.name);
    }
    Ok(Some(active))
}

impl Process {
    /// Moves the state to the swap store. A process that is there already stays there.
    ///
    /// # Errors
    /// `unknown-process`, or why it could not be moved; its state is where it was then.
    pub(crate) async fn swap_out(self: &Rc<Process>, home: &Rc<Home>) -> Result<(), Problem> {
        let work = |home: Rc<Home>, process: Rc<Process>| async move {
            swap_out(&home, &process, Wish::Asked).await
        };
        self.transition(home, work).await
    }

    /// Swaps the process out because another needs its room, unless a call has come, or it has files that cannot be kept.
    ///
    /// # Errors
    /// Why its state could not be moved.
    pub(crate) async fn make_way(self: &Rc<Process>, home: &Rc<Home>) -> Result<(), Problem> {
        let Some(active) = self.serving() else { return Ok(()) };
        match swap_if_still_idle(home, self, &active, Duration::ZERO, Wish::Room).await {
            // Another is looked for: it is passed over now.
            Err(problem) if problem.kind() == Kind::FilesNotKept => Ok(()),
            swapped => swapped.map(drop),
        }
    }

    /// Ends a sandbox that runs another image than `image`. True if there was one. A sandbox whose files cannot be captured, not even
    /// under the new image's limits, goes on with the old image until it is idle.
    pub(crate) async fn move_to(
        self: &Rc<Process>,
        home: &Rc<Home>,
        image: ImageId,
    ) -> Result<bool, Problem> {
        let work = move |home: Rc<Home>, process: Rc<Process>| async move {
            process.forgive();
            match process.stage() {
                Stage::Active(active) if active.image.id != image => {
                    let quota = process.app.image().manifest.limits.state.bytes();
                    keep_files(&home, &process, Wish::Asked, quota).await?;
                    let drained = drain(&home, &process, DrainCause::Image, None, Tell::Always).await?;
                    note_lost(&home, &process, drained.as_ref()).await;
                    Ok(drained.is_some())
                }
                _ => Ok(false),
            }
        };
        self.transition(home, work).await
    }

    /// Removes the process and its state for good.
    ///
    /// # Errors
    /// `unknown-process`.
    pub(crate) async fn delete(self: &Rc<Process>, home: &Rc<Home>) -> Result<(), Problem> {
        self.transition(home, |home, process| async move { delete(&home, &process).await }).await
    }

    /// Ends the sandbox because the node stops; the state stays on the node.
    pub(crate) async fn stop(self: &Rc<Process>, home: &Rc<Home>, limit: Duration) -> Result<(), Problem> {
        let work = move |home: Rc<Home>, process: Rc<Process>| async move {
            let drained = drain(&home, &process, DrainCause::Shutdown, Some(limit), Tell::Always).await?;
            note_lost(&home, &process, drained.as_ref()).await;
            Ok(())
        };
        self.transition(home, work).await
    }
}

async fn note_lost(home: &Rc<Home>, process: &Rc<Process>, drained: Option<&Rc<Active>>) {
    if let Some(active) = drained {
        keep::note_lost(home, process, active).await;
    }
}

async fn swap_out(home: &Rc<Home>, process: &Rc<Process>, wish: Wish) -> Result<(), Problem> {
    // A process is not ended for a copy that has no room: on a full disk it would not start again either.
    let paths = home.node.dir.process(process.app.name.as_str(), process.name.as_str());
    let live = process.serving().map(|active| active.state_bytes());
    let room = process.copying(home).run(move || files::room_for_copy(&paths, live)).await;
    room.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
        .inspect_err(|problem| process.log.host(format!("not swapped out: {problem}")))?;
    keep_files(home, process, wish, 0).await?;
    let drained = drain(home, process, DrainCause::Swap, None, Tell::Crashes).await?;
    // Without a word from the sandbox a process of objects alone loses nothing: what has a commit number is in the log, and the copy is
    // made from that, after a recovery if need be. Files are in no log until they are captured: whoever asked must hear of them.
    if let Some((active, lost)) = drained.as_ref().and_then(|active| Some((active, active.lost_files()?))) {
        if active.ended_orderly() {
            settle_stopped(process, home, active).await;
        }
        if wish != Wish::Asked {
            keep::note_lost(home, process, active).await;
        }
        return Err(lost);
    }
    if let Some(active) = drained.filter(|active| active.ended_orderly()) {
        // The term that just ended is the one that the copy is named by.
        let durable = process.durable.get();
        let moving = Moving { epoch: active.epoch, born: active.born, lies: Lies::Here, durable };
        let moved =
            move_out(home, process, moving, |state, epoch| Ok((state.swap_out(epoch, None)?, ()))).await;
        if moved.is_err() {
            settle_stopped(process, home, &active).await;
        }
        return moved.map(drop);
    }
    swap_out_resting(home, process).await
}

/// Ends the term of a sandbox that is dead, with its state where it was.
async fn settle_stopped(process: &Rc<Process>, home: &Rc<Home>, active: &Rc<Active>) {
    let (bytes, commit, durable) = (active.state_bytes(), active.commit(), process.durable.get());
    process.settle(home, active, Settled::Stopped { bytes, commit, durable }).await;
}

/// Swaps out a process that no sandbox runs, if its state is here.
async fn swap_out_resting(home: &Rc<Home>, process: &Rc<Process>) -> Result<(), Problem> {
    let (app, name) = (&process.app.name, &process.name);
    let record = home.node.scheduler.get(app.clone(), name.clone()).await;
    match record.map_err(|error| refused_claim(&error))?.home {
        Place::Local => {}
        Place::Swapped { .. } => return Ok(()),
        // It was never active, or the record of that was lost in a crash.
        Place::Nowhere if process.has_state(home).await? => {}
        Place::Nowhere => return Ok(()),
    }
    move_resting(home, process, |state, epoch| Ok((state.swap_out(epoch, None)?, ()))).await.map(drop)
}

/// Moves the state of a process that no sandbox runs to the swap store, or to another place in it: it needs a term of its own for that.
/// `copy` may change something on the way. The caller has the turn.
///
/// # Errors
/// Those of `copy`, and of the scheduler; the state is where it was then.
pub(super) async fn move_resting<T: Send + 'static>(
    home: &Rc<Home>,
    process: &Rc<Process>,
    copy: impl FnOnce(&AtRest<'_>, Epoch) -> Result<(Summary, T), Problem> + Send + 'static,
) -> Result<(Summary, T), Problem> {
    let (app, name) = (&process.app.name, &process.name);
    let scheduler = &home.node.scheduler;
    let refused = |error| refused_claim(&error);
    let record = scheduler.get(app.clone(), name.clone()).await.map_err(refused)?;
    let claim = scheduler.claim(app.clone(), name.clone(), Create::Never).await.map_err(refused)?;
    let lies = match claim.origin {
        Origin::Swapped { epoch } => Lies::Swapped(epoch),
        Origin::New { .. } => Lies::Perhaps,
        Origin::Local => Lies::Here,
    };
    let durable = claim.durable.max(process.durable.get());
    let moving = Moving { epoch: claim.epoch, born: claim.born, lies, durable };
    let moved = move_out(home, process, moving, copy).await;
    if moved.is_err() {
        // Nothing was touched.
        let settled = Settled::Stopped { bytes: record.state_bytes, commit: record.commit, durable };
        let _ = scheduler.settled(app.clone(), name.clone(), claim.epoch, settled).await;
    }
    moved
}

/// State that is to be moved in a term.
struct Moving {
    epoch: Epoch,
    born: Epoch,
    lies: Lies,
    durable: u64,
}

/// Steps 2 to 5 of the table in [`files`].
async fn move_out<T: Send + 'static>(
    home: &Rc<Home>,
    process: &Rc<Process>,
    moving: Moving,
    copy: impl FnOnce(&AtRest<'_>, Epoch) -> Result<(Summary, T), Problem> + Send + 'static,
) -> Result<(Summary, T), Problem> {
    let (app, name) = (&process.app.name, &process.name);
    let paths = home.node.dir.process(app.as_str(), name.as_str());
    let Moving { epoch, born, lies, durable } = moving;
    let copied = {
        let (paths, whose) = (paths.clone(), process.whose(born));
        let work = move || copy(&AtRest { paths: &paths, whose: &whose, lies, durable }, epoch);
        process.copying(home).run(work).await
    };
    let copied = copied.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())));
    let moved = copied.inspect_err(|problem| process.log.host(format!("not swapped out: {problem}")))?;
    let Summary { commit, live_bytes: bytes } = moved.0;
    // The copy was synced.
    let settled = Settled::Swapped { bytes, commit, durable: commit };
    let told = home.node.scheduler.settled(app.clone(), name.clone(), epoch, settled).await;
    told.map_err(|error| refused_claim(&error))?;
    process.durable.set(process.durable.get().max(commit));
    process.is_swapped.set(true);
    process.copying(home).later(move || {
        files::forget_local(&paths);
        drop(files::remove_swapped(&paths, Some(epoch)));
    });
    process.log.host(format!("swapped out: epoch {epoch}, commit {commit}, {bytes} bytes"));
    Ok(moved)
}

async fn delete(home: &Rc<Home>, process: &Rc<Process>) -> Result<(), Problem> {
    let node = &home.node;
    let (app, name) = (&process.app.name, &process.name);
    drain(home, process, DrainCause::Swap, None, Tell::Always).await?;
    node.scheduler.delete(app.clone(), name.clone()).await.map_err(|error| refused_claim(&error))?;
    // From here on it does not exist; what a crash leaves of its files is discarded when a namesake is created.
    let paths = node.dir.process(app.as_str(), name.as_str());
    let _ = process.copying(home).run(move || files::delete(&paths)).await;
    process.set_stage(Stage::Deleted);
    process.app.forget(process);
    data::close_all_of(home, process);
    node.logs.forget(app.as_str(), name.as_str());
    Ok(())
}

/// Swaps a process out when it has been idle for as long as its image says.
pub(super) fn watch_idle(home: &Rc<Home>, process: &Rc<Process>, active: &Rc<Active>) {
    let idle = home.node.config.idle_override.unwrap_or(active.image.manifest.process.idle);
    let ended = active.until_gone();
    let (process, active) = (Rc::downgrade(process), Rc::downgrade(active));
    executor::spawn(swap_when_idle(Rc::clone(home), process, active, idle, ended));
}

async fn swap_when_idle(
    home: Rc<Home>,
    process: Weak<Process>,
    active: Weak<Active>,
    idle: Duration,
    mut ended: oneshot::Receiver<()>,
) {
    let mut wait = idle;
    loop {
        // Not for a moment longer than there is something to watch: this task, and what it points to, would stay for all that time.
        if executor::within(wait, &mut ended).await.is_some() {
            break;
        }
        let (Some(process), Some(active)) = (process.upgrade(), active.upgrade()) else { break };
        if active.is_ending() {
            break;
        }
        match idle_verdict(&active, idle) {
            Verdict::Busy => wait = idle,
            Verdict::Wait(rest) => wait = rest,
            Verdict::Due => {
                // What failed is in its log, and is tried again for as long as it serves.
                match swap_if_still_idle(&home, &process, &active, idle, Wish::Idle).await {
                    Ok(true) => {
                        drop(active);
                        home.release(process);
                        break;
                    }
                    Ok(false) => wait = idle,
                    Err(_) => wait = idle.max(TRY_AGAIN),
                }
            }
        }
    }
}

fn idle_verdict(active: &Active, idle: Duration) -> Verdict {
    // Only the difference counts.
    let quiet_ms = u64::try_from(active.quiet_since().elapsed().as_millis()).unwrap_or(u64::MAX);
    verdict(Activity { in_flight: active.in_flight(), quiet_since_ms: 0 }, idle, quiet_ms)
}

/// False if a call came before the process had its turn.
async fn swap_if_still_idle(
    home: &Rc<Home>,
    process: &Rc<Process>,
    active: &Rc<Active>,
    idle: Duration,
    wish: Wish,
) -> Result<bool, Problem> {
    let active = Rc::clone(active);
    let work = move |home: Rc<Home>, process: Rc<Process>| async move {
        let same = matches!(process.stage(), Stage::Active(current) if Rc::ptr_eq(&current, &active));
        if same && idle_verdict(&active, idle) == Verdict::Due && says_so(&active, wish).await {
            swap_out(&home, &process, wish).await.map(|()| true)
        } else {
            Ok(!same)
        }
    };
    process.transition(home, work).await
}

/// Asks a sandbox that runs calls without the agent whether it is as idle as it seems. One that does not answer is ended.
async fn says_so(active: &Active, wish: Wish) -> bool {
    if !active.has_callers() {
        return true;
    }
    let mut census = active.census(CENSUS_LIMIT).await;
    if wish == Wish::Room {
        // It need not have been idle for long: only not have anything to do just now.
        executor::sleep(ROOM_PAUSE).await;
        census = active.census(CENSUS_LIMIT).await;
    }
    if census.is_none() && !active.is_ending() {
        active.kill(Killing::Stuck(format!("it did not say within {CENSUS_LIMIT:?} how busy it is")));
    }
    census.is_some_and(|(census, began)| census.in_flight == 0 && !began)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_are_told_of_while_it_ends_gain_no_time_beyond_the_longest() {
        let (longest, patience) = (Duration::from_secs(10), Duration::from_secs(4));
        let (mut waited, mut waits) = (Duration::ZERO, Vec::new());
        // After each wait there is a new deadline.
        for _ in 0..10 {
            let Some(wait) = left_of(longest, waited, patience) else { break };
            waits.push(wait.as_secs());
            waited += wait;
        }
        assert_eq!(waits, [4, 4, 2]);
        assert_eq!(left_of(longest, longest + patience, patience), None, "the clock may be late");
    }

    #[test]
    fn who_has_much_to_write_has_longer_to_end() {
        const MB: u64 = 1 << 20;
        assert_eq!(writing_time(0, 1000, MB), Duration::ZERO);
        assert_eq!(writing_time(700 * MB, 0, 1024 * MB), Duration::from_secs(10));
        assert_eq!(writing_time(640 * MB, 640 * MB, 1024 * MB), Duration::from_secs(20));
        assert_eq!(writing_time(64 * MB, u64::MAX, 64 * MB), Duration::from_secs(2), "a claim gains no time");
    }
}
