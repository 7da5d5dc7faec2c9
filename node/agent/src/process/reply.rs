//! The body of a reply, as hyper pulls it: each part that the caller takes gives the sandbox its credit back.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use denizen_wire::{Header, Kind as Frame};
use futures_channel::mpsc;
use futures_lite::Stream;
use hyper::body::Bytes;

use crate::problem::Problem;
use crate::process::active::Active;
use crate::process::invocation::{Invocation, RestsOn};

/// Parts on their way between executors.
const PARTS_BETWEEN: usize = 2;

/// A call that has an owner. When the owner goes away before the call has ended, the sandbox is told.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) active: Rc<Active>,
    pub(crate) call: Rc<Invocation>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.call.has_ended() {
            self.active.abandon(&self.call);
        }
    }
}

/// A reply's body on the executor of its process.
#[derive(Debug)]
pub(crate) struct ReplyBody(Owned);

impl ReplyBody {
    pub(crate) fn new(owned: Owned) -> ReplyBody {
        ReplyBody(owned)
    }

    /// The next part; `None` at the end.
    pub(crate) fn poll_part(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Problem>>> {
        let Owned { active, call } = &self.0;
        let part = call.poll_part(cx);
        if let Some(bytes) = call.take_credit() {
            active.link.send_header(&Header { a: bytes, ..Header::new(Frame::Credit, call.id) });
        }
        part
    }

    /// What the reply rests on, after its end.
    pub(crate) fn rests_on(&self) -> Option<RestsOn> {
        self.0.call.rests_on()
    }

    /// Makes it a body that another executor can read.
    pub(crate) fn cross(mut self) -> RemoteBody {
        let (mut to, parts) = mpsc::channel(PARTS_BETWEEN);
        let rests_on = Arc::new(OnceLock::new());
        let tell = Arc::clone(&rests_on);
        crate::executor::spawn(async move {
            while let Some(part) = std::future::poll_fn(|cx| self.poll_part(cx)).await {
                let failed = part.is_err();
                let room = std::future::poll_fn(|cx| to.poll_ready(cx)).await;
                if room.is_err() || to.start_send(part).is_err() || failed {
                    break;
                }
            }
            // Before the channel closes, which is how the other side learns of the end.
            if let Some(said) = self.rests_on() {
                let _ = tell.set(said);
            }
            drop(to);
        });
        RemoteBody { parts, rests_on }
    }
}

/// A reply's body from another executor.
#[derive(Debug)]
pub(crate) struct RemoteBody {
    parts: mpsc::Receiver<Result<Bytes, Problem>>,
    rests_on: Arc<OnceLock<RestsOn>>,
}

impl RemoteBody {
    /// A body that comes from another thread.
    pub(crate) fn from(parts: mpsc::Receiver<Result<Bytes, Problem>>) -> RemoteBody {
        RemoteBody { parts, rests_on: Arc::default() }
    }

    /// What the reply rests on, after its end.
    pub(crate) fn rests_on(&self) -> Option<RestsOn> {
        self.rests_on.get().copied()
    }

    /// The next part; `None` at the end.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Problem>>> {
        Pin::new(&mut self.parts).poll_next(cx)
    }
}
