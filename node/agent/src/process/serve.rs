//! The warm path: a call to a process whose sandbox serves. Invoke out, reply in; no thread is crossed and no file touched.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_sched::Create;
use denizen_wire::{CallHead, Header};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;

use crate::home::Home;
use crate::problem::{Kind, Problem, Retry};
use crate::process::Process;
use crate::process::active::{Active, CALLS_LIMIT};
use crate::process::input::{Input, gather, pump};
use crate::process::invocation::{Head, Invocation};
use crate::process::reply::{Owned, ReplyBody};

/// What a caller asks for, checked.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) function: &'a str,
    /// Empty where there is none.
    pub(crate) content_type: &'a str,
    /// The caller's own deadline.
    pub(crate) deadline: Option<Duration>,
    pub(crate) create: Create,
    pub(crate) body: Incoming,
}

/// What a function replied.
#[derive(Debug)]
pub(crate) struct Replied {
    pub(crate) invocation: Arc<str>,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) commit: u64,
    pub(crate) epoch: HeaderValue,
    pub(crate) body: Parts,
}

/// The body of a reply.
#[derive(Debug)]
pub(crate) enum Parts {
    Whole(Bytes),
    Streamed(ReplyBody),
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
    let Asked { function, content_type, deadline, create, body } = asked;
    let policy = process.app.image();
    let policy = policy.function(process.app.name.as_str(), function)?;
    let limit = policy.deadline.min(deadline.unwrap_or(Duration::MAX));
    let mut input = gather(body, policy.body_bytes, limit).await?;
    let deadline = begun + limit;
    loop {
        if Instant::now() >= deadline {
            let text = "the call was not begun before its deadline: no sandbox of its process took it";
            return Err(Problem::new(Kind::DeadlineExceeded, text).retry(Retry::Safe));
        }
        let active = match process.active(home, create).await {
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
        let call = begin(home, &active, deadline)?;
        let owned = Owned { active: Rc::clone(&active), call: Rc::clone(&call) };
        send(&active, &call, own.index, content_type, &input)?;
        let rest = input.rest.take();
        let in_hand = rest.is_none();
        if active.link.is_broken() && in_hand {
            // It never reached the sandbox, which is dead: the next one takes it.
            continue;
        }
        if let Some(rest) = rest {
            pump(&active, &call, rest, own.body_bytes);
        }
        match poll_fn(|cx| call.poll_head(cx)).await {
            Ok(head) => {
                process.works();
                return Ok(replied(owned, head));
            }
            // The sandbox drained before it began: the next one takes it.
            Err(_) if call.is_unbegun() && in_hand => {}
            Err(problem) => return Err(problem.invocation(&call.name)),
        }
    }
}

fn begin(home: &Home, active: &Rc<Active>, deadline: Instant) -> Result<Rc<Invocation>, Problem> {
    if active.in_flight() >= CALLS_LIMIT || active.link.is_congested() {
        let text = format!("{CALLS_LIMIT} calls run or wait in this process, or it does not read them");
        return Err(Problem::new(Kind::Overloaded, text).retry_after_s(1));
    }
    Ok(active.begin(home.next_invocation(), deadline))
}

fn send(
    active: &Rc<Active>,
    call: &Rc<Invocation>,
    function: u32,
    content_type: &str,
    input: &Input,
) -> Result<(), Problem> {
    let mut head = Vec::with_capacity(64);
    let encoded = CallHead { content_type, invocation: &call.name }.encode(&mut head);
    encoded.map_err(|error| Problem::new(Kind::BadHeader, format!("Content-Type: {error}")))?;
    let left = call.deadline.saturating_duration_since(Instant::now());
    // 0 would mean no deadline.
    let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
    let header = Header::invoke(call.id, function, deadline_ms, input.declared)
        .with_payload(head.len() + input.first.len())
        .with_end(input.rest.is_none());
    call.spend_input_credit(input.first.len());
    active.link.send(&header, &head, &input.first);
    Ok(())
}

fn replied(owned: Owned, head: Head) -> Replied {
    let Head { content_type, commit, whole } = head;
    let (invocation, epoch) = (Arc::clone(&owned.call.name), owned.active.epoch_header.clone());
    let body = match whole {
        Some(whole) => Parts::Whole(whole),
        None => Parts::Streamed(ReplyBody::new(owned)),
    };
    Replied { invocation, content_type, commit, epoch, body }
}
