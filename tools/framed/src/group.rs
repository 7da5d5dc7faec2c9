//! Many connections, and one thread: whatever is ready is moved, and nobody is looked at in vain. For front ends, and for measuring.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFlags, Timespec, epoll},
    io::Errno,
};

use crate::{
    connection::{Connection, Ticket},
    error::Error,
    request::{Reply, Request},
};

/// Times of connections (deadlines, pauses before connecting again) are looked at as often as this.
const TICK: Duration = Duration::from_millis(10);
/// Sockets that are dealt with in a row.
const BATCH: usize = 64;

/// Connections that one thread uses together.
#[derive(Debug)]
pub struct Group {
    epoll: OwnedFd,
    members: Vec<Member>,
    /// Those with calls that may have ended.
    ready: VecDeque<usize>,
    next_tick: Instant,
    spins: bool,
}

#[derive(Debug)]
struct Member {
    connection: Connection,
    /// The key of each socket that is watched, and what for.
    watched: Vec<(u64, PollFlags)>,
    is_ready: bool,
}

impl Group {
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new(connections: Vec<Connection>) -> io::Result<Group> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let member = |connection| Member { connection, watched: Vec::new(), is_ready: false };
        let mut group = Group {
            epoll,
            members: connections.into_iter().map(member).collect(),
            ready: VecDeque::new(),
            next_tick: Instant::now() + TICK,
            spins: false,
        };
        for at in 0..group.members.len() {
            group.look_at(at)?;
        }
        Ok(group)
    }

    /// Looks for answers again and again instead of sleeping: some microseconds quicker, and a core that does nothing else.
    #[must_use]
    pub fn spinning(mut self) -> Group {
        self.spins = true;
        self
    }

    /// How many connections there are. They are numbered from 0.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Begins a call on a connection, as [`Connection::begin`] does.
    ///
    /// # Errors
    /// [`Error::Refused`] for a call that cannot be made like this.
    ///
    /// # Panics
    /// If there is no such connection.
    pub fn begin(
        &mut self,
        at: usize,
        request: impl Into<Request>,
        input: impl AsRef<[u8]>,
    ) -> Result<Ticket, Error> {
        let begun = self.members[at].connection.begin(request, input);
        let lost = self.members[at].connection.is_lost();
        if let Err(error) = if lost { self.advance(at) } else { self.look_at(at) } {
            self.members[at].connection.fail(error);
        }
        self.note(at);
        begun
    }

    /// Waits for the end of any call, at most until `until`. `None`: none has ended by then.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    #[expect(clippy::type_complexity, reason = "which connection, which call, and what came of it")]
    pub fn wait_any(
        &mut self,
        until: Option<Instant>,
    ) -> io::Result<Option<(usize, Ticket, Result<Reply, Error>)>> {
        loop {
            while let Some(&at) = self.ready.front() {
                if let Some((ticket, end)) = self.members[at].connection.take_ended() {
                    return Ok(Some((at, ticket, end)));
                }
                self.members[at].is_ready = false;
                self.ready.pop_front();
            }
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) {
                // Also one that is asked again and again has its answers looked for.
                self.wait(now, now)?;
                if self.ready.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            if self.next_tick <= now {
                self.next_tick = now + TICK;
                for at in 0..self.members.len() {
                    self.advance_if_due(at, now)?;
                }
            }
            let end = until.map_or(self.next_tick, |until| until.min(self.next_tick));
            self.wait(now, end)?;
        }
    }

    /// Waits for sockets, and moves what is there.
    fn wait(&mut self, now: Instant, until: Instant) -> io::Result<()> {
        let left = if self.spins { Duration::ZERO } else { until.saturating_duration_since(now) };
        let timeout = Timespec::try_from(left).ok();
        let mut room = [const { MaybeUninit::<epoll::Event>::uninit() }; BATCH];
        let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        events.iter().try_for_each(|event| {
            let at = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            if at < self.members.len() { self.advance(at) } else { Ok(()) }
        })
    }

    fn advance_if_due(&mut self, at: usize, now: Instant) -> io::Result<()> {
        let is_due = self.members[at].connection.wake_at().is_some_and(|due| due <= now);
        if is_due || self.members[at].connection.is_lost() { self.advance(at) } else { Ok(()) }
    }

    fn advance(&mut self, at: usize) -> io::Result<()> {
        self.members[at].connection.advance();
        self.note(at);
        self.look_at(at)
    }

    fn note(&mut self, at: usize) {
        let member = &mut self.members[at];
        if !member.is_ready && member.connection.has_ended() {
            member.is_ready = true;
            self.ready.push_back(at);
        }
    }

    /// Watches the sockets that a connection has now, for what they wait for. Those that were closed are not watched any more.
    fn look_at(&mut self, at: usize) -> io::Result<()> {
        let Group { epoll, members, .. } = self;
        let member = &mut members[at];
        let mut watched = Vec::with_capacity(member.watched.len());
        for (socket, interest) in member.connection.sockets() {
            let known = member.watched.iter().find(|(key, _)| *key == socket.key).map(|(_, known)| *known);
            let mut flags = epoll::EventFlags::empty();
            flags.set(epoll::EventFlags::IN, interest.contains(PollFlags::IN));
            flags.set(epoll::EventFlags::OUT, interest.contains(PollFlags::OUT));
            let data = epoll::EventData::new_u64(at as u64);
            match known {
                Some(known) if known == interest => {}
                Some(_) => epoll::modify(&*epoll, socket, data, flags)?,
                None => epoll::add(&*epoll, socket, data, flags)?,
            }
            watched.push((socket.key, interest));
        }
        member.watched = watched;
        Ok(())
    }
}
