//! The bodies of answers: a few bytes, a function's reply, or a log that is followed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_channel::mpsc;
use futures_lite::Stream;
use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::logs::Line;
use crate::problem::Problem;
use crate::process::{RemoteBody, ReplyBody};

/// What an answer carries.
#[derive(Debug)]
pub(crate) enum FrontBody {
    /// `None` once it was handed out.
    Whole(Option<Bytes>),
    Reply(ReplyBody),
    Remote(RemoteBody),
    Log(LogBody),
}

/// A log: what there was, then what comes.
#[derive(Debug)]
pub(crate) struct LogBody {
    /// Whole lines in NDJSON.
    pub(crate) first: Option<Bytes>,
    /// The last line in `first`: what is older and comes late is in there.
    pub(crate) last: Option<u64>,
    pub(crate) later: mpsc::Receiver<Arc<Line>>,
}

impl FrontBody {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> FrontBody {
        FrontBody::Whole(Some(bytes.into()))
    }

    pub(crate) fn empty() -> FrontBody {
        FrontBody::Whole(None)
    }
}

impl Body for FrontBody {
    type Data = Bytes;
    type Error = Problem;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Problem>>> {
        let part = match self.get_mut() {
            FrontBody::Whole(bytes) => Poll::Ready(bytes.take().map(Ok)),
            FrontBody::Reply(reply) => reply.poll_part(cx),
            FrontBody::Remote(reply) => reply.poll_part(cx),
            FrontBody::Log(log) => log.poll_part(cx).map(|part| part.map(Ok)),
        };
        part.map(|part| part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, FrontBody::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            FrontBody::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            _ => SizeHint::default(),
        }
    }
}

impl LogBody {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        loop {
            let line = std::task::ready!(Pin::new(&mut self.later).poll_next(cx));
            let Some(line) = line else { return Poll::Ready(None) };
            if self.last.is_none_or(|last| line.sequence > last) {
                return Poll::Ready(Some(ndjson(&line).into()));
            }
        }
    }
}

/// A line as NDJSON.
pub(crate) fn ndjson(line: &Line) -> Vec<u8> {
    let mut json = serde_json::to_vec(line).unwrap_or_default();
    json.push(b'\n');
    json
}
