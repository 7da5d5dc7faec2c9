//! A call's body on its way to a function, from an HTTP request or from frames: never more of it here than its window, never more than
//! its limit.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use denizen_wire::problem::size;
use denizen_wire::{Header, Kind as Frame, LENGTH_UNKNOWN, MAX_CALL_HEAD, MAX_FRAME_PAYLOAD};
use hyper::body::{Body, Bytes, Incoming};

use crate::data::FramedBody;
use crate::executor;
use crate::problem::{Kind, Problem, Retry};
use crate::process::active::Active;
use crate::process::invocation::Invocation;

/// A body of at most this many bytes is waited for and sent in one frame with its call.
const TOGETHER: usize = MAX_FRAME_PAYLOAD - MAX_CALL_HEAD - PREFIX;
/// What may be put before a body.
const PREFIX: usize = 2 << 10;
/// What is read of a body that nobody wants, so that its sender can read the answer.
const DISCARD_BYTES: u64 = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Where the body of a call comes from.
#[derive(Debug)]
pub(crate) enum Source {
    Http(Incoming),
    Frames(FramedBody),
}

impl From<Incoming> for Source {
    fn from(body: Incoming) -> Source {
        Source::Http(body)
    }
}

impl Source {
    /// Its whole length in bytes, if that is known.
    fn length(&self) -> Option<u64> {
        match self {
            Source::Http(body) => body.size_hint().exact(),
            Source::Frames(body) => body.length(),
        }
    }
}

/// A body, as far as it is known when its call is sent.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) first: Bytes,
    /// What is still to come.
    pub(crate) rest: Option<Source>,
    /// The whole length in bytes, or [`LENGTH_UNKNOWN`].
    pub(crate) declared: u64,
}

/// Takes a small body whole, and leaves a large one, or one of unknown length, to be streamed.
///
/// # Errors
/// `body-too-large` where it says so itself, `bad-request` where it breaks off, `deadline-exceeded` where it does not come.
pub(crate) async fn gather(
    body: impl Into<Source>,
    limit: u64,
    deadline: Duration,
) -> Result<Input, Problem> {
    let mut body = body.into();
    let declared = body.length();
    match declared {
        Some(0) => Ok(Input { first: Bytes::new(), rest: None, declared: 0 }),
        Some(length) if length > limit => {
            discard(body);
            Err(too_large(limit))
        }
        Some(length) if length <= TOGETHER as u64 => {
            let late = || {
                Problem::new(Kind::DeadlineExceeded, "the body did not arrive before the call's deadline")
                    .retry(Retry::Safe)
            };
            let first = executor::within(deadline, whole(&mut body, length)).await.ok_or_else(late)??;
            Ok(Input { first, rest: None, declared: length })
        }
        _ => {
            Ok(Input { first: Bytes::new(), rest: Some(body), declared: declared.unwrap_or(LENGTH_UNKNOWN) })
        }
    }
}

impl Input {
    /// An input that is all here.
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Input {
        let first = bytes.into();
        let declared = first.len() as u64;
        Input { first, rest: None, declared }
    }

    /// The same with something short before it.
    pub(crate) fn behind(self, prefix: &[u8]) -> Input {
        debug_assert!(prefix.len() <= PREFIX);
        let declared = match self.declared {
            LENGTH_UNKNOWN => LENGTH_UNKNOWN,
            declared => declared.saturating_add(prefix.len() as u64),
        };
        Input { first: [prefix, &self.first].concat().into(), declared, ..self }
    }
}

/// All of a small body. Mostly it came in one piece with its head, and is not copied.
async fn whole(body: &mut Source, length: u64) -> Result<Bytes, Problem> {
    let first = next(body).await.ok_or_else(broken_off)??;
    if first.len() as u64 == length {
        return Ok(first);
    }
    let mut all = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    all.extend_from_slice(&first);
    while (all.len() as u64) < length {
        all.extend_from_slice(&next(body).await.ok_or_else(broken_off)??);
    }
    Ok(Bytes::from(all))
}

