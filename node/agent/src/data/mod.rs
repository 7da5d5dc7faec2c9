//! The data port: connections of the framed protocol (`docs/protocol.md`), given to the sandbox of the process that they are bound to, or
//! relayed frame by frame.
//!
//! | module | owns |
//! |---|---|
//! | `keys` | the keys in `DIR/keys`, and which of them are believed at the moment |
//! | `greeting` | a connection from its beginning to the OK: who may speak, and to whom |
//! | `bound` | a connection to one process behind its OK, while no task serves it |
//! | `parked` | those of them that are at rest, and the ends of tokens |
//! | `given` | those on their way to a sandbox, and back |
//! | `lingering` | those that ended in a sandbox, until the kernel says that their sockets are closed |
//! | `connection` | a connection that is relayed: its bytes, its clock, its end |
//! | `call` | one call on it |
//! | `body` | the input of a call on its way out of the frames |
//!
//! What must hold: nothing is started for who has not shown a token; a connection is served on the executor of the process that it is
//! bound to; one that says nothing costs no processor time; whatever callers send, or do not read, the memory for it is bounded per
//! connection and per application, and others are served meanwhile. What a call is, and how it finds its process, is in
//! [`crate::calls`], for HTTP and frames alike.

mod body;
mod bound;
mod call;
mod connection;
mod given;
mod greeting;
pub(crate) mod keys;
mod lingering;
mod parked;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use denizen_protocol::{Drain, DrainReason};

use crate::executor::{self, Closer, Listener, Pace};
use crate::home::{App, Home};
use crate::problem::{Kind, Problem};
use connection::Caller;

pub(crate) use body::FramedBody;
pub(crate) use bound::{Bound, OfProcess};
pub(crate) use connection::STALL;
pub(crate) use given::{done, left};
pub(crate) use parked::close_all_of;

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that are accepted in a row before others get a turn.
const ACCEPTS_IN_A_ROW: u32 = 64;
/// Handshakes in progress on an executor. The oldest makes way for another: who means it sends its HELLO at once.
const GREETINGS: usize = 256;
/// Connections of an executor.
const MOST_CONNECTIONS: u64 = 16_384;
/// Connections of all executors take at most one in so many of the descriptors that this program may have.
const DESCRIPTORS_PER_CONNECTION: u64 = 4;
/// The most that inputs of one application's calls may take on an executor, in bytes, as they were reserved.
const KEPT_BYTES: usize = 64 << 20;

/// The connections of an executor.
#[derive(Debug)]
pub(crate) struct Callers {
    most: usize,
    open: Arc<AtomicUsize>,
    /// By age.
    greetings: RefCell<BTreeMap<u64, Closer>>,
    served: RefCell<BTreeMap<u64, Weak<Caller>>>,
    /// Bound ones that say nothing.
    parked: parked::ParkedTable,
    /// Closed ones that a sandbox may still hold.
    lingering: lingering::Lingering,
    next: Cell<u64>,
}

/// What the connections of one application take on an executor.
#[derive(Debug, Default)]
pub(crate) struct Share {
    connections: Cell<usize>,
    kept: Cell<usize>,
}

impl Callers {
    /// For one of `executors` executors.
    pub(crate) fn new(executors: usize) -> Callers {
        use rustix::process::{Resource, getrlimit};
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Callers {
            most: share(descriptors, executors),
            open: Arc::default(),
            greetings: RefCell::default(),
            served: RefCell::default(),
            parked: parked::ParkedTable::default(),
            lingering: lingering::Lingering::default(),
            // 0 is no connection's number.
            next: Cell::new(1),
        }
    }

    /// Tells every caller that the node stops. Calls that run go on.
    pub(crate) fn drain(&self, within: Duration) {
        let within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        let notice = Drain { within_ms, ..Drain::new(DrainReason::Shutdown) };
        let served: Vec<_> = self.served.borrow().values().filter_map(Weak::upgrade).collect();
        for caller in served {
            caller.drain(&notice);
        }
        // Those that a sandbox has come back when it has ended.
        for bound in self.parked.take_all(None) {
            bound.dismiss(DrainReason::Shutdown, None);
        }
    }

    fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.most
    }

    /// As [`is_full`](Self::is_full), for one that is counted already: others come from other executors, too.
    fn has_too_many(&self) -> bool {
        self.open.load(Ordering::Relaxed) > self.most
    }

    fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }
}

fn share(descriptors: u64, executors: usize) -> usize {
    let share = descriptors / DESCRIPTORS_PER_CONNECTION / (executors as u64).max(1);
    usize::try_from(share.clamp(2, MOST_CONNECTIONS)).unwrap_or(2)
}

