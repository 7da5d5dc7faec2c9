//! Bound connections at rest. One poll descriptor per executor watches all of them; the first byte of one has its process started,
//! if need be, and the connection given to it.
//!
//! Also here: when connections end by themselves. One timer per executor waits for the first of all its bound connections, wherever they
//! are, whose token expires, and for the first of those at rest that were begun to be told something and are owed the rest of the frame. A
//! sandbox is not needed for that, and none is kept awake.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use denizen_protocol::token::Refusal;
use denizen_protocol::{DrainReason, Problem as Framed};

use super::bound::{Bound, Ends};
use super::{given, keys};
use crate::executor::{self, RestingSockets};
use crate::home::Home;
use crate::local::Changes;
use crate::problem::{Kind, Problem};
use crate::process::Process;

/// The longest sleep towards an end: clocks are set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);
/// How long to wait where the poll descriptor fails, which it has no reason to.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// The bound connections of an executor that are at rest.
#[derive(Debug, Default)]
pub(crate) struct ParkedTable {
    resting: RefCell<HashMap<u64, Resting>>,
    sockets: OnceCell<RestingSockets>,
    /// When a client is to be told that its token expires, or if it was, when it does: since 1970, and of which connection.
    expiries: RefCell<BTreeMap<(Duration, u64), Expiry>>,
    /// Until when the rest of a frame may be missing, and on which connection at rest.
    stalls: RefCell<BTreeSet<(Instant, u64)>>,
    /// Somebody waits for the first of both.
    awaited: Cell<bool>,
    /// One came that is before all others.
    sooner: Cell<bool>,
    changes: Changes,
}

#[derive(Debug)]
struct Resting {
    bound: Bound,
    stalls: Option<Instant>,
}

#[derive(Debug)]
struct Expiry {
    process: Weak<Process>,
    ends: Ends,
}

impl ParkedTable {
    /// A connection ends when its token expires, whoever has it then.
    pub(super) fn expires(&self, home: &Rc<Home>, ends: Ends, number: u64, process: &Rc<Process>) {
        let expiry = Expiry { process: Rc::downgrade(process), ends };
        let mut expiries = self.expiries.borrow_mut();
        expiries.insert((ends.told_at(), number), expiry);
        let is_first = expiries.keys().next().is_some_and(|(_, first)| *first == number);
        drop(expiries);
        self.await_ends(home, is_first);
    }

    pub(super) fn expires_no_more(&self, ends: Ends, number: u64) {
        let mut expiries = self.expiries.borrow_mut();
        for at in [ends.told_at(), ends.expires_at()] {
            expiries.remove(&(at, number));
        }
    }

    fn insert(&self, bound: Bound) {
        let (number, stalls) = (bound.number(), bound.stalls());
        let home = Rc::clone(bound.home());
        self.resting.borrow_mut().insert(number, Resting { bound, stalls });
        if let Some(at) = stalls {
            let mut all = self.stalls.borrow_mut();
            all.insert((at, number));
            let is_first = all.first() == Some(&(at, number));
            drop(all);
            self.await_ends(&home, is_first);
        }
    }

    /// Somebody waits for the next end from now on. `is_first`: another than before.
    fn await_ends(&self, home: &Rc<Home>, is_first: bool) {
        if !self.awaited.replace(true) {
            executor::spawn(end_in_time(Rc::clone(home)));
        } else if is_first {
            self.sooner.set(true);
            self.changes.announce();
        }
    }

    /// How long until something is to end; `None` where nothing is.
    fn next_end(&self) -> Option<Duration> {
        let expiry = self.expiries.borrow().keys().next().map(|(at, _)| keys::until_time(*at));
        let stall = self.stalls.borrow().first().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        expiry.into_iter().chain(stall).min()
    }

    fn next_stalled(&self) -> Option<u64> {
        let mut stalls = self.stalls.borrow_mut();
        let is_due = stalls.first().is_some_and(|(at, _)| *at <= Instant::now());
        if is_due { stalls.pop_first().map(|(_, number)| number) } else { None }
    }

    fn next_expired(&self) -> Option<(Duration, u64, Expiry)> {
        let mut expiries = self.expiries.borrow_mut();
        let first = expiries.first_entry().filter(|first| keys::until_time(first.key().0).is_zero())?;
        let ((at, number), expiry) = first.remove_entry();
        Some((at, number, expiry))
    }

    /// Takes a connection out.
    fn take(&self, number: u64) -> Option<Bound> {
        let Resting { bound, stalls } = self.resting.borrow_mut().remove(&number)?;
        if let Some(at) = stalls {
            self.stalls.borrow_mut().remove(&(at, number));
        }
        if let Some(sockets) = self.sockets.get() {
            sockets.remove(&bound);
        }
        Some(bound)
    }

