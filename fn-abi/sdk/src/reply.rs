//! What a function can give: from its value to the bytes that the caller gets.

use crate::call::Call;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layout::StateType;
use crate::record::archive;
use denizen_abi::{DzSlice, Payload};
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};

/// A type that a function gives as its reply.
#[diagnostic::on_unimplemented(
    message = "a function cannot reply with `{Self}`",
    label = "not a reply",
    note = "replies are `()`, bytes, text, `Json<T>`, `Archive<T>`, `Reply` and `Streamed`, each bare or in a `Result`",
    note = "for JSON write `Json<{Self}>`",
    note = "a type of your own can implement `denizen::IntoReply`"
)]
pub trait IntoReply {
    /// What the function declares to give.
    const PAYLOAD: Payload;

    /// The layout text of an archived reply; empty for any other.
    #[must_use]
    fn layout() -> String
    where
        Self: Sized,
    {
        String::new()
    }

    /// Gives the reply; [`Context::reply`] with another type does it.
    ///
    /// # Errors
    /// What [`Context::reply`] says.
    fn into_reply(self, cx: &Context<'_>) -> Result<()>;
}

impl IntoReply for () {
    const PAYLOAD: Payload = Payload::Bytes;

    fn into_reply(self, _: &Context<'_>) -> Result<()> {
        Ok(())
    }
}

/// Bytes with their content type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The content type.
    pub content_type: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Reply {
    /// Bytes with their content type.
    #[must_use]
    pub fn new(content_type: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Reply {
        Reply { content_type: content_type.into(), bytes: bytes.into() }
    }
}

impl IntoReply for Reply {
    const PAYLOAD: Payload = Payload::Bytes;

    fn into_reply(self, cx: &Context<'_>) -> Result<()> {
        give(cx.call(), &self.content_type, &self.bytes)
    }
}

macro_rules! plain_reply {
    ($($type:ty: $content_type:literal),* $(,)?) => { $(
        impl IntoReply for $type {
            const PAYLOAD: Payload = Payload::Bytes;

            fn into_reply(self, cx: &Context<'_>) -> Result<()> {
                give(cx.call(), $content_type, self.as_ref())
            }
        }
    )* };
}

plain_reply! {
    Vec<u8>: "application/octet-stream",
    &[u8]: "application/octet-stream",
    String: "text/plain; charset=utf-8",
    &str: "text/plain; charset=utf-8",
}

/// JSON, both ways: as an input `Json(by): Json<By>`, as a reply `Json(Count { count })`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoReply for Json<T> {
    const PAYLOAD: Payload = Payload::Json;

    fn into_reply(self, cx: &Context<'_>) -> Result<()> {
        give(cx.call(), "application/json", &serde_json::to_vec(&self.0)?)
    }
}

/// A reply as an rkyv archive, for a caller that reads it in place. Its content type carries the layout's
/// fingerprint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archive<T>(pub T);

impl<T: StateType> IntoReply for Archive<T> {
    const PAYLOAD: Payload = Payload::Archived;

    fn layout() -> String {
        T::layout()
    }

    fn into_reply(self, cx: &Context<'_>) -> Result<()> {
        let content_type = format!("{ARCHIVE_TYPE};{LAYOUT_PARAMETER}={:016x}", T::fingerprint());
        give(cx.call(), &content_type, &archive(&self.0)?)
    }
}

const ARCHIVE_TYPE: &str = "application/vnd.denizen.archive";
const LAYOUT_PARAMETER: &str = "layout";

/// The fingerprint in the content type of an archive, if it is there.
pub(crate) fn layout_parameter(content_type: &str) -> Option<u64> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case(ARCHIVE_TYPE) {
        return None;
    }
    let mut named = parameters.split(';').filter_map(|parameter| parameter.trim().split_once('='));
    let (_, hex) = named.find(|(name, _)| name.eq_ignore_ascii_case(LAYOUT_PARAMETER))?;
    u64::from_str_radix(hex, 16).ok()
}

