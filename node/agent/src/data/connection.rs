//! One connection behind its OK: bytes in, bytes out, the calls in flight, and what ends it.
//!
//! One task owns the socket. It reads while its caller takes what there is for it, and no further than the credit that the caller has; the
//! calls run in tasks of their own, which put their frames into [`Caller::out`] and wake it. At rest it waits for the socket and
//! for the expiry of its token, and for nothing else.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use denizen_protocol::limits::{MAX_UNSENT, STALL_MS};
use denizen_protocol::server::{Connection, Event, Parked};
use denizen_protocol::token::Refusal;
use denizen_protocol::{
    CommandError, Drain, DrainReason, Final, PADDING, Part, Problem as Framed, ReplyHead, Violation, padding,
};
use futures_channel::{mpsc, oneshot};
use futures_lite::{FutureExt as _, Stream as _};
use hyper::body::Bytes;
use hyper::rt::Write as _;

use super::body::{FramedBody, Pipe, Taken};
use super::call::{self, Wish};
use super::{Kept, Listed, greeting, keys};
use crate::executor::{self, HttpStream, Pace};
use crate::home::{App, Home};
use crate::local::Changes;
use crate::problem::Problem;

/// Hears how much of which input was taken.
pub(super) type TakenReceiver = mpsc::UnboundedReceiver<Taken>;
type Timer = Pin<Box<dyn Future<Output = ()>>>;

/// How long a peer may pause within a frame, or take nothing of what there is for it.
pub(crate) const STALL: Duration = Duration::from_millis(STALL_MS as u64);
/// How long before its token expires a caller is told.
const NOTICE: Duration = Duration::from_secs(5);
/// The longest sleep towards an expiry: clocks are set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);
/// Bytes that are read at once: so many calls at most are looked at before others get a turn.
const CHUNK: usize = 16 << 10;
/// The same within a large body, of which there is nothing to look at.
const BODY_CHUNK: usize = 64 << 10;
/// How long it counts for calls that come what was found out when their process was last started.
const VERDICT_HOLDS: Duration = Duration::from_millis(250);
/// Chunks in a row before others get a turn.
const CHUNKS_IN_A_ROW: u32 = 64;
/// What a connection at rest keeps of its buffer for frames that leave.
const RESTING_BYTES: usize = 4 << 10;

thread_local! {
    /// What is read lands here, and is dealt with before anything else runs.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BODY_CHUNK]);
}

/// A connection, as its task and its calls share it.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) home: Rc<Home>,
    pub(super) app: Rc<App>,
    /// Its HELLO says not to create the process.
    pub(super) create_never: bool,
    /// Why the process has no sandbox, found out just now.
    verdict: Option<(Problem, Instant)>,
    protocol: RefCell<Connection>,
    out: RefCell<Out>,
    calls: RefCell<BTreeMap<u64, Underway>>,
    taken: mpsc::UnboundedSender<Taken>,
    /// Announced when more of a reply may be sent.
    room: Changes,
    waker: RefCell<Option<Waker>>,
    /// No further call is accepted.
    draining: Cell<bool>,
    over: Cell<bool>,
}

/// Frames that leave.
#[derive(Debug, Default)]
struct Out {
    bytes: Vec<u8>,
    sent: usize,
}

/// A call in flight, seen from the connection.
#[derive(Debug)]
struct Underway {
    /// Where more of its input goes.
    pipe: Option<Pipe>,
    /// Input that is counted as taken when the call is over.
    held: usize,
    /// Tells its task that the reply is not wanted; dropped when nobody is there to get it.
    cancel: Option<oneshot::Sender<()>>,
}

/// What an event of the protocol is to the connection.
enum Action {
    Call {
        id: u64,
        wish: Box<Wish>,
        body: FramedBody,
        underway: Underway,
        told: oneshot::Receiver<()>,
    },
    /// Input that nobody wants.
    Dropped(u64, usize),
    Cancel(u64),
    Room,
    Nothing,
    Close,
}

/// The reply cannot be sent on: the connection or the call is over.
#[derive(Debug)]
pub(super) struct Gone;

