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

/// Bytes of log lines that are sent at once, about.
const TOGETHER: usize = 32 << 10;

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
        // All that is there goes out together: a write for each line of a process that prints in earnest would keep the executor busy.
        let mut together = Vec::new();
        while together.len() < TOGETHER {
            match Pin::new(&mut self.later).poll_next(cx) {
                Poll::Ready(Some(line)) if self.last.is_some_and(|last| line.sequence <= last) => {}
                Poll::Ready(Some(line)) => together.extend_from_slice(&ndjson(&line)),
                Poll::Ready(None) if together.is_empty() => return Poll::Ready(None),
                Poll::Pending if together.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(together.into()))
    }
}

/// A line as NDJSON.
pub(crate) fn ndjson(line: &Line) -> Vec<u8> {
    let mut json = serde_json::to_vec(line).unwrap_or_default();
    json.push(b'\n');
    json
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::logs::{Logs, Stream as Printed, Wanted};

    #[test]
    fn lines_that_are_there_go_out_together_and_each_once() {
        let logs = Logs::default();
        let log = logs.of("app", "process");
        log.add(Printed::Output, None, "before".to_owned());
        let (first, later) = logs.follow(&Wanted::default(), 10);
        let last = first.last().map(|line| line.sequence);
        let mut body = LogBody { first: None, last, later };
        for number in 0..100 {
            log.add(Printed::Output, None, format!("line {number}"));
        }
        let part = block_on(poll_fn(|cx| body.poll_part(cx))).unwrap();
        let text = String::from_utf8(part.to_vec()).unwrap();
        assert_eq!(text.lines().count(), 100, "{text}");
        assert!(
            text.lines().zip(0..).all(|(line, number)| line.contains(&format!("line {number}\""))),
            "{text}"
        );
        assert!(block_on(poll_once(poll_fn(|cx| body.poll_part(cx)))).is_none());
        log.add(Printed::Output, None, "x".repeat(TOGETHER));
        log.add(Printed::Output, None, "behind it".to_owned());
        assert!(
            block_on(poll_fn(|cx| body.poll_part(cx))).is_some_and(|part| !part.ends_with(b"behind it\"}\n"))
        );
        assert!(block_on(poll_once(poll_fn(|cx| body.poll_part(cx)))).is_some());
    }
}
