//! The blocking client: the machine of its calls, and the sockets whose bytes it moves when somebody waits.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use denizen_protocol::CancelReason;
use rustix::event::{PollFd, PollFlags};

use crate::{
    error::Error,
    machine::{Input, Machine, earlier},
    options::Options,
    request::{Reply, Request},
    socket::{Socket, wait},
    stream::{CallStream, Flow},
};

/// A connection that nothing was done on for longer is looked at before it is used.
const A_PAUSE: Duration = Duration::from_millis(20);
const READ_BYTES: usize = 64 << 10;

/// A call that was begun. Wait for it once, on the connection that gave it.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[must_use = "a call that nobody waits for keeps its reply in memory"]
pub struct Ticket(u64);

/// Calls of one application, or of one process of it. See the crate.
///
/// One thread at a time uses it; [`crate::Pool`] has more of them. Only the name in the address is waited for beyond a call's deadline.
#[derive(Debug)]
pub struct Connection {
    pub(crate) machine: Machine,
    /// One; and beside it those that are being drained.
    sockets: Vec<Socket>,
    last_step: Instant,
    spin: Duration,
    buf: Vec<u8>,
}

impl Connection {
    /// Connects, and waits until the node has accepted the connection.
    ///
    /// # Errors
    /// [`Error::Token`] and [`Error::Refused`] for options that cannot be; [`Error::Unreachable`] when the patience is over;
    /// [`Error::Problem`] when the node refuses, as with `bad-token`.
    pub fn open(options: Options) -> Result<Connection, Error> {
        let mut connection = Connection::new(options)?;
        while !connection.is_connected() {
            connection.machine.want();
            connection.step(None);
            if let Some(error) = connection.machine.take_given_up() {
                return Err(error);
            }
        }
        Ok(connection)
    }

    /// One that connects with its first call.
    ///
    /// # Errors
    /// [`Error::Token`] and [`Error::Refused`] for options that cannot be.
    pub fn new(options: Options) -> Result<Connection, Error> {
        let (now, spin) = (Instant::now(), options.spin);
        let machine = Machine::new(options)?;
        Ok(Connection { machine, sockets: Vec::new(), last_step: now, spin, buf: vec![0; READ_BYTES] })
    }