impl Caller {
    /// A connection whose OK is `first`. `verdict`: why the process of a bound one has no sandbox, if it was tried.
    pub(super) fn new(
        home: &Rc<Home>,
        app: &Rc<App>,
        protocol: Connection,
        create_never: bool,
        first: Vec<u8>,
        verdict: Option<Problem>,
    ) -> (Rc<Caller>, TakenReceiver) {
        let (taken, receiver) = mpsc::unbounded();
        let caller = Caller {
            home: Rc::clone(home),
            app: Rc::clone(app),
            create_never,
            verdict: verdict.map(|problem| (problem, Instant::now())),
            protocol: RefCell::new(protocol),
            out: RefCell::new(Out { bytes: first, sent: 0 }),
            calls: RefCell::default(),
            taken,
            room: Changes::default(),
            waker: RefCell::default(),
            draining: Cell::new(false),
            over: Cell::new(false),
        };
        (Rc::new(caller), receiver)
    }

    /// The process that it is bound to.
    pub(super) fn bound(&self) -> Option<String> {
        self.protocol.borrow().terms().process.clone()
    }

    /// Whether its token covers this function.
    pub(super) fn permits(&self, function: &str) -> bool {
        self.protocol.borrow().terms().permit(function)
    }

    /// Why no sandbox takes a call, where that was found out a moment ago.
    pub(super) fn verdict(&self) -> Option<Problem> {
        let (problem, found) = self.verdict.as_ref()?;
        (found.elapsed() < VERDICT_HOLDS).then(|| problem.clone())
    }

    /// Deals with bytes that were taken off the stream before.
    ///
    /// # Errors
    /// As for those that come. The connection is over then.
    pub(super) fn begin_with(self: &Rc<Caller>, residue: &[u8]) -> Result<(), Violation> {
        let fed = self.feed(residue);
        if let Err(violation) = &fed {
            let _ = Framed::from(violation).encode(0, &mut self.out.borrow_mut().bytes);
            self.over.set(true);
        }
        fed
    }

    /// Whether it owes nothing and is owed nothing.
    fn is_quiet(&self) -> bool {
        let protocol = self.protocol.borrow();
        protocol.in_flight() == 0
            && !protocol.is_within_frame()
            && self.out.borrow().unsent() == 0
            && !self.draining.get()
    }

    /// Accepts no further calls, and closes when the last has ended.
    pub(super) fn drain(&self, notice: &Drain) {
        let told = self.protocol.borrow_mut().drain(notice, &mut self.out.borrow_mut().bytes);
        if told.is_ok() {
            self.draining.set(true);
            self.wake();
        }
    }

    /// Ends a call with a failure.
    pub(super) fn fail(&self, id: u64, problem: &Framed) {
        self.is_over(id);
        let mut protocol = self.protocol.borrow_mut();
        let mut out = self.out.borrow_mut();
        if let Err(CommandError::Refused(_)) = protocol.fail(id, problem, &mut out.bytes) {
            // A name that no frame carries: the rest of it is worth telling.
            let nameless = Framed { process: None, invocation: None, address: None, ..problem.clone() };
            let _ = protocol.fail(id, &nameless, &mut out.bytes);
        }
        drop((protocol, out));
        self.wake();
    }

