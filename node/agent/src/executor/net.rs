//! Sockets on an executor: the listener, the stream that hyper reads and writes, and the two halves of a sandbox's control socket.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream, UnixStream};
use rustix::io::IoSlice;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// What one read from a connection takes at most.
const SCRATCH: usize = 64 << 10;

thread_local! {
    /// Reads land here and are copied on: hyper's own buffer is uninitialised, and zeroing it costs more than this copy.
    static READ_SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// Binds `count` listening sockets to one address; the kernel spreads connections over them.
///
/// The first bind is an exclusive one, so that an address that another program listens on is an error even where that program
/// shares its port too; only then is the port bound again, shared.
pub(crate) fn bind(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    let exclusive = listening(address, false)?;
    let address = SocketAddr::try_from(rustix::net::getsockname(&exclusive)?)?;
    if count == 1 {
        return Ok((address, vec![exclusive]));
    }
    drop(exclusive);
    let sockets = (0..count).map(|_| listening(address, true)).collect::<io::Result<_>>()?;
    Ok((address, sockets))
}

fn listening(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A listening socket on this executor.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: TcpListener,
}

impl Listener {
    /// Takes a socket from [`bind`] to this executor.
    pub(crate) fn adopt(socket: OwnedFd) -> Listener {
        // SAFETY: the descriptor was owned by `socket`, which gave it up, and is a listening TCP socket.
        let inner = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
        Listener { inner }
    }

    /// The next connection.
    ///
    /// # Errors
    /// Out of descriptors or memory, or a connection that was gone before it was accepted. The listener stays usable.
    pub(crate) async fn accept(&self) -> io::Result<HttpStream> {
        let inner = self.inner.accept().await?;
        // SAFETY: the descriptor is open for as long as `inner` lives.
        let fd = unsafe { BorrowedFd::borrow_raw(inner.as_raw_fd()) };
        // Programs that this one starts (a compiler, the spawner) must not keep a caller's connection open.
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        sockopt::set_tcp_nodelay(fd, true)?;
        let fd = Cell::new(Some(inner.as_raw_fd()));
        let closer = Closer(Rc::new(Handle { fd, stuck_since: Cell::new(None) }));
        Ok(HttpStream { inner, closer })
    }
}

/// A caller's connection, as hyper wants it.
#[derive(Debug)]
pub(crate) struct HttpStream {
    inner: TcpStream,
    closer: Closer,
}

impl HttpStream {
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
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut to: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        READ_SCRATCH.with(|scratch| {
            // Nothing below runs other tasks, so the buffer is free whenever a task is here.
            let mut scratch = scratch.borrow_mut();
            let limit = to.remaining().min(scratch.len());
            let room = scratch.get_mut(..limit).unwrap_or_default();
            let count = ready!(Pin::new(&mut self.inner).poll_read(cx, room))?;
            to.put_slice(room.get(..count).unwrap_or_default());
            Poll::Ready(Ok(()))
        })
    }
}

impl hyper::rt::Write for HttpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        let stuck = &self.closer.0.stuck_since;
        match &written {
            Poll::Pending if stuck.get().is_none() => stuck.set(Some(Instant::now())),
            Poll::Pending => {}
            Poll::Ready(_) => stuck.set(None),
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// The two halves of a sandbox's UNIX stream socket, on this executor. Both own the socket; it closes when both are gone.
pub(crate) fn control_pair(socket: OwnedFd) -> io::Result<(ControlReader, ControlWriter)> {
    let write_half = rustix::io::fcntl_dupfd_cloexec(&socket, 0)?;
    Ok((ControlReader { inner: adopt(socket) }, ControlWriter { socket: write_half }))
}

fn adopt(socket: OwnedFd) -> UnixStream {
    // SAFETY: the descriptor was owned by `socket`, which gave it up, and is a connected UNIX stream socket.
    unsafe { UnixStream::from_raw_fd(socket.into_raw_fd()) }
}

/// What a sandbox sends.
#[derive(Debug)]
pub(crate) struct ControlReader {
    inner: UnixStream,
}

impl ControlReader {
    /// Reads what there is, at least one byte; 0 is the end.
    pub(crate) async fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.inner.read(to).await
    }
}

/// The way to a sandbox.
#[derive(Debug)]
pub(crate) struct ControlWriter {
    socket: OwnedFd,
}

impl ControlWriter {
    /// Sends what the socket takes at once, from several pieces; `WouldBlock` where it takes nothing.
    pub(crate) fn try_send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(
            &self.socket,
            pieces,
            &mut rustix::net::SendAncillaryBuffer::default(),
            flags,
        )?)
    }

    /// Sends everything, waiting for room. Rare enough to make its waiting stream anew each time.
    pub(crate) async fn send_all(&self, bytes: &[u8]) -> io::Result<()> {
        adopt(rustix::io::fcntl_dupfd_cloexec(&self.socket, 0)?).write_all(bytes).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hyper::rt::Write;

    use super::super::tests::on_executor;
    use super::*;

    #[test]
    fn a_caller_who_takes_nothing_is_noticed_until_it_does() {
        on_executor(|()| async {
            let (address, mut sockets) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
            let listener = Listener::adopt(sockets.remove(0));
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
}
