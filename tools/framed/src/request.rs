//! What is asked for, and what comes back.

use std::{num::NonZeroU32, time::Duration};

use denizen_protocol::{Durability, Final, TraceParent, client::Call};

/// Which function to call, and how. Made from a name alone where nothing else matters: `connection.call("get", b"")`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    function: String,
    process: Option<String>,
    pub(crate) deadline: Option<Duration>,
    durability: Option<Durability>,
    create_never: bool,
    content_type: Option<String>,
    idempotency_key: Option<String>,
    traceparent: Option<TraceParent>,
    is_repeatable: bool,
}

impl From<&str> for Request {
    fn from(function: &str) -> Request {
        Request::new(function)
    }
}

impl Request {
    /// A call of `function` that leaves everything else to the image.
    pub fn new(function: &str) -> Request {
        Request {
            function: function.to_owned(),
            process: None,
            deadline: None,
            durability: None,
            create_never: false,
            content_type: None,
            idempotency_key: None,
            traceparent: None,
            is_repeatable: false,
        }
    }

    /// The process, on a connection that is not bound to one. Default: any idle one, or a new one; the reply names it.
    #[must_use]
    pub fn process(mut self, process: &str) -> Request {
        self.process = Some(process.to_owned());
        self
    }

    /// Time for the call, reconnections included. Rounded up to milliseconds. Default: the image's, counted by the node.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Request {
        self.deadline = Some(deadline);
        self
    }

    /// What the commit must survive before the reply is sent. Default: the image's choice.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Request {
        self.durability = Some(durability);
        self
    }

    /// Refuse with `unknown-process` rather than create the process.
    #[must_use]
    pub fn create_never(mut self) -> Request {
        self.create_never = true;
        self
    }

    /// Content type of the input. Visible ASCII.
    #[must_use]
    pub fn content_type(mut self, content_type: &str) -> Request {
        self.content_type = Some(content_type.to_owned());
        self
    }

    /// Makes the call safe to repeat: the node executes it once and remembers the reply. Visible ASCII, at most 128 bytes. A call with a
    /// key is made again after a lost connection without asking.
    #[must_use]
    pub fn idempotency_key(mut self, key: &str) -> Request {
        self.idempotency_key = Some(key.to_owned());
        self
    }

    /// It may be executed more than once, because it only reads, or does the same again: it is made again after a lost connection
    /// also without a key. Nobody checks that; the node is not told.
    #[must_use]
    pub fn repeatable(mut self) -> Request {
        self.is_repeatable = true;
        self
    }

    /// The trace that this is part of; [`TraceParent::from_text`] reads the text of the HTTP header.
    #[must_use]
    pub fn traceparent(mut self, traceparent: TraceParent) -> Request {
        self.traceparent = Some(traceparent);
        self
    }

    pub(crate) fn may_be_repeated(&self) -> bool {
        self.is_repeatable || self.idempotency_key.is_some()
    }

    /// The call as it is sent, with the time that is left for it.
    pub(crate) fn as_call(&self, left: Option<Duration>, length: Option<u64>) -> Call<'_> {
        Call {
            process: self.process.as_deref(),
            deadline_ms: left.map(in_ms),
            length,
            durability: self.durability,
            create_never: self.create_never,
            content_type: self.content_type.as_deref(),
            idempotency_key: self.idempotency_key.as_deref(),
            traceparent: self.traceparent,
            ..Call::new(&self.function)
        }
    }
}

/// Rounded up, since 0 would mean "none".
fn in_ms(time: Duration) -> NonZeroU32 {
    let ms = time.as_nanos().div_ceil(1_000_000);
    u32::try_from(ms).ok().map_or(NonZeroU32::MAX, |ms| NonZeroU32::new(ms).unwrap_or(NonZeroU32::MIN))
}

/// What the node says of a call besides the function's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyHead {
    /// The process that ran it, where the caller did not name one.
    pub process: Option<String>,
    /// The invocation's id; log lines carry the same.
    pub invocation: Option<String>,
    /// Content type of the reply.
    pub content_type: Option<String>,
    /// Length of the reply in bytes, if it was known when it began.
    pub length: Option<u64>,
    /// The ownership term it ran in.
    pub epoch: u64,
    /// The last commit that the reply rests on; of a stream that is not at its end, so far.
    pub commit: u64,
    /// What that commit survives.
    pub durability: Durability,
    /// Remembered from an earlier call with the same idempotency key.
    pub replayed: bool,
}

impl ReplyHead {
    pub(crate) fn of(head: &denizen_protocol::ReplyHead<'_>) -> ReplyHead {
        ReplyHead {
            process: head.process.map(str::to_owned),
            invocation: head.invocation.map(str::to_owned),
            content_type: head.content_type.map(str::to_owned),
            length: head.length,
            epoch: head.epoch,
            commit: head.rests_on.commit,
            durability: head.rests_on.durability,
            replayed: head.replayed,
        }
    }

    pub(crate) fn finish(&mut self, done: Final) {
        self.commit = done.commit;
        self.durability = done.durability;
    }
}

/// A whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What the node says of the call.
    pub head: ReplyHead,
    /// What the function answered.
    pub body: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_rounded_to_none() {
        for (time, ms) in [(Duration::ZERO, 1), (Duration::from_micros(1500), 2), (Duration::MAX, u32::MAX)] {
            assert_eq!(in_ms(time).get(), ms);
        }
    }
}