    /// Sends a piece of a reply as the caller's credit allows: the beginning with `head`, which is taken, and the end with `done`.
    ///
    /// # Errors
    /// [`Gone`], also where the caller takes nothing for [`STALL`].
    pub(super) async fn send(
        &self,
        id: u64,
        head: &mut Option<ReplyHead<'_>>,
        mut bytes: Bytes,
        done: Option<Final>,
    ) -> Result<(), Gone> {
        loop {
            let needed = !bytes.is_empty();
            if !needed && head.is_none() && done.is_none() {
                return Ok(());
            }
            let open = self.await_room(id, needed).await?;
            let piece = bytes.split_to(bytes.len().min(open));
            let done = done.filter(|_| bytes.is_empty());
            self.put(id, head, &piece, done).map_err(|_| Gone)?;
            if done.is_some() || bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// Waits until a frame of a reply may be sent, with at least a byte of body if that is `needed`; with how much.
    async fn await_room(&self, id: u64, needed: bool) -> Result<usize, Gone> {
        let look = || {
            if self.over.get() {
                return Some(Err(Gone));
            }
            let open = self.protocol.borrow().sendable(id);
            let fits = self.out.borrow().unsent() < MAX_UNSENT;
            (fits && (open > 0 || !needed)).then_some(Ok(open))
        };
        match look() {
            Some(open) => open,
            None => executor::within(STALL, self.room.until(look)).await.unwrap_or(Err(Gone)),
        }
    }

    fn put(
        &self,
        id: u64,
        head: &mut Option<ReplyHead<'_>>,
        piece: &[u8],
        done: Option<Final>,
    ) -> Result<(), CommandError> {
        if done.is_some() {
            self.is_over(id);
        }
        let mut protocol = self.protocol.borrow_mut();
        let out = &mut self.out.borrow_mut().bytes;
        match head.take() {
            Some(head) => protocol.reply(id, &head, piece.len(), done.is_some(), out)?,
            None => protocol.data(id, piece.len(), done, out)?,
        }
        out.extend_from_slice(piece);
        out.extend_from_slice(PADDING.get(..padding(piece.len())).unwrap_or_default());
        drop(protocol);
        self.wake();
        Ok(())
    }

    /// Nothing more is to be received for a call.
    fn is_over(&self, id: u64) {
        let Some(underway) = self.calls.borrow_mut().remove(&id) else { return };
        if underway.held > 0 {
            self.protocol.borrow_mut().consumed(id, underway.held);
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Deals with what came.
    fn feed(self: &Rc<Caller>, mut input: &[u8]) -> Result<(), Violation> {
        let mut room = false;
        loop {
            let action = match self.protocol.borrow_mut().next(&mut input)? {
                Some(event) => self.read(event),
                None => break,
            };
            match action {
                Action::Call { id, wish, body, underway, told } => self.begin(id, wish, body, underway, told),
                Action::Dropped(id, len) => self.protocol.borrow_mut().consumed(id, len),
                Action::Cancel(id) => self.cancel(id),
                Action::Room => room = true,
                Action::Nothing => {}
                Action::Close => self.over.set(true),
            }
        }
        if room {
            // Once for all that came: a flood of credit wakes nobody more often.
            self.room.announce();
        }
        Ok(())
    }

    fn read(&self, event: Event<'_>) -> Action {
        match event {
            Event::Call { id, head, part } => self.read_call(id, Box::new(Wish::of(&head)), part),
            Event::Body { id, part } => {
                let calls = self.calls.borrow();
                let pipe = calls.get(&id).and_then(|underway| underway.pipe.as_ref());
                if pipe.is_some_and(|pipe| pipe.push(part.bytes, part.end)) {
                    return Action::Nothing;
                }
                Action::Dropped(id, part.bytes.len())
            }
            Event::Cancel { id, .. } => Action::Cancel(id),
            Event::Credit { .. } => Action::Room,
            Event::Failed(problem) => {
                tracing::debug!("a caller gave its connection up: {} {:?}", problem.kind, problem.cause);
                Action::Close
            }
            _ => Action::Nothing,
        }
    }

    fn read_call(&self, id: u64, wish: Box<Wish>, part: Part<'_>) -> Action {
        let (cancel, told) = oneshot::channel();
        let cancel = Some(cancel);
        if part.end {
            let underway = Underway { pipe: None, held: part.bytes.len(), cancel };
            let body = FramedBody::here(Bytes::copy_from_slice(part.bytes));
            return Action::Call { id, wish, body, underway, told };
        }
        let (body, pipe) = FramedBody::piped(id, wish.length, self.taken.clone());
        pipe.push(part.bytes, false);
        Action::Call { id, wish, body, underway: Underway { pipe: Some(pipe), held: 0, cancel }, told }
    }

    fn begin(
        self: &Rc<Caller>,
        id: u64,
        wish: Box<Wish>,
        body: FramedBody,
        underway: Underway,
        told: oneshot::Receiver<()>,
    ) {
        self.calls.borrow_mut().insert(id, underway);
        let kept = match Kept::reserve(&self.app.callers, wish.keeps()) {
            Ok(kept) => kept,
            Err(problem) => return self.fail(id, &problem.framed()),
        };
        let caller = Rc::clone(self);
        executor::spawn(async move {
            call::run(&caller, id, &wish, body, told).await;
            caller.is_over(id);
            drop(kept);
        });
    }

    fn cancel(&self, id: u64) {
        let mut calls = self.calls.borrow_mut();
        let Some(underway) = calls.get_mut(&id) else { return };
        if let Some(cancel) = underway.cancel.take() {
            let _ = cancel.send(());
        }
    }

    /// The connection is gone: whoever still works for it stops.
    fn end(&self) {
        self.over.set(true);
        for underway in self.calls.take().into_values() {
            if let Some(pipe) = underway.pipe {
                pipe.break_off();
            }
        }
        self.room.announce();
    }
}

impl Out {
    fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// So many bytes were sent.
    fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(RESTING_BYTES);
            self.sent = 0;
        } else if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// Serves a connection until its end, or, if it `may_rest`, until it is quiet: gives it back then, as it can be put to rest.
pub(super) async fn serve(
    home: &Rc<Home>,
    stream: HttpStream,
    caller: Rc<Caller>,
    taken: TakenReceiver,
    expires_s: u64,
    may_rest: bool,
) -> Option<(HttpStream, Parked, Vec<u8>)> {
    let _listed = Listed::new(home, &caller);
    if home.node.is_stopping() {
        // The others were told while this one was not on the list yet.
        caller.drain(&Drain::new(DrainReason::Shutdown));
    }
    let mut conversation = Conversation {
        stream,
        caller: Rc::clone(&caller),
        taken,
        expires_s,
        expiry: Box::pin(expiry_notice(expires_s)),
        told_of_expiry: false,
        moved: Instant::now(),
        watch: None,
        may_rest,
        heard: caller.protocol.borrow().in_flight() > 0 || caller.out.borrow().unsent() > 0,
    };
    let mut pace = Pace::new(CHUNKS_IN_A_ROW);
    let last_words = loop {
        match pace.wait(std::future::poll_fn(|cx| conversation.poll(cx))).await {
            Turn::Goes => pace.step().await,
            Turn::Over(last_words) => break last_words,
            Turn::Rests(parked, residue) => {
                caller.end();
                return Some((conversation.stream, *parked, residue));
            }
        }
    };
    caller.end();
    let mut stream = conversation.stream;
    let mut bytes = std::mem::take(&mut *caller.out.borrow_mut());
    if let Some(problem) = last_words {
        let _ = problem.encode(0, &mut bytes.bytes);
    }
    greeting::part(&mut stream, bytes.bytes.get(bytes.sent..).unwrap_or_default()).await;
    None
}

/// What came of a look at a connection.
enum Turn {
    Goes,
    /// It is over, after a last frame where there is something to say.
    Over(Option<Framed>),
    /// Nobody wants anything for now.
    Rests(Box<Parked>, Vec<u8>),
}

/// The task's own part of a connection.
struct Conversation {
    stream: HttpStream,
    caller: Rc<Caller>,
    taken: TakenReceiver,
    expires_s: u64,
    expiry: Timer,
    told_of_expiry: bool,
    /// When bytes last went in or out.
    moved: Instant,
    /// Runs while the caller owes something.
    watch: Option<Timer>,
    may_rest: bool,
    /// It has said what it was taken up for. It need not be there at the first look: the executor hears of it a moment later.
    heard: bool,
}

impl Conversation {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.remember(cx);
        self.hear_taken(cx);
        if let Poll::Ready(last_words) = self.poll_expiry(cx) {
            return Poll::Ready(Turn::Over(Some(last_words)));
        }
        if self.flush(cx).is_err() || self.caller.over.get() {
            return Poll::Ready(Turn::Over(None));
        }
        let unsent = self.caller.out.borrow().unsent();
        if self.caller.draining.get() && unsent == 0 && self.caller.protocol.borrow().in_flight() == 0 {
            return Poll::Ready(Turn::Over(None));
        }
        if unsent < MAX_UNSENT
            && let Poll::Ready(turn) = self.read(cx)
        {
            return Poll::Ready(turn);
        }
        if let Some((parked, residue)) = self.rest() {
            return Poll::Ready(Turn::Rests(Box::new(parked), residue));
        }
        if unsent == 0 && self.caller.out.borrow().unsent() > 0 {
            // What is to be said before it rests.
            return Poll::Ready(Turn::Goes);
        }
        self.poll_watch(cx)
    }

    /// Puts the connection to rest, if it may and nothing is under way. Not before everything is said: there may be credit to tell.
    fn rest(&self) -> Option<(Parked, Vec<u8>)> {
        if !self.may_rest || !self.heard || !self.caller.is_quiet() {
            return None;
        }
        let out = &mut *self.caller.out.borrow_mut();
        let parked = self.caller.protocol.borrow_mut().park(&mut out.bytes);
        parked.filter(|_| out.unsent() == 0)
    }

    /// Whom calls wake that have something to send.
    fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.caller.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    fn hear_taken(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((id, len))) = Pin::new(&mut self.taken).poll_next(cx) {
            self.caller.protocol.borrow_mut().consumed(id, len);
        }
    }

    /// Tells of the expiry of the token, and ends the connection with it.
    fn poll_expiry(&mut self, cx: &mut Context<'_>) -> Poll<Framed> {
        while self.expiry.poll(cx).is_ready() {
            if self.told_of_expiry {
                return Poll::Ready(Framed::from(&Refusal::Expired { since_s: 0 }));
            }
            self.told_of_expiry = true;
            let left = keys::until(self.expires_s);
            let within_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
            self.caller.drain(&Drain { within_ms, ..Drain::new(DrainReason::TokenExpires) });
            self.expiry = Box::pin(expiry(self.expires_s));
        }
        Poll::Pending
    }

    /// Sends what the socket takes.
    fn flush(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        let caller = &self.caller;
        let out = &mut *caller.out.borrow_mut();
        caller.protocol.borrow_mut().control(&mut out.bytes);
        let was_full = out.unsent() >= MAX_UNSENT;
        while out.unsent() > 0 {
            let bytes = out.bytes.get(out.sent..).unwrap_or_default();
            let Poll::Ready(count) = Pin::new(&mut self.stream).poll_write(cx, bytes) else { break };
            out.advance(count?);
            self.moved = Instant::now();
        }
        if was_full && out.unsent() < MAX_UNSENT {
            caller.room.announce();
        }
        Ok(())
    }

    /// Reads a chunk and deals with it.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let body = self.caller.protocol.borrow().rest().map_or(0, |rest| rest.body);
        let chunk = if body > CHUNK { BODY_CHUNK } else { CHUNK };
        SCRATCH.with(|scratch| {
            // Calls that begin run later, so the buffer is free whenever a task is here.
            let mut scratch = scratch.borrow_mut();
            let room = scratch.get_mut(..chunk).unwrap_or_default();
            let turn = match std::task::ready!(greeting::poll_read(&mut self.stream, cx, room)) {
                Ok(0) | Err(_) => Turn::Over(None),
                Ok(count) => {
                    self.moved = Instant::now();
                    self.heard = true;
                    match self.caller.feed(room.get(..count).unwrap_or_default()) {
                        Ok(()) => Turn::Goes,
                        Err(violation) => Turn::Over(Some(Framed::from(&violation))),
                    }
                }
            };
            Poll::Ready(turn)
        })
    }

    /// Ends a connection whose caller owes the rest of a frame, or does not take what there is, for too long.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let owes = self.caller.protocol.borrow().is_within_frame() || self.caller.out.borrow().unsent() > 0;
        if !owes {
            self.watch = None;
            return Poll::Pending;
        }
        loop {
            let left = STALL.saturating_sub(self.moved.elapsed());
            let watch = self.watch.get_or_insert_with(|| Box::pin(executor::sleep(left)));
            if watch.poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.watch = None;
            if self.moved.elapsed() >= STALL {
                return Poll::Ready(Turn::Over(None));
            }
        }
    }
}

