//! Connections that a sandbox was given: its ring, their places in it, and what it says about them and about the calls on them.
//!
//! Who may call, and what a connection is while no sandbox has it, is in [`crate::data`]. Here is what holds while one does. The sandbox
//! reads and writes the socket without anybody between; the agent keeps a duplicate, and believes nothing: what came off a socket is
//! counted by the kernel ([`Taken`]), what was agreed on is what the agent wrote down, and how busy a sandbox is only decides when it is
//! swapped out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_protocol::server::Parked;
use denizen_ring::maker;
use denizen_wire::{AtRest, CallerEnd, Frame, Header, Kind};

use crate::data::{Bound, STALL};
use crate::executor::{self, Taken};
use crate::local::Changes;
use crate::process::active::CALLS_LIMIT;
use crate::process::invocation::Broken;

/// Direct calls that may have overrun at once: more than may be in flight.
const OVERRUNS: usize = 2 * CALLS_LIMIT;

/// How busy a sandbox says it is with direct calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Calls that it has accepted so far.
    pub(crate) calls: u64,
    pub(crate) in_flight: u32,
}

/// What a sandbox with a ring was given.
#[derive(Debug)]
pub(crate) struct Direct {
    /// `None` once it is dead: a descriptor of the ring keeps open whatever was installed in it.
    ring: RefCell<Option<Arc<OwnedFd>>>,
    enabled: Cell<bool>,
    slots: RefCell<Slots>,
    given: RefCell<BTreeMap<u64, Given>>,
    /// The last census, and how many were asked for and answered.
    census: Cell<Census>,
    asked: Cell<u64>,
    answered: Cell<u64>,
    /// Announced with each census, and with the end.
    changes: Changes,
    /// Direct calls that run for a while, and their deadlines.
    overruns: RefCell<BTreeMap<u64, Instant>>,
}

/// A connection that the sandbox has.
#[derive(Debug)]
struct Given {
    bound: Bound,
    slot: u32,
    returned: Option<Returned>,
}

/// What the sandbox says of a connection that it is done with.
#[derive(Debug)]
struct Returned {
    record: Box<[u8]>,
    residue: Box<[u8]>,
    /// Bytes that it took off the socket.
    taken: u64,
    /// When bytes last went in or out, as it says.
    moved: Instant,
}

/// A connection that has ended in the sandbox.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) bound: Bound,
    pub(crate) slot: u32,
    pub(crate) end: CallerEnd,
}

/// What became of a connection whose sandbox is dead.
#[derive(Debug)]
pub(crate) enum Left {
    /// It goes on.
    Parked(Bound),
    /// Nobody knows where its stream stands.
    Lost(Bound),
}

/// Places in the table of a ring, beside that of the control connection.
#[derive(Debug)]
struct Slots {
    unused: std::ops::Range<u32>,
    free: Vec<u32>,
}

impl Slots {
    fn new() -> Slots {
        Slots { unused: maker::CONTROL_SLOT + 1..maker::SLOTS, free: Vec::new() }
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| self.unused.next())
    }
}

impl Direct {
    pub(crate) fn new(ring: OwnedFd) -> Direct {
        Direct {
            ring: RefCell::new(Some(Arc::new(ring))),
            enabled: Cell::new(false),
            slots: RefCell::new(Slots::new()),
            given: RefCell::default(),
            census: Cell::default(),
            asked: Cell::new(0),
            answered: Cell::new(0),
            changes: Changes::default(),
            overruns: RefCell::default(),
        }
    }

    /// The ring, while the sandbox lives.
    pub(crate) fn ring(&self) -> Option<Arc<OwnedFd>> {
        self.ring.borrow().clone()
    }

    /// Whether it is to be enabled now; it will be, and this says so once.
    pub(crate) fn to_be_enabled(&self) -> bool {
        !self.enabled.replace(true)
    }

    /// A place in the ring; `None` where all are taken.
    pub(crate) fn take_slot(&self) -> Option<u32> {
        self.slots.borrow_mut().take()
    }

    /// A place is empty again.
    pub(crate) fn free_slot(&self, slot: u32) {
        self.slots.borrow_mut().free.push(slot);
    }

    /// Connections that the sandbox has.
    pub(crate) fn connections(&self) -> usize {
        self.given.borrow().len()
    }