    /// Calls a function and waits for its whole reply.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn call(&mut self, request: impl Into<Request>, input: impl AsRef<[u8]>) -> Result<Reply, Error> {
        let ticket = self.begin(request, input)?;
        self.wait(ticket)
    }

    /// Begins a call and does not wait. It is sent as soon as the connection has room for it.
    ///
    /// # Errors
    /// [`Error::Refused`] for a call that cannot be made like this; everything else comes from [`Connection::wait`].
    pub fn begin(&mut self, request: impl Into<Request>, input: impl AsRef<[u8]>) -> Result<Ticket, Error> {
        self.look_after_a_pause();
        let input = Input::Whole(Arc::from(input.as_ref()));
        let ticket = self.machine.begin(request.into(), input, Instant::now());
        self.flush();
        self.machine.take_refusal(ticket).map_or(Ok(Ticket(ticket)), Err)
    }

    /// Waits for the whole reply of a call.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn wait(&mut self, ticket: Ticket) -> Result<Reply, Error> {
        loop {
            if let Some(end) = self.machine.take_ended(ticket.0) {
                return end;
            }
            if !self.machine.runs(ticket.0) {
                return Err(Error::NoSuchCall);
            }
            self.step(None);
        }
    }

    /// Waits for the end of any call, at most until `until`. `None`: none has ended by then, or none is begun.
    pub fn wait_any(&mut self, until: Option<Instant>) -> Option<(Ticket, Result<Reply, Error>)> {
        loop {
            if let Some(ended) = self.take_ended() {
                return Some(ended);
            }
            if self.machine.in_flight() == 0 || until.is_some_and(|until| until <= Instant::now()) {
                return None;
            }
            self.step(until);
        }
    }

    /// A call whose end is here already.
    pub(crate) fn take_ended(&mut self) -> Option<(Ticket, Result<Reply, Error>)> {
        self.machine.pop_ended().map(|(ticket, end)| (Ticket(ticket), end))
    }

    /// Gives a call up: its reply is not wanted any more. Whether it was executed is unknown.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.close(ticket.0);
    }

    /// Begins a call whose input is written and whose reply is read piece by piece. `length` is that of the whole
    /// input, if known. It is never made again: what has gone through the caller's hands cannot be taken back.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn stream(
        &mut self,
        request: impl Into<Request>,
        length: Option<u64>,
    ) -> Result<CallStream<'_>, Error> {
        self.look_after_a_pause();
        let ticket = self.machine.begin(request.into(), Input::Stream { length }, Instant::now());
        let mut flow = Flow::new(ticket);
        while !flow.is_begun(&self.machine).inspect_err(|_| self.close(ticket))? {
            self.step(None);
        }
        Ok(CallStream::new(self, flow))
    }

    /// Calls that have not ended.
    pub fn in_flight(&self) -> usize {
        self.machine.in_flight()
    }

    /// How long to go on trying from now on: [`Options::patience`].
    pub fn set_patience(&mut self, patience: Duration) {
        self.machine.set_patience(patience);
    }

    /// Whether a node has accepted this connection and takes calls on it.
    pub fn is_connected(&self) -> bool {
        self.machine.is_connected()
    }

    /// Whether nobody would notice that another uses it now.
    pub(crate) fn is_reusable(&self) -> bool {
        self.is_connected() && self.machine.is_idle()
    }

    /// The highest epoch seen of a process; 0 if none was.
    pub fn epoch(&self, process: &str) -> u64 {
        self.machine.epoch(process)
    }

    /// A connection that was left alone may have ended meanwhile. To find that out before a call is on it costs less than a call of which
    /// nobody knows what became.
    fn look_after_a_pause(&mut self) {
        if self.machine.in_flight() == 0 && !self.sockets.is_empty() && self.last_step.elapsed() > A_PAUSE {
            self.advance();
        }
    }

    /// Does what can be done without waiting.
    pub(crate) fn advance(&mut self) {
        self.prepare(Instant::now());
        for socket in &mut self.sockets {
            if socket.is_connected() {
                socket.read(&mut self.machine, &mut self.buf);
            } else {
                socket.is_ready(&mut self.machine, &mut self.buf);
            }
        }
        self.settle();
    }

    /// Does a piece of whatever is to be done, waiting at most until `until`.
    pub(crate) fn step(&mut self, until: Option<Instant>) {
        let (now, ends) = (Instant::now(), self.machine.given_ends());
        self.prepare(now);
        if ends != self.machine.given_ends() {
            // Perhaps this was what is waited for.
            return;
        }
        let until = earlier(until, self.machine.wake_at());
        if self.sockets.is_empty() {
            thread::sleep(until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)));
        } else if !self.spin(now, until) {
            self.wait_for_sockets(until);
        }
        self.settle();
    }

    /// Before waiting: connects what is to be connected, and sends what is to be sent.
    fn prepare(&mut self, now: Instant) {
        self.machine.pump(now);
        while let Some((key, address)) = self.machine.dial(now) {
            match Socket::dial(key, &address) {
                Ok(socket) => self.sockets.push(socket),
                Err(error) => self.machine.cut(key, error, Instant::now()),
            }
        }
        self.flush();
    }

    /// After something has happened: sends what came of it, and lets go of what is over.
    fn settle(&mut self) {
        self.flush();
        self.last_step = Instant::now();
    }

    /// Looks for an answer again and again. Says whether one came.
    fn spin(&mut self, now: Instant, until: Option<Instant>) -> bool {
        if self.spin.is_zero() {
            return false;
        }
        let end = now + self.spin;
        let end = until.map_or(end, |until| until.min(end));
        loop {
            let mut came = false;
            for socket in &mut self.sockets {
                came |= socket.read(&mut self.machine, &mut self.buf);
            }
            if came || end <= Instant::now() {
                return came;
            }
            std::hint::spin_loop();
        }
    }

    fn wait_for_sockets(&mut self, until: Option<Instant>) {
        let Connection { machine, sockets, .. } = self;
        // Nearly always there is one.
        let waited = if let [socket] = sockets.as_slice() {
            let mut fds = [PollFd::new(socket, socket.interest(machine))];
            wait(&mut fds, until).map(|()| ready(&fds))
        } else {
            let mut fds: Vec<_> =
                sockets.iter().map(|socket| PollFd::new(socket, socket.interest(machine))).collect();
            wait(&mut fds, until).map(|()| ready(&fds))
        };
        match waited {
            Ok(ready) => {
                for at in ready {
                    self.sockets[at].is_ready(&mut self.machine, &mut self.buf);
                }
            }
            Err(error) => self.machine.close(error),
        }
    }

    /// Whether there is a call whose end is here already.
    pub(crate) fn has_ended(&self) -> bool {
        self.machine.has_ended()
    }

    /// Until when nothing is to be done unless bytes come.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.machine.wake_at()
    }

    /// Whether calls wait for a connection that nobody has begun to make.
    pub(crate) fn is_lost(&self) -> bool {
        self.sockets.is_empty() && self.machine.in_flight() > 0
    }

    /// Every call ends.
    pub(crate) fn fail(&mut self, why: io::Error) {
        self.machine.close(why);
    }

    /// The sockets, and what each waits for; to be waited for with those of others.
    pub(crate) fn sockets(&mut self) -> impl Iterator<Item = (&Socket, PollFlags)> {
        let machine = &mut self.machine;
        self.sockets.iter().map(move |socket| (socket, socket.interest(machine)))
    }

    /// Sends what the sockets take at once.
    pub(crate) fn flush(&mut self) {
        for socket in &mut self.sockets {
            socket.flush(&mut self.machine, &mut self.buf);
        }
        self.sockets.retain(|socket| self.machine.has_link(socket.key));
    }

    /// Nothing more is wanted of this call.
    pub(crate) fn close(&mut self, ticket: u64) {
        self.machine.forget(ticket, CancelReason::Unwanted);
    }
}

/// Which of them are ready.
fn ready(fds: &[PollFd<'_>]) -> Vec<usize> {
    fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(at, _)| at).collect()
}