/// How long before its token expires a caller is told, if that is decided now.
pub(super) fn notice(expires_s: u64) -> Duration {
    // A token that is issued for a moment is good for half of it.
    NOTICE.min(keys::until(expires_s) / 2)
}

/// Waits until the caller is to be told that its token expires.
async fn expiry_notice(expires_s: u64) {
    let notice = notice(expires_s);
    loop {
        let left = keys::until(expires_s).saturating_sub(notice);
        if left.is_zero() {
            return;
        }
        executor::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

async fn expiry(expires_s: u64) {
    loop {
        let left = keys::until(expires_s);
        if left.is_zero() {
            return;
        }
        executor::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_not_kept() {
        let mut out = Out::default();
        let (mut next, mut seen) = (0_u8, 0_u8);
        for _ in 0..1000 {
            out.bytes.extend((0..100).map(|_| {
                next = next.wrapping_add(1);
                next
            }));
            // A caller who is always a little behind.
            for byte in &out.bytes[out.sent..out.bytes.len() - 10] {
                seen = seen.wrapping_add(1);
                assert_eq!(*byte, seen, "a byte is lost or out of order");
            }
            out.advance(out.unsent() - 10);
            assert_eq!(out.unsent(), 10);
            assert!(out.bytes.len() < 1000, "{} bytes are kept for 10", out.bytes.len());
        }
        out.bytes.resize(1 << 20, 0);
        out.advance(out.unsent());
        assert!(out.bytes.capacity() <= RESTING_BYTES);
    }
}
