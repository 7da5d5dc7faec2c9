//! The same client for asynchronous programs, on any runtime: the same machine as the blocking one, so that it reconnects, resumes, follows
//! and gives up alike.
//!
//! A [`Handle`] makes calls, is cheap to clone and is used by any number of tasks at once; a [`Driver`] moves the
//! bytes, and is a future to be spawned once. Neither makes a task, a thread, a socket or a timer: those are the
//! program's [`Runtime`]'s, which is two functions.
//!
//! A call whose future is dropped is cancelled.
//!
//! With tokio:
//!
//! ```no_run
//! use std::{future::Future, io, pin::Pin, time::Duration};
//!
//! use denizen_framed::{Options, asynchronous::{self, Runtime}};
//! use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
//!
//! struct Tokio;
//!
//! impl Runtime for Tokio {
//!     type Stream = Compat<tokio::net::TcpStream>;
//!     type Connecting = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;
//!     type Sleeping = tokio::time::Sleep;
//!
//!     fn connect(&self, address: &str) -> Self::Connecting {
//!         let address = address.to_owned();
//!         Box::pin(async move {
//!             let stream = tokio::net::TcpStream::connect(address).await?;
//!             stream.set_nodelay(true)?;
//!             Ok(stream.compat())
//!         })
//!     }
//!
//!     fn sleep(&self, time: Duration) -> Self::Sleeping {
//!         tokio::time::sleep(time)
//!     }
//! }
//!
//! # async fn example(token: String) -> Result<(), denizen_framed::Error> {
//! let options = Options::new("127.0.0.1:7071", "counter").process("alice").token(token);
//! let (alice, driver) = asynchronous::client(options, Tokio)?;
//! tokio::spawn(driver);
//! let reply = alice.call("increment", br#"{"by":2}"#).await?;
//! # drop(reply); Ok(()) }
//! ```

