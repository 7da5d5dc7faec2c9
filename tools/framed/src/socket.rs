//! A socket of a blocking client: connects and moves bytes both ways without ever being stuck in one of them. A client that only wrote
//! while the server only wrote would wait for ever; so no socket blocks, and waiting is for all directions of all of them at once.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
    vec,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt},
};

use crate::machine::Machine;

/// A peer that has vanished without a word is noticed after idle + 3 · interval.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// See the module. The machine knows it by its key.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) key: u64,
    stream: TcpStream,
    /// What else the address stands for, while it is not connected.
    dialing: Option<vec::IntoIter<SocketAddr>>,
}

impl Socket {
    /// Begins to connect. Only the name is waited for.
    pub(crate) fn dial(key: u64, address: &str) -> io::Result<Socket> {
        let mut others = address.to_socket_addrs()?.collect::<Vec<_>>().into_iter();
        let stream = begin_any(&mut others)?;
        Ok(Socket { key, stream, dialing: Some(others) })
    }

    /// What it waits for.
    pub(crate) fn interest(&self, machine: &mut Machine) -> PollFlags {
        if self.dialing.is_some() {
            return PollFlags::OUT;
        }
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, !machine.fill(self.key).is_empty());
        interest
    }

    /// Something of what it waited for is there.
    pub(crate) fn is_ready(&mut self, machine: &mut Machine, buf: &mut [u8]) {
        if self.dialing.is_some() {
            match self.try_finish() {
                Ok(false) => return,
                Ok(true) => machine.connected(self.key, Instant::now()),
                Err(error) => return machine.cut(self.key, error, Instant::now()),
            }
        }
        self.flush(machine, buf);
        self.read(machine, buf);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.dialing.is_none()
    }

    /// Whether it is connected now. Where one address fails the next has its turn.
    fn try_finish(&mut self) -> io::Result<bool> {
        let Some(others) = &mut self.dialing else { return Ok(true) };
        match self.stream.take_error()? {
            Some(error) => {
                self.stream =
                    begin_any(others).map_err(|last| if others.len() == 0 { error } else { last })?;
                Ok(false)
            }
            // Woken for nothing: it says so until it is through.
            None if self.stream.peer_addr().is_err() => Ok(false),
            None => {
                self.dialing = None;
                Ok(true)
            }
        }
    }

    /// Sends what the socket takes at once.
    pub(crate) fn flush(&mut self, machine: &mut Machine, buf: &mut [u8]) {
        while self.dialing.is_none() && !machine.fill(self.key).is_empty() {
            match self.stream.write(machine.fill(self.key)) {
                Ok(0) => {
                    return machine.cut(self.key, io::ErrorKind::WriteZero.into(), Instant::now());
                }
                Ok(len) => machine.was_sent(self.key, len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What the server said before it closed is still to be read, and tells more.
                    while machine.has_link(self.key)
                        && let Ok(len @ 1..) = self.stream.read(buf)
                    {
                        machine.received(self.key, &buf[..len], Instant::now());
                    }
                    return machine.cut(self.key, error, Instant::now());
                }
            }
        }
    }

    /// Takes in what is there. Says whether anything was.
    pub(crate) fn read(&mut self, machine: &mut Machine, buf: &mut [u8]) -> bool {
        if self.dialing.is_some() {
            return false;
        }
        match self.stream.read(buf) {
            Ok(0) => machine.cut(self.key, io::ErrorKind::UnexpectedEof.into(), Instant::now()),
            Ok(len) => machine.received(self.key, &buf[..len], Instant::now()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return false;
            }
            Err(error) => machine.cut(self.key, error, Instant::now()),
        }
        true
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Begins to connect to the first of them that does not fail at once.
fn begin_any(addresses: &mut vec::IntoIter<SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no other address");
    for address in addresses {
        match begin(address) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn begin(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let stream = TcpStream::from(socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?);
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, 3)?;
    match connect(&stream, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

/// Waits for any of them, at most until then.
pub(crate) fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A time that poll cannot count is as good as none.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, timeout.as_ref()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
