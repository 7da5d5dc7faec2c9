//! Connections on their way to a sandbox, and back.
//!
//! A connection whose client says something *knocks*: its process is started if it has no sandbox, and the connection is installed in the
//! sandbox's ring, on a side thread, because the kernel takes the ring's lock for that. Then the sandbox is told, and asked something:
//! one that does not answer is stopped or stuck, and is ended, because the client would wait for ever.
//!
//! Where the process has no sandbox that takes the connection, it is relayed until it rests again: where the start fails, so
//! that each call gets the reason; where the image wants no ring; where all places of the ring are taken.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use denizen_protocol::DrainReason;
use denizen_ring::maker::{self, RingError};
use denizen_sched::Create;
use denizen_wire::CallerEnd;

use super::bound::Bound;
use super::{greeting, parked};
use crate::executor;
use crate::home::Home;
use crate::problem::Problem;
use crate::process::{Active, Direct, DirectEnded, Killing, Left, Process};
use crate::side::NoAnswer;

/// How long a ring may take to accept connections.
const RING_LIMIT: Duration = Duration::from_secs(2);
/// How long a sandbox that was given a connection may take to say that it goes on. It has threads of its own for that.
const HEARD_LIMIT: Duration = Duration::from_secs(5);
/// Connections that are installed at once.
const AT_ONCE: usize = 64;

/// A connection is wanted by its client: has its process serve it.
pub(super) fn knock(bound: Bound) {
    let process = Rc::clone(bound.process());
    let home = Rc::clone(bound.home());
    process.bound.knock(bound);
    if !process.bound.answering.replace(true) {
        executor::spawn(answer(home, process));
    }
}

/// Sees to all connections of a process that knock.
async fn answer(home: Rc<Home>, process: Rc<Process>) {
    // Whatever ends this, the next connection that knocks is heard.
    let _answering = Answering(Rc::clone(&process));
    loop {
        let batch = process.bound.take(AT_ONCE);
        if batch.is_empty() {
            break;
        }
        // The process was there when the connection was accepted: a call on it creates none.
        match process.active(&home, Create::Never).await {
            Ok(active) => give(&home, &active, batch).await,
            Err(problem) => batch.into_iter().for_each(|bound| relay(bound, Some(problem.clone()))),
        }
    }
}

struct Answering(Rc<Process>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.bound.answering.set(false);
    }
}

/// Has a connection served frame by frame until it rests again. `problem`: why no sandbox can have it.
fn relay(bound: Bound, problem: Option<Problem>) {
    if bound.home().node.is_stopping() {
        return bound.dismiss(DrainReason::Shutdown, None);
    }
    executor::spawn(greeting::relay(bound, problem));
}

/// A connection on its way into a ring.
struct Moving {
    bound: Bound,
    slot: u32,
}

/// Gives connections to a sandbox.
async fn give(home: &Rc<Home>, active: &Rc<Active>, batch: Vec<Bound>) {
    let ring = active.direct.as_ref().and_then(|direct| Some((direct, direct.ring()?)));
    let Some((direct, ring)) = ring else {
        return if active.direct.is_some() { batch.into_iter().for_each(knock) } else { relay_all(batch) };
    };
    let (moving, sockets) = prepare(direct, batch);
    if moving.is_empty() {
        return;
    }
    // A reply on it may promise `node`, and leaves without the agent. Where that cannot be, the sandbox is ended.
    let _ = active.lasting.wait().await;
    let enable = direct.to_be_enabled();
    let slots: Vec<u32> = moving.iter().map(|one| one.slot).collect();
    let installing =
        rings_of(home, active).run_within(RING_LIMIT, move || install(&ring, enable, &slots, sockets));
    match installing.await {
        // Asked to end meanwhile, or dead: it is told of nothing any more, and whoever comes next has them.
        _ if active.is_draining() || active.is_ending() => again(moving),
        Some(Ok(Ok(()))) => tell(active, direct, moving),
        Some(Ok(Err(error))) => {
            active.kill(Killing::Stuck(format!("its ring refused a connection: {error}")));
            again(moving);
        }
        None | Some(Err(NoAnswer)) => {
            active.kill(Killing::Stuck(format!("its ring took no connection within {RING_LIMIT:?}")));
            again(moving);
        }
    }
}