use std::{
    collections::HashMap,
    fmt,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use denizen_protocol::CancelReason;
use futures_lite::io::{AsyncRead, AsyncWrite};

use crate::{
    error::Error,
    machine::{Input, Machine},
    options::Options,
    request::{Reply, ReplyHead, Request},
    stream::Flow,
};

const READ_BYTES: usize = 64 << 10;
/// Rounds in a row, before other tasks have their turn.
const TURNS: u32 = 16;

/// What a client needs of the program that it is in.
pub trait Runtime {
    /// A connection to a node.
    type Stream: AsyncRead + AsyncWrite + Unpin;
    /// See [`Runtime::connect`].
    type Connecting: Future<Output = io::Result<Self::Stream>>;
    /// See [`Runtime::sleep`].
    type Sleeping: Future<Output = ()>;

    /// Connects to `host:port`. It is dropped when it takes longer than [`Options::connect_timeout`]. TCP connections should have
    /// `TCP_NODELAY`, and keep-alive that notices within a minute that the other end has vanished.
    fn connect(&self, address: &str) -> Self::Connecting;

    /// Ends after this time.
    fn sleep(&self, time: Duration) -> Self::Sleeping;
}

/// What the handles and the driver share. The lock is held for a moment, never over a wait.
#[derive(Debug)]
struct Shared {
    machine: Machine,
    /// What each call that waits is woken by, and the end that its task has not looked at yet.
    calls: HashMap<u64, Slot>,
    /// Streams, and tasks that wait for a connection: woken whenever something happens.
    others: Vec<Waker>,
    /// How much of [`Machine::news`] they know of.
    heard: u64,
    driver: Option<Waker>,
    /// Why no connection could be had.
    given_up: Option<Error>,
    handles: usize,
    is_driven: bool,
}

#[derive(Debug)]
enum Slot {
    Waits(Waker),
    Ended(Box<Result<Reply, Error>>),
}

/// Makes calls.
#[derive(Debug)]
pub struct Handle(Arc<Mutex<Shared>>);

/// Moves the bytes of one client. Spawn it, or poll it beside the calls; it ends when the last [`Handle`] and [`CallStream`] is gone.
/// Dropped before, it ends every call.
#[must_use = "no call gets an answer unless this is polled"]
pub struct Driver<R: Runtime> {
    shared: Arc<Mutex<Shared>>,
    runtime: R,
    ends: Vec<Remote<R>>,
    timer: Option<(Instant, Pin<Box<R::Sleeping>>)>,
    buf: Vec<u8>,
}

/// One connection.
struct Remote<R: Runtime> {
    key: u64,
    at: Stage<R>,
}

enum Stage<R: Runtime> {
    Connecting(Pin<Box<R::Connecting>>),
    Connected(R::Stream),
}

impl<R: Runtime> fmt::Debug for Driver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// A client. It connects when the first call is made, or when [`Handle::accepted`] is waited for.
///
/// # Errors
/// [`Error::Token`] and [`Error::Refused`] for options that cannot be.
pub fn client<R: Runtime>(options: Options, runtime: R) -> Result<(Handle, Driver<R>), Error> {
    let shared = Arc::new(Mutex::new(Shared {
        machine: Machine::new(options)?,
        calls: HashMap::new(),
        others: Vec::new(),
        heard: 0,
        driver: None,
        given_up: None,
        handles: 1,
        is_driven: true,
    }));
    let driver = Driver {
        shared: Arc::clone(&shared),
        runtime,
        ends: Vec::new(),
        timer: None,
        buf: vec![0; READ_BYTES],
    };
    Ok((Handle(shared), driver))
}

impl Clone for Handle {
    fn clone(&self) -> Handle {
        lock(&self.0).handles += 1;
        Handle(Arc::clone(&self.0))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        shared.handles -= 1;
        if shared.handles == 0 {
            shared.wake_driver();
        }
    }
}

impl Handle {
    /// Waits until a node has accepted the connection.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when the patience is over; [`Error::Problem`] when the node refuses, as with `bad-token`.
    pub async fn accepted(&self) -> Result<(), Error> {
        let mut is_asked = false;
        poll_fn(|context| {
            let mut shared = lock(&self.0);
            if shared.machine.is_connected() {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = shared.given_up.clone().filter(|_| is_asked || !shared.is_driven) {
                return Poll::Ready(Err(error));
            }
            if !is_asked {
                is_asked = true;
                shared.given_up = None;
                shared.machine.want();
                shared.wake_driver();
            }
            shared.wait_for_news(context);
            Poll::Pending
        })
        .await
    }

    /// Calls a function and waits for its whole reply. Dropped before, the call is cancelled.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn call(&self, request: impl Into<Request>, input: impl AsRef<[u8]>) -> Result<Reply, Error> {
        let mut asked = Some((request.into(), Input::Whole(Arc::from(input.as_ref()))));
        let mut running = Running { shared: &self.0, ticket: None };
        poll_fn(|context| running.poll(context, &mut asked)).await
    }

    /// Begins a call whose input is written and whose reply is read piece by piece. `length` is that of the whole
    /// input, if known. It is never made again: what has gone through the caller's hands cannot be taken back.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn stream(
        &self,
        request: impl Into<Request>,
        length: Option<u64>,
    ) -> Result<CallStream, Error> {
        let handle = self.clone();
        let ticket = {
            let mut shared = lock(&self.0);
            shared.may_call()?;
            let ticket = shared.machine.begin(request.into(), Input::Stream { length }, Instant::now());
            shared.wake_driver();
            ticket
        };
        let mut stream = CallStream { handle, flow: Flow::new(ticket) };
        poll_fn(|context| stream.poll(context, |flow, machine| Ok(flow.is_begun(machine)?.then_some(()))))
            .await?;
        Ok(stream)
    }

    /// The highest epoch seen of a process; 0 if none was.
    pub fn epoch(&self, process: &str) -> u64 {
        lock(&self.0).machine.epoch(process)
    }

    /// Calls that have not ended.
    pub fn in_flight(&self) -> usize {
        lock(&self.0).machine.in_flight()
    }
}

/// One call of a handle.
struct Running<'h> {
    shared: &'h Mutex<Shared>,
    /// Once it is begun, until it has ended.
    ticket: Option<u64>,
}

