//! One call in a sandbox, as the agent sees it: what has come of its reply, what its caller and the sandbox owe each other.
//!
//! Flow control is here. The sandbox may be [`WINDOW`] reply bytes ahead of the caller, and gets credit back only as the caller
//! reads; the agent may be [`WINDOW`] input bytes ahead of the function, and reads the caller's body only as fast. A sandbox that
//! sends more than it may is not obeyed but ended.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use denizen_protocol::TraceParent;
use denizen_wire::{Durability, WINDOW};
use hyper::body::Bytes;
use hyper::header::HeaderValue;

use crate::logs::Speaker;
use crate::problem::Problem;

/// Credit is returned in pieces of at least this many bytes.
const CREDIT_STEP: usize = WINDOW / 4;

/// Parts of a reply that wait are put together up to this many bytes.
const TOGETHER: usize = 4 << 10;

/// A rule of the protocol that the sandbox broke.
pub(crate) type Broken = String;

/// What is asked of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A reply that has reached this level. Only one to a call with an idempotency key may be remembered.
    Reply { level: Durability, keyed: bool },
    /// Word that a commit has.
    Durable { commit: u64, level: Durability },
}

/// How long a call may take, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What the image gives it.
    pub(crate) image: Duration,
    /// What its caller gives it.
    pub(crate) caller: Option<Duration>,
}

impl Limit {
    /// The shorter.
    pub(crate) fn time(self) -> Duration {
        self.image.min(self.caller.unwrap_or(Duration::MAX))
    }
}

/// A call that was sent to a sandbox.
#[derive(Debug)]
pub(crate) struct Invocation {
    /// Its number on the wire.
    pub(crate) id: u64,
    /// Its name for callers and logs.
    pub(crate) name: Arc<str>,
    /// When it must have ended.
    pub(crate) deadline: Instant,
    /// Why then.
    pub(crate) limit: Cell<Option<Limit>>,
    /// The trace that it belongs to.
    pub(crate) trace: Cell<Option<TraceParent>>,
    /// The last commit that was known when it began; no reply can rest on an earlier one.
    pub(crate) base_commit: u64,
    pub(crate) wanted: Wanted,
    /// When it was told to stop.
    pub(crate) cancelled: Cell<Option<Instant>>,
    /// The sandbox refused to begin it because it drains.
    unbegun: Cell<bool>,
    /// Nobody waits for the reply any more.
    abandoned: Cell<bool>,
    /// Its reply is a remembered one.
    replays: Cell<bool>,
    reply: RefCell<Reply>,
    input: RefCell<Input>,
}

#[derive(Debug, Default)]
struct Reply {
    head: Option<Head>,
    /// The head was handed to the caller.
    begun: bool,
    parts: VecDeque<Bytes>,
    /// Bytes that came and were not returned as credit.
    unreturned: usize,
    /// Bytes that were passed on and are to be returned.
    returnable: usize,
    end: Option<Result<(), Problem>>,
    /// What the reply rests on, once it is whole.
    rests_on: Option<RestsOn>,
    waker: Option<Waker>,
}

/// What a whole reply rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestsOn {
    /// The last commit of the call.
    pub(crate) commit: u64,
    /// What that commit has survived.
    pub(crate) durability: Durability,
}

/// The beginning of a reply.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// `None`: the function chose none.
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) commit: u64,
    /// What the commit has survived. Of a reply that is streamed, what it will have when it has come to its end.
    pub(crate) durability: Durability,
    /// It was remembered from an earlier call with the same idempotency key.
    pub(crate) replayed: bool,
    /// The whole body, if it came in one piece.
    pub(crate) whole: Option<Bytes>,
}

#[derive(Debug)]
struct Input {
    credit: usize,
    /// The sandbox wants no more of it: the call has ended.
    over: bool,
    waker: Option<Waker>,
}