/// The next bytes of a body. Trailers are passed over.
pub(super) async fn next(body: &mut Source) -> Option<Result<Bytes, Problem>> {
    let body = match body {
        Source::Http(body) => body,
        Source::Frames(body) => return body.next().await,
    };
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => return Some(Ok(data)),
            Ok(Err(_)) => {}
            Err(error) => return Some(Err(broken_off().cause(error))),
        }
    }
}

pub(crate) fn broken_off() -> Problem {
    Problem::new(Kind::BadRequest, "the body broke off before its end")
}

pub(super) fn too_large(limit: u64) -> Problem {
    Problem::new(Kind::BodyTooLarge, format!("the body is over the limit of {}", size(limit)))
        .remedy("Send less, or raise `body` under [limits] or [functions.NAME] in denizen.toml")
}

/// Streams the rest of a body to its call.
pub(crate) fn pump(active: &Rc<Active>, call: &Rc<Invocation>, body: Source, limit: u64) {
    let (active, call) = (Rc::clone(active), Rc::clone(call));
    executor::spawn(async move {
        let mut body = body;
        if let Err(problem) = stream(&active, &call, &mut body, limit).await {
            active.link.send_header(&Header::new(Frame::AbortInput, call.id));
            // The caller hears this and not what the function makes of half a body.
            call.fail(problem);
            active.abandon(&call);
            discard(body);
        }
    });
}

async fn stream(
    active: &Rc<Active>,
    call: &Rc<Invocation>,
    body: &mut Source,
    limit: u64,
) -> Result<(), Problem> {
    let mut total = 0_u64;
    loop {
        // A call that ended wants no more of it; hyper reads on or closes when the body is dropped.
        let part = futures_lite::future::or(async { Some(next(body).await) }, async {
            call.input_over().await;
            None
        });
        let Some(part) = part.await else { return Ok(()) };
        let Some(part) = part else {
            active.link.send_header(&Header::new(Frame::Data, call.id).with_end(true));
            return Ok(());
        };
        let part = part?;
        total += part.len() as u64;
        if total > limit {
            return Err(too_large(limit));
        }
        if !send(active, call, part).await {
            return Ok(());
        }
    }
}

/// Sends a part as credit comes; false once nobody wants it.
async fn send(active: &Rc<Active>, call: &Rc<Invocation>, mut part: Bytes) -> bool {
    while !part.is_empty() {
        let wanted = part.len().min(MAX_FRAME_PAYLOAD);
        let Some(granted) = poll_fn(|cx| call.poll_input_credit(cx, wanted)).await else { return false };
        let piece = part.split_to(granted);
        let header = Header::new(Frame::Data, call.id).with_payload(piece.len());
        active.link.send(&header, &[], &piece);
    }
    true
}

/// Reads on for a while in the background, so that a caller that is still sending gets to read its answer.
pub(crate) fn discard(body: impl Into<Source>) {
    // What is left of a framed body is dropped by its connection, which goes on.
    let Source::Http(mut body) = body.into() else { return };
    executor::spawn(async move {
        let until = Instant::now() + DISCARD_TIME;
        let mut rest = DISCARD_BYTES;
        while rest > 0 && !body.is_end_stream() {
            let wait = until.saturating_duration_since(Instant::now());
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let Some(Some(Ok(frame))) = executor::within(wait, frame).await else { break };
            rest = rest.saturating_sub(frame.data_ref().map_or(0, |part| part.len() as u64));
        }
    });
}

impl Invocation {
    /// Waits until the call wants no more input.
    async fn input_over(&self) {
        poll_fn(|cx| match self.poll_input_credit(cx, 0) {
            Poll::Ready(None) => Poll::Ready(()),
            _ => {
                self.wake_input_with(cx);
                Poll::Pending
            }
        })
        .await;
    }
}
