//! Room on this node: how many processes may have a sandbox at once, and who gives theirs up when another needs one.
//!
//! A *seat* is taken before a process is claimed and given up when its sandbox is dead, so that there are never more sandboxes with
//! processes than seats. Whether a process may have one is the scheduler's decision (`denizen_sched::placement`); here is what the node
//! tells it of itself, and what is done about a refusal: the process that has been quiet longest is swapped out before its time.
//!
//! Memory limits are ceilings and reserve nothing: an idle process takes a small part of its own. That is why the number of seats is
//! what bounds them, and why its default follows from the node's memory.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use denizen_image::ByteSize;
use denizen_sched::idle::{self, Activity};
use denizen_sched::placement::NodeView;
use denizen_sched::{Claim, Create, Durable, SchedError};

use crate::descriptors::PER_START;
use crate::executor;
use crate::home::Home;
use crate::problem::{Kind, Problem};
use crate::process::{Process, refused_claim};

/// Memory for each seat when nobody says how many there are: some ten times what an idle process takes.
const BYTES_PER_SEAT: u64 = 8 << 20;
/// Seats by default, at least and at most.
const DEFAULT_SEATS: std::ops::RangeInclusive<u64> = 16..=16_384;
/// Processes that are swapped out for the sake of one, at most: seats that become free can be taken by others.
const MOST_EVICTIONS: usize = 8;
/// How long one may take; it goes on by itself then.
const EVICTION_LIMIT: Duration = Duration::from_secs(10);

/// The seats of a node.
#[derive(Debug)]
pub(crate) struct Seats {
    most: usize,
    taken: AtomicUsize,
}

/// Leave to have a sandbox for a process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    /// Seats that were taken before.
    before: usize,
}

impl Seats {
    /// `most`: at least 1; `None`: as many as suit this machine.
    pub(crate) fn new(most: Option<usize>) -> Arc<Seats> {
        let most = most.unwrap_or_else(default_seats).max(1);
        Arc::new(Seats { most, taken: AtomicUsize::new(0) })
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// `None` where all are taken.
    fn take(self: &Arc<Seats>) -> Option<Seat> {
        let one_more = |taken| (taken < self.most).then_some(taken + 1);
        // The count alone decides; nothing else is read or written under it.
        let before = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Seat { seats: Arc::clone(self), before })
    }

