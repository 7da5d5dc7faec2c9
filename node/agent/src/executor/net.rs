//! Sockets on an executor: the listener, the stream that hyper reads and writes, and a sandbox's sockets.
//!
//! A socket is watched for reading only. Whether it takes bytes is tried; one that does not is watched for writing for as long as that
//! lasts ([`Outlet`]): otherwise each reply that a caller reads would wake the executor once more, for nothing.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::io::{Errno, IoSlice};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// What one read from a connection takes at most.
const SCRATCH: usize = 64 << 10;
/// What is sent from several pieces is put together up to this many bytes.
const TOGETHER: usize = 512;

thread_local! {
    /// Reads land here and are copied on: hyper's own buffer is uninitialised, and zeroing it costs more than this copy.
    static READ_SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// Binds `count` listening sockets to one address; the kernel spreads connections over them, and each has the congestion control of its
/// listener: `congestion`, or the system's.
///
/// The first bind is an exclusive one, so that an address that another program listens on is an error even where that program
/// shares its port too; only then is the port bound again, shared.
pub(crate) fn bind(
    address: SocketAddr,
    count: usize,
    congestion: Option<&str>,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let exclusive = listening(address, false, congestion)?;
    let address = SocketAddr::try_from(rustix::net::getsockname(&exclusive)?)?;
    if count == 1 {
        return Ok((address, vec![exclusive]));
    }
    drop(exclusive);
    let sockets = (0..count).map(|_| listening(address, true, congestion)).collect::<io::Result<_>>()?;
    Ok((address, sockets))
}

/// Whether this program may give its sockets that congestion control.
///
/// # Errors
/// The system's: it has none of that name, or allows it to root only.
pub(crate) fn try_congestion(name: &str) -> io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    Ok(sockopt::set_tcp_congestion(&socket, name)?)
}

fn listening(address: SocketAddr, shared: bool, congestion: Option<&str>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if let Some(name) = congestion {
        sockopt::set_tcp_congestion(&socket, name)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Registers a socket with this executor's poll loop.
pub(super) fn watch(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same descriptor whenever it is asked and closes it only when it is dropped, and the `AsyncFd`
    // never gives it away.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// A listening socket on this executor.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Takes a socket from [`bind`] to this executor.
    ///
    /// # Errors
    /// The system's, where the socket cannot be watched.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<Listener> {
        Ok(Listener { inner: watch(socket, Interest::READABLE)? })
    }

    /// The next connection.
    ///
    /// # Errors
    /// Out of descriptors or memory, or a connection that was gone before it was accepted. The listener stays usable.
    pub(crate) async fn accept(&self) -> io::Result<HttpStream> {
        // Not inherited: programs that this one starts (a compiler, the spawner) must not keep a caller's connection open.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = loop {
            let mut guard = self.inner.readable().await?;
            match rustix::net::accept_with(&self.inner, flags) {
                Ok(socket) => break socket,
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        sockopt::set_tcp_nodelay(&socket, true)?;
        HttpStream::adopt(socket)
    }
}

impl Listener {
    /// Takes the next connection, if one waits, only to write `answer` and close it.
    pub(crate) fn turn_away(&self, answer: &[u8]) -> io::Result<()> {
        let socket = rustix::net::accept_with(&self.inner, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // What has come is read: a close over it would reset the connection, and the answer with it.
        READ_SCRATCH.with(|scratch| {
            let _ = rustix::net::recv(&socket, scratch.borrow_mut().as_mut_slice(), RecvFlags::DONTWAIT);
        });
        rustix::net::send(&socket, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(rustix::net::shutdown(&socket, rustix::net::Shutdown::Write)?)
    }
}

/// A caller's connection, as hyper wants it.
#[derive(Debug)]
pub(crate) struct HttpStream {
    inner: AsyncFd<OwnedFd>,
    outlet: Outlet,
    closer: Closer,
}

impl HttpStream {
    /// Takes a connection to this executor.
    ///
    /// # Errors
    /// The system's, where the socket cannot be watched.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<HttpStream> {
        let fd = Cell::new(Some(socket.as_raw_fd()));
        let closer = Closer(Rc::new(Handle { fd, stuck_since: Cell::new(None) }));
        let inner = watch(socket, Interest::READABLE)?;
        Ok(HttpStream { inner, outlet: Outlet::default(), closer })
    }

    /// Gives the connection up, so that another executor can [`HttpStream::adopt`] it.
    ///
    /// # Errors
    /// Out of descriptors: for a moment it takes two.
    pub(crate) fn give_up(self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.inner, 0)?)
    }

    /// Has the kernel find out whether the peer of a quiet connection is still there.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn keep_alive(&self, quiet: Duration) -> io::Result<()> {
        sockopt::set_socket_keepalive(&self.inner, true)?;
        Ok(sockopt::set_tcp_keepidle(&self.inner, quiet)?)
    }

    /// The way to end the connection from another task of this executor.
    pub(crate) fn closer(&self) -> Closer {
        self.closer.clone()
    }
}

