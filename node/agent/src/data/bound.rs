//! A connection that is bound to one process, from its OK to its end, while no task serves it: at rest in the agent, or given to a
//! sandbox.
//!
//! At rest it is a socket, a record and a residue: bytes that were taken off the socket and come before those on it. What must hold,
//! wherever it is: record and residue say where the stream stands after exactly the bytes that [`Bound::begun`] counted. So whatever was
//! read behind the agent's back is noticed, and then the connection is reset, because nobody knows where its stream stands.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use denizen_protocol::server::{Connection, Parked};
use denizen_protocol::{Drain, DrainReason, Problem as Framed};
use denizen_wire::{AtRest, MAX_PARKED_RECORD};
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};

use super::connection::{self, STALL};
use super::{Seat, greeting, keys, lingering};
use crate::executor::{self, HttpStream, Taken};
use crate::home::Home;
use crate::process::Process;

const _: () = assert!(
    Parked::MAX_LEN <= MAX_PARKED_RECORD,
    "a record must fit into the frame that gives a connection away: raise MAX_PARKED_RECORD in denizen-wire"
);

/// See the module.
pub(crate) struct Bound {
    entry: Entry,
    seat: Seat,
    socket: OwnedFd,
    record: Box<[u8]>,
    residue: Box<[u8]>,
    begun: Taken,
    /// When bytes last went in or out.
    moved: Instant,
}

/// The same for a task that serves it.
pub(super) struct Relayed {
    pub(super) stream: HttpStream,
    pub(super) seat: Seat,
    pub(super) protocol: Connection,
    pub(super) residue: Box<[u8]>,
    pub(super) expires_s: u64,
}

/// Its entries in the lists: of the process's connections, and of those that end when their token expires.
struct Entry {
    home: Rc<Home>,
    number: u64,
    process: Rc<Process>,
    ends: Ends,
}

/// When its token expires, and when its client is told before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// Of Unix time.
    pub(super) expires_s: u64,
    pub(super) notice: Duration,
}

/// What a process knows of its connections, beside those that its sandbox has.
#[derive(Debug, Default)]
pub(crate) struct OfProcess {
    /// All of them.
    count: Cell<usize>,
    /// Those with something to say, that wait for a sandbox.
    knocking: RefCell<Vec<Bound>>,
    /// Somebody is about to see to them.
    pub(super) answering: Cell<bool>,
}

impl OfProcess {
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    pub(super) fn knock(&self, bound: Bound) {
        self.knocking.borrow_mut().push(bound);
    }

    /// At most `most` of those that wait.
    pub(super) fn take(&self, most: usize) -> Vec<Bound> {
        let mut knocking = self.knocking.borrow_mut();
        let count = knocking.len().min(most);
        let taken = knocking.drain(..count).collect();
        knocking.shrink_to(most);
        taken
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its process has it in a list.
        f.debug_struct("Bound").field("number", &self.entry.number).finish_non_exhaustive()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let count = &self.process.bound.count;
        count.set(count.get() - 1);
        self.home.callers.parked.expires_no_more(self.ends, self.number);
    }
}

impl Ends {
    /// When its client is told, since the beginning of 1970.
    pub(super) fn told_at(self) -> Duration {
        self.expires_at().saturating_sub(self.notice)
    }

    /// When it expires, since the beginning of 1970.
    pub(super) fn expires_at(self) -> Duration {
        Duration::from_secs(self.expires_s)
    }

    fn until_notice(self) -> Duration {
        keys::until_time(self.told_at())
    }
}

impl Bound {
    /// A connection whose OK was sent, or that was relayed until now.
    ///
    /// # Errors
    /// It is no TCP connection, or gone.
    pub(super) fn new(
        process: &Rc<Process>,
        seat: Seat,
        socket: OwnedFd,
        parked: &Parked,
        residue: Vec<u8>,
        expires_s: u64,
    ) -> std::io::Result<Bound> {
        let begun = Taken::of(socket.as_fd())?;
        let home = Rc::clone(seat.home());
        let number = home.callers.number();
        process.bound.count.set(process.bound.count.get() + 1);
        let ends = Ends { expires_s, notice: connection::notice(expires_s) };
        home.callers.parked.expires(&home, ends, number, process);
        let entry = Entry { home, number, process: Rc::clone(process), ends };
        let (record, residue) = (parked.encode().into(), residue.into());
        Ok(Bound { entry, seat, socket, record, residue, begun, moved: Instant::now() })
    }

    pub(crate) fn number(&self) -> u64 {
        self.entry.number
    }

    pub(crate) fn process(&self) -> &Rc<Process> {
        &self.entry.process
    }

