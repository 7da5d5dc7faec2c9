//! One call on a connection: from its CALL to [`crate::calls`], and from there to its REPLY or FAIL.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use denizen_protocol::limits::MAX_FUNCTIONS;
use denizen_protocol::token::Refusal;
use denizen_protocol::{
    CallHead, Durability as Level, Final, FunctionRef, Problem as Framed, ReplyHead, TraceParent,
};
use denizen_wire::Durability;
use futures_channel::oneshot;
use futures_lite::future;
use hyper::body::Bytes;
use hyper::header::HeaderValue;

use super::body::FramedBody;
use super::connection::{Caller, Gone};
use super::greeting::CALL_WINDOW;
use crate::calls::{self, Ended, Failed};
use crate::deployed::Deployed;
use crate::problem::{Kind, Problem};
use crate::process::{Asked, Parts, RestsOn, Source};

/// What a call takes beside its input, about, in bytes.
const CALL_BYTES: usize = 4 << 10;

/// What a CALL asks for.
#[derive(Debug)]
pub(super) struct Wish {
    function: Function,
    process: Option<String>,
    deadline: Option<Duration>,
    /// Length of the input in bytes, if it was said.
    pub(super) length: Option<u64>,
    durability: Option<Level>,
    create_never: bool,
    /// Empty where there is none.
    content_type: String,
    key: Option<String>,
    trace: Option<TraceParent>,
}

#[derive(Debug)]
enum Function {
    Name(String),
    Index { table: u64, index: u32 },
}

impl Wish {
    pub(super) fn of(head: &CallHead<'_>) -> Wish {
        Wish {
            function: match head.function {
                FunctionRef::Name(name) => Function::Name(name.to_owned()),
                FunctionRef::Index { table, index } => Function::Index { table, index },
            },
            process: head.process.map(str::to_owned),
            deadline: head.deadline_ms.map(|ms| Duration::from_millis(u64::from(ms.get()))),
            length: head.length,
            durability: head.durability,
            create_never: head.create_never,
            content_type: head.content_type.unwrap_or_default().to_owned(),
            key: head.idempotency_key.map(str::to_owned),
            trace: head.traceparent,
        }
    }

    /// The most memory that the call takes, in bytes.
    pub(super) fn keeps(&self) -> usize {
        let window = CALL_WINDOW as usize;
        let input =
            self.length.map_or(window, |length| usize::try_from(length).unwrap_or(window).min(window));
        CALL_BYTES + input
    }

    /// # Errors
    /// What this node does not do.
    fn level(&self) -> Result<Durability, Problem> {
        let not_yet = |what| Err(Problem::new(Kind::NotSupported, what));
        match self.durability {
            None | Some(Level::Process) => Ok(Durability::Process),
            Some(Level::Node) => Ok(Durability::Node),
            Some(Level::Store) => not_yet("the durability `store` cannot be asked for yet: use `node`"),
        }
    }

    /// The name of the function, as the application's image has it now.
    fn function<'a>(&'a self, image: &'a Deployed) -> Result<&'a str, Problem> {
        match &self.function {
            Function::Name(name) => Ok(name),
            Function::Index { table, .. } if *table != image.table => Err(Problem::new(
                Kind::FunctionsChanged,
                "the list that the index is of is not in use any more",
            )),
            Function::Index { index, .. } => {
                let function = image.declarations.functions.get(*index as usize);
                let unknown =
                    || Problem::new(Kind::UnknownFunction, format!("no function has the index {index}"));
                function.map(|function| function.name.as_str()).ok_or_else(unknown)
            }
        }
    }
}

/// Runs a call to its end, which its caller is told; or until nobody wants it any more.
pub(super) async fn run(
    caller: &Rc<Caller>,
    id: u64,
    wish: &Wish,
    body: FramedBody,
    cancelled: oneshot::Receiver<()>,
) {
    let work = async {
        let ended = execute(caller, id, wish, body).await;
        if let Err(problem) = ended {
            caller.fail(id, &problem);
        }
    };
    let cancelled = async {
        // Where it was dropped instead, the connection is gone, or the call has ended.
        if cancelled.await.is_ok() {
            caller.fail(id, &Problem::new(Kind::CallerGone, "the call was cancelled").framed());
        } else {
            future::pending::<()>().await;
        }
    };
    future::or(cancelled, work).await;
}