    /// The sandbox has a connection now. Gives the frame that tells it: its header, and its payload.
    pub(crate) fn add(&self, bound: Bound, slot: u32) -> (Header, Vec<u8>) {
        let number = bound.number();
        let mut payload = Vec::new();
        // Both are within their limits since the connection was made, or taken back.
        let _ = bound.at_rest().encode(&mut payload);
        let header = Header { a: slot, ..Header::new(Kind::Caller, number) }.with_payload(payload.len());
        self.given.borrow_mut().insert(number, Given { bound, slot, returned: None });
        (header, payload)
    }

    /// Ends a connection as its client could: the sandbox meets the end of the stream. False where it has none of this number.
    pub(crate) fn shut(&self, number: u64) -> bool {
        let given = self.given.borrow();
        let Some(given) = given.get(&number) else { return false };
        let _ = rustix::net::shutdown(given.bound.socket(), rustix::net::Shutdown::Both);
        true
    }

    /// Whether the sandbox has a connection of this number.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.given.borrow().get(&number).is_some_and(|one| one.returned.is_none())
    }

    /// Begins to ask how busy it is: gives the number of the question. The frame is the caller's to send.
    pub(crate) fn ask(&self) -> u64 {
        self.asked.set(self.asked.get() + 1);
        self.asked.get()
    }

    /// Waits for the answer to question `number`; `None` if none comes within `limit`, or the sandbox is dead.
    pub(crate) async fn answer(&self, number: u64, limit: Duration) -> Option<Census> {
        let look = || {
            if self.answered.get() >= number {
                return Some(Some(self.census.get()));
            }
            self.ring.borrow().is_none().then_some(None)
        };
        executor::within(limit, self.changes.until(look)).await.flatten()
    }

    /// What it last said, beside what is known to run.
    pub(crate) fn census(&self) -> Census {
        self.census.get()
    }

    /// Direct calls that are known to run.
    pub(crate) fn in_flight(&self) -> usize {
        self.overruns.borrow().len()
    }

    /// The latest deadline of those.
    pub(crate) fn last_deadline(&self) -> Option<Instant> {
        self.overruns.borrow().values().copied().max()
    }

    /// The calls that should have ended `grace` ago, and when to look again.
    pub(crate) fn late(&self, now: Instant, grace: Duration) -> (Vec<u64>, Option<Instant>) {
        let overruns = self.overruns.borrow();
        let due = overruns.iter().map(|(id, deadline)| (*id, *deadline + grace));
        let late = due.clone().filter(|(_, due)| now >= *due).map(|(id, _)| id).collect();
        (late, due.map(|(_, due)| due).min())
    }

    /// Whether it has had a call since the last one, or has one.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn hear_census(&self, header: &Header) -> Result<bool, Broken> {
        if self.answered.get() >= self.asked.get() {
            return Err("it told how busy it is and was not asked".to_owned());
        }
        let census = Census { calls: header.c, in_flight: header.a };
        if census.calls < self.census.get().calls {
            return Err("the number of its direct calls went back".to_owned());
        }
        let before = self.census.replace(census);
        self.answered.set(self.answered.get() + 1);
        self.changes.announce();
        Ok(census.calls > before.calls || census.in_flight > 0)
    }

    /// A direct call takes a while. `longest`: the longest that any of the image's may. Gives its deadline.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn overran(&self, header: &Header, longest: Duration) -> Result<Instant, Broken> {
        let mut overruns = self.overruns.borrow_mut();
        if overruns.len() >= OVERRUNS {
            return Err(format!("more than {OVERRUNS} direct calls overran"));
        }
        if overruns.contains_key(&header.id) {
            return Err("a direct call overran twice".to_owned());
        }
        let deadline = Instant::now() + Duration::from_millis(u64::from(header.b)).min(longest);
        overruns.insert(header.id, deadline);
        Ok(deadline)
    }

    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn finished(&self, header: &Header) -> Result<(), Broken> {
        let known = self.overruns.borrow_mut().remove(&header.id);
        known.map(drop).ok_or_else(|| "a direct call finished that had not overrun".to_owned())
    }

    /// A connection has ended in the sandbox.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn done(&self, header: &Header) -> Result<Ended, Broken> {
        let mut given = self.given.borrow_mut();
        let known = given.get(&header.id).is_some_and(|one| one.slot == header.a && one.returned.is_none());
        let one = if known { given.remove(&header.id) } else { None };
        let Given { bound, slot, .. } =
            one.ok_or_else(|| format!("connection {} ended and is not one that it has", header.id))?;
        Ok(Ended { bound, slot, end: CallerEnd::from_code(header.code) })
    }

    /// A connection is given back, as the sandbox says. It is looked at when the sandbox is dead, and can do nothing more to it.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn take_back(&self, frame: &Frame<'_>) -> Result<(), Broken> {
        let AtRest { record, residue } = AtRest::decode(frame.payload).map_err(|error| error.to_string())?;
        let mut given = self.given.borrow_mut();
        let one = given.get_mut(&frame.header.id).filter(|one| one.returned.is_none());
        let one = one.ok_or_else(|| format!("connection {} is not one that it has", frame.header.id))?;
        let now = Instant::now();
        // Further back makes no difference.
        let still = Duration::from_millis(u64::from(frame.header.b)).min(STALL);
        one.returned = Some(Returned {
            record: record.into(),
            residue: residue.into(),
            taken: frame.header.c,
            moved: now.checked_sub(still).unwrap_or(now),
        });
        Ok(())
    }

    /// The sandbox is dead: closes the ring, and says what became of the connections. `orderly`: it had been asked to end, and
    /// said that it did.
    pub(crate) fn end(&self, orderly: bool) -> Vec<Left> {
        // First this: it holds the sockets.
        drop(self.ring.take());
        self.overruns.take();
        self.changes.announce();
        let given = self.given.take().into_values();
        given.map(|given| if orderly { given.go_on() } else { Left::Lost(given.bound) }).collect()
    }
}

