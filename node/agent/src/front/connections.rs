//! The open connections of an executor. One that says nothing for long, or takes nothing of its answer, is closed, so that callers
//! who open connections and leave them, or send their headers a byte at a time, cannot use them all up. They get a part of the
//! descriptors that this program may have, so that processes can be started beside them; and where there is none left all the same, one
//! that is kept in [`Reserve`] lets callers be told.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::body::FrontBody;
use crate::executor::{self, Closer, Listener};
use crate::problem::Problem;

/// How long a connection may be without a request in progress, or take nothing of an answer.
const QUIET_LIMIT: Duration = Duration::from_secs(75);
/// Connections that one executor serves at once; further ones wait in the kernel.
const MOST_CONNECTIONS: u64 = 8192;
/// Connections of all executors take at most one in so many of the descriptors that this program may have.
const DESCRIPTORS_PER_CONNECTION: u64 = 4;
/// How often connections are looked at, while there are any.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    open: RefCell<Vec<Weak<State>>>,
    count: Cell<usize>,
    watched: Cell<bool>,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    all: Rc<Connections>,
    state: Rc<State>,
}

#[derive(Debug)]
struct State {
    closer: Closer,
    requests: Cell<u32>,
    quiet_since: Cell<Instant>,
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct Busy(Rc<State>);

/// A descriptor that is given up when there is no other, to tell a caller so.
#[derive(Debug)]
pub(super) struct Reserve(Option<File>);

impl Reserve {
    pub(super) fn new() -> Reserve {
        let mut reserve = Reserve(None);
        reserve.fill();
        reserve
    }

    /// Answers the connection that waits first with `answer` and closes it.
    pub(super) fn turn_away(&mut self, listener: &Listener, answer: &[u8]) {
        self.0 = None;
        if let Err(error) = listener.turn_away(answer) {
            tracing::debug!("a caller was not told that there are no descriptors: {error}");
        }
        self.fill();
    }

    fn fill(&mut self) {
        // Without it callers wait until there are descriptors again.
        self.0 = File::open("/dev/null").ok();
    }
}

/// The most connections of one of `executors` executors.
pub(super) fn most(executors: usize) -> usize {
    use rustix::process::{Resource, getrlimit};
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    share(descriptors, executors)
}

fn share(descriptors: u64, executors: usize) -> usize {
    let share = descriptors / DESCRIPTORS_PER_CONNECTION / (executors as u64).max(1);
    usize::try_from(share.clamp(1, MOST_CONNECTIONS)).unwrap_or(1)
}

impl Connections {
    pub(super) fn new() -> Rc<Connections> {
        Rc::new(Connections { open: RefCell::default(), count: Cell::new(0), watched: Cell::new(false) })
    }

    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    pub(super) fn add(self: &Rc<Connections>, closer: Closer) -> Connection {
        let state = Rc::new(State { closer, requests: Cell::new(0), quiet_since: Cell::new(Instant::now()) });
        self.open.borrow_mut().push(Rc::downgrade(&state));
        self.count.set(self.count.get() + 1);
        if !self.watched.replace(true) {
            executor::spawn(watch(Rc::clone(self)));
        }
        Connection { all: Rc::clone(self), state }
    }

    fn close_quiet(&self, now: Instant) {
        self.open.borrow_mut().retain(|state| {
            let Some(state) = state.upgrade() else { return false };
            let quiet_since = (state.requests.get() == 0).then(|| state.quiet_since.get());
            let since = quiet_since.or_else(|| state.closer.stuck_since());
            if since.is_some_and(|since| now.saturating_duration_since(since) > QUIET_LIMIT) {
                state.closer.close();
            }
            true
        });
    }
}

/// Closes quiet connections for as long as there are connections; an idle node does not wake for it.
async fn watch(connections: Rc<Connections>) {
    while connections.count() > 0 {
        executor::sleep(LOOK_EVERY).await;
        connections.close_quiet(Instant::now());
    }
    connections.watched.set(false);
}

impl Connection {
    /// A request begins; it ends when this is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.state.requests.set(self.state.requests.get() + 1);
        Busy(Rc::clone(&self.state))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.count.set(self.all.count.get() - 1);
    }
}

impl Busy {
    /// Goes on until `body` was sent.
    pub(super) fn until_sent(self, body: FrontBody) -> Sending {
        Sending { body, broken: None, _busy: self }
    }
}

/// The body of an answer; its request is in progress until this is dropped.
#[derive(Debug)]
pub(super) struct Sending {
    body: FrontBody,
    /// Why the body breaks off, once that is known. hyper drops what it has not written yet when a body fails, so it is told one
    /// poll later: the head of the answer, and what came before, are on their way by then.
    broken: Option<Problem>,
    _busy: Busy,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Problem;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Problem>>> {
        if let Some(problem) = self.broken.take() {
            return Poll::Ready(Some(Err(problem)));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Err(problem))) => {
                self.broken = Some(problem);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
        self.0.quiet_since.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_processes() {
        assert_eq!(share(1024, 2), 128);
        assert_eq!(share(1 << 20, 1), 8192);
        assert_eq!(share(0, 4), 1);
    }
}