/// The whole reply at once. What is a part of the input the host sends from where it lies.
fn give(call: &Call, content_type: &str, bytes: &[u8]) -> Result<()> {
    set_content_type(call, content_type)?;
    // SAFETY: `raw` is alive. The host copies the bytes, unless they are of the input, which is its own and does not change.
    let status = unsafe { (call.host.reply_bytes)(call.raw, DzSlice::new(bytes)) };
    call.check(status, || format!("a reply of {} bytes", bytes.len()))
}

fn set_content_type(call: &Call, content_type: &str) -> Result<()> {
    // SAFETY: `raw` is alive, and the host copies the text.
    let status = unsafe { (call.host.reply_content_type)(call.raw, DzSlice::new(content_type.as_bytes())) };
    call.check(status, || format!("a reply of the content type `{content_type}`"))
}

/// Sends a reply piece by piece; [`Context::reply_writer`] gives it. What is written goes out in pieces of
/// about 16 KiB, sooner with `flush`; writing waits while the caller reads slower. If the rest cannot be sent
/// when it is dropped, the invocation fails.
pub struct ReplyWriter<'call> {
    call: &'call Call,
    waiting: Vec<u8>,
}

/// Bytes that a [`ReplyWriter`] collects before it sends them.
const PIECE_BYTES: usize = 16 * 1024;

/// The reply of a function that has sent it with a [`ReplyWriter`]; [`ReplyWriter::finish`] gives it.
#[derive(Debug)]
pub struct Streamed(());

impl<'call> ReplyWriter<'call> {
    pub(crate) fn begin(call: &'call Call, content_type: &str) -> Result<ReplyWriter<'call>> {
        set_content_type(call, content_type)?;
        Ok(ReplyWriter { call, waiting: Vec::new() })
    }

    /// Sends the rest.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed) if the caller went away.
    pub fn finish(mut self) -> Result<Streamed> {
        self.send()?;
        Ok(Streamed(()))
    }

    fn send(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        // SAFETY: `raw` is alive, and the host is done with the bytes when it returns.
        let status = unsafe { (self.call.host.reply_write)(self.call.raw, DzSlice::new(&self.waiting)) };
        // What failed is not sent again when the writer is dropped: the error is told once.
        self.waiting.clear();
        self.call.check(status, || "sending the reply".to_owned())
    }
}

impl Write for ReplyWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(self.send()?)
    }
}

impl Drop for ReplyWriter<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking()
            && let Err(error) = self.send()
        {
            self.call.set_fault(error);
        }
    }
}

impl fmt::Debug for ReplyWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyWriter ({} bytes waiting)", self.waiting.len())
    }
}

impl IntoReply for Streamed {
    const PAYLOAD: Payload = Payload::Stream;

    fn into_reply(self, _: &Context<'_>) -> Result<()> {
        Ok(())
    }
}

/// What a function may return: a reply, or a `Result` of one.
#[diagnostic::on_unimplemented(
    message = "a function cannot return `{Self}`",
    label = "neither a reply nor a `Result` of one",
    note = "functions return `()`, bytes, text, `Json<T>`, `Archive<T>`, `Reply` or `Streamed`, each bare or in a `Result`"
)]
pub trait Outcome {
    /// The reply in it.
    type Reply: IntoReply;

    /// The reply, or why there is none.
    ///
    /// # Errors
    /// The function's own.
    fn outcome(self) -> Result<Self::Reply>;
}

impl<R: IntoReply> Outcome for R {
    type Reply = R;

    fn outcome(self) -> Result<R> {
        Ok(self)
    }
}

impl<R: IntoReply, E: Into<Error>> Outcome for Result<R, E> {
    type Reply = R;

    fn outcome(self) -> Result<R> {
        self.map_err(Into::into)
    }
}

/// Gives the reply that an outcome holds.
pub(crate) fn deliver(outcome: impl Outcome, cx: &Context<'_>) -> Result<()> {
    outcome.outcome()?.into_reply(cx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_an_archive_is_read_from_its_content_type() {
        let with = |parameters: &str| layout_parameter(&format!("{ARCHIVE_TYPE}{parameters}"));
        assert_eq!(with(";layout=00000000000000ff"), Some(255));
        assert_eq!(with("; charset=x; Layout=1"), Some(1));
        assert_eq!(with(""), None);
        assert_eq!(with(";layout=xyz"), None);
        assert_eq!(layout_parameter("text/plain;layout=1"), None);
    }
}