    /// What the scheduler is told, with the seat that there is.
    fn view(&self, seat: Option<&Seat>) -> NodeView {
        let before = seat.map_or(self.most, |seat| seat.before);
        NodeView {
            name: "this node".to_owned(),
            open: true,
            memory_free: ByteSize::new(u64::MAX),
            state_free: ByteSize::new(u64::MAX),
            sandboxes_free: (self.most - before) as u64,
            load_permille: u32::try_from(before * 1000 / self.most).unwrap_or(u32::MAX),
            // Wherever a single node has them, it is the nearest that has.
            has_image: true,
            has_state: true,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

fn default_seats() -> usize {
    use rustix::process::{Resource, getrlimit};
    let by_memory = memory_bytes() / BYTES_PER_SEAT;
    let by_descriptors = getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| limit / PER_START);
    let seats = by_memory.min(by_descriptors).clamp(*DEFAULT_SEATS.start(), *DEFAULT_SEATS.end());
    usize::try_from(seats).unwrap_or(usize::MAX)
}

/// The memory that this program and its sandboxes may take: the machine's, or less where a control group says so.
fn memory_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // Version 2, then version 1, each as a container sees its own group. `max` is no number.
    let group = |path: &str| read(path).trim().parse::<u64>().ok();
    let machine = total_bytes(&read("/proc/meminfo"));
    [group("/sys/fs/cgroup/memory.max"), group("/sys/fs/cgroup/memory/memory.limit_in_bytes"), machine]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(0)
}

/// `MemTotal` of `/proc/meminfo`, which counts in KiB.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Claims a process that is to run here, and makes room for it where there is none.
///
/// # Errors
/// What the scheduler says; `node-full` where every process that has a sandbox is busy.
pub(crate) async fn claim(
    home: &Rc<Home>,
    process: &Process,
    create: Create,
) -> Result<(Claim, Durable, Seat), Problem> {
    let node = &home.node;
    let mut evictions = 0;
    loop {
        let seat = node.seats.take();
        let view = node.seats.view(seat.as_ref());
        let claimed = node.scheduler.claim_on(process.app.name.clone(), process.name.clone(), create, view);
        match (claimed.await, seat) {
            (Ok((claim, durable)), Some(seat)) => return Ok((claim, durable, seat)),
            (Err(SchedError::NoRoom(_)), _) | (Ok(_), None) => {}
            (Err(error), _) => return Err(refused_claim(&error)),
        }
        if evictions == MOST_EVICTIONS || !make_room(home).await? {
            return Err(full(node.seats.most()));
        }
        evictions += 1;
    }
}

fn full(most: usize) -> Problem {
    let text =
        format!("{most} processes have a sandbox, as many as this node may have, and all of them are busy");
    Problem::new(Kind::NodeFull, text).retry_after_s(1)
}

/// Swaps out the process that has been quiet longest. False where all are busy, or it took too long.
async fn make_room(home: &Rc<Home>) -> Result<bool, Problem> {
    let look = |home: Rc<Home>| async move { processes(&home) };
    let all = home.everywhere(look).await?.into_iter().flatten();
    let Some((executor, app, process)) = idle::first_out(all) else { return Ok(false) };
    let evict = move |home: Rc<Home>| async move {
        let Some(process) = home.app(&app).ok().and_then(|app| app.known(&process)) else { return Ok(()) };
        // Should a call have come meanwhile, another is looked for.
        let made = process.make_way(&home).await;
        home.release(process);
        made
    };
    match executor::within(EVICTION_LIMIT, home.on(executor, evict)).await {
        Some(Ok(Ok(()))) => Ok(true),
        Some(Ok(Err(problem)) | Err(problem)) => Err(full(home.node.seats.most()).cause(problem)),
        None => Ok(false),
    }
}

/// Where a process lives, and its names.
type Place = (usize, String, String);

/// What the processes of this executor that have a sandbox are doing, on the clock that began with the node.
fn processes(home: &Rc<Home>) -> Vec<(Place, Activity)> {
    let place = |process: &Process| (home.index, process.app.name.to_string(), process.name.to_string());
    let all = home.apps().into_iter().flat_map(|app| app.processes());
    all.filter_map(|process| {
        let active = process.serving()?;
        let quiet_since = active.quiet_since().saturating_duration_since(home.node.started);
        let quiet_since_ms = u64::try_from(quiet_since.as_millis()).unwrap_or(u64::MAX);
        let in_flight = active.in_flight() + usize::from(process.chosen.get());
        Some((place(&process), Activity { in_flight, quiet_since_ms }))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_seats_as_there_are() {
        let seats = Seats::new(Some(2));
        let (first, second) = (seats.take().unwrap(), seats.take().unwrap());
        assert_eq!(seats.view(Some(&first)).sandboxes_free, 2);
        assert_eq!((seats.view(Some(&second)).sandboxes_free, seats.taken()), (1, 2));
        assert!(seats.take().is_none());
        assert_eq!(seats.view(None).sandboxes_free, 0);
        drop(first);
        assert_eq!(seats.taken(), 1);
        assert!(seats.take().is_some());
    }

    #[test]
    fn a_machine_has_a_sensible_number_of_seats() {
        assert_eq!(total_bytes("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total_bytes("nonsense"), None);
        let most = Seats::new(None).most() as u64;
        assert!(DEFAULT_SEATS.contains(&most), "{most}");
        assert_eq!(Seats::new(Some(0)).most(), 1);
    }
}
