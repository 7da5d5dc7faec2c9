//! Direct connections: callers whose sockets this process was given, on a ring that can do nothing but serve them.
//!
//! It owns everything between such a socket and a call: what comes ([`waiting`], [`calls`]), what leaves ([`sending`]), and the end of a
//! connection or of this process ([`ending`]). The calls themselves are run like those of the agent. What must hold:
//!
//! - One thread at a time reads, the leader, which waits on the ring as soon as there is a connection. It holds no lock but its own then.
//! - Nothing that takes bytes off a socket is under way while nobody looks, so that a connection can be given back at any byte.
//! - A connection that is gone is not touched again: its slot may be another's.
//! - A process without direct connections costs what it costs without this.

mod caller;
mod calls;
mod ending;
mod policy;
mod portions;
mod problems;
mod sending;
mod waiting;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use denizen_ring::locked::Locked;
use denizen_ring::maker::Ring;
use denizen_wire::{Assignment, Header, Kind, direct_id, direct_name, is_direct};

use self::caller::{Caller, Talk};
use self::policy::Policies;
pub(crate) use self::waiting::Reading;
use crate::buffers::{Body, QUIET};
use crate::declare::Function;
use crate::inbox::Inbox;
use crate::locked;
use crate::serve::Runner;

/// Bodies up to this many bytes are copied into a frame; larger ones are sent and received where they lie.
const SMALL: usize = 16 << 10;
/// The part of a process's memory that may be blocks of bodies which nobody needs at the moment: one in so many.
const KEPT_SHARE: u64 = 8;
/// How often the leader looks at calls that nobody watches.
const TICK: Duration = Duration::from_millis(5);

/// What a call of a direct connection knows of that.
#[derive(Debug)]
pub(crate) struct Ours {
    caller: Arc<Caller>,
    /// What the connection calls it.
    id: u64,
    /// What the agent calls it.
    number: u64,
    /// What logs and its caller call it.
    name: Box<str>,
    /// Where its function stands in which table, if its caller has named it.
    place: Option<(u64, u32)>,
    /// Of the memory for bodies.
    reserved: AtomicU64,
    /// Its function has begun.
    begun: AtomicBool,
    /// It had begun already when the leader looked before.
    seen: AtomicBool,
    /// What the agent was told of it. Locked while it is told, so that it hears of the end last.
    told: Mutex<Told>,
    /// More of its input may come.
    open: AtomicBool,
    /// Bytes of an input that streams which have come and were not taken.
    uncounted: AtomicU64,
    /// Its input will never be whole, because this process drains.
    cut_off: AtomicBool,
}

/// What the agent knows of a direct call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// That it takes its time.
    Overrun,
    /// Nothing more is to be told.
    Over,
}

/// The process's side of all direct connections.
#[derive(Debug)]
pub(crate) struct Direct {
    /// Until the first connection comes.
    sealed: Mutex<Option<Ring>>,
    ring: OnceLock<Locked>,
    policies: Policies,
    epoch: u64,
    /// Calls that were accepted.
    accepted: AtomicU64,
    /// Connections.
    open: AtomicUsize,
    /// Bytes of bodies that are kept or will be, and the most of them.
    reserved: AtomicU64,
    most_reserved: u64,
    /// Bytes of blocks of bodies that are kept beside, for those that come.
    most_kept: usize,
    /// Calls that wait for some of them.
    starved: Mutex<Vec<Arc<Inbox>>>,
    starving: AtomicBool,
    /// Connections whose answers leave with the leader's next wait.
    gathered: Mutex<Gathered>,
    has_gathered: AtomicBool,
    /// Connections that the leader has to look at.
    noted: Mutex<Vec<Arc<Caller>>>,
    /// When the leader has to look at what takes its time, at the latest.
    due: Mutex<Option<Instant>>,
    /// It looks from time to time, because calls run that nobody watches.
    ticking: AtomicBool,
}

#[derive(Debug, Default)]
struct Gathered {
    callers: Vec<Arc<Caller>>,
    since: Option<Instant>,
}

impl Direct {
    pub(crate) fn new(ring: Option<Ring>, assignment: &Assignment, functions: &'static [Function]) -> Direct {
        let limits = &assignment.limits;
        let share = limits.memory_bytes / 4;
        Direct {
            sealed: Mutex::new(ring),
            ring: OnceLock::new(),
            policies: Policies::new(assignment, functions),
            epoch: assignment.epoch,
            accepted: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            reserved: AtomicU64::new(0),
            most_reserved: share.max(limits.body_bytes.max(limits.reply_bytes).min(2 * share)),
            most_kept: usize::try_from(limits.memory_bytes / KEPT_SHARE).unwrap_or(usize::MAX),
            starved: Mutex::default(),
            starving: AtomicBool::new(false),
            gathered: Mutex::default(),
            has_gathered: AtomicBool::new(false),
            noted: Mutex::default(),
            due: Mutex::new(None),
            ticking: AtomicBool::new(false),
        }
    }