impl Invocation {
    pub(crate) fn new(
        id: u64,
        name: Arc<str>,
        deadline: Instant,
        base_commit: u64,
        wanted: Wanted,
    ) -> Invocation {
        Invocation {
            id,
            name,
            deadline,
            limit: Cell::new(None),
            trace: Cell::new(None),
            base_commit,
            wanted,
            cancelled: Cell::new(None),
            unbegun: Cell::new(false),
            abandoned: Cell::new(false),
            replays: Cell::new(false),
            reply: RefCell::default(),
            input: RefCell::new(Input { credit: WINDOW, over: false, waker: None }),
        }
    }

    /// It, as whose line of a log it is.
    pub(crate) fn speaker(&self) -> Speaker {
        Speaker { invocation: Arc::clone(&self.name), trace: self.trace.get() }
    }

    /// Whether it has an idempotency key.
    pub(crate) fn is_keyed(&self) -> bool {
        matches!(self.wanted, Wanted::Reply { keyed: true, .. })
    }

    /// The reply is remembered from an earlier call, and rests on the commit that it had then.
    pub(crate) fn replays(&self) {
        self.replays.set(true);
    }

    pub(crate) fn is_replayed(&self) -> bool {
        self.replays.get()
    }

    /// The sandbox begins to reply. `ends` says that `part` is all of it.
    pub(crate) fn begin_reply(&self, head: Head, part: Bytes, ends: bool) -> Result<(), Broken> {
        let mut reply = self.reply.borrow_mut();
        if reply.head.is_some() || reply.begun {
            return Err(format!("invocation {} has two replies", self.id));
        }
        reply.head = Some(if ends { Head { whole: Some(part.clone()), ..head } } else { head });
        if !ends {
            reply.take_in(self.id, part, self.abandoned.get())?;
        }
        self.ended_if(&mut reply, ends);
        Ok(())
    }

    /// What the reply rests on, said with its end.
    pub(crate) fn ends_on(&self, rests_on: RestsOn) {
        self.reply.borrow_mut().rests_on = Some(rests_on);
    }

    /// What [`Invocation::ends_on`] said.
    pub(crate) fn rests_on(&self) -> Option<RestsOn> {
        self.reply.borrow().rests_on
    }

    /// More of the reply.
    pub(crate) fn more_reply(&self, part: Bytes, ends: bool) -> Result<(), Broken> {
        let mut reply = self.reply.borrow_mut();
        if reply.head.is_none() && !reply.begun {
            return Err(format!("invocation {} has a reply without a beginning", self.id));
        }
        reply.take_in(self.id, part, self.abandoned.get())?;
        self.ended_if(&mut reply, ends);
        Ok(())
    }

    fn ended_if(&self, reply: &mut Reply, ends: bool) {
        if ends && reply.end.is_none() {
            reply.end = Some(Ok(()));
            self.end_input();
        }
        reply.wake();
    }

    /// The call failed, for whatever reason; the first one counts.
    pub(crate) fn fail(&self, problem: Problem) {
        let mut reply = self.reply.borrow_mut();
        if reply.end.is_none() {
            reply.end = Some(Err(problem));
        }
        self.end_input();
        reply.wake();
    }

    /// Whether the last word on it was heard.
    pub(crate) fn has_ended(&self) -> bool {
        self.reply.borrow().end.is_some()
    }

    /// Nobody waits any more: what comes is thrown away.
    pub(crate) fn abandon(&self) {
        self.abandoned.set(true);
        let mut reply = self.reply.borrow_mut();
        reply.parts.clear();
        drop(reply);
        self.end_input();
    }

    /// Whether the sandbox refused to begin it: another one may.
    pub(crate) fn is_unbegun(&self) -> bool {
        self.unbegun.get()
    }

    pub(crate) fn refused_to_begin(&self) {
        self.unbegun.set(true);
    }

    /// Waits for the head of the reply or the failure of the call.
    pub(crate) fn poll_head(&self, cx: &Context<'_>) -> Poll<Result<Head, Problem>> {
        let mut reply = self.reply.borrow_mut();
        if let Some(Err(problem)) = &reply.end {
            return Poll::Ready(Err(problem.clone()));
        }
        match reply.head.take() {
            Some(head) => {
                reply.begun = true;
                Poll::Ready(Ok(head))
            }
            None => reply.wait(cx),
        }
    }

