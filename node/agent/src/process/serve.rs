//! The warm path: a call to a process whose sandbox serves. Invoke out, reply in; no thread is crossed and no file touched.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_protocol::TraceParent;
use denizen_sched::{Create, Epoch};
use denizen_wire::{CallHead, Durability, Header, Kind as Frame};
use hyper::body::Bytes;
use hyper::header::HeaderValue;

use crate::home::Home;
use crate::problem::{Kind, Problem, Retry};
use crate::process::Process;
use crate::process::active::{Active, CALLS_LIMIT};
use crate::process::input::{Input, Source, gather, pump};
use crate::process::invocation::{Head, Invocation, Limit, Wanted};
use crate::process::reply::{Owned, RemoteBody, ReplyBody};

/// What a caller asks for, checked.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) function: &'a str,
    /// Empty where there is none.
    pub(crate) content_type: &'a str,
    /// The caller's own deadline.
    pub(crate) deadline: Option<Duration>,
    /// What it wants at least; the image may want more.
    pub(crate) durability: Durability,
    /// The idempotency key.
    pub(crate) key: Option<&'a str>,
    pub(crate) trace: Option<TraceParent>,
    pub(crate) create: Create,
    pub(crate) body: Source,
}

/// What a function replied, with its body as it is on the executor that holds it.
#[derive(Debug)]
pub(crate) struct Replied<B = Parts> {
    pub(crate) invocation: Arc<str>,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) commit: u64,
    /// What the commit has survived; a reply that is streamed has it at its end.
    pub(crate) durability: Durability,
    pub(crate) epoch: Epoch,
    pub(crate) epoch_header: HeaderValue,
    /// It was remembered from an earlier call with the same idempotency key.
    pub(crate) replayed: bool,
    pub(crate) body: B,
}

impl<B> Replied<B> {
    /// The same with another body.
    pub(crate) fn map<C>(self, body: impl FnOnce(B) -> C) -> Replied<C> {
        let Replied {
            invocation,
            content_type,
            commit,
            durability,
            epoch,
            epoch_header,
            replayed,
            body: old,
        } = self;
        let body = body(old);
        Replied { invocation, content_type, commit, durability, epoch, epoch_header, replayed, body }
    }
}

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum Parts {
    Whole(Bytes),
    Streamed(ReplyBody),
    /// From another executor.
    Remote(RemoteBody),
}

/// What a sandbox is told of a call, beside its input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order<'a> {
    /// The function's number on the wire.
    pub(super) index: u32,
    pub(super) content_type: &'a str,
    /// The longest input, in bytes.
    pub(super) body_bytes: u64,
    /// What the reply is to have reached.
    pub(super) durability: Durability,
    /// The idempotency key.
    pub(super) key: Option<&'a str>,
    /// The trace that it belongs to.
    pub(super) trace: Option<TraceParent>,
    pub(super) deadline: Instant,
    /// Why then.
    pub(super) limit: Limit,
}

/// Calls a function of a process, and starts the process if need be.
///
/// # Errors
/// Whatever went wrong, as the caller is to hear it.
pub(crate) async fn call(
    home: &Rc<Home>,
    process: &Rc<Process>,
    asked: Asked<'_>,
) -> Result<Replied, Problem> {
    let begun = Instant::now();
    let mut process = Rc::clone(process);
    let Asked { function, content_type, deadline, durability, key, trace, create, body } = asked;
    let policy = process.app.image();
    let policy = policy.function(process.app.name.as_str(), function)?;
    let limit = Limit { image: policy.deadline, caller: deadline };
    let mut input = gather(body, policy.body_bytes, limit.time()).await?;
    let deadline = begun + limit.time();
    loop {
        if Instant::now() >= deadline {
            return Err(not_begun());
        }
        let active = match process.active_soon(home, create).await {
            Ok(active) => active,
            // It was deleted while the call waited; the next of that name is another process.
            Err(_) if process.is_deleted() && create == Create::IfMissing => {
                process = home.process(&process.app, process.name.as_str())?;
                continue;
            }
            Err(problem) => return Err(problem),
        };
        // The sandbox's own declarations: a process that waits to be moved runs an older image.
        let own = active.image.function(process.app.name.as_str(), function)?;
        let durability = durability.max(own.durability);
        let order = Order {
            index: own.index,
            content_type,
            body_bytes: own.body_bytes,
            durability,
            key,
            trace,
            deadline,
            limit,
        };
        if let Some(replied) = attempt(home, &active, order, &mut input).await? {
            process.works();
            return Ok(replied);
        }
    }
}

