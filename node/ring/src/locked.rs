//! The sandbox's side of the ring. Opened from a [`Ring`]: the descriptor, and where things lie in its maps (the kernel says so once, to
//! whoever made it).
//!
//! One thread at a time *waits* ([`Locked::wait`]), any thread may send. A lock covers writing submissions, handing them in and reading
//! completions, and never the wait. What must hold:
//!
//! - **Nothing that takes or reads bytes is ever under way when a call returns.** Every receive and send is made not to wait, so the kernel
//!   has finished with it once it has taken the submission. That is why they can work on borrowed memory. The exception are
//!   sends that go along with the next wait ([`Locked::queue`]): they own their bytes until somebody collects them.
//! - **Only the waiting thread takes completions out.** The others look for their own and leave it there; otherwise they could take what
//!   the other is about to wait for. A send that succeeds leaves no completion, and so wakes nobody.
//! - **What is in the shared memory may be nonsense**: a function shares this process and can write there. Numbers read there are masked or
//!   compared, never added to an address; what stands in `user_data` is looked up, with a generation, and dropped if it is old.
//! - **The kernel reports a poll on the thread that armed it**, with that one's next system call; a thread that computes makes none, and is
//!   not interrupted (`IORING_SETUP_COOP_TASKRUN`). So whoever begins to wait arms anew what others have armed, and only the thread that
//!   waits arms anything.

use std::cell::Cell;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};

use crate::maker::{Layout, Ring, SLOTS};
use crate::map::{Completion, Map};

/// `IORING_OFF_SQES`: where the map of submissions begins.
const SUBMISSIONS_AT: u64 = 0x1000_0000;
/// `IORING_SQ_CQ_OVERFLOW`.
const SQ_OVERFLOW: u32 = 1 << 1;
/// `IORING_ENTER_GETEVENTS`.
const ENTER_EVENTS: u32 = 1 << 0;
/// `IORING_ENTER_EXT_ARG`.
const ENTER_ARGUMENT: u32 = 1 << 3;
/// `IORING_CQE_F_MORE`.
const CQE_MORE: u32 = 1 << 1;
/// Sends that may go along with one system call.
pub const MOST_QUEUED: usize = 64;
/// Sockets that can be received from together.
pub const MOST_TOGETHER: usize = 32;
/// The most bytes of one send: so long others have to wait for the ring.
const MOST_AT_ONCE: usize = 256 << 10;
/// How often a submission is tried that the kernel cannot take at the moment.
const TRIES: u32 = 1_000;

/// What a poll waits for.
const READABLE: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
const WRITABLE: u32 = libc::POLLOUT as u32;
const ENDED: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;

/// What a wait brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// There is something to receive, or perhaps not any more.
    Readable {
        /// Of which socket.
        slot: u32,
        /// Nothing follows what is there now.
        ended: bool,
    },
    /// There is room to send.
    Room {
        /// Of which socket.
        slot: u32,
    },
    /// The socket cannot be watched.
    Lost {
        /// Which one.
        slot: u32,
    },
}

impl News {
    fn slot(&self) -> u32 {
        match *self {
            News::Readable { slot, .. } | News::Room { slot } | News::Lost { slot } => slot,
        }
    }
}

/// A receive among others, for [`Locked::receive_many`].
#[derive(Debug)]
pub struct Receive<'a> {
    /// From this socket.
    pub slot: u32,
    /// To here.
    pub into: &'a mut [u8],
    /// What came of it, as from [`Locked::receive`].
    pub result: io::Result<Option<usize>>,
}

/// A send that went along with a wait. To be given to [`Locked::collect`].
#[derive(Debug)]
#[must_use = "its bytes are kept until it is collected"]
pub struct Ticket {
    index: usize,
    generation: u32,
}