    /// The next part of the reply's body; `None` at its end.
    pub(crate) fn poll_part(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Problem>>> {
        let mut reply = self.reply.borrow_mut();
        if let Some(part) = reply.parts.pop_front() {
            reply.returnable += part.len();
            return Poll::Ready(Some(Ok(part)));
        }
        match &reply.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(problem)) => Poll::Ready(Some(Err(problem.clone()))),
            None => reply.wait(cx),
        }
    }

    /// Credit that is to be sent to the sandbox now.
    pub(crate) fn take_credit(&self) -> Option<u32> {
        let mut reply = self.reply.borrow_mut();
        if reply.returnable < CREDIT_STEP || reply.end.is_some() {
            return None;
        }
        let credit = std::mem::take(&mut reply.returnable);
        reply.unreturned = reply.unreturned.saturating_sub(credit);
        u32::try_from(credit).ok()
    }

    /// The function took `bytes` of its input.
    pub(crate) fn add_input_credit(&self, bytes: u32) -> Result<(), Broken> {
        let mut input = self.input.borrow_mut();
        input.credit = input.credit.saturating_add(bytes as usize);
        if input.credit > WINDOW {
            return Err(format!("invocation {} returned input that it never got", self.id));
        }
        input.wake();
        Ok(())
    }

    /// Waits until input may be sent, and takes credit for at most `wanted` bytes; `None` once nothing is to be sent any more.
    pub(crate) fn poll_input_credit(&self, cx: &Context<'_>, wanted: usize) -> Poll<Option<usize>> {
        let mut input = self.input.borrow_mut();
        if input.over {
            return Poll::Ready(None);
        }
        let granted = wanted.min(input.credit);
        if granted == 0 && wanted > 0 {
            input.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        input.credit -= granted;
        Poll::Ready(Some(granted))
    }

    /// Is woken when the input's side changes.
    pub(crate) fn wake_input_with(&self, cx: &Context<'_>) {
        self.input.borrow_mut().waker = Some(cx.waker().clone());
    }

    /// Takes credit for the first part of the input, which always fits.
    pub(crate) fn spend_input_credit(&self, bytes: usize) {
        let mut input = self.input.borrow_mut();
        input.credit = input.credit.saturating_sub(bytes);
    }

    fn end_input(&self) {
        let mut input = self.input.borrow_mut();
        input.over = true;
        input.wake();
    }
}

impl Reply {
    fn take_in(&mut self, id: u64, part: Bytes, abandoned: bool) -> Result<(), Broken> {
        if part.is_empty() {
            return Ok(());
        }
        self.unreturned += part.len();
        if self.unreturned > WINDOW {
            return Err(format!(
                "invocation {id} sent {} reply bytes beyond its window",
                self.unreturned - WINDOW
            ));
        }
        if !abandoned {
            self.keep(part);
        }
        Ok(())
    }