impl Running<'_> {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        asked: &mut Option<(Request, Input)>,
    ) -> Poll<Result<Reply, Error>> {
        let mut shared = lock(self.shared);
        if let Some((request, input)) = asked.take() {
            shared.may_call()?;
            self.ticket = Some(shared.machine.begin(request, input, Instant::now()));
            shared.wake_driver();
        }
        let Some(ticket) = self.ticket else { return Poll::Ready(Err(Error::NoSuchCall)) };
        if let Some(Slot::Ended(_)) = shared.calls.get(&ticket)
            && let Some(Slot::Ended(end)) = shared.calls.remove(&ticket)
        {
            self.ticket = None;
            return Poll::Ready(*end);
        }
        shared.calls.insert(ticket, Slot::Waits(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut shared = lock(self.shared);
        shared.calls.remove(&ticket);
        shared.machine.forget(ticket, CancelReason::Unwanted);
        shared.wake_driver();
    }
}

/// A call whose input is written and whose reply is read. Reading ends the input, if closing has not; use
/// [`CallStream::read_some`] where a function answers while it is still being told.
///
/// I/O errors carry an [`Error`]: [`io::Error::get_ref`] and a downcast bring it back. Dropped before its end, the call is cancelled.
#[derive(Debug)]
pub struct CallStream {
    handle: Handle,
    flow: Flow,
}

impl CallStream {
    /// Does something, or waits until it may be possible.
    fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        what: impl FnOnce(&mut Flow, &mut Machine) -> Result<Option<T>, Error>,
    ) -> Poll<Result<T, Error>> {
        let mut shared = lock(&self.handle.0);
        let done = what(&mut self.flow, &mut shared.machine)?;
        if done.is_none() {
            shared.wait_for_news(context);
        } else {
            // What was written, or credit for what was read, is to be sent.
            shared.wake_driver();
        }
        done.map_or(Poll::Pending, |done| Poll::Ready(Ok(done)))
    }

    /// Ends the input.
    ///
    /// # Errors
    /// Any [`Error`]: how the call ended, if it did.
    pub async fn finish(&mut self) -> Result<(), Error> {
        poll_fn(|context| self.poll_finish(context)).await
    }

    /// What the node says of the call; waits for the beginning of the reply. After the last byte it has the final commit.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn head(&mut self) -> Result<&ReplyHead, Error> {
        poll_fn(|context| {
            self.poll(context, |flow, machine| {
                flow.look(machine)?;
                Ok((flow.head().is_some() || flow.is_over()).then_some(()))
            })
        })
        .await?;
        self.flow.head().ok_or(Error::NoSuchCall)
    }

    /// Reads what is there, waiting for at least a byte, without ending the input. 0: the reply is over.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn read_some(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        poll_fn(|context| self.poll_some(context, into)).await
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(context, |flow, machine| flow.finish(machine).map(|done| done.then_some(())))
    }

    fn poll_some(&mut self, context: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Error>> {
        self.poll(context, |flow, machine| flow.read(machine, into))
    }
}

impl AsyncRead for CallStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_finish(context) {
            Poll::Ready(Ok(())) => self.poll_some(context, into).map_err(io::Error::other),
            Poll::Ready(Err(error)) => Poll::Ready(Err(io::Error::other(error))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for CallStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(context, |flow, machine| flow.write(machine, bytes)).map_err(io::Error::other)
    }

    /// There is nothing here to be flushed: the driver sends what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the input.
    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_finish(context).map_err(io::Error::other)
    }
}

impl Drop for CallStream {
    fn drop(&mut self) {
        let mut shared = lock(&self.handle.0);
        shared.machine.forget(self.flow.ticket, CancelReason::Unwanted);
        shared.wake_driver();
    }
}

impl Shared {
    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    fn wait_for_news(&mut self, context: &Context<'_>) {
        if !self.others.iter().any(|waker| waker.will_wake(context.waker())) {
            self.others.push(context.waker().clone());
        }
    }

    /// Without a driver no call would ever end.
    fn may_call(&self) -> Result<(), Error> {
        if self.is_driven { Ok(()) } else { Err(undriven()) }
    }

    /// Hands out what has ended, and wakes those for whom something may have happened.
    fn wake(&mut self) {
        while let Some((ticket, end)) = self.machine.pop_ended() {
            // One that was dropped has nobody to be told.
            if let Some(Slot::Waits(waker)) = self.calls.insert(ticket, Slot::Ended(Box::new(end))) {
                waker.wake();
            }
        }
        if let Some(error) = self.machine.take_given_up() {
            self.given_up = Some(error);
        }
        if self.heard != self.machine.news() {
            self.heard = self.machine.news();
            self.others.drain(..).for_each(Waker::wake);
        }
    }
}