    pub(crate) fn home(&self) -> &Rc<Home> {
        &self.entry.home
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether its client is to be told that its token expires.
    pub(super) fn is_to_end(&self) -> bool {
        self.entry.ends.until_notice().is_zero()
    }

    /// Whether its token has expired.
    pub(super) fn has_expired(&self) -> bool {
        keys::until(self.entry.ends.expires_s).is_zero()
    }

    /// Until when the rest of a frame may be missing, if one was begun.
    pub(super) fn stalls(&self) -> Option<Instant> {
        let parked = Parked::decode(&self.record).ok()?;
        let (mut protocol, mut input) = (Connection::resume(parked), &*self.residue);
        let _ = protocol.next(&mut input);
        protocol.is_within_frame().then(|| self.moved + STALL)
    }

    /// What was taken off the socket when record and residue were true.
    pub(crate) fn begun(&self) -> Taken {
        self.begun
    }

    pub(crate) fn at_rest(&self) -> AtRest<'_> {
        AtRest { record: &self.record, residue: &self.residue }
    }

    /// Its stream stands elsewhere now.
    pub(crate) fn stands_at(&mut self, record: Box<[u8]>, residue: Box<[u8]>, begun: Taken, moved: Instant) {
        (self.record, self.residue, self.begun, self.moved) = (record, residue, begun, moved);
    }

    /// Whether its stream still stands where its record says.
    pub(super) fn is_untouched(&self) -> bool {
        Taken::of(self.socket.as_fd()).is_ok_and(|now| now.is_more_by(self.begun, 0))
    }

    /// Whether there is something in the residue that asks for an answer, without a further byte.
    pub(super) fn is_owed_an_answer(&self) -> bool {
        if self.residue.is_empty() {
            return false;
        }
        let Ok(parked) = Parked::decode(&self.record) else { return true };
        let (mut protocol, mut input, mut out) = (Connection::resume(parked), &*self.residue, Vec::new());
        let heard = protocol.next(&mut input);
        let silent = matches!(heard, Ok(None));
        protocol.control(&mut out);
        !silent || !out.is_empty()
    }

    /// Looks without taking: `None` where there is nothing to read, `false` at the end of the stream.
    pub(super) fn peek(&self) -> Option<bool> {
        let mut byte = [0; 1];
        match rustix::net::recv(&self.socket, &mut byte, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Ok((count, _)) => Some(count > 0),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            Err(_) => Some(false),
        }
    }

    /// For a task that serves it: the socket on this executor, and what it is to go on from.
    ///
    /// # Errors
    /// Out of descriptors; or the record is not what it was.
    pub(super) fn into_relayed(self) -> std::io::Result<Relayed> {
        let Bound { entry, seat, socket, record, residue, .. } = self;
        let expires_s = entry.ends.expires_s;
        let parked = Parked::decode(&record).map_err(std::io::Error::other)?;
        let (stream, protocol) = (HttpStream::adopt(socket)?, Connection::resume(parked));
        Ok(Relayed { stream, seat, protocol, residue, expires_s })
    }

    /// Closes it in order: its client learns which calls were not executed, and why, where there is more to say than `reason`.
    pub(super) fn dismiss(self, reason: DrainReason, problem: Option<&Framed>) {
        let mut bytes = Vec::new();
        if let Ok(parked) = Parked::decode(&self.record) {
            // It was not drained before: it would have been closed.
            let _ = Connection::resume(parked).drain(&Drain::new(reason), &mut bytes);
        }
        if let Some(problem) = problem {
            let _ = problem.encode(0, &mut bytes);
        }
        // Nothing of it can be on its way: who does not take some hundred bytes takes none.
        let _ = rustix::net::send(&self.socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        self.part();
    }

    /// Closes it so that what was sent arrives.
    pub(super) fn part(self) {
        let Bound { socket, seat, .. } = self;
        let _ = rustix::net::shutdown(&socket, Shutdown::Write);
        if let Ok(mut stream) = HttpStream::adopt(socket) {
            executor::spawn(async move {
                greeting::part(&mut stream, &[]).await;
                if let Ok(socket) = stream.give_up() {
                    lingering::close(socket, seat);
                }
            });
        }
    }

    /// Its client learns that the stream broke off, once nobody else holds the socket. This is for one that a sandbox was given which may
    /// live: what it began on it may still wait, and has the socket until it is done. Were that disconnected, the sandbox would connect it
    /// to wherever it likes (`MSG_FASTOPEN`).
    pub(crate) fn break_off(self) {
        let Bound { socket, seat, .. } = self;
        let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        lingering::close(socket, seat);
    }

    /// Its client learns that the stream broke off, at once, whoever else still holds the socket. Not for one that a living sandbox was
    /// given: see [`Bound::break_off`].
    pub(crate) fn reset(self) {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        let _ = rustix::net::connect_unspec(&self.socket);
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