/// Finds a place for each, and duplicates the sockets for the thread that installs them.
fn prepare(direct: &Direct, batch: Vec<Bound>) -> (Vec<Moving>, Vec<OwnedFd>) {
    let mut ready = (Vec::new(), Vec::new());
    for bound in batch {
        if bound.is_to_end() {
            parked::park(bound);
        } else if !bound.is_untouched() {
            bound.reset();
        } else if let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(bound.socket(), 0)
            && let Some(slot) = direct.take_slot()
        {
            ready.0.push(Moving { bound, slot });
            ready.1.push(socket);
        } else {
            relay(bound, None);
        }
    }
    ready
}

fn install(ring: &OwnedFd, enable: bool, slots: &[u32], sockets: Vec<OwnedFd>) -> Result<(), RingError> {
    if enable {
        maker::enable(ring.as_fd())?;
    }
    slots
        .iter()
        .zip(&sockets)
        .try_for_each(|(slot, socket)| maker::install(ring.as_fd(), *slot, socket.as_fd()))
}

/// Tells a sandbox of connections that are in its ring, and waits, aside, until it has heard.
fn tell(active: &Rc<Active>, direct: &Direct, moving: Vec<Moving>) {
    for Moving { bound, slot } in moving {
        let (header, payload) = direct.add(bound, slot);
        active.link.send(&header, &payload, &[]);
    }
    active.quiet_if_idle();
    let question = active.ask_census();
    let active = Rc::clone(active);
    executor::spawn(async move {
        let Some(direct) = &active.direct else { return };
        let heard = direct.answer(question, HEARD_LIMIT).await.is_some();
        if !heard && !active.is_draining() && !active.is_ending() {
            active.kill(Killing::Stuck(format!("it took no notice of a connection for {HEARD_LIMIT:?}")));
        }
    });
}

fn again(moving: Vec<Moving>) {
    moving.into_iter().for_each(|one| knock(one.bound));
}

fn relay_all(batch: Vec<Bound>) {
    batch.into_iter().for_each(|bound| relay(bound, None));
}

fn rings_of<'h>(home: &'h Home, active: &Active) -> &'h crate::side::SideThread {
    home.node.rings.of(active.life.pid())
}

/// A connection has ended in its sandbox, which says how.
pub(crate) fn done(active: &Rc<Active>, ended: DirectEnded) {
    let DirectEnded { bound, slot, end } = ended;
    let close = move |bound: Bound| match end {
        CallerEnd::Closed | CallerEnd::Violation => bound.part(),
        CallerEnd::Broken | CallerEnd::Stalled | CallerEnd::Unsent => bound.break_off(),
    };
    // Without a ring the sandbox is dead.
    let Some(ring) = active.direct.as_ref().and_then(Direct::ring) else { return close(bound) };
    let rings = rings_of(bound.home(), active).clone();
    let active = Rc::clone(active);
    executor::spawn(async move {
        // First this: its client is to learn it now, and not when the ring goes.
        let removing = rings.run_within(RING_LIMIT, move || maker::remove(ring.as_fd(), slot));
        match (removing.await, &active.direct) {
            (Some(Ok(Ok(()))), Some(direct)) => {
                direct.free_slot(slot);
                close(bound);
            }
            // It is closed with the ring.
            _ => active.kill(Killing::Stuck("its ring did not let go of a connection".to_owned())),
        }
    });
}

/// A sandbox is dead, or, not `confirmed`, was at least killed: what became of the connections that it had.
pub(crate) fn left(left: Vec<Left>, confirmed: bool) {
    for one in left {
        match one {
            Left::Parked(bound) => parked::park(bound),
            Left::Lost(bound) if confirmed => bound.reset(),
            Left::Lost(bound) => bound.break_off(),
        }
    }
}
