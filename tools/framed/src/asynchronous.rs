//! The same protocol for asynchronous programs, over anything that is `AsyncRead + AsyncWrite` (of `futures-io`), on any runtime.
//!
//! A [`Handle`] makes calls, is cheap to clone and is used by any number of tasks at once; a [`Driver`] moves the
//! bytes, and is a future to be spawned once. Neither makes a task, a thread, a socket or a timer: those are the
//! runtime's. So it does not connect again either; when the connection ends, each call ends with what is known of it
//! ([`Error::retry`]), and a new connection is its user's to make, with
//! [`Handle::memory`] handed on so that owners of the past are still recognized.
//!
//! A call whose future is dropped is cancelled. A deadline is told to the node; to stop waiting by one's own clock, drop the future.

use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use denizen_protocol::{
    Blame, CancelReason, Problem, Retry, client,
    problem::{FUNCTIONS_CHANGED, MOVED},
};
use futures_lite::io::{AsyncRead, AsyncWrite};

pub use denizen_protocol::client::Memory;

use crate::{
    connection::{MAX_TRIES, end_of},
    error::Error,
    exchange::{Exchange, Turn},
    options::Options,
    request::{Reply, Request},
};

const READ_BYTES: usize = 64 << 10;
/// Reads in a row, before other tasks have their turn.
const TURNS: u32 = 16;

/// What the handles and the driver share. The lock is held for a moment, never over a wait.
#[derive(Debug)]
struct Shared {
    /// Until the connection is over.
    exchange: Option<Exchange>,
    /// What each call that waits is woken by.
    wakers: HashMap<u64, Waker>,
    /// Calls that wait for room.
    crowd: Vec<Waker>,
    driver: Option<Waker>,
    /// Calls that have ended, and whose task has not looked yet.
    ended: HashMap<u64, Result<Reply, Error>>,
    /// Once the connection is over.
    memory: Memory,
    over: Option<Error>,
    handles: usize,
    address: String,
    reply_limit: usize,
}

/// Makes calls on one connection.
#[derive(Debug)]
pub struct Handle(Arc<Mutex<Shared>>);

/// Moves the bytes of one connection. Spawn it, or poll it beside the calls; it ends when the connection does, or
/// when the last [`Handle`] is gone.
#[derive(Debug)]
#[must_use = "no call gets an answer unless this is polled"]
pub struct Driver<S> {
    shared: Arc<Mutex<Shared>>,
    stream: S,
    buf: Vec<u8>,
}

/// Greets the node over a stream that is connected to it. `memory` is what a former connection to the same application left, or empty.
///
/// Of the options it takes whom to reach, token, windows and reply limit; times are the runtime's.
///
/// # Errors
/// [`Error::Token`] and [`Error::Refused`] for options that cannot be. Whether the node accepts the connection is
/// told by [`Handle::accepted`].
pub fn connect<S>(stream: S, options: &Options, memory: Memory) -> Result<(Handle, Driver<S>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let target = options.target()?;
    let mut out = Vec::new();
    let opened = client::Connection::open(&target.hello, memory, &mut out);
    let protocol = opened.map_err(|violation| Error::Refused(violation.into()))?;
    let shared = Arc::new(Mutex::new(Shared {
        exchange: Some(Exchange::new(protocol, out, options.reply_limit)),
        wakers: HashMap::new(),
        crowd: Vec::new(),
        driver: None,
        memory: Memory::default(),
        ended: HashMap::new(),
        over: None,
        handles: 1,
        address: target.address,
        reply_limit: options.reply_limit,
    }));
    let driver = Driver { shared: Arc::clone(&shared), stream, buf: vec![0; READ_BYTES] };
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
    /// Waits until the node has accepted the connection.
    ///
    /// # Errors
    /// [`Error::Problem`] when it refuses; of type `moved`, with the address, when the process lives elsewhere. [`Error::Lost`].
    pub async fn accepted(&self) -> Result<(), Error> {
        std::future::poll_fn(|context| lock(&self.0).poll_room(context, |_| true)).await
    }

    /// Calls a function and waits for its whole reply. Dropped before, the call is cancelled.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn call(&self, request: impl Into<Request>, input: impl AsRef<[u8]>) -> Result<Reply, Error> {
        let request = request.into();
        let input: Arc<[u8]> = Arc::from(input.as_ref());
        let mut tries = 0;
        loop {
            let mut running = Running { shared: &self.0, id: None };
            let end = std::future::poll_fn(|context| running.poll(context, &request, &input)).await;
            tries += 1;
            match end {
                // The index was of an older image; it is forgotten, and the name is sent this time.
                Err(Error::Problem(problem)) if problem.kind == FUNCTIONS_CHANGED && tries < MAX_TRIES => {}
                end => return end,
            }
        }
    }

    /// What is to be handed on to the next connection: functions, and the highest epochs seen.
    pub fn memory(&self) -> Memory {
        let shared = lock(&self.0);
        shared.exchange.as_ref().map_or(&shared.memory, Exchange::memory).clone()
    }
}

/// One call of a handle.
struct Running<'h> {
    shared: &'h Mutex<Shared>,
    /// Once it is sent, until it has ended.
    id: Option<u64>,
}

impl Running<'_> {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        request: &Request,
        input: &Arc<[u8]>,
    ) -> Poll<Result<Reply, Error>> {
        let mut shared = lock(self.shared);
        let Some(id) = self.id else {
            match shared.poll_room(context, Exchange::has_room) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let Some(exchange) = &mut shared.exchange else { return Poll::Pending };
            let id = exchange.begin(request, request.deadline, input).map_err(Error::Refused)?;
            self.id = Some(id);
            shared.wakers.insert(id, context.waker().clone());
            shared.wake_driver();
            return Poll::Pending;
        };
        let end = shared.ended.remove(&id);
        if end.is_some() {
            self.id = None;
        } else {
            shared.wakers.insert(id, context.waker().clone());
        }
        end.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut shared = lock(self.shared);
        shared.wakers.remove(&id);
        shared.ended.remove(&id);
        if let Some(exchange) = &mut shared.exchange {
            exchange.abandon(id, CancelReason::Unwanted);
        }
        shared.wake_driver();
    }
}