/// Accepts connections for as long as the executor runs.
pub(crate) async fn accept(home: Rc<Home>, listener: Listener) {
    let mut pace = Pace::new(ACCEPTS_IN_A_ROW);
    loop {
        if home.callers.is_full() {
            // Those that wait are told, as many as there are pauses; the others wait in the kernel.
            let _ = listener.turn_away(&greeting::refusal(&full()));
            executor::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        match pace.wait(listener.accept()).await {
            Ok(stream) => {
                let (open, place) = (Open::new(&home), Greeting::new(&home, stream.closer()));
                executor::spawn(greeting::greet(Rc::clone(&home), stream, open, place));
                pace.step().await;
            }
            Err(error) => {
                tracing::warn!("no connection can be accepted on the data port: {error}");
                executor::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn full() -> Problem {
    Problem::new(Kind::Overloaded, "as many connections are open as may be").retry_after_s(1)
}

/// A handshake in progress.
struct Greeting {
    home: Rc<Home>,
    number: u64,
}

impl Greeting {
    fn new(home: &Rc<Home>, closer: Closer) -> Greeting {
        let number = home.callers.number();
        let mut greetings = home.callers.greetings.borrow_mut();
        if greetings.len() >= GREETINGS
            && let Some((_, oldest)) = greetings.pop_first()
        {
            oldest.close();
        }
        greetings.insert(number, closer);
        drop(greetings);
        Greeting { home: Rc::clone(home), number }
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.home.callers.greetings.borrow_mut().remove(&self.number);
    }
}

/// Counts a connection of an executor, from its accept to its close. It may be dropped on another one, to which the connection moved.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(home: &Rc<Home>) -> Open {
        Open::of(&home.callers.open)
    }

    fn of(count: &Arc<AtomicUsize>) -> Open {
        count.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's place among those of its executor and of its application.
struct Seat {
    home: Rc<Home>,
    app: Rc<App>,
    _open: Rc<Open>,
}

impl Seat {
    /// # Errors
    /// `overloaded`: an application may have half of the connections of an executor.
    fn take(home: &Rc<Home>, app: &Rc<App>, open: &Rc<Open>) -> Result<Seat, Problem> {
        let count = app.callers.connections.get();
        if count >= home.callers.most / 2 || home.callers.has_too_many() {
            return Err(full());
        }
        app.callers.connections.set(count + 1);
        Ok(Seat { home: Rc::clone(home), app: Rc::clone(app), _open: Rc::clone(open) })
    }

    fn home(&self) -> &Rc<Home> {
        &self.home
    }
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its executor has it in a list.
        f.debug_struct("Seat").field("app", &self.app.name).finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let connections = &self.app.callers.connections;
        connections.set(connections.get() - 1);
    }
}

/// A connection on the list of those that are told when the node stops.
struct Listed {
    home: Rc<Home>,
    number: u64,
}

impl Listed {
    fn new(home: &Rc<Home>, caller: &Rc<Caller>) -> Listed {
        let number = home.callers.number();
        home.callers.served.borrow_mut().insert(number, Rc::downgrade(caller));
        Listed { home: Rc::clone(home), number }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.home.callers.served.borrow_mut().remove(&self.number);
    }
}

/// Memory that a call may take, out of its application's share.
struct Kept {
    share: Rc<Share>,
    bytes: usize,
}

impl Kept {
    /// # Errors
    /// `overloaded`.
    fn reserve(share: &Rc<Share>, bytes: usize) -> Result<Kept, Problem> {
        let kept = share.kept.get().saturating_add(bytes);
        if kept > KEPT_BYTES {
            let text = "the inputs of this application's calls take as much memory as they may";
            return Err(Problem::new(Kind::Overloaded, text).retry_after_s(1));
        }
        share.kept.set(kept);
        Ok(Kept { share: Rc::clone(share), bytes })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let kept = &self.share.kept;
        kept.set(kept.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_processes() {
        assert_eq!(share(1024, 2), 128);
        assert_eq!(share(1 << 20, 1), 16_384);
        assert_eq!(share(0, 4), 2);
    }

    #[test]
    fn a_connection_counts_where_it_was_accepted_until_its_new_executor_counts_it() {
        let (here, there) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let counts = || (here.load(Ordering::Relaxed), there.load(Ordering::Relaxed));
        let came = Open::of(&here);
        assert_eq!(counts(), (1, 0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let stays = Open::of(&there);
                assert_eq!(counts(), (1, 1));
                drop(came);
                assert_eq!(counts(), (0, 1));
                drop(stays);
            });
        });
        assert_eq!(counts(), (0, 0));
    }

    #[test]
    fn an_application_keeps_no_more_than_its_share_and_gets_it_back() {
        let share = Rc::<Share>::default();
        let half = KEPT_BYTES / 2;
        let one = Kept::reserve(&share, half).unwrap();
        let _other = Kept::reserve(&share, half).unwrap();
        let refused = Kept::reserve(&share, 1).err().expect("there is no more");
        assert_eq!(refused.kind(), Kind::Overloaded);
        assert!(Kept::reserve(&share, usize::MAX).is_err());
        drop(one);
        assert!(Kept::reserve(&share, half).is_ok());
    }
}