/// # Errors
/// How the call ends, where it has not ended with a reply.
async fn execute(caller: &Rc<Caller>, id: u64, wish: &Wish, body: FramedBody) -> Result<(), Framed> {
    let framed = |problem: Problem| problem.framed();
    if let Some(problem) = caller.verdict() {
        return Err(framed(problem));
    }
    let image = caller.app.image();
    let durability = wish.level().map_err(framed)?;
    let function = wish.function(&image).map_err(framed)?;
    if !caller.permits(function) {
        return Err(Framed::from(&Refusal::WrongFunction));
    }
    // What cannot be is refused before anything is created for it.
    let index = image.function(caller.app.name.as_str(), function).map_err(framed)?.index;
    let bound = caller.bound();
    let asked = Asked {
        function,
        content_type: &wish.content_type,
        deadline: wish.deadline,
        durability,
        key: wish.key.as_deref(),
        trace: wish.trace,
        create: image.creates(caller.create_never || wish.create_never),
        body: Source::Frames(body),
    };
    let process = bound.as_deref().or(wish.process.as_deref());
    let ended = calls::call(&caller.home, &caller.app, process, asked).await.map_err(framed)?;
    let named = matches!(wish.function, Function::Name(_)) && index < MAX_FUNCTIONS;
    let place = named.then_some((image.table, index));
    reply(caller, id, ended, process.is_none(), place).await
}

/// Sends a reply as it comes and as it is taken.
async fn reply(
    caller: &Caller,
    id: u64,
    ended: Ended,
    tell_process: bool,
    place: Option<(u64, u32)>,
) -> Result<(), Framed> {
    let Ended { process, result } = ended;
    let replied = result.map_err(failure)?;
    let rests_on = rests_on(RestsOn { commit: replied.commit, durability: replied.durability });
    let mut body = replied.body;
    let length = match &body {
        Parts::Whole(bytes) => Some(bytes.len() as u64),
        _ => None,
    };
    let mut head = Some(ReplyHead {
        length,
        process: text(Some(&process)).filter(|_| tell_process),
        content_type: text(replied.content_type.as_ref()),
        invocation: Some(&replied.invocation),
        function: place,
        replayed: replied.replayed,
        ..ReplyHead::new(replied.epoch.get(), rests_on)
    });
    let gone = |Gone| nobody_takes(&replied.invocation, replied.epoch.get());
    if let Parts::Whole(bytes) = body {
        return caller.send(id, &mut head, bytes, Some(rests_on)).await.map_err(gone);
    }
    // A caller may want to see that the reply begins before there is anything of it.
    caller.send(id, &mut head, Bytes::new(), None).await.map_err(gone)?;
    while let Some(part) = poll_fn(|cx| poll_part(&mut body, cx)).await {
        let stands = |problem: Problem| Framed { epoch: replied.epoch.get(), ..problem.framed() };
        caller.send(id, &mut head, part.map_err(stands)?, None).await.map_err(gone)?;
    }
    let last = match &body {
        Parts::Streamed(body) => body.rests_on(),
        Parts::Remote(body) => body.rests_on(),
        Parts::Whole(_) => None,
    };
    let last = last.map_or(rests_on, self::rests_on);
    caller.send(id, &mut head, Bytes::new(), Some(last)).await.map_err(gone)
}

fn poll_part(body: &mut Parts, cx: &mut Context<'_>) -> std::task::Poll<Option<Result<Bytes, Problem>>> {
    match body {
        Parts::Streamed(body) => body.poll_part(cx),
        Parts::Remote(body) => body.poll_part(cx),
        Parts::Whole(_) => std::task::Poll::Ready(None),
    }
}

fn rests_on(said: RestsOn) -> Final {
    let durability = match said.durability {
        Durability::Process => Level::Process,
        Durability::Node => Level::Node,
    };
    Final { commit: said.commit, durability }
}

fn failure(failed: Failed) -> Framed {
    let Failed { problem, standing } = failed;
    let (epoch, commit) = standing.map_or((0, 0), |standing| (standing.epoch.get(), standing.commit));
    Framed { epoch, commit, ..problem.framed() }
}

fn nobody_takes(invocation: &Arc<str>, epoch: u64) -> Framed {
    let problem = Problem::new(Kind::CallerGone, "nothing of the reply was taken for too long");
    Framed { epoch, ..problem.invocation(invocation).framed() }
}

/// What such headers carry is visible ASCII.
fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
}
