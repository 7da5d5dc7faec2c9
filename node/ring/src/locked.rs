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
//! - The kernel reports a poll by interrupting the thread that armed it. So whoever waits arms anew what others have armed, as soon as it
//!   speaks up.

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};

use crate::maker::{COMPLETION_BYTES, Layout, Ring, SLOTS, SUBMISSION_BYTES};

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
/// Sends that may go along with one wait.
const MOST_QUEUED: usize = 32;
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
    queued: Vec<Option<Queued>>,
    /// The operation that a thread waits for within the lock.
    current: Option<(u64, Option<i32>)>,
}

/// How a slot is watched.
#[derive(Debug, Clone, Copy, Default)]
struct Poll {
    /// Of the poll for bytes; `None`: none is armed.
    reading: Option<NonZeroU32>,
    /// Of the poll for room.
    room: Option<NonZeroU32>,
    /// Which thread has armed the first.
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

/// A completion, copied out.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Completion {
    tag: u64,
    result: i32,
    flags: u32,
}

const _: () =
    assert!(size_of::<Completion>() == COMPLETION_BYTES, "a completion of linux/io_uring.h has 16 bytes");
const _: () =
    assert!(size_of::<Entry>() == SUBMISSION_BYTES, "a submission of linux/io_uring.h has 64 bytes");

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
                queued: Vec::new(),
                current: None,
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
        let generation = state.next();
        let Some(poll) = state.polls.get_mut(slot as usize).filter(|poll| poll.room.is_none()) else {
            return Ok(());
        };
        poll.room = Some(generation);
        let poll = opcode::PollAdd::new(types::Fixed(slot), WRITABLE).build();
        self.push(&mut state, poll.user_data(tag(Kind::Room, slot, generation.get())))?;
        self.hand_in(&mut state)
    }

    /// Takes what is there of a socket, 0 bytes at the end of its stream; `None` if there is nothing. For the thread that waits.
    ///
    /// # Errors
    /// Of the socket, or of the submission ([`is_of_the_ring`]).
    pub fn receive(&self, slot: u32, into: &mut [u8]) -> io::Result<Option<usize>> {
        let len = u32::try_from(into.len()).unwrap_or(u32::MAX);
        let entry =
            opcode::Recv::new(types::Fixed(slot), into.as_mut_ptr(), len).flags(libc::MSG_DONTWAIT).build();
        let mut state = self.state();
        let result = self.run(&mut state, entry)?;
        self.reap(&mut state);
        match result.unwrap_or(-libc::EIO) {
            count if count >= 0 => Ok(Some(usize::try_from(count).unwrap_or(0).min(into.len()))),
            error if -error == libc::EAGAIN || -error == libc::EINTR => Ok(None),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Sends what the socket takes, at most 256 KiB, and never waits. `more`: other bytes follow directly.
    ///
    /// # Errors
    /// Of the socket, or of the submission ([`is_of_the_ring`]).
    pub fn send(&self, slot: u32, bytes: &[u8], more: bool) -> io::Result<usize> {
        let cut = &bytes[..bytes.len().min(MOST_AT_ONCE)];
        let mut state = self.state();
        let result = self.run(&mut state, send(slot, cut, more))?;
        sent(result, cut.len())
    }

    /// Has the bytes behind `from` sent when this thread waits next, or somebody collects them: without a system call of their own.
    /// What the socket does not take at once is not sent.
    ///
    /// # Errors
    /// Gives the bytes back where too many are queued already.
    pub fn queue(&self, slot: u32, bytes: Vec<u8>, from: usize) -> Result<Ticket, Vec<u8>> {
        let mut state = self.state();
        let index = match state.queued.iter().position(Option::is_none) {
            Some(free) => free,
            None if state.queued.len() < MOST_QUEUED => {
                state.queued.push(None);
                state.queued.len() - 1
            }
            None => return Err(bytes),
        };
        let rest = bytes.get(from..).unwrap_or_default();
        if rest.is_empty() || rest.len() > MOST_AT_ONCE {
            return Err(bytes);
        }
        let generation = state.next().get();
        let place = u32::try_from(index).unwrap_or(u32::MAX);
        let entry = send(slot, rest, false).user_data(tag(Kind::Queued, place, generation));
        if self.push(&mut state, entry).is_err() {
            return Err(bytes);
        }
        let at = state.written;
        state.queued[index] = Some(Queued { generation, bytes, from, at, result: None });
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
        let (at, mut result) = (queued.at, queued.result);
        if !self.was_taken(at) {
            self.hand_in(&mut state)?;
        }
        if result.is_none() {
            let place = u32::try_from(index).unwrap_or(u32::MAX);
            result = self.find(&mut state, tag(Kind::Queued, place, generation))?;
        }
        let queued = state.queued[index].take().ok_or_else(stale)?;
        let result = result.or(queued.result);
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
            let woken = self.reap(&mut state);
            self.rearm(&mut state)?;
            if woken || !state.news.is_empty() {
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
        self.hand_in(&mut state)?;
        // What is to be reported by interrupting this thread is reported on its way into the kernel and back.
        match self.enter(0, 0, Some(Duration::ZERO)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
            Err(error) => return Err(of_the_ring(error)),
        }
        self.reap(&mut state);
        self.rearm(&mut state)?;
        news.append(&mut state.news);
        self.hand_in(&mut state)
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

    /// Arms polls anew that have come to an end, or that another thread is interrupted for.
    fn rearm(&self, state: &mut State) -> io::Result<()> {
        let thread = this_thread();
        for at in 0..state.news.len() {
            let News::Readable { slot, .. } = state.news[at] else { continue };
            let poll = state.polls[slot as usize];
            if poll.by != thread {
                self.arm(state, slot)?;
            }
        }
        Ok(())
    }

    /// Runs one operation that does not wait. Its result, if it has one.
    fn run(&self, state: &mut State, entry: Entry) -> io::Result<Option<i32>> {
        let wanted = tag(Kind::Now, 0, state.next().get());
        state.current = Some((wanted, None));
        self.push(state, entry.user_data(wanted))?;
        if let Err(error) = self.hand_in(state) {
            // The kernel has not taken it, and must not: what it points to is our caller's.
            self.write(state.written.wrapping_sub(1), nothing());
            return Err(error);
        }
        self.find(state, wanted)
    }

    /// The result of an operation that the kernel has been through; `None` if it succeeded and was not to say so. Its completion stays
    /// where it is.
    fn find(&self, state: &mut State, wanted: u64) -> io::Result<Option<i32>> {
        state.current = Some((wanted, None));
        let mut at = state.read;
        let end = self.completed(state);
        while at != end {
            let completion = self.completion(at);
            if completion.tag == wanted {
                return Ok(Some(completion.result));
            }
            at = at.wrapping_add(1);
        }
        if !self.has_overflown() {
            return Ok(None);
        }
        // It may be among those that found no place. To see it they all have to be read; whoever waits for them is told.
        while self.has_overflown() {
            self.reap(state);
            match self.enter(0, 0, Some(Duration::ZERO)) {
                Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                Err(error) => return Err(of_the_ring(error)),
            }
        }
        self.reap(state);
        let result = state.current.and_then(|(_, result)| result);
        self.push(state, nothing())?;
        self.hand_in(state)?;
        Ok(result)
    }

    /// Takes all completions out. Whether somebody wants the waiting thread to come back.
    fn reap(&self, state: &mut State) -> bool {
        let mut woken = false;
        let end = self.completed(state);
        while state.read != end {
            let completion = self.completion(state.read);
            state.read = state.read.wrapping_add(1);
            woken |= state.enter(&completion);
        }
        self.queues.word(self.layout.cq_head).store(state.read, Ordering::Release);
        woken
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

    /// Enters one completion. Whether somebody wants the waiting thread to come back.
    fn enter(&mut self, completion: &Completion) -> bool {
        let (kind, place, generation) = untag(completion.tag);
        let slot = u32::try_from(place).unwrap_or(u32::MAX);
        let result = completion.result;
        match kind {
            Kind::Nothing => return result >= 0 && generation == WAKES,
            Kind::Now => {
                if let Some((wanted, found)) = &mut self.current
                    && *wanted == completion.tag
                {
                    *found = Some(result);
                }
            }
            Kind::Queued => {
                if let Some(Some(queued)) = self.queued.get_mut(place)
                    && queued.generation == generation
                {
                    queued.result = Some(result);
                    return true;
                }
            }
            Kind::Reading => {
                let Some(poll) = self.polls.get_mut(place) else { return false };
                if poll.reading.map(NonZeroU32::get) != Some(generation) {
                    return false;
                }
                if result < 0 {
                    poll.reading = None;
                    self.news.push(News::Lost { slot });
                    return false;
                }
                if completion.flags & CQE_MORE == 0 {
                    // It is over, and armed anew before the next wait.
                    (poll.reading, poll.by) = (None, 0);
                }
                self.news.push(News::Readable { slot, ended: result & ENDED != 0 });
            }
            Kind::Room => {
                let Some(poll) = self.polls.get_mut(place) else { return false };
                if poll.room.map(NonZeroU32::get) == Some(generation) {
                    poll.room = None;
                    self.news.push(News::Room { slot });
                }
            }
        }
        false
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

/// Memory that is shared with the kernel.
#[derive(Debug)]
struct Map {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: it is memory like any other; words of it are used as atomics, the rest under the lock.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(fd: &OwnedFd, at: u64, len: usize) -> io::Result<Map> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh map at a place that the kernel chooses.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, fd, at)? };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Map { start, len })
    }

    fn at(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "outside of the map");
        // SAFETY: within the map, as was just checked.
        unsafe { self.start.as_ptr().cast::<u8>().add(at) }
    }

    /// A number that both sides read and write.
    fn word(&self, at: u32) -> &AtomicU32 {
        let word = self.at(at as usize, size_of::<u32>()).cast::<u32>();
        // SAFETY: within the map, which lives as long as `self`; aligned, as `check` has seen; only used as an atomic.
        unsafe { AtomicU32::from_ptr(word) }
    }

    fn completion(&self, cqes: u32, index: u32) -> Completion {
        let at = cqes as usize + index as usize * COMPLETION_BYTES;
        let completion = self.at(at, COMPLETION_BYTES).cast::<Completion>();
        // SAFETY: within the map and aligned; any bytes are a completion. Volatile: somebody else may write it meanwhile.
        unsafe { completion.read_volatile() }
    }

    fn write(&self, index: u32, entry: Entry) {
        let place = self.at(index as usize * SUBMISSION_BYTES, SUBMISSION_BYTES).cast::<Entry>();
        // SAFETY: within the map and aligned; the kernel reads it only after `sq_tail` says that it is there.
        unsafe { place.write_volatile(entry) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing points into it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.len) };
    }
}