impl Drop for HttpStream {
    fn drop(&mut self) {
        // Before the descriptor is closed, and its number given to another file.
        self.closer.0.fd.set(None);
    }
}

/// Ends a connection that another task owns.
#[derive(Debug, Clone)]
pub(crate) struct Closer(Rc<Handle>);

/// What others may know of a connection.
#[derive(Debug)]
struct Handle {
    /// `None` once it is closed.
    fd: Cell<Option<RawFd>>,
    /// Since when its caller has taken nothing of what there is for it.
    stuck_since: Cell<Option<Instant>>,
}

impl Closer {
    /// Since when there are bytes for the caller and it takes none.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        self.0.stuck_since.get()
    }

    /// Shuts the connection down, as its caller could have: whoever reads it meets its end.
    pub(crate) fn close(&self) {
        if let Some(fd) = self.0.fd.take() {
            // SAFETY: the stream clears the cell before it closes the descriptor, and lives on this thread, too.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        }
    }
}

impl hyper::rt::Read for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut to: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        READ_SCRATCH.with(|scratch| {
            // Nothing below runs other tasks, so the buffer is free whenever a task is here.
            let mut scratch = scratch.borrow_mut();
            let limit = to.remaining().min(scratch.len());
            let room = scratch.get_mut(..limit).unwrap_or_default();
            let count = ready!(poll_receive(&self.inner, cx, room))?;
            to.put_slice(room.get(..count).unwrap_or_default());
            Poll::Ready(Ok(()))
        })
    }
}

/// Reads what there is, at least one byte; 0 is the end.
fn poll_receive(socket: &AsyncFd<OwnedFd>, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        let mut guard = ready!(socket.poll_read_ready(cx))?;
        match rustix::net::recv(socket, &mut *to, RecvFlags::DONTWAIT) {
            Ok((count, _)) => {
                // Less than there is room for was all: what comes later is announced anew. That saves a system call per message.
                // The end is no news, so it must be found again.
                if count > 0 && count < to.len() {
                    guard.clear_ready_matching(Ready::READABLE);
                }
                return Poll::Ready(Ok(count));
            }
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
    }
}

/// Where bytes leave: watched while the socket takes none.
#[derive(Debug, Default)]
struct Outlet {
    /// A duplicate, because a descriptor is watched once, and the socket's own is watched for reading.
    watched: Option<AsyncFd<OwnedFd>>,
}

impl Outlet {
    fn poll_send(
        &mut self,
        socket: BorrowedFd<'_>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match send_now(socket, pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    self.watched = None;
                    return Poll::Ready(sent);
                }
            }
            let watched = match &self.watched {
                Some(watched) => watched,
                None => {
                    let copy = rustix::io::fcntl_dupfd_cloexec(socket, 0)?;
                    self.watched.insert(watch(copy, Interest::WRITABLE)?)
                }
            };
            ready!(watched.poll_write_ready(cx))?.clear_ready();
        }
    }
}

