//! Bound connections at rest. One poll descriptor per executor watches all of them; the first byte of one has its process started,
//! if need be, and the connection given to it.
//!
//! Also here: when tokens expire. One timer per executor waits for the first of all bound connections, wherever they are.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};
use std::time::Duration;

use denizen_protocol::token::Refusal;
use denizen_protocol::{DrainReason, Problem as Framed};

use super::bound::Bound;
use super::{given, keys};
use crate::executor::{self, RestingSockets};
use crate::home::Home;
use crate::local::Changes;
use crate::problem::{Kind, Problem};
use crate::process::Process;

/// The longest sleep towards an expiry: clocks are set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);
/// How long to wait where the poll descriptor fails, which it has no reason to.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// The bound connections of an executor that are at rest.
#[derive(Debug, Default)]
pub(crate) struct ParkedTable {
    resting: RefCell<HashMap<u64, Bound>>,
    sockets: OnceCell<RestingSockets>,
    expiries: RefCell<BTreeMap<(u64, u64), Weak<Process>>>,
    /// Somebody waits for the first of them; until when it sleeps.
    expiry_awaited: Cell<Option<u64>>,
    sooner: Changes,
}

impl ParkedTable {
    /// A connection ends when its token expires, whoever has it then.
    pub(super) fn expires(&self, home: &Rc<Home>, expires_s: u64, number: u64, process: &Rc<Process>) {
        self.expiries.borrow_mut().insert((expires_s, number), Rc::downgrade(process));
        match self.expiry_awaited.get() {
            None => {
                self.expiry_awaited.set(Some(expires_s));
                executor::spawn(end_expired(Rc::clone(home)));
            }
            Some(until) if expires_s < until => {
                self.expiry_awaited.set(Some(expires_s));
                self.sooner.announce();
            }
            Some(_) => {}
        }
    }

    pub(super) fn expires_no_more(&self, expires_s: u64, number: u64) {
        self.expiries.borrow_mut().remove(&(expires_s, number));
    }

    /// Takes a connection out.
    fn take(&self, number: u64) -> Option<Bound> {
        let bound = self.resting.borrow_mut().remove(&number)?;
        if let Some(sockets) = self.sockets.get() {
            sockets.remove(&bound);
        }
        Some(bound)
    }

    /// Takes all out, or all of one process.
    pub(super) fn take_all(&self, of: Option<&Rc<Process>>) -> Vec<Bound> {
        let wanted = |bound: &Bound| of.is_none_or(|process| Rc::ptr_eq(process, bound.process()));
        let numbers: Vec<u64> =
            self.resting.borrow().values().filter(|bound| wanted(bound)).map(Bound::number).collect();
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
    if keys::until(bound.expires_s()).is_zero() {
        return bound.dismiss(DrainReason::TokenExpires, Some(&expired()));
    }
    if bound.is_owed_an_answer() {
        return given::knock(bound);
    }
    let table = &home.callers.parked;
    let watched = table.sockets(&home).and_then(|sockets| sockets.add(&bound, bound.number()));
    match watched {
        Ok(()) => drop(table.resting.borrow_mut().insert(bound.number(), bound)),
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

fn expired() -> Framed {
    Framed::from(&Refusal::Expired { since_s: 0 })
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

/// Ends connections as their tokens expire, until there are none.
async fn end_expired(home: Rc<Home>) {
    let table = &home.callers.parked;
    loop {
        let first = table.expiries.borrow().keys().next().copied();
        let Some((expires_s, number)) = first else { break };
        table.expiry_awaited.set(Some(expires_s));
        let left = keys::until(expires_s);
        if !left.is_zero() {
            let sooner = table
                .sooner
                .until(|| (table.expiry_awaited.get().is_some_and(|until| until < expires_s)).then_some(()));
            executor::within(left.min(LONGEST_SLEEP), sooner).await;
            continue;
        }
        let process = table.expiries.borrow_mut().remove(&(expires_s, number)).and_then(|one| one.upgrade());
        match table.take(number) {
            Some(bound) => bound.dismiss(DrainReason::TokenExpires, Some(&expired())),
            // Its sandbox meets the end of the stream. One that waits for a sandbox is looked at before it gets it.
            None => drop(process.map(|process| process.shut(number))),
        }
    }
    table.expiry_awaited.set(None);
}