    /// Whether there is, or was, a direct connection.
    pub(crate) fn is_used(&self) -> bool {
        self.ring.get().is_some()
    }

    /// Whether there is no connection.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.load(SeqCst) == 0
    }

    #[expect(clippy::expect_used, reason = "there is no connection without it")]
    fn ring(&self) -> &Locked {
        self.ring.get().expect("a connection is on a ring")
    }

    fn name_of(&self, number: u64) -> String {
        direct_name(self.epoch, number)
    }

    fn new_number(&self) -> u64 {
        direct_id(self.accepted.fetch_add(1, SeqCst) + 1)
    }

    /// Whether so many bytes of bodies more may be kept.
    fn has_room(&self, bytes: u64) -> bool {
        self.reserved.load(SeqCst).saturating_add(bytes) <= self.most_reserved
    }

    /// Takes room for so many, if there is. One body of any allowed length can always be had when there is no other.
    fn reserve(&self, bytes: u64) -> bool {
        let before = self.reserved.fetch_add(bytes, SeqCst);
        let fits = before == 0 || before.saturating_add(bytes) <= self.most_reserved;
        if !fits {
            self.reserved.fetch_sub(bytes, SeqCst);
        }
        fits
    }

    /// Takes room that may not be there.
    fn take(&self, bytes: u64) {
        self.reserved.fetch_add(bytes, SeqCst);
    }

    fn release(&self, bytes: u64) {
        if bytes > 0 {
            self.reserved.fetch_sub(bytes, SeqCst);
        }
    }

    /// A call waits for memory.
    fn starves(&self, inbox: &Arc<Inbox>) {
        let mut starved = locked(&self.starved);
        if !starved.iter().any(|waiting| Arc::ptr_eq(waiting, inbox)) {
            starved.push(inbox.clone());
        }
        self.starving.store(true, SeqCst);
    }

    /// Those who waited for memory: there may be some now.
    fn fed(&self) -> Vec<Arc<Inbox>> {
        if !self.starving.swap(false, SeqCst) {
            return Vec::new();
        }
        std::mem::take(&mut locked(&self.starved))
    }

    /// Has a connection's answers leave with the leader's next wait.
    fn gather(&self, caller: &Arc<Caller>, talk: &mut Talk) {
        if std::mem::replace(&mut talk.dirty, true) {
            return;
        }
        let mut gathered = locked(&self.gathered);
        // Not since it came: of many who are read together the last would not be gathered at all, but sent one by one.
        gathered.since.get_or_insert_with(Instant::now);
        gathered.callers.push(caller.clone());
        self.has_gathered.store(true, SeqCst);
    }

    fn has_gathered(&self) -> bool {
        self.has_gathered.load(SeqCst)
    }

    /// Whether some were gathered so long ago.
    fn gathered_for(&self, time: Duration) -> bool {
        self.has_gathered() && locked(&self.gathered).since.is_some_and(|since| since.elapsed() >= time)
    }

    /// Moves them to `into`, which is empty.
    fn take_gathered(&self, into: &mut Vec<Arc<Caller>>) {
        if self.has_gathered() {
            let mut gathered = locked(&self.gathered);
            self.has_gathered.store(false, SeqCst);
            gathered.since = None;
            std::mem::swap(&mut gathered.callers, into);
        }
    }
}

impl Runner {
    /// Has the leader look at a connection.
    fn look_at(&self, caller: &Arc<Caller>) {
        locked(&self.direct.noted).push(caller.clone());
        self.kick_leader();
    }

    /// The leader is to look at what takes its time, at the latest then.
    fn note_due(&self, at: Instant) {
        let mut due = locked(&self.direct.due);
        if due.is_none_or(|due| at < due) {
            *due = Some(at);
            drop(due);
            self.kick_leader();
        }
    }

    /// A body is not needed any more. Its block may be kept for a while.
    pub(crate) fn give_back(&self, body: Body) {
        if self.buffers().give_back(body) {
            self.note_due(Instant::now() + QUIET);
        }
    }

    /// Ends the leader's wait, unless this thread leads. What the leader is to find was put there before: whoever takes the lead over from
    /// now on sees it without being told.
    fn kick_leader(&self) {
        if let Some(ring) = self.direct.ring.get().filter(|_| !self.crew.leads())
            && let Err(error) = ring.kick()
        {
            sending::ring_lost(&error);
        }
    }

    /// The agent asks how much is done here without it.
    pub(crate) fn send_census(&self, reading: &Reading) -> Result<(), crate::link::Gone> {
        let calls = locked(&self.calls).keys().filter(|id| is_direct(**id)).count();
        // A reply that its caller is still taking is not over.
        let replying = reading.callers.iter().flatten().filter(|caller| !caller.talk().out.is_empty());
        let in_flight = calls + replying.count();
        let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let census = Header {
            a: narrow(in_flight),
            b: narrow(self.direct.open.load(SeqCst)),
            c: self.direct.accepted.load(SeqCst),
            ..Header::new(Kind::Census, 0)
        };
        self.link.send_frame(&census.encode())
    }

