//! A socket with the calls on it: connects, and moves bytes both ways without ever being stuck in one of them. A client that only wrote
//! while the server only wrote would wait for ever; so the socket does not block, and waiting is for both directions at once.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
};

use crate::{exchange::Exchange, options::Options};

const READ_BYTES: usize = 64 << 10;
/// A peer that has vanished without a word is noticed after idle + 3 · interval.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How a connection ended, as far as the socket tells.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The socket failed, or was closed.
    Io(io::Error),
    /// The other end broke a rule.
    Violation(denizen_protocol::Violation),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    pub(crate) exchange: Exchange,
    pub(crate) address: String,
    /// The ticket of each call that was begun here, by its id on the wire.
    pub(crate) tickets: HashMap<u64, u64>,
    /// Until when it must be greeted.
    pub(crate) greet_until: Instant,
    buf: Vec<u8>,
}

/// Connects within the options' time; to the first of the address's meanings that answers.
pub(crate) fn connect(address: &str, options: &Options) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, options.connect_timeout) {
            Ok(stream) => {
                prepare(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

impl Link {
    pub(crate) fn new(stream: TcpStream, exchange: Exchange, address: String, options: &Options) -> Link {
        Link {
            stream,
            exchange,
            address,
            tickets: HashMap::new(),
            greet_until: Instant::now() + options.connect_timeout,
            buf: vec![0; READ_BYTES],
        }
    }

    /// Sends what can be sent, then waits until `until` (or for ever) for anything to happen, and takes it in.
    pub(crate) fn step(&mut self, until: Option<Instant>) -> Result<(), Cut> {
        self.flush()?;
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, !self.exchange.unsent().is_empty());
        let ready = wait(&self.stream, interest, until).map_err(Cut::Io)?;
        if ready.contains(PollFlags::OUT) {
            self.flush()?;
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read()?;
        }
        Ok(())
    }

    /// Sends what the socket takes at once.
    pub(crate) fn flush(&mut self) -> Result<(), Cut> {
        while !self.exchange.fill().is_empty() {
            match self.stream.write(self.exchange.unsent()) {
                Ok(0) => return Err(Cut::Io(io::ErrorKind::WriteZero.into())),
                Ok(len) => self.exchange.was_sent(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the server said before it closed is still to be read, and tells more.
                Err(error) => return self.drain_then(error),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Cut> {
        match self.stream.read(&mut self.buf) {
            Ok(0) => Err(Cut::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => self.exchange.receive(&self.buf[..len]).map_err(Cut::Violation),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(())
            }
            Err(error) => Err(Cut::Io(error)),
        }
    }

    fn drain_then(&mut self, error: io::Error) -> Result<(), Cut> {
        while let Ok(len @ 1..) = self.stream.read(&mut self.buf) {
            self.exchange.receive(&self.buf[..len]).map_err(Cut::Violation)?;
        }
        Err(Cut::Io(error))
    }
}

fn wait(stream: &TcpStream, interest: PollFlags, until: Option<Instant>) -> io::Result<PollFlags> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A time that poll cannot count is as good as none.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(stream, interest)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => return Ok(fds[0].revents()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