impl Given {
    /// Takes the sandbox's word for where the stream stands, if the kernel's own count agrees.
    fn go_on(self) -> Left {
        let Given { mut bound, returned, .. } = self;
        let Some(returned) = returned else { return Left::Lost(bound) };
        match returned.check(&bound.at_rest(), bound.begun(), bound.socket().as_fd()) {
            Ok(now) => {
                bound.stands_at(returned.record, returned.residue, now, returned.moved);
                Left::Parked(bound)
            }
            Err(why) => {
                tracing::warn!("a connection to {} is reset: {why}", bound.process().name);
                Left::Lost(bound)
            }
        }
    }
}

impl Returned {
    /// Gives what has been taken off the socket, if that is what the sandbox says, and what it says can be. `given` is what it was given,
    /// when `begun` had been taken.
    fn check(&self, given: &AtRest<'_>, begun: Taken, socket: BorrowedFd<'_>) -> Result<Taken, String> {
        let now =
            Taken::of(socket).map_err(|error| format!("it cannot be counted what was taken: {error}"))?;
        if !now.is_more_by(begun, self.taken) {
            return Err(format!(
                "the sandbox says that it took {} bytes, and the kernel counted otherwise",
                self.taken
            ));
        }
        if self.residue.len() as u64 > self.taken.saturating_add(given.residue.len() as u64) {
            return Err("the sandbox gives back more than it took".to_owned());
        }
        let ours = Parked::decode(given.record).map_err(|error| error.to_string())?;
        let theirs = Parked::decode(&self.record).map_err(|error| error.to_string())?;
        // Among it is what the token allows.
        if ours.terms() != theirs.terms() {
            return Err("the sandbox changed what was agreed on".to_owned());
        }
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use denizen_protocol::server::Terms;

    use super::*;

    #[test]
    fn a_ring_has_a_place_for_each_connection_but_one() {
        let mut slots = Slots::new();
        let all: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(all, (1..maker::SLOTS).collect::<Vec<_>>());
        slots.free.push(7);
        assert_eq!((slots.take(), slots.take()), (Some(7), None));
    }

    fn direct() -> Direct {
        Direct::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn a_census_that_nobody_asked_for_breaks_a_rule() {
        let direct = direct();
        let said = |calls| Header { c: calls, a: 1, ..Header::new(Kind::Census, 0) };
        assert!(direct.hear_census(&said(1)).is_err());
        assert_eq!((direct.ask(), direct.ask()), (1, 2));
        direct.hear_census(&said(5)).unwrap();
        assert_eq!(direct.census(), Census { calls: 5, in_flight: 1 });
        assert!(direct.hear_census(&said(4)).is_err(), "it went back");
        direct.hear_census(&said(5)).unwrap();
        assert!(direct.hear_census(&said(6)).is_err());
    }

    #[test]
    fn a_direct_call_has_its_deadline_and_no_longer_one_than_any() {
        let direct = direct();
        let overrun = |number, left_ms| Header { b: left_ms, ..Header::new(Kind::Overrun, number) };
        let (short, long) = (denizen_wire::direct_id(1), denizen_wire::direct_id(2));
        let longest = Duration::from_secs(10);
        let first = direct.overran(&overrun(short, 1000), longest).unwrap();
        let second = direct.overran(&overrun(long, u32::MAX), longest).unwrap();
        assert!(second <= Instant::now() + longest);
        assert!(direct.overran(&overrun(short, 1), longest).is_err());
        assert_eq!((direct.in_flight(), direct.last_deadline()), (2, Some(second)));
        let grace = Duration::from_millis(100);
        assert_eq!(direct.late(first, grace), (vec![], Some(first + grace)));
        assert_eq!(direct.late(first + grace, grace).0, [short]);
        direct.finished(&Header::new(Kind::Finished, short)).unwrap();
        assert!(direct.finished(&Header::new(Kind::Finished, short)).is_err());
        assert_eq!(direct.late(first + grace, grace), (vec![], Some(second + grace)));
    }

    fn record(functions: Option<&str>) -> Box<[u8]> {
        let hello = denizen_protocol::Hello::new("app", Some("p"));
        let functions = functions.map(|name| vec![name.to_owned()]);
        let terms = Terms::agreed(&hello, &denizen_protocol::Accepted::new(1, 100), functions);
        Parked::fresh(terms).encode().into()
    }

    #[test]
    fn what_a_sandbox_says_of_a_stream_counts_only_if_the_kernel_says_it_too() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut socket = listener.accept().unwrap().0;
        let begun = Taken::of(socket.as_fd()).unwrap();
        let ours = record(Some("f"));
        let given = AtRest { record: &ours, residue: &[7; 10] };
        client.write_all(&[1; 500]).unwrap();
        socket.read_exact(&mut [0; 100]).unwrap();
        let says = |record: &[u8], residue: usize, taken| {
            let moved = Instant::now();
            let returned = Returned { record: record.into(), residue: vec![0; residue].into(), taken, moved };
            returned.check(&given, begun, socket.as_fd())
        };
        for residue in [0, 5, 100, 110] {
            says(&ours, residue, 100).unwrap();
        }
        for taken in [0, 99, 101, 500, u64::MAX] {
            assert!(says(&ours, 5, taken).unwrap_err().contains("the kernel"), "{taken}");
        }
        assert!(says(&ours, 111, 100).unwrap_err().contains("more than it took"));
        assert!(says(&ours[1..], 5, 100).unwrap_err().contains("damaged"));
        for wider in [record(None), record(Some("g"))] {
            assert!(says(&wider, 5, 100).unwrap_err().contains("agreed"));
        }
    }

    #[test]
    fn the_ring_of_a_dead_sandbox_holds_no_connection() {
        use std::io::Read;
        let (control, _agent) = std::os::unix::net::UnixStream::pair().unwrap();
        let ring = match maker::make(control.as_fd()) {
            Ok(ring) => ring.fd,
            Err(error) => {
                eprintln!("SKIPPED the_ring_of_a_dead_sandbox_holds_no_connection: {error}");
                return;
            }
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0;
        maker::install(ring.as_fd(), 1, socket.as_fd()).unwrap();
        let direct = Direct::new(ring);
        drop(socket);
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(client.read(&mut [0]).is_err(), "the ring has it");
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert!(direct.end(true).is_empty());
        // Letting go of a ring interrupts whoever made it.
        assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 0, "nobody has it");
    }

    #[test]
    fn connections_that_it_does_not_have_are_none_of_its_business() {
        let direct = direct();
        assert!(direct.done(&Header::new(Kind::CallerDone, 1)).is_err());
        assert!(!direct.shut(1));
        let mut payload = Vec::new();
        AtRest { record: b"r", residue: b"" }.encode(&mut payload).unwrap();
        let header = Header::new(Kind::CallerParked, 1).with_payload(payload.len());
        assert!(direct.take_back(&Frame { header, payload: &payload }).is_err());
        assert!(direct.end(true).is_empty());
        assert!(direct.ring().is_none());
    }
}