    /// A call begins on this thread.
    pub(crate) fn begins(&self, inbox: &Inbox) {
        let Some(ours) = &inbox.direct else { return };
        ours.begun.store(true, SeqCst);
        if !self.crew.leads() {
            // No spare watches this thread.
            if !self.direct.ticking.swap(true, SeqCst) {
                self.note_due(Instant::now() + TICK);
            }
        } else if !self.crew.has_spare() {
            self.takes_its_time(inbox, ours);
        }
    }

    /// Tells the agent of calls that run since the leader looked last. Whether others run.
    fn look_at_running(&self, calls: &[Arc<Inbox>]) -> bool {
        let mut any = false;
        for inbox in calls {
            let Some(ours) = inbox.direct.as_ref().filter(|ours| ours.begun.load(SeqCst)) else { continue };
            if ours.seen.swap(true, SeqCst) {
                self.takes_its_time(inbox, ours);
            } else {
                any = true;
            }
        }
        any
    }

    /// A call waits for something.
    pub(crate) fn waits(&self, inbox: &Inbox) {
        let Some(ours) = &inbox.direct else { return };
        self.takes_its_time(inbox, ours);
        if let Some(deadline) = inbox.deadline() {
            self.note_due(deadline);
        }
    }

    /// This thread leads now, because another has been busy for too long.
    pub(crate) fn took_the_lead(&self) {
        if !self.direct.is_used() {
            return;
        }
        let begun = |inbox: &&Arc<Inbox>| inbox.direct.as_ref().is_some_and(|ours| ours.begun.load(SeqCst));
        let running: Vec<_> = locked(&self.calls).values().filter(begun).cloned().collect();
        for inbox in running {
            if let Some(ours) = &inbox.direct {
                self.takes_its_time(&inbox, ours);
            }
            if let Some(deadline) = inbox.deadline() {
                self.note_due(deadline);
            }
        }
    }

    /// Tells the agent of a call that takes its time, so that it does not take more than it has.
    fn takes_its_time(&self, inbox: &Inbox, ours: &Ours) {
        let mut told = locked(&ours.told);
        if *told != Told::Nothing {
            return;
        }
        *told = Told::Overrun;
        let left = inbox.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let left_ms = left.map_or(u32::MAX, |left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX));
        let name = &ours.name;
        let a = u32::try_from(ours.caller.number & u64::from(u32::MAX)).unwrap_or(0);
        let header = Header { a, b: left_ms.max(1), ..Header::new(Kind::Overrun, ours.number) };
        let header = header.with_payload(name.len()).encode();
        let mut pieces = [std::io::IoSlice::new(&header), std::io::IoSlice::new(name.as_bytes())];
        // If the agent is gone, the next read says so.
        let _ = self.link.send(&mut pieces);
    }

    /// A function took so many bytes of its input; whoever has not begun to wait gets credit for them.
    pub(crate) fn took_input(&'static self, inbox: &Inbox, bytes: usize) {
        let Some(ours) = &inbox.direct else { return };
        ours.uncounted.fetch_sub(bytes as u64, SeqCst);
        self.took(ours, bytes as u64);
    }

    /// More of an input that streams has come.
    fn streamed(&'static self, inbox: &Inbox, bytes: Vec<u8>, end: bool) {
        let Some(ours) = &inbox.direct else { return };
        if end {
            ours.open.store(false, SeqCst);
        }
        ours.uncounted.fetch_add(bytes.len() as u64, SeqCst);
        inbox.arrived(bytes, end);
        if *locked(&ours.told) == Told::Over {
            self.took(ours, ours.uncounted.swap(0, SeqCst));
        }
    }

    fn took(&'static self, ours: &Ours, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut talk = ours.caller.talk();
        if talk.gone {
            return;
        }
        let Talk { protocol, out, .. } = &mut *talk;
        protocol.consumed(ours.id, usize::try_from(bytes).unwrap_or(usize::MAX));
        protocol.control(out.end());
        if !talk.out.is_empty() {
            self.leaves(&ours.caller, talk);
        }
    }

    /// A call was taken off the list of those that are not answered.
    pub(crate) fn is_over(&'static self, inbox: &Inbox) {
        let Some(ours) = &inbox.direct else { return };
        self.direct.release(ours.reserved.swap(0, SeqCst));
        let told = std::mem::replace(&mut *locked(&ours.told), Told::Over);
        self.took(ours, ours.uncounted.swap(0, SeqCst));
        if told == Told::Overrun {
            let _ = self.link.send_frame(&Header::new(Kind::Finished, ours.number).encode());
        }
        self.wake(Vec::new());
    }
}
