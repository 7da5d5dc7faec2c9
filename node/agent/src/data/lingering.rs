//! Connections that are closed here, and perhaps not by the sandbox that had them.
//!
//! A request of a sandbox that waits in its ring holds the socket, whether or not the socket still has a place there. So a connection that
//! ended by the sandbox's word keeps its seat until the kernel says that its socket is closed: an epoll set has a file in its list until
//! nobody holds it any more, and holds none itself.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll;

use super::Seat;
use crate::executor;

/// How soon it is looked again, and how late, where none was closed meanwhile.
const SOONEST: Duration = Duration::from_millis(250);
const LATEST: Duration = Duration::from_secs(8);
/// So many more than at the last look are looked at without waiting.
const MORE: usize = 64;

/// The connections of an executor that may not be closed yet. `S` is what each keeps until it is.
#[derive(Debug)]
pub(super) struct Lingering<S = Seat> {
    set: RefCell<Option<OwnedFd>>,
    seats: RefCell<BTreeMap<u64, S>>,
    next: Cell<u64>,
    /// With so many it is looked at once.
    look_at: Cell<usize>,
    looks: Cell<bool>,
    warned: Cell<bool>,
}

impl<S> Default for Lingering<S> {
    fn default() -> Self {
        Lingering {
            set: RefCell::default(),
            seats: RefCell::default(),
            next: Cell::new(0),
            look_at: Cell::new(MORE),
            looks: Cell::new(false),
            warned: Cell::new(false),
        }
    }
}

impl<S> Lingering<S> {
    /// Closes the socket, and keeps `seat` for as long as another holds it.
    fn close(&self, socket: OwnedFd, seat: S) {
        let number = self.next.replace(self.next.get() + 1);
        match self.enlist(&socket, number) {
            Ok(()) => drop(self.seats.borrow_mut().insert(number, seat)),
            Err(error) => self.warn(&error),
        }
        drop(socket);
        if self.seats.borrow().len() >= self.look_at.get() {
            self.look();
        }
    }

    fn enlist(&self, socket: &OwnedFd, number: u64) -> io::Result<()> {
        let mut set = self.set.borrow_mut();
        let set = match &mut *set {
            Some(set) => set,
            none => none.insert(epoll::create(epoll::CreateFlags::CLOEXEC)?),
        };
        // Nobody waits for it.
        Ok(epoll::add(set, socket, epoll::EventData::new_u64(number), epoll::EventFlags::empty())?)
    }

    /// Lets the seats of those go that are closed. False where there was none.
    fn look(&self) -> bool {
        let held = match self.held() {
            Ok(held) => held,
            Err(error) => {
                self.warn(&error);
                return false;
            }
        };
        let mut seats = self.seats.borrow_mut();
        let before = seats.len();
        let gone: Vec<S> =
            seats.extract_if(.., |number, _| !held.contains(number)).map(|(_, seat)| seat).collect();
        self.look_at.set(MORE.max(2 * seats.len()));
        let fewer = seats.len() < before;
        drop(seats);
        drop(gone);
        fewer
    }

    /// The numbers of those that somebody holds.
    fn held(&self) -> io::Result<BTreeSet<u64>> {
        let set = self.set.borrow();
        let Some(set) = &*set else { return Ok(BTreeSet::new()) };
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", set.as_raw_fd()))?;
        Ok(text.lines().filter_map(number_in).collect())
    }

    fn warn(&self, error: &io::Error) {
        if !self.warned.replace(true) {
            tracing::warn!("it cannot be told whether connections are closed that sandboxes had: {error}");
        }
    }

    fn is_empty(&self) -> bool {
        self.seats.borrow().is_empty()
    }
}

/// The number in a line of an epoll set's list: `tfd: 7 events: 19 data: 1f pos:0 ino:2c sdev:9`.
fn number_in(line: &str) -> Option<u64> {
    let (_, data) = line.strip_prefix("tfd:")?.split_once("data:")?;
    u64::from_str_radix(data.split_whitespace().next()?, 16).ok()
}

/// Closes a connection that a sandbox had.
pub(super) fn close(socket: OwnedFd, seat: Seat) {
    let home = Rc::clone(seat.home());
    let lingering = &home.callers.lingering;
    lingering.close(socket, seat);
    if lingering.is_empty() || lingering.looks.replace(true) {
        return;
    }
    let home = Rc::clone(&home);
    executor::spawn(async move {
        let (lingering, mut wait) = (&home.callers.lingering, SOONEST);
        while !lingering.is_empty() {
            executor::sleep(wait).await;
            wait = if lingering.look() { SOONEST } else { LATEST.min(2 * wait) };
        }
        lingering.looks.set(false);
    });
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, theirs)
    }

    #[test]
    fn a_connection_keeps_its_seat_until_nobody_holds_the_socket() {
        let (lingering, seat) = (Lingering::default(), Rc::new(()));
        let (ours, mut theirs) = pair();
        let hoarded = ours.try_clone().unwrap();
        lingering.close(ours.into(), Rc::clone(&seat));
        assert!(!lingering.look());
        assert_eq!(Rc::strong_count(&seat), 2, "another holds it");
        theirs.set_nonblocking(true).unwrap();
        assert_eq!(
            theirs.read(&mut [0; 1]).unwrap_err().kind(),
            ErrorKind::WouldBlock,
            "it is not ended yet"
        );
        drop(hoarded);
        assert!(lingering.look());
        assert_eq!(Rc::strong_count(&seat), 1);
        assert!(lingering.is_empty());
    }

    #[test]
    fn what_is_closed_at_once_does_not_pile_up() {
        let (lingering, seat) = (Lingering::default(), Rc::new(()));
        for _ in 0..4 * MORE {
            let (ours, _theirs) = pair();
            lingering.close(ours.into(), Rc::clone(&seat));
            assert!(Rc::strong_count(&seat) <= MORE);
        }
    }

    #[test]
    fn a_number_is_read_from_the_list_of_a_set() {
        let line = "tfd:       11 events:       18 data:               2a  pos:0 ino:1f sdev:8";
        assert_eq!(number_in(line), Some(42));
        assert_eq!(number_in("pos:\t0"), None);
    }
}
