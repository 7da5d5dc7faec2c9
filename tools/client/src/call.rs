//! A call of a function: what goes in, and the reply as it streams out.

use std::{
    fmt,
    io::{self, Read},
    time::Duration,
};

use ureq::{
    BodyReader, SendBody,
    http::{HeaderMap, request::Builder},
};

use crate::{
    error::ClientError,
    node::{InputReader, Node},
};

/// From this size on the node is asked first: one that refuses says so before megabytes are sent in vain.
const ASK_FIRST_BYTES: u64 = 1 << 20;

/// Which function to call, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call<'a> {
    /// The application.
    pub app: &'a str,
    /// The process; `None` takes any idle one, or a new one with a generated name.
    pub process: Option<&'a str>,
    /// The function.
    pub function: &'a str,
    /// Handed to the function as it is.
    pub content_type: Option<&'a str>,
    /// At most the image's own.
    pub deadline: Option<Duration>,
    /// Answer `unknown-process` rather than create the process.
    pub never_create: bool,
    /// Stands for this call when it is made again: 1 to 128 bytes of visible ASCII. Needs `process`.
    pub idempotency_key: Option<&'a str>,
    /// What the commit must survive before the reply is sent: `process` or `node`.
    pub durability: Option<&'a str>,
    /// The `traceparent` of W3C Trace Context that this call belongs to.
    pub traceparent: Option<&'a str>,
}

/// The input of a call.
pub enum Input<'a> {
    /// All of it is here.
    Bytes(&'a [u8]),
    /// It is read as it is sent.
    Stream {
        /// Where from.
        reader: &'a mut dyn Read,
        /// How much, if known.
        len_bytes: Option<u64>,
    },
}

impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Input::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Input::Stream { len_bytes, .. } => write!(f, "Stream({len_bytes:?} bytes)"),
        }
    }
}

/// What the node says of a call besides the function's reply.
#[derive(Debug, Clone, Default)]
pub struct ReplyHead {
    /// The process that ran it.
    pub process: Option<String>,
    /// The invocation's id; log lines carry the same.
    pub invocation: Option<String>,
    /// What the reply's commit survives: `process`, `node` or `store`.
    pub durability: Option<String>,
    /// The last commit that the reply rests on.
    pub commit: Option<u64>,
    /// The ownership term it ran in.
    pub epoch: Option<u64>,
    /// Content type of the reply.
    pub content_type: Option<String>,
    /// It was remembered from an earlier call with the same idempotency key.
    pub replayed: bool,
}

impl ReplyHead {
    fn read(headers: &HeaderMap) -> ReplyHead {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let number = |name: &str| text(name).and_then(|value| value.parse().ok());
        ReplyHead {
            process: text("denizen-process"),
            invocation: text("denizen-invocation"),
            durability: text("denizen-durability"),
            commit: number("denizen-commit"),
            epoch: number("denizen-epoch"),
            content_type: text("content-type"),
            replayed: headers.get("denizen-replayed").is_some_and(|value| value == "true"),
        }
    }
}

/// A reply that is arriving. Read it to its end: an error while reading means that the function failed after it had begun to
/// answer, or that the node is gone.
pub struct Reply {
    /// What the node says of the call.
    pub head: ReplyHead,
    body: BodyReader<'static>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Read for Reply {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.body.read(buf)
    }
}

impl Node {
    /// Calls a function. Returns when the reply's head is here; the reply itself is read from what is returned.
    pub fn call(&self, call: &Call<'_>, input: Input<'_>) -> Result<Reply, ClientError> {
        let request = self.call_request(call);
        let response = match input {
            Input::Bytes(bytes) => {
                let mut rest = bytes;
                let len_bytes = u64::try_from(bytes.len()).ok();
                self.send(with_length(request, len_bytes), SendBody::from_reader(&mut rest))?
            }
            Input::Stream { reader, len_bytes } => {
                let mut reader = InputReader(reader);
                self.send(with_length(request, len_bytes), SendBody::from_reader(&mut reader))?
            }
        };
        let head = ReplyHead::read(response.headers());
        Ok(Reply { head, body: response.into_body().into_reader() })
    }

    fn call_request(&self, call: &Call<'_>) -> Builder {
        let mut request = match call.process {
            Some(process) => self
                .request("POST", &["v1", "apps", call.app, "processes", process, "functions", call.function]),
            None => self.request("POST", &["v1", "apps", call.app, "functions", call.function]),
        };
        if let Some(content_type) = call.content_type {
            request = request.header("Content-Type", content_type);
        }
        if let Some(deadline) = call.deadline {
            // Zero would mean "none"; a deadline under a millisecond is still one.
            let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX).max(1);
            request = request.header("Denizen-Deadline-Ms", deadline_ms);
        }
        if let Some(key) = call.idempotency_key {
            // A string of RFC 9651.
            let key = key.replace('\\', "\\\\").replace('"', "\\\"");
            request = request.header("Idempotency-Key", format!("\"{key}\""));
        }
        if let Some(durability) = call.durability {
            request = request.header("Denizen-Durability", durability);
        }
        if let Some(traceparent) = call.traceparent {
            request = request.header("traceparent", traceparent);
        }
        if call.never_create { request.header("Denizen-Create", "never") } else { request }
    }
}

fn with_length(request: Builder, len_bytes: Option<u64>) -> Builder {
    let request = match len_bytes {
        Some(len_bytes) => request.header("Content-Length", len_bytes),
        None => request,
    };
    if len_bytes.is_none_or(|len_bytes| len_bytes >= ASK_FIRST_BYTES) {
        request.header("Expect", "100-continue")
    } else {
        request
    }
}