/// What became of a queued send.
#[derive(Debug)]
pub struct Collected {
    /// The bytes, given back.
    pub bytes: Vec<u8>,
    /// So many, from where it was to begin, were sent.
    pub sent: io::Result<usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Locked {
    fd: OwnedFd,
    layout: Layout,
    queues: Map,
    submissions: Map,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Submissions written so far: our own count, not what stands in the shared memory.
    written: u32,
    /// Completions read so far: likewise.
    read: u32,
    generation: u32,
    /// What the waiting thread is to hear next.
    news: Vec<News>,
    /// By slot.
    polls: Vec<Poll>,
    /// The thread that waited last, 0 if none has.
    waiter: u32,
    /// Slots that another thread wants to hear of room in.
    wanted: Vec<u32>,
    queued: Vec<Option<Queued>>,
    /// Places in `queued` that are free.
    free: Vec<usize>,
    /// Somebody has the waiting thread come back.
    woken: bool,
    /// The operations that a thread waits for within the lock: their generation, and by place what came of them.
    current: u32,
    results: [Option<i32>; MOST_TOGETHER],
}

/// How a slot is watched.
#[derive(Debug, Clone, Copy, Default)]
struct Poll {
    /// Of the poll for bytes; `None`: none is armed.
    reading: Option<NonZeroU32>,
    /// Of the poll for room.
    room: Option<NonZeroU32>,
    /// Which thread has armed the first; 0: it is to be armed anew.
    by: u32,
}

/// A send that goes along with a wait.
#[derive(Debug)]
struct Queued {
    generation: u32,
    bytes: Vec<u8>,
    from: usize,
    /// The value of `written` once its submission was.
    at: u32,
    /// Only of one that failed, or was cut short.
    result: Option<i32>,
}

/// What a submission is, in its `user_data`: kind, place, generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// Nobody wants to hear of it.
    Nothing = 0,
    Reading = 1,
    Room = 2,
    Now = 3,
    Queued = 4,
}

const fn tag(kind: Kind, place: u32, generation: u32) -> u64 {
    (kind as u64) << 56 | ((place & 0xFF_FFFF) as u64) << 32 | generation as u64
}

fn untag(tag: u64) -> (Kind, usize, u32) {
    let kind = match tag >> 56 {
        1 => Kind::Reading,
        2 => Kind::Room,
        3 => Kind::Now,
        4 => Kind::Queued,
        _ => Kind::Nothing,
    };
    let narrow = |part: u64| u32::try_from(part).unwrap_or(0);
    let (generation, place) = (narrow(tag & 0xFFFF_FFFF), narrow(tag >> 32 & 0xFF_FFFF));
    (kind, place as usize, generation)
}

