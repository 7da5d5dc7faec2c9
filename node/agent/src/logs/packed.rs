//! The lines of a log at rest: one piece of memory for all of them, since a node may know very many processes that do nothing.
//!
//! Each line is its sequence number, its stream, whether it has a speaker and a trace, and four texts, each behind its length. It is read
//! by the program that wrote it, and never by another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use denizen_protocol::TraceParent;

use super::line::{Line, Stream};

/// Lines in one piece.
#[derive(Debug)]
pub(super) struct Packed {
    bytes: Box<[u8]>,
    /// What all logs of the node take, these lines included.
    all_bytes: Arc<AtomicUsize>,
}

impl Packed {
    pub(super) fn new(lines: &VecDeque<Arc<Line>>, all_bytes: &Arc<AtomicUsize>) -> Packed {
        let mut bytes = Vec::new();
        lines.iter().for_each(|line| write(line, &mut bytes));
        all_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        Packed { bytes: bytes.into(), all_bytes: Arc::clone(all_bytes) }
    }

    /// The lines again, the oldest first.
    pub(super) fn lines(&self, app: &str, process: &str) -> Vec<Line> {
        let mut rest = &*self.bytes;
        std::iter::from_fn(|| read(&mut rest, app, process)).collect()
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

fn write(line: &Line, to: &mut Vec<u8>) {
    let stream = match line.stream {
        Stream::Output => 0,
        Stream::Log => 1,
        Stream::Host => 2,
    };
    to.extend(line.sequence.to_le_bytes());
    to.extend([stream, u8::from(line.invocation.is_some()), u8::from(line.traceparent.is_some())]);
    let trace = line.traceparent.map(|trace| trace.to_bytes());
    let trace = trace.as_ref().map_or(&[][..], |trace| &trace[..]);
    let invocation = line.invocation.as_deref().unwrap_or_default();
    for part in [trace, invocation.as_bytes(), line.at.as_bytes(), line.text.as_bytes()] {
        to.extend((part.len() as u64).to_le_bytes().into_iter().take(4));
        to.extend(part);
    }
}

/// `None` at the end.
fn read(from: &mut &[u8], app: &str, process: &str) -> Option<Line> {
    let sequence = u64::from_le_bytes(*from.split_off(..8)?.first_chunk()?);
    let &[stream, is_spoken, is_traced] = from.split_off(..3)?.first_chunk()?;
    let mut part = || {
        let length = u32::from_le_bytes(*from.split_off(..4)?.first_chunk()?);
        from.split_off(..usize::try_from(length).ok()?)
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (trace, invocation, at, said) = (part()?, text(part()?), text(part()?), text(part()?));
    Some(Line {
        at,
        app: app.into(),
        process: process.into(),
        invocation: (is_spoken == 1).then(|| invocation.into()),
        traceparent: if is_traced == 1 { TraceParent::from_bytes(trace) } else { None },
        stream: match stream {
            0 => Stream::Output,
            1 => Stream::Log,
            _ => Stream::Host,
        },
        text: said,
        sequence,
    })
}