impl<R: Runtime> Driver<R> {
    /// Does what can be done. Says whether anything was received or connected.
    fn turn(&mut self, shared: &mut Shared, context: &mut Context<'_>) -> bool {
        let machine = &mut shared.machine;
        machine.pump(Instant::now());
        while let Some((key, address)) = machine.dial(Instant::now()) {
            let connecting = Box::pin(self.runtime.connect(&address));
            self.ends.push(Remote { key, at: Stage::Connecting(connecting) });
        }
        let mut moved = false;
        for end in &mut self.ends {
            moved |= end.turn(machine, context, &mut self.buf);
        }
        self.ends.retain(|end| machine.has_link(end.key));
        shared.wake();
        moved
    }

    /// Whether a time has come. Waits for the next one otherwise.
    fn is_time(&mut self, shared: &Shared, context: &mut Context<'_>) -> bool {
        let Some(at) = shared.machine.wake_at() else {
            self.timer = None;
            return false;
        };
        if self.timer.as_ref().is_none_or(|(set, _)| *set != at) {
            let left = at.saturating_duration_since(Instant::now());
            self.timer = Some((at, Box::pin(self.runtime.sleep(left))));
        }
        let is_over = self.timer.as_mut().is_some_and(|(_, timer)| timer.as_mut().poll(context).is_ready());
        if is_over {
            self.timer = None;
        }
        is_over
    }
}

impl<R: Runtime> Remote<R> {
    fn turn(&mut self, machine: &mut Machine, context: &mut Context<'_>, buf: &mut [u8]) -> bool {
        let mut moved = false;
        if let Stage::Connecting(connecting) = &mut self.at {
            match connecting.as_mut().poll(context) {
                Poll::Pending => return false,
                Poll::Ready(Err(error)) => {
                    machine.cut(self.key, error, Instant::now());
                    return true;
                }
                Poll::Ready(Ok(stream)) => {
                    self.at = Stage::Connected(stream);
                    machine.connected(self.key, Instant::now());
                    moved = true;
                }
            }
        }
        let Stage::Connected(stream) = &mut self.at else { return moved };
        // What the server said before it closed is still to be read when writing fails, and tells more.
        let unsent = send(stream, self.key, machine, context).err();
        match Pin::new(stream).poll_read(context, buf) {
            Poll::Pending => match unsent {
                Some(error) => machine.cut(self.key, error, Instant::now()),
                None => return moved,
            },
            Poll::Ready(Ok(0)) => {
                let error = unsent.unwrap_or(io::ErrorKind::UnexpectedEof.into());
                machine.cut(self.key, error, Instant::now());
            }
            Poll::Ready(Err(error)) => machine.cut(self.key, error, Instant::now()),
            Poll::Ready(Ok(len)) => machine.received(self.key, &buf[..len], Instant::now()),
        }
        true
    }
}

/// Sends what can be sent.
fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    key: u64,
    machine: &mut Machine,
    context: &mut Context<'_>,
) -> io::Result<()> {
    while !machine.fill(key).is_empty() {
        match Pin::new(&mut *stream).poll_write(context, machine.fill(key))? {
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(len) => machine.was_sent(key, len),
            Poll::Pending => return Ok(()),
        }
    }
    // Whether it is through is told when it is polled again.
    match Pin::new(stream).poll_flush(context) {
        Poll::Ready(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Its parts are never pinned: what needs it is in a box of its own.
impl<R: Runtime> Unpin for Driver<R> {}

impl<R: Runtime> Future for Driver<R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let everything = Arc::clone(&this.shared);
        let mut shared = lock(&everything);
        shared.driver = Some(context.waker().clone());
        for _ in 0..TURNS {
            if shared.handles == 0 {
                this.ends.clear();
                return Poll::Ready(());
            }
            let moved = this.turn(&mut shared, context);
            if !moved && !this.is_time(&shared, context) {
                return Poll::Pending;
            }
        }
        // Others have waited long enough.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<R: Runtime> Drop for Driver<R> {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.is_driven = false;
        let dropped =
            io::Error::new(io::ErrorKind::ConnectionAborted, "the driver of the client was dropped");
        shared.machine.close(dropped);
        shared.wake();
        shared.given_up = Some(undriven());
    }
}

fn undriven() -> Error {
    let source = io::Error::new(io::ErrorKind::NotConnected, "the driver of the client was dropped");
    Error::Unreachable { address: "any address".to_owned(), source: Arc::new(source) }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A panic while it is held is a bug of this module; the other calls go on with what there is.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