/// What a caller is told whose call nobody took in time.
pub(super) fn not_begun() -> Problem {
    let text = "the call was not begun before its deadline: no sandbox of its process took it";
    Problem::new(Kind::DeadlineExceeded, text).retry(Retry::Safe)
}

/// Has a sandbox run a call. `None`: it did not begin, and another may.
pub(super) async fn attempt(
    home: &Home,
    active: &Rc<Active>,
    order: Order<'_>,
    input: &mut Input,
) -> Result<Option<Replied>, Problem> {
    if order.durability >= Durability::Node {
        active.lasting.wait().await?;
    }
    let wanted = Wanted::Reply { level: order.durability, keyed: order.key.is_some() };
    let call = begin(home, active, order.deadline, wanted)?;
    call.limit.set(Some(order.limit));
    call.trace.set(order.trace);
    if let Some(trace) = order.trace {
        tracing::debug!(invocation = %call.name, traceparent = %trace, "a call that is traced begins");
    }
    let owned = Owned { active: Rc::clone(active), call: Rc::clone(&call) };
    send(active, &call, order, input)?;
    let rest = input.rest.take();
    let in_hand = rest.is_none();
    if active.link.is_broken() && in_hand {
        // It never reached the sandbox, which is dead: the next one takes it.
        return Ok(None);
    }
    if let Some(rest) = rest {
        pump(active, &call, rest, order.body_bytes);
    }
    match poll_fn(|cx| call.poll_head(cx)).await {
        Ok(head) => Ok(Some(replied(owned, head))),
        // The sandbox drained before it began: the next one takes it.
        Err(_) if call.is_unbegun() && in_hand => Ok(None),
        Err(problem) => Err(problem.invocation(&call.name)),
    }
}

/// Waits until a sandbox says that a commit is durable; up to which one is, then.
pub(super) async fn durable(
    home: &Home,
    active: &Rc<Active>,
    commit: u64,
    deadline: Instant,
) -> Result<u64, Problem> {
    active.lasting.wait().await?;
    let level = Durability::Node;
    let call = begin(home, active, deadline, Wanted::Durable { commit, level })?;
    let _owned = Owned { active: Rc::clone(active), call: Rc::clone(&call) };
    active.link.send_header(&Header { code: level.code(), c: commit, ..Header::new(Frame::Sync, call.id) });
    let head = poll_fn(|cx| call.poll_head(cx)).await;
    head.map(|head| head.commit).map_err(|problem| problem.invocation(&call.name))
}

fn begin(
    home: &Home,
    active: &Rc<Active>,
    deadline: Instant,
    wanted: Wanted,
) -> Result<Rc<Invocation>, Problem> {
    if active.in_flight() >= CALLS_LIMIT || active.link.is_congested() {
        let text = format!("{CALLS_LIMIT} calls run or wait in this process, or it does not read them");
        return Err(Problem::new(Kind::Overloaded, text).retry_after_s(1));
    }
    Ok(active.begin(home.next_invocation(), deadline, wanted))
}

fn send(active: &Rc<Active>, call: &Rc<Invocation>, order: Order<'_>, input: &Input) -> Result<(), Problem> {
    let mut head = Vec::with_capacity(64);
    let trace = order.trace.map(|trace| trace.to_bytes());
    let call_head =
        CallHead { content_type: order.content_type, invocation: &call.name, key: order.key, trace };
    let encoded = call_head.encode(&mut head);
    encoded.map_err(|error| Problem::new(Kind::BadHeader, format!("Content-Type: {error}")))?;
    let left = call.deadline.saturating_duration_since(Instant::now());
    // 0 would mean no deadline.
    let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
    let header = Header::invoke(call.id, order.index, deadline_ms, input.declared);
    let header = Header { code: order.durability.code(), ..header }
        .with_payload(head.len() + input.first.len())
        .with_end(input.rest.is_none());
    call.spend_input_credit(input.first.len());
    active.link.send(&header, &head, &input.first);
    Ok(())
}

fn replied(owned: Owned, head: Head) -> Replied {
    let Head { content_type, commit, durability, replayed, whole } = head;
    let invocation = Arc::clone(&owned.call.name);
    let (epoch, epoch_header) = (owned.active.epoch, owned.active.epoch_header.clone());
    let body = match whole {
        Some(whole) => Parts::Whole(whole),
        None => Parts::Streamed(ReplyBody::new(owned)),
    };
    Replied { invocation, content_type, commit, durability, epoch, epoch_header, replayed, body }
}