thread_local! {
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

/// A number for this thread, not 0.
fn this_thread() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    if THREAD.get() == 0 {
        THREAD.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    THREAD.get()
}

impl Locked {
    /// Maps the ring. It need not be enabled yet.
    ///
    /// # Errors
    /// What the kernel says to the maps, and `InvalidInput` for a layout that no kernel gives.
    pub fn open(ring: Ring) -> io::Result<Locked> {
        let Ring { fd, layout } = ring;
        check(&layout)?;
        let queues = Map::new(&fd, 0, layout.queues_bytes())?;
        let submissions = Map::new(&fd, SUBMISSIONS_AT, layout.submissions_bytes())?;
        let locked = Locked {
            state: Mutex::new(State {
                written: 0,
                read: 0,
                generation: 0,
                news: Vec::new(),
                polls: vec![Poll::default(); SLOTS as usize],
                waiter: 0,
                wanted: Vec::new(),
                queued: Vec::new(),
                free: Vec::new(),
                woken: false,
                current: 0,
                results: [None; MOST_TOGETHER],
            }),
            fd,
            layout,
            queues,
            submissions,
        };
        for index in 0..layout.entries {
            locked.queues.word(layout.sq_array + 4 * index).store(index, Ordering::Relaxed);
        }
        let mut state = locked.state();
        state.written = locked.queues.word(layout.sq_tail).load(Ordering::Relaxed);
        state.read = locked.queues.word(layout.cq_head).load(Ordering::Relaxed);
        drop(state);
        Ok(locked)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has waits bring [`News::Readable`] of a socket from now on, and at once if there is something.
    ///
    /// # Errors
    /// What the kernel says to the submission.
    pub fn watch(&self, slot: u32) -> io::Result<()> {
        let mut state = self.state();
        self.arm(&mut state, slot)?;
        self.hand_in(&mut state)
    }

    /// Ends that. News that are under way already may still come.
    ///
    /// # Errors
    /// What the kernel says to the submission.
    pub fn unwatch(&self, slot: u32) -> io::Result<()> {
        let mut state = self.state();
        let Some(poll) = state.polls.get_mut(slot as usize).map(std::mem::take) else { return Ok(()) };
        state.news.retain(|news| news.slot() != slot);
        state.wanted.retain(|wanted| *wanted != slot);
        for (kind, generation) in [(Kind::Reading, poll.reading), (Kind::Room, poll.room)] {
            if let Some(generation) = generation {
                self.push(&mut state, disarm(tag(kind, slot, generation.get())))?;
            }
        }
        self.hand_in(&mut state)
    }

    /// Has a wait bring [`News::Room`] of a socket once, when there is room.
    ///
    /// # Errors
    /// What the kernel says to the submission.
    pub fn await_room(&self, slot: u32) -> io::Result<()> {
        let mut state = self.state();
        if state.waiter == this_thread() {
            self.arm_room(&mut state, slot)?;
        } else {
            state.wanted.push(slot);
            self.push(&mut state, nothing())?;
        }
        self.hand_in(&mut state)
    }

    /// Takes what is there of a socket, 0 bytes at the end of its stream; `None` if there is nothing. For the thread that waits.
    ///
    /// # Errors
    /// Of the socket, or of the submission ([`is_of_the_ring`]).
    pub fn receive(&self, slot: u32, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut state = self.state();
        let len = into.len();
        self.run(&mut state, [receive(slot, into)])?;
        self.reap(&mut state);
        received(state.results[0], len)
    }

    /// The same of several sockets with one system call; what that brings to light about others is added to `news`. The receives beyond
    /// [`MOST_TOGETHER`] are left alone.
    ///
    /// # Errors
    /// Of the submission: then nobody knows what was received. Those of sockets are in the results.
    pub fn receive_many(&self, receives: &mut [Receive<'_>], news: &mut Vec<News>) -> io::Result<()> {
        let mut state = self.state();
        self.run(&mut state, receives.iter_mut().map(|one| receive(one.slot, one.into)).take(MOST_TOGETHER))?;
        self.reap(&mut state);
        for (one, result) in receives.iter_mut().zip(state.results) {
            one.result = received(result, one.into.len());
        }
        self.rearm(&mut state)?;
        news.append(&mut state.news);
        Ok(())
    }

    /// Sends what the socket takes, at most 256 KiB, and never waits. `more`: other bytes follow directly.
    ///
    /// # Errors
    /// Of the socket, or of the submission ([`is_of_the_ring`]).
    pub fn send(&self, slot: u32, bytes: &[u8], more: bool) -> io::Result<usize> {
        let cut = &bytes[..bytes.len().min(MOST_AT_ONCE)];
        // The end of a cut would go out as a small packet of its own.
        let more = more || cut.len() < bytes.len();
        let mut state = self.state();
        self.run(&mut state, [send(slot, cut, more)])?;
        sent(state.results[0], cut.len())
    }

    /// Has the bytes behind `from` sent when this thread waits next, or somebody collects them: without a system call of their own.
    /// What the socket does not take at once is not sent.
    ///
    /// # Errors
    /// Gives the bytes back where too many are queued already.
    pub fn queue(&self, slot: u32, bytes: Vec<u8>, from: usize) -> Result<Ticket, Vec<u8>> {
        let mut state = self.state();
        let rest = bytes.get(from..).unwrap_or_default();
        if rest.is_empty() || rest.len() > MOST_AT_ONCE {
            return Err(bytes);
        }
        if state.free.is_empty() && state.queued.len() < MOST_QUEUED {
            let new = state.queued.len();
            state.queued.push(None);
            state.free.push(new);
        }
        let Some(&index) = state.free.last() else { return Err(bytes) };
        let generation = state.next().get();
        let place = u32::try_from(index).unwrap_or(u32::MAX);
        let entry = send(slot, rest, false).user_data(tag(Kind::Queued, place, generation));
        if self.push(&mut state, entry).is_err() {
            return Err(bytes);
        }
        let at = state.written;
        state.queued[index] = Some(Queued { generation, bytes, from, at, result: None });
        state.free.pop();
        Ok(Ticket { index, generation })
    }

    /// What became of a queued send, which is made now if it was not yet. Any thread may ask.
    ///
    /// # Errors
    /// Of the submission: then nobody knows, and nothing can be sent any more.
    pub fn collect(&self, ticket: Ticket) -> io::Result<Collected> {
        let Ticket { index, generation } = ticket;
        let mut state = self.state();
        let known = |queued: &&Queued| queued.generation == generation;
        let stale = || io::Error::other("a ticket was collected twice");
        let queued = state.queued.get(index).and_then(Option::as_ref).filter(known).ok_or_else(stale)?;
        let (at, known) = (queued.at, queued.result);
        if !self.was_taken(at) {
            self.hand_in(&mut state)?;
        }
        if known.is_none() {
            let place = u32::try_from(index).unwrap_or(u32::MAX);
            self.settle(&mut state, tag(Kind::Queued, place, generation), 1)?;
        }
        let queued = state.queued[index].take().ok_or_else(stale)?;
        state.free.push(index);
        let result = queued.result;
        let len = queued.bytes.len() - queued.from;
        Ok(Collected { bytes: queued.bytes, sent: sent(result, len) })
    }

    /// Ends the wait of the thread that waits.
    ///
    /// # Errors
    /// What the kernel says to the submission.
    pub fn kick(&self) -> io::Result<()> {
        let mut state = self.state();
        self.push(&mut state, nothing())?;
        self.hand_in(&mut state)
    }

    /// Waits until there are news, or something has ended the wait, or for so long; adds what there is to `news`. Queued sends go out
    /// first.
    ///
    /// # Errors
    /// What the kernel says: the ring cannot be used any more.
    pub fn wait(&self, timeout: Option<Duration>, news: &mut Vec<News>) -> io::Result<()> {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut tries = 0;
        loop {
            let mut state = self.state();
            self.adopt(&mut state)?;
            self.reap(&mut state);
            self.rearm(&mut state)?;
            if std::mem::take(&mut state.woken) || !state.news.is_empty() {
                news.append(&mut state.news);
                return self.hand_in(&mut state);
            }
            let pending = self.pending(&state);
            drop(state);
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            match self.enter(pending, 1, left) {
                Ok(_) => {}
                Err(libc::ETIME) => {
                    let mut state = self.state();
                    self.reap(&mut state);
                    self.rearm(&mut state)?;
                    state.woken = false;
                    news.append(&mut state.news);
                    return Ok(());
                }
                // A signal, or completions that found no place: they are read, and then it goes on.
                Err(libc::EINTR | libc::EBUSY) => {}
                Err(libc::EAGAIN) if tries < TRIES => {
                    tries += 1;
                    std::thread::yield_now();
                }
                Err(error) => return Err(of_the_ring(error)),
            }
        }
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// As [`Locked::wait`].
    pub fn look(&self, news: &mut Vec<News>) -> io::Result<()> {
        let mut state = self.state();
        self.adopt(&mut state)?;
        self.hand_in(&mut state)?;
        // What is to be reported on this thread is reported on its way into the kernel and back.
        match self.enter(0, 0, Some(Duration::ZERO)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
            Err(error) => return Err(of_the_ring(error)),
        }
        self.reap(&mut state);
        self.rearm(&mut state)?;
        state.woken = false;
        news.append(&mut state.news);
        Ok(())
    }

    /// This thread waits from now on: what others have armed, or want to be armed, is reported here.
    fn adopt(&self, state: &mut State) -> io::Result<()> {
        let thread = this_thread();
        let new = std::mem::replace(&mut state.waiter, thread) != thread;
        if !new && state.wanted.is_empty() {
            return Ok(());
        }
        let slots = if new { 0..SLOTS } else { 0..0 };
        for slot in slots {
            let poll = state.polls[slot as usize];
            if poll.reading.is_some() && poll.by != thread {
                self.arm(state, slot)?;
            }
            if let Some(room) = poll.room {
                state.polls[slot as usize].room = None;
                self.push(state, disarm(tag(Kind::Room, slot, room.get())))?;
                self.arm_room(state, slot)?;
            }
        }
        for slot in std::mem::take(&mut state.wanted) {
            self.arm_room(state, slot)?;
        }
        self.hand_in(state)
    }

    fn arm(&self, state: &mut State, slot: u32) -> io::Result<()> {
        let generation = state.next();
        let Some(poll) = state.polls.get_mut(slot as usize) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let before = poll.reading.replace(generation);
        poll.by = this_thread();
        if let Some(before) = before {
            self.push(state, disarm(tag(Kind::Reading, slot, before.get())))?;
        }
        let poll = opcode::PollAdd::new(types::Fixed(slot), READABLE).multi(true).build();
        self.push(state, poll.user_data(tag(Kind::Reading, slot, generation.get())))
    }

    fn arm_room(&self, state: &mut State, slot: u32) -> io::Result<()> {
        let generation = state.next();
        let Some(poll) = state.polls.get_mut(slot as usize).filter(|poll| poll.room.is_none()) else {
            return Ok(());
        };
        poll.room = Some(generation);
        let poll = opcode::PollAdd::new(types::Fixed(slot), WRITABLE).build();
        self.push(state, poll.user_data(tag(Kind::Room, slot, generation.get())))
    }

    /// Arms polls anew that have come to an end. They are handed in before anybody else gets the lock, and could hand them in for us.
    fn rearm(&self, state: &mut State) -> io::Result<()> {
        let thread = this_thread();
        let mut any = false;
        for at in 0..state.news.len() {
            let News::Readable { slot, .. } = state.news[at] else { continue };
            if state.polls[slot as usize].by != thread {
                self.arm(state, slot)?;
                any = true;
            }
        }
        if any { self.hand_in(state) } else { Ok(()) }
    }

    /// Runs operations that do not wait, at most [`MOST_TOGETHER`]. What came of them is in `results`, as far as they have a result.
    fn run(&self, state: &mut State, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
        let generation = state.next().get();
        state.current = generation;
        state.results = [None; MOST_TOGETHER];
        let mut count = 0;
        let mut handed_in = Ok(());
        for entry in entries {
            handed_in = self.push(state, entry.user_data(tag(Kind::Now, count, generation)));
            if handed_in.is_err() {
                break;
            }
            count += 1;
        }
        if let Err(error) = handed_in.and_then(|()| self.hand_in(state)) {
            // What the kernel has not taken it must not take: it points to what is our caller's.
            for back in 1..=self.pending(state).min(count) {
                self.write(state.written.wrapping_sub(back), nothing());
            }
            return Err(error);
        }
        self.settle(state, tag(Kind::Now, 0, generation), count)
    }

    /// Enters the results of operations that the kernel has been through with, so many with tags from `first` on; those that succeeded and
    /// were not to say so have none. Unless this thread waits, the completions stay where they are.
    fn settle(&self, state: &mut State, first: u64, count: u32) -> io::Result<()> {
        if state.waiter == this_thread() {
            self.reap(state);
        } else {
            let (kind, place, generation) = untag(first);
            let places = place..place + count as usize;
            let (mut at, end) = (state.read, self.completed(state));
            while at != end {
                let completion = self.completion(at);
                let (its_kind, its_place, its_generation) = untag(completion.tag);
                if (its_kind, its_generation) == (kind, generation) && places.contains(&its_place) {
                    state.enter(&completion);
                }
                at = at.wrapping_add(1);
            }
        }
        if !self.has_overflown() {
            return Ok(());
        }
        // Some may be among those that found no place. To see these all have to be read; whoever waits for them is told.
        while self.has_overflown() {
            self.reap(state);
            match self.enter(0, 0, Some(Duration::ZERO)) {
                Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                Err(error) => return Err(of_the_ring(error)),
            }
        }
        self.reap(state);
        self.push(state, nothing())?;
        self.hand_in(state)
    }

    /// Takes all completions out.
    fn reap(&self, state: &mut State) {
        let end = self.completed(state);
        while state.read != end {
            let completion = self.completion(state.read);
            state.read = state.read.wrapping_add(1);
            state.enter(&completion);
        }
        self.queues.word(self.layout.cq_head).store(state.read, Ordering::Release);
    }

    /// How far completions are there, as far as that can be.
    fn completed(&self, state: &State) -> u32 {
        let end = self.queues.word(self.layout.cq_tail).load(Ordering::Acquire);
        let count = end.wrapping_sub(state.read).min(self.layout.completions);
        state.read.wrapping_add(count)
    }

    fn completion(&self, at: u32) -> Completion {
        let index = at & (self.layout.completions - 1);
        self.queues.completion(self.layout.cqes, index)
    }

    fn has_overflown(&self) -> bool {
        self.queues.word(self.layout.sq_flags).load(Ordering::Acquire) & SQ_OVERFLOW != 0
    }

    /// Submissions that the kernel has not taken.
    fn pending(&self, state: &State) -> u32 {
        let taken = self.queues.word(self.layout.sq_head).load(Ordering::Acquire);
        state.written.wrapping_sub(taken).min(self.layout.entries)
    }

    /// Whether the submission was taken that `written` was `at` after. The kernel says so when it is through with it.
    fn was_taken(&self, at: u32) -> bool {
        let taken = self.queues.word(self.layout.sq_head).load(Ordering::Acquire);
        at.wrapping_sub(taken).cast_signed() <= 0
    }

    /// Writes a submission.
    fn push(&self, state: &mut State, entry: Entry) -> io::Result<()> {
        if self.pending(state) >= self.layout.entries {
            self.hand_in(state)?;
        }
        self.put(state, entry);
        Ok(())
    }

    fn put(&self, state: &mut State, entry: Entry) {
        self.write(state.written, entry);
        state.written = state.written.wrapping_add(1);
        self.queues.word(self.layout.sq_tail).store(state.written, Ordering::Release);
    }

    fn write(&self, at: u32, entry: Entry) {
        self.submissions.write(at & (self.layout.entries - 1), entry.flags(Flags::FIXED_FILE));
    }

    /// Has the kernel take all submissions.
    fn hand_in(&self, state: &mut State) -> io::Result<()> {
        let mut tries = 0;
        loop {
            let pending = self.pending(state);
            if pending == 0 {
                return Ok(());
            }
            match self.enter(pending, 0, None) {
                Ok(count) if count > 0 => {}
                Ok(_) | Err(libc::EINTR) => tries += 1,
                Err(libc::EBUSY) => {
                    // Completions have to be read first; whoever waits for them is told.
                    tries += 1;
                    self.reap(state);
                    if pending < self.layout.entries {
                        self.put(state, nothing());
                    }
                }
                Err(libc::EAGAIN) => {
                    tries += 1;
                    std::thread::yield_now();
                }
                Err(error) => return Err(of_the_ring(error)),
            }
            if tries > TRIES {
                return Err(of_the_ring(libc::EAGAIN));
            }
        }
    }

    /// One io_uring_enter(2). The number of the error, if there was one.
    fn enter(&self, submit: u32, wait_for: u32, timeout: Option<Duration>) -> Result<u32, i32> {
        /// `struct io_uring_getevents_arg`.
        #[repr(C)]
        struct Argument {
            mask: u64,
            mask_bytes: u32,
            pad: u32,
            time: u64,
        }
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let argument = time.as_ref().map(|time| Argument {
            mask: 0,
            mask_bytes: 0,
            pad: 0,
            time: std::ptr::from_ref(time).expose_provenance() as u64,
        });
        let flags = match (wait_for, &argument) {
            (0, None) => 0,
            (_, None) => ENTER_EVENTS,
            (_, Some(_)) => ENTER_EVENTS | ENTER_ARGUMENT,
        };
        let (pointer, bytes) = match &argument {
            Some(argument) => (std::ptr::from_ref(argument), size_of::<Argument>()),
            None => (std::ptr::null(), 0),
        };
        // SAFETY: the argument and what it points to are alive. What the submissions point to is borrowed until the kernel is through
        // with them (`run`), or owned by the table of queued sends.
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                submit,
                wait_for,
                flags,
                pointer,
                bytes,
            )
        };
        u32::try_from(done).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

impl State {
    fn next(&mut self) -> NonZeroU32 {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        NonZeroU32::new(self.generation).unwrap_or(NonZeroU32::MIN)
    }

    /// Enters one completion.
    fn enter(&mut self, completion: &Completion) {
        let (kind, place, generation) = untag(completion.tag);
        let slot = u32::try_from(place).unwrap_or(u32::MAX);
        let result = completion.result;
        match kind {
            Kind::Nothing => self.woken |= result >= 0 && generation == WAKES,
            Kind::Now => {
                if let Some(entered) = self.results.get_mut(place).filter(|_| generation == self.current) {
                    *entered = Some(result);
                }
            }
            Kind::Queued => {
                if let Some(Some(queued)) = self.queued.get_mut(place)
                    && queued.generation == generation
                {
                    queued.result = Some(result);
                    self.woken = true;
                }
            }
            Kind::Reading => {
                let Some(poll) = self.polls.get_mut(place) else { return };
                if poll.reading.map(NonZeroU32::get) != Some(generation) {
                    return;
                }
                if result < 0 {
                    poll.reading = None;
                    self.news.push(News::Lost { slot });
                    return;
                }
                if completion.flags & CQE_MORE == 0 {
                    // It is over, and armed anew before the next wait.
                    (poll.reading, poll.by) = (None, 0);
                }
                self.news.push(News::Readable { slot, ended: result & ENDED != 0 });
            }
            Kind::Room => {
                let Some(poll) = self.polls.get_mut(place) else { return };
                if poll.room.map(NonZeroU32::get) == Some(generation) {
                    poll.room = None;
                    self.news.push(News::Room { slot });
                }
            }
        }
    }
}

/// In place of a generation: the submission is there to end a wait.
const WAKES: u32 = 1;

fn nothing() -> Entry {
    opcode::Nop::new().build().user_data(tag(Kind::Nothing, 0, WAKES))
}

fn disarm(poll: u64) -> Entry {
    opcode::PollRemove::new(poll).build().user_data(tag(Kind::Nothing, 0, 0))
}

fn receive(slot: u32, into: &mut [u8]) -> Entry {
    let len = u32::try_from(into.len()).unwrap_or(u32::MAX);
    opcode::Recv::new(types::Fixed(slot), into.as_mut_ptr(), len).flags(libc::MSG_DONTWAIT).build()
}

/// What a receive came to whose completion had this result: it always has one.
fn received(result: Option<i32>, len: usize) -> io::Result<Option<usize>> {
    match result.unwrap_or(-libc::EIO) {
        count if count >= 0 => Ok(Some(usize::try_from(count).unwrap_or(0).min(len))),
        error if -error == libc::EAGAIN || -error == libc::EINTR => Ok(None),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn send(slot: u32, bytes: &[u8], more: bool) -> Entry {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    // As a whole or not at all makes one that is cut short a failure, which says so.
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    let flags = if more { flags | libc::MSG_MORE } else { flags };
    opcode::Send::new(types::Fixed(slot), bytes.as_ptr(), len).flags(flags).build().flags(Flags::SKIP_SUCCESS)
}

/// What a send came to whose completion, if there was one, had this result.
fn sent(result: Option<i32>, len: usize) -> io::Result<usize> {
    match result {
        None => Ok(len),
        Some(count) if count >= 0 => Ok(usize::try_from(count).unwrap_or(0).min(len)),
        Some(error) if -error == libc::EAGAIN || -error == libc::EINTR => Ok(0),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// The ring cannot be used any more.
#[derive(Debug, thiserror::Error)]
#[error("the ring cannot be used any more: {0}")]
struct Unusable(io::Error);

fn of_the_ring(errno: i32) -> io::Error {
    io::Error::other(Unusable(io::Error::from_raw_os_error(errno)))
}

/// Whether an error is not of a socket, but of the ring itself, which cannot be used any more.
pub fn is_of_the_ring(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Unusable>())
}

/// That the layout is one that a kernel can have given: it was handed over in our own memory, before anything of the tenant ran.
fn check(layout: &Layout) -> io::Result<()> {
    let Layout { entries, completions, .. } = *layout;
    let size = layout.queues_bytes() as u64;
    let words =
        [layout.sq_head, layout.sq_tail, layout.sq_flags, layout.sq_dropped, layout.cq_head, layout.cq_tail];
    let within = words.iter().all(|at| u64::from(*at) + 4 <= size && at.is_multiple_of(4));
    let sized = entries.is_power_of_two()
        && completions.is_power_of_two()
        && entries <= 1 << 15
        && completions <= 1 << 16
        && layout.sq_array.is_multiple_of(4)
        && layout.cqes.is_multiple_of(8);
    if within && sized { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}