    /// Takes all out, or all of one process.
    pub(super) fn take_all(&self, of: Option<&Rc<Process>>) -> Vec<Bound> {
        let wanted = |one: &&Resting| of.is_none_or(|process| Rc::ptr_eq(process, one.bound.process()));
        let numbers: Vec<u64> =
            self.resting.borrow().values().filter(wanted).map(|one| one.bound.number()).collect();
        numbers.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// The poll descriptor, made when it is first needed.
    fn sockets(&self, home: &Rc<Home>) -> std::io::Result<&RestingSockets> {
        if self.sockets.get().is_none() {
            let _ = self.sockets.set(RestingSockets::new()?);
            executor::spawn(watch(Rc::clone(home)));
        }
        self.sockets.get().ok_or_else(|| std::io::ErrorKind::Other.into())
    }
}

/// Puts a connection to rest, and wakes it when its client says something.
pub(crate) fn park(bound: Bound) {
    let home = Rc::clone(bound.home());
    if home.node.is_stopping() {
        return bound.dismiss(DrainReason::Shutdown, None);
    }
    if bound.process().is_deleted() {
        return bound.dismiss(DrainReason::Policy, Some(&deleted()));
    }
    if bound.is_to_end() {
        return end_by_token(bound);
    }
    if bound.is_owed_an_answer() {
        return given::knock(bound);
    }
    let table = &home.callers.parked;
    let watched = table.sockets(&home).and_then(|sockets| sockets.add(&bound, bound.number()));
    match watched {
        Ok(()) => table.insert(bound),
        Err(error) => {
            let problem = Problem::new(Kind::Overloaded, "the connection cannot be kept").cause(error);
            bound.dismiss(DrainReason::Policy, Some(&problem.framed()));
        }
    }
}

/// Closes the connections of a process that is gone for good.
pub(crate) fn close_all_of(home: &Rc<Home>, process: &Rc<Process>) {
    for bound in home.callers.parked.take_all(Some(process)) {
        bound.dismiss(DrainReason::Policy, Some(&deleted()));
    }
}

fn deleted() -> Framed {
    Problem::new(Kind::UnknownProcess, "the process was deleted").framed()
}

/// Sees to whoever says something, for as long as the executor runs.
async fn watch(home: Rc<Home>) {
    let table = &home.callers.parked;
    while let Some(sockets) = table.sockets.get() {
        match sockets.woken().await {
            Ok(numbers) => numbers.into_iter().filter_map(|number| table.take(number)).for_each(wake),
            Err(error) => {
                tracing::error!("connections at rest cannot be watched: {error}");
                executor::sleep(POLL_PAUSE).await;
            }
        }
    }
}

fn wake(bound: Bound) {
    match bound.peek() {
        Some(true) => given::knock(bound),
        // Its client is gone; nothing was in flight.
        Some(false) => drop(bound),
        None => park(bound),
    }
}

/// Ends connections when it is time to, until there are none.
async fn end_in_time(home: Rc<Home>) {
    let table = &home.callers.parked;
    while let Some(left) = table.next_end() {
        if !left.is_zero() {
            table.sooner.set(false);
            let sooner = table.changes.until(|| table.sooner.get().then_some(()));
            executor::within(left.min(LONGEST_SLEEP), sooner).await;
            continue;
        }
        while let Some(bound) = table.next_stalled().and_then(|number| table.take(number)) {
            bound.reset();
        }
        while let Some((at, number, expiry)) = table.next_expired() {
            expire(table, at, number, expiry);
        }
    }
    table.awaited.set(false);
}

/// The token of a connection expires soon, or has expired.
fn expire(table: &ParkedTable, at: Duration, number: u64, expiry: Expiry) {
    if let Some(bound) = table.take(number) {
        return end_by_token(bound);
    }
    let Some(process) = expiry.process.upgrade() else { return };
    let ends = expiry.ends;
    if at >= ends.expires_at() {
        // Its sandbox meets the end of the stream. One that waits for a sandbox is looked at before it gets it.
        return process.shut(number);
    }
    let left_ms = keys::until_time(ends.expires_at()).as_millis();
    process.caller_expires(number, u32::try_from(left_ms).unwrap_or(u32::MAX).max(1));
    table.expiries.borrow_mut().insert((ends.expires_at(), number), expiry);
}

/// Nothing is in flight: there is nothing to wait for.
fn end_by_token(bound: Bound) {
    let expired = bound.has_expired().then(|| Framed::from(&Refusal::Expired { since_s: 0 }));
    bound.dismiss(DrainReason::TokenExpires, expired.as_ref());
}