impl Shared {
    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }

    /// Waits until the connection is accepted and `is_enough` of it.
    fn poll_room(
        &mut self,
        context: &mut Context<'_>,
        is_enough: impl Fn(&Exchange) -> bool,
    ) -> Poll<Result<(), Error>> {
        match &self.exchange {
            // A DRAIN leaves no room, and none will come.
            Some(exchange) if exchange.drain().is_some() => Poll::Ready(Err(self.closed())),
            Some(exchange) if exchange.is_accepted() && is_enough(exchange) => Poll::Ready(Ok(())),
            Some(_) => {
                self.crowd.push(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(Err(self.closed())),
        }
    }

    /// Why there is no connection, for a call that was not sent.
    fn closed(&self) -> Error {
        self.over.as_ref().map_or_else(
            || {
                let source =
                    io::Error::new(io::ErrorKind::NotConnected, "the connection takes no more calls");
                Error::Lost { address: self.address.clone(), retry: Retry::Safe, source: Arc::new(source) }
            },
            Error::for_unsent,
        )
    }

    /// Hands out what has ended, and wakes those for whom something has happened.
    fn wake(&mut self) {
        let Some(exchange) = &mut self.exchange else { return };
        for id in exchange.take_ended() {
            let Some(incoming) = exchange.take(id) else { continue };
            self.ended.insert(id, end_of(incoming, self.reply_limit));
            if let Some(waker) = self.wakers.remove(&id) {
                waker.wake();
            }
        }
        let has_room = exchange.is_accepted() && exchange.has_room();
        if has_room || exchange.drain().is_some() {
            self.crowd.drain(..).for_each(Waker::wake);
        }
    }

    /// The connection is over: every call ends.
    fn end(&mut self, why: Error) -> Result<(), Error> {
        self.wake();
        let Some(exchange) = self.exchange.take() else { return Ok(()) };
        let (lost, _) = exchange.lost();
        for call in &lost.unfinished {
            let retry = match call.fate {
                client::Fate::NotExecuted => Retry::Safe,
                client::Fate::Unknown => Retry::Unknown,
            };
            // One that was abandoned has nobody to be told.
            if let Some(waker) = self.wakers.remove(&call.id) {
                self.ended.insert(call.id, Err(why.for_call(retry)));
                waker.wake();
            }
        }
        self.memory = lost.memory;
        self.over = Some(why.clone());
        self.crowd.drain(..).for_each(Waker::wake);
        if self.handles == 0 { Ok(()) } else { Err(why) }
    }

    fn cut(&mut self, error: io::Error) -> Result<(), Error> {
        let address = self.address.clone();
        self.end(Error::Lost { address, retry: Retry::Unknown, source: Arc::new(error) })
    }

    /// Takes in what was received. Says how the connection ended, if it did.
    fn receive(&mut self, bytes: &[u8]) -> Option<Result<(), Error>> {
        let exchange = self.exchange.as_mut()?;
        let received = exchange.receive(bytes);
        let turn = exchange.turn();
        self.wake();
        match (turn, received) {
            (Some(Turn::Refused(problem)), _) => Some(self.end(Error::Problem(Box::new(problem)))),
            (Some(Turn::Moved(moved)), _) => {
                let mut problem = Problem::new(MOVED, Blame::Host, Retry::Safe);
                problem.address = Some(moved.address);
                problem.epoch = moved.epoch;
                Some(self.end(Error::Problem(Box::new(problem))))
            }
            (None, Err(source)) => {
                let address = self.address.clone();
                Some(self.end(Error::Broken { address, retry: Retry::Unknown, source }))
            }
            (None, Ok(())) => None,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Sends what can be sent.
    fn send(&mut self, shared: &mut Shared, context: &mut Context<'_>) -> Result<(), io::Error> {
        let Some(exchange) = &mut shared.exchange else { return Ok(()) };
        while !exchange.fill().is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, exchange.unsent())? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(len) => exchange.was_sent(len),
                Poll::Pending => return Ok(()),
            }
        }
        // Whether it is through is told when it is polled again.
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    /// Why the connection ended; `Ok` if there is nobody left to make calls.
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        let everything = Arc::clone(&this.shared);
        let mut shared = lock(&everything);
        shared.driver = Some(context.waker().clone());
        for _ in 0..TURNS {
            if let Err(error) = this.send(&mut shared, context) {
                return Poll::Ready(shared.cut(error));
            }
            let Some(exchange) = &shared.exchange else { return Poll::Ready(Ok(())) };
            if exchange.is_drained() || shared.handles == 0 {
                return Poll::Ready(shared.cut(io::ErrorKind::ConnectionAborted.into()));
            }
            match Pin::new(&mut this.stream).poll_read(context, &mut this.buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(shared.cut(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(shared.cut(error)),
                Poll::Ready(Ok(len)) => {
                    if let Some(over) = shared.receive(&this.buf[..len]) {
                        return Poll::Ready(over);
                    }
                }
            }
        }
        // Others have waited long enough.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        let dropped =
            io::Error::new(io::ErrorKind::ConnectionAborted, "the driver of the connection was dropped");
        let _ = lock(&self.shared).cut(dropped);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A panic while it is held is a bug of this module; the other calls go on with what there is.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