    /// Small parts are put together while nobody takes them: each would cost many times its length.
    fn keep(&mut self, part: Bytes) {
        let fits = self.parts.back().is_some_and(|last| last.len() + part.len() <= TOGETHER);
        let last = if fits { self.parts.pop_back() } else { None };
        let part = match last.map(Bytes::try_into_mut) {
            None => part,
            Some(Ok(mut together)) => {
                together.extend_from_slice(&part);
                together.freeze()
            }
            Some(Err(shared)) => Bytes::from([shared, part].concat()),
        };
        self.parts.push_back(part);
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Input {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_fn, poll_once};

    use super::*;
    use crate::problem::Kind;

    fn invocation() -> Invocation {
        Invocation::new(
            1,
            "1-1".into(),
            Instant::now(),
            0,
            Wanted::Reply { level: Durability::Process, keyed: false },
        )
    }

    fn head() -> Head {
        Head { content_type: None, commit: 1, durability: Durability::Process, replayed: false, whole: None }
    }

    fn bytes(count: usize) -> Bytes {
        Bytes::from(vec![0; count])
    }

    fn next_part(call: &Invocation) -> Option<Option<Result<Bytes, Problem>>> {
        block_on(poll_once(poll_fn(|cx| call.poll_part(cx))))
    }

    #[test]
    fn a_whole_reply_arrives_at_once() {
        let call = invocation();
        call.begin_reply(head(), Bytes::from_static(b"hello"), true).unwrap();
        let head = block_on(poll_fn(|cx| call.poll_head(cx))).unwrap();
        assert_eq!(head.whole.as_deref(), Some(&b"hello"[..]));
        assert!(call.has_ended());
    }

    #[test]
    fn a_sandbox_may_be_one_window_ahead_and_no_more() {
        let call = invocation();
        call.begin_reply(head(), bytes(1000), false).unwrap();
        call.more_reply(bytes(WINDOW - 1000), false).unwrap();
        assert!(call.more_reply(bytes(1), false).is_err());
    }

    #[test]
    fn a_reply_in_tiny_parts_takes_little_more_than_its_bytes() {
        let call = invocation();
        call.begin_reply(head(), bytes(1), false).unwrap();
        for number in 0..10_000_u32 {
            call.more_reply(Bytes::from(vec![u8::try_from(number % 251).unwrap()]), false).unwrap();
        }
        assert!(call.reply.borrow().parts.len() <= 10_001 / (TOGETHER / 2), "each byte is kept by itself");
        call.more_reply(Bytes::new(), true).unwrap();
        let mut got = Vec::new();
        while let Some(Some(part)) = next_part(&call) {
            got.extend_from_slice(&part.unwrap());
        }
        let expected: Vec<u8> = (0..10_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
        assert!(got[0] == 0 && got[1..] == expected, "bytes are lost or out of order");
    }

    #[test]
    fn credit_comes_back_only_as_the_caller_reads() {
        let call = invocation();
        call.begin_reply(head(), bytes(WINDOW / 2), false).unwrap();
        call.more_reply(bytes(WINDOW / 2), false).unwrap();
        assert_eq!(call.take_credit(), None, "nothing was read yet");
        assert!(matches!(next_part(&call), Some(Some(Ok(_)))));
        assert_eq!(call.take_credit(), Some(u32::try_from(WINDOW / 2).unwrap()));
        assert_eq!(call.take_credit(), None);
        call.more_reply(bytes(WINDOW / 2), true).unwrap();
        assert!(matches!(next_part(&call), Some(Some(Ok(_)))));
        assert!(matches!(next_part(&call), Some(Some(Ok(_)))));
        assert!(matches!(next_part(&call), Some(None)));
    }

    #[test]
    fn input_waits_for_credit_and_none_is_invented() {
        let call = invocation();
        let take = |wanted| block_on(poll_once(poll_fn(|cx| call.poll_input_credit(cx, wanted))));
        assert_eq!(take(WINDOW + 5), Some(Some(WINDOW)));
        assert_eq!(take(1), None, "the window is used up");
        call.add_input_credit(10).unwrap();
        assert_eq!(take(64), Some(Some(10)));
        assert!(call.add_input_credit(u32::try_from(WINDOW).unwrap() + 1).is_err());
        call.fail(Problem::new(Kind::FunctionFailed, ""));
        assert_eq!(take(1), Some(None), "a call that ended takes no more");
    }

    #[test]
    fn replies_that_cannot_be_are_refused() {
        let call = invocation();
        assert!(call.more_reply(bytes(1), false).is_err(), "without a beginning");
        call.begin_reply(head(), bytes(1), false).unwrap();
        assert!(call.begin_reply(head(), bytes(1), false).is_err(), "twice");
    }

    #[test]
    fn a_failure_in_the_middle_breaks_the_body_off_after_what_came() {
        let call = invocation();
        call.begin_reply(head(), bytes(3), false).unwrap();
        block_on(poll_fn(|cx| call.poll_head(cx))).unwrap();
        call.fail(Problem::new(Kind::FunctionPanicked, "late"));
        assert!(matches!(next_part(&call), Some(Some(Ok(_)))));
        assert!(
            matches!(next_part(&call), Some(Some(Err(problem))) if problem.kind() == Kind::FunctionPanicked)
        );
    }
}