fn send_now(socket: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut room = [0; TOGETHER];
    if let Some(whole) = together(pieces, &mut room) {
        return send_whole(socket, whole, flags);
    }
    let mut nothing = rustix::net::SendAncillaryBuffer::default();
    loop {
        match rustix::net::sendmsg(socket, pieces, &mut nothing, flags) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// All pieces in one, if `room` is enough: to copy a little is cheaper than to have the kernel read a list of places.
fn together<'r>(pieces: &'r [IoSlice<'_>], room: &'r mut [u8; TOGETHER]) -> Option<&'r [u8]> {
    if let [whole] = pieces {
        return Some(whole);
    }
    let mut end = 0;
    for piece in pieces {
        room.get_mut(end..end + piece.len())?.copy_from_slice(piece);
        end += piece.len();
    }
    room.get(..end)
}

fn send_whole(socket: BorrowedFd<'_>, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
    loop {
        match rustix::net::send(socket, bytes, flags) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

impl hyper::rt::Write for HttpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let HttpStream { inner, outlet, closer } = &mut *self;
        let written = outlet.poll_send(inner.as_fd(), cx, pieces);
        let stuck = &closer.0.stuck_since;
        match &written {
            Poll::Pending if stuck.get().is_none() => stuck.set(Some(Instant::now())),
            Poll::Pending => {}
            Poll::Ready(_) => stuck.set(None),
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&self.inner, rustix::net::Shutdown::Write) {
            // The caller was faster.
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

/// What a sandbox sends.
#[derive(Debug)]
pub(crate) struct ControlReader {
    inner: AsyncFd<OwnedFd>,
}

impl ControlReader {
    /// Takes a socket that a sandbox writes on to this executor.
    ///
    /// # Errors
    /// The system's, where it cannot be watched.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<ControlReader> {
        Ok(ControlReader { inner: watch(socket, Interest::READABLE)? })
    }

    /// Reads what there is, at least one byte; 0 is the end.
    pub(crate) async fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| poll_receive(&self.inner, cx, to)).await
    }

    /// Reads what has arrived already; 0 where that is nothing, or the end. For what a sandbox left behind that is dead.
    pub(crate) fn read_left(&mut self, to: &mut [u8]) -> usize {
        loop {
            match rustix::net::recv(&self.inner, &mut *to, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                read => return read.map_or(0, |(count, _)| count),
            }
        }
    }
}

/// The way to a sandbox.
#[derive(Debug)]
pub(crate) struct ControlWriter {
    socket: OwnedFd,
}

impl AsFd for ControlWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ControlWriter {
    pub(crate) fn new(socket: OwnedFd) -> ControlWriter {
        ControlWriter { socket }
    }

    /// Sends what the socket takes at once, from several pieces; `WouldBlock` where it takes nothing.
    pub(crate) fn try_send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        send_now(self.socket.as_fd(), pieces)
    }

    /// Sends everything, waiting for room.
    pub(crate) async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut outlet = Outlet::default();
        while !bytes.is_empty() {
            let sent =
                poll_fn(|cx| outlet.poll_send(self.socket.as_fd(), cx, &[IoSlice::new(bytes)])).await?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::Write;

    use super::super::tests::on_executor;
    use super::*;

    #[test]
    fn pieces_are_put_together_as_long_as_they_are_few_bytes() {
        let (few, many) = ([1; 200], [2; TOGETHER]);
        let put = |pieces: &[&[u8]]| {
            let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            together(&pieces, &mut [0; TOGETHER]).map(<[u8]>::to_vec)
        };
        assert_eq!(put(&[&few, &[], &few]), Some([few, few].concat()));
        assert_eq!(put(&[&many]), Some(many.to_vec()));
        assert_eq!(put(&[&many, &[]]), Some(many.to_vec()));
        assert_eq!(put(&[&many, &[3]]), None);
        assert_eq!(put(&[&[3], &many]), None);
    }

    #[test]
    fn connections_have_the_congestion_control_that_was_asked_for() {
        on_executor(|()| async {
            let (_, shared) = bind("127.0.0.1:0".parse().unwrap(), 2, Some("reno")).unwrap();
            assert!(shared.iter().all(|socket| sockopt::tcp_congestion(socket).unwrap() == "reno"));
            let (address, mut alone) = bind("127.0.0.1:0".parse().unwrap(), 1, Some("reno")).unwrap();
            let listener = Listener::adopt(alone.remove(0)).unwrap();
            let _caller = std::net::TcpStream::connect(address).unwrap();
            let stream = listener.accept().await.unwrap();
            assert_eq!(sockopt::tcp_congestion(&stream.inner).unwrap(), "reno");
        });
        assert_eq!(try_congestion("no-such").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_caller_who_takes_nothing_is_noticed_until_it_does() {
        on_executor(|()| async {
            let (address, mut sockets) = bind("127.0.0.1:0".parse().unwrap(), 1, None).unwrap();
            let listener = Listener::adopt(sockets.remove(0)).unwrap();
            let mut caller = std::net::TcpStream::connect(address).unwrap();
            let mut stream = listener.accept().await.unwrap();
            let (closer, bytes) = (stream.closer(), vec![0; 1 << 20]);
            while poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_write(cx, &bytes).is_ready())).await {
                assert_eq!(closer.stuck_since(), None);
            }
            assert!(closer.stuck_since().is_some());
            std::thread::spawn(move || io::copy(&mut caller, &mut io::sink()));
            poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, &bytes)).await.unwrap();
            assert_eq!(closer.stuck_since(), None);
        });
    }

    #[test]
    fn a_caller_who_cannot_be_served_is_told_so() {
        use std::io::{Read, Write};
        on_executor(|()| async {
            let (address, mut sockets) = bind("127.0.0.1:0".parse().unwrap(), 1, None).unwrap();
            let listener = Listener::adopt(sockets.remove(0)).unwrap();
            assert!(listener.turn_away(b"nobody is there").is_err());
            let mut caller = std::net::TcpStream::connect(address).unwrap();
            caller.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            listener.turn_away(b"full").unwrap();
            let mut told = String::new();
            caller.read_to_string(&mut told).unwrap();
            assert_eq!(told, "full");
        });
    }
}
