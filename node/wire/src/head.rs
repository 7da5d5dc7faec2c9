//! The small variable part in front of the body bytes in `Invoke` and `Reply` frames.
//!
//! Each text is a `u16` length and its bytes. Their limits keep most of a frame for the body and are refused, not cut: a content
//! type that lost its end means something else.

use crate::{Frame, Header, Kind, MAX_FRAME_PAYLOAD, WireError};

/// The longest content type in bytes.
pub const MAX_CONTENT_TYPE: usize = 1024;
/// The longest invocation id, as text, in bytes.
pub const MAX_INVOCATION_ID: usize = 128;
/// The longest idempotency key in bytes.
pub const MAX_IDEMPOTENCY_KEY: usize = 128;
/// Bytes of the trace that a call belongs to: `traceparent` of W3C Trace Context, in the binary form of the callers' protocol.
pub const TRACE_LEN: usize = 25;
#[expect(clippy::cast_possible_truncation, reason = "it is 25")]
const TRACE_LEN_U32: u32 = TRACE_LEN as u32;
/// The longest head of an `Invoke` frame in bytes.
pub const MAX_CALL_HEAD: usize = 7 + TRACE_LEN + MAX_CONTENT_TYPE + MAX_INVOCATION_ID + MAX_IDEMPOTENCY_KEY;

/// The head of an `Invoke` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallHead<'a> {
    /// The caller's content type, visible ASCII; empty where it sent none. At most [`MAX_CONTENT_TYPE`] bytes.
    pub content_type: &'a str,
    /// The invocation's id as callers and logs see it. At most [`MAX_INVOCATION_ID`] bytes.
    pub invocation: &'a str,
    /// What stands for this call when it is made again: 1 to [`MAX_IDEMPOTENCY_KEY`] bytes of visible ASCII and blanks.
    pub key: Option<&'a str>,
    /// The trace that it belongs to.
    pub trace: Option<[u8; TRACE_LEN]>,
}

impl<'a> CallHead<'a> {
    /// Bytes that the head takes in the payload.
    pub const fn encoded_len(&self) -> usize {
        let key_len = match self.key {
            Some(key) => key.len(),
            None => 0,
        };
        let trace_len = if self.trace.is_some() { TRACE_LEN } else { 0 };
        7 + self.content_type.len() + self.invocation.len() + key_len + trace_len
    }

    /// How many body bytes fit beside it into one frame.
    pub const fn room(&self) -> usize {
        MAX_FRAME_PAYLOAD.saturating_sub(self.encoded_len())
    }

    /// Appends the head to `out`.
    ///
    /// # Errors
    /// [`WireError::BadHead`] for a text that is too long or no visible ASCII; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        check_content_type(self.content_type)?;
        check_invocation(self.invocation)?;
        self.key.map_or(Ok(()), check_key)?;
        put_text(out, self.content_type);
        put_text(out, self.invocation);
        put_text(out, self.key.unwrap_or_default());
        out.push(u8::from(self.trace.is_some()));
        out.extend_from_slice(self.trace.as_ref().map_or(&[], |trace| trace.as_slice()));
        Ok(())
    }

    /// Splits a payload into its head and the first bytes of the input.
    ///
    /// # Errors
    /// [`WireError::BadHead`].
    pub fn decode(payload: &'a [u8]) -> Result<(CallHead<'a>, &'a [u8]), WireError> {
        let (content_type, rest) = take_text(payload)?;
        let (invocation, rest) = take_text(rest)?;
        let (key, rest) = take_text(rest)?;
        let (trace, rest) = take_trace(rest)?;
        check_content_type(content_type)?;
        check_invocation(invocation)?;
        let key = Some(key).filter(|key| !key.is_empty());
        key.map_or(Ok(()), check_key)?;
        Ok((CallHead { content_type, invocation, key, trace }, rest))
    }
}

/// The head of a `Reply` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHead<'a> {
    /// The reply's content type, visible ASCII; empty where the function chose none. At most [`MAX_CONTENT_TYPE`] bytes.
    pub content_type: &'a str,
}

impl<'a> ReplyHead<'a> {
    /// Bytes that the head takes in the payload.
    pub const fn encoded_len(&self) -> usize {
        2 + self.content_type.len()
    }

    /// How many body bytes fit beside it into one frame.
    pub const fn room(&self) -> usize {
        MAX_FRAME_PAYLOAD.saturating_sub(self.encoded_len())
    }

    /// Appends the head to `out`.
    ///
    /// # Errors
    /// [`WireError::BadHead`] for a content type that is too long or no visible ASCII; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        check_content_type(self.content_type)?;
        put_text(out, self.content_type);
        Ok(())
    }

    /// Splits a payload into its head and the first bytes of the reply.
    ///
    /// # Errors
    /// [`WireError::BadHead`].
    pub fn decode(payload: &'a [u8]) -> Result<(ReplyHead<'a>, &'a [u8]), WireError> {
        let (content_type, rest) = take_text(payload)?;
        check_content_type(content_type)?;
        Ok((ReplyHead { content_type }, rest))
    }

    /// Whether `text` may be a content type on this wire: visible ASCII and blanks, at most [`MAX_CONTENT_TYPE`] bytes.
    pub fn accepts(text: &str) -> bool {
        check_content_type(text).is_ok()
    }
}

impl Header {
    /// Header of an `Invoke` frame. `deadline_ms` 0 is none; `declared_len` is [`crate::LENGTH_UNKNOWN`] where it is not known.
    pub fn invoke(id: u64, function: u32, deadline_ms: u32, declared_len: u64) -> Header {
        Header { a: function, b: deadline_ms, c: declared_len, ..Header::new(Kind::Invoke, id) }
    }
}

/// The payload of a `LogLine` frame in front of the line. Its header's `a` says how long it is.
pub fn log_line_head(header: Header, trace: Option<&[u8; TRACE_LEN]>) -> (Header, &[u8]) {
    match trace {
        Some(trace) => (Header { a: TRACE_LEN_U32, ..header }, trace),
        None => (header, &[]),
    }
}

/// Splits the payload of a `LogLine` frame into the trace that its call belongs to, and the line.
///
/// # Errors
/// [`WireError::BadHead`].
pub fn split_log_line<'f>(frame: &Frame<'f>) -> Result<(Option<&'f [u8; TRACE_LEN]>, &'f [u8]), WireError> {
    match frame.header.a {
        0 => Ok((None, frame.payload)),
        TRACE_LEN_U32 => {
            let (trace, line) =
                frame.payload.split_first_chunk().ok_or(WireError::BadHead("a trace is cut short"))?;
            Ok((Some(trace), line))
        }
        _ => Err(WireError::BadHead("a trace has another length")),
    }
}

fn check_content_type(text: &str) -> Result<(), WireError> {
    if text.len() > MAX_CONTENT_TYPE {
        return Err(WireError::BadHead("the content type is over 1024 bytes"));
    }
    check_visible(text, "the content type has a byte that no header can carry")
}

fn check_invocation(text: &str) -> Result<(), WireError> {
    if text.len() > MAX_INVOCATION_ID {
        return Err(WireError::BadHead("the invocation id is over 128 bytes"));
    }
    check_visible(text, "the invocation id has a byte that no header can carry")
}

fn check_key(key: &str) -> Result<(), WireError> {
    if key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY {
        return Err(WireError::BadHead("an idempotency key has 1 to 128 bytes"));
    }
    check_visible(key, "the idempotency key has a byte that no header can carry")
}

/// These texts end in HTTP headers and log lines, so a line break in one would forge the next.
fn check_visible(text: &str, why: &'static str) -> Result<(), WireError> {
    if text.bytes().all(|byte| (0x20..0x7F).contains(&byte)) { Ok(()) } else { Err(WireError::BadHead(why)) }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    #[expect(clippy::cast_possible_truncation, reason = "the limits checked before are far below 65536")]
    let len = text.len() as u16;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take_text(bytes: &[u8]) -> Result<(&str, &[u8]), WireError> {
    let (len, rest) = bytes.split_first_chunk::<2>().ok_or(WireError::BadHead("a length is cut short"))?;
    let len = usize::from(u16::from_le_bytes(*len));
    let (text, rest) = rest.split_at_checked(len).ok_or(WireError::BadHead("a text is cut short"))?;
    let text = std::str::from_utf8(text).map_err(|_| WireError::BadHead("a text is no UTF-8"))?;
    Ok((text, rest))
}

fn take_trace(bytes: &[u8]) -> Result<(Option<[u8; TRACE_LEN]>, &[u8]), WireError> {
    match bytes.split_first() {
        Some((0, rest)) => Ok((None, rest)),
        Some((1, rest)) => {
            let (trace, rest) =
                rest.split_first_chunk::<TRACE_LEN>().ok_or(WireError::BadHead("a trace is cut short"))?;
            Ok((Some(*trace), rest))
        }
        _ => Err(WireError::BadHead("it is not said whether there is a trace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_bytes() -> Vec<u8> {
        let mut out = Vec::new();
        CallHead {
            content_type: "text/plain",
            invocation: "a-1",
            key: Some("order 7"),
            trace: Some([7; TRACE_LEN]),
        }
        .encode(&mut out)
        .unwrap();
        out.extend_from_slice(b"body");
        out
    }

    #[test]
    fn call_head_round_trips() {
        let bytes = call_bytes();
        let (head, rest) = CallHead::decode(&bytes).unwrap();
        let trace = Some([7; TRACE_LEN]);
        assert_eq!(
            head,
            CallHead { content_type: "text/plain", invocation: "a-1", key: Some("order 7"), trace }
        );
        assert_eq!(rest, b"body");
        assert_eq!(head.encoded_len() + rest.len(), bytes.len());
    }

    #[test]
    fn every_truncation_of_a_call_head_is_refused() {
        let bytes = call_bytes();
        let head_len = bytes.len() - 4;
        for cut in 0..head_len {
            assert!(matches!(CallHead::decode(&bytes[..cut]), Err(WireError::BadHead(_))), "cut at {cut}");
        }
        assert!(CallHead::decode(&bytes[..head_len]).is_ok());
    }

    #[test]
    fn every_truncation_of_a_reply_head_is_refused() {
        let mut bytes = Vec::new();
        ReplyHead { content_type: "image/png" }.encode(&mut bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(ReplyHead::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(ReplyHead::decode(&bytes).unwrap().0.content_type, "image/png");
    }

    #[test]
    fn a_text_that_could_forge_a_header_is_refused_by_both_ends() {
        for bad in ["a\r\nb", "a\0b", "a\nb", "caf\u{e9}", "\x7f"] {
            let mut out = Vec::new();
            assert!(ReplyHead { content_type: bad }.encode(&mut out).is_err());
            assert!(out.is_empty());
            put_text(&mut out, bad);
            assert!(ReplyHead::decode(&out).is_err());
            put_text(&mut out, "x");
            assert!(CallHead::decode(&out).is_err());
            let mut swapped = Vec::new();
            put_text(&mut swapped, "x");
            put_text(&mut swapped, bad);
            assert!(CallHead::decode(&swapped).is_err());
            let mut keyed = Vec::new();
            put_text(&mut keyed, "x");
            put_text(&mut keyed, "x");
            put_text(&mut keyed, bad);
            assert!(CallHead::decode(&keyed).is_err());
            assert!(
                CallHead { content_type: "", invocation: "x", key: Some(bad), trace: None }
                    .encode(&mut keyed)
                    .is_err()
            );
        }
    }

    #[test]
    fn limits_are_exact() {
        let longest = "x".repeat(MAX_CONTENT_TYPE);
        assert!(ReplyHead::accepts(&longest));
        assert!(!ReplyHead::accepts(&(longest + "x")));
        let mut out = Vec::new();
        let id = "i".repeat(MAX_INVOCATION_ID + 1);
        assert!(
            CallHead { content_type: "", invocation: &id, key: None, trace: None }.encode(&mut out).is_err()
        );
        assert!(
            CallHead { content_type: "", invocation: &id[1..], key: None, trace: None }
                .encode(&mut out)
                .is_ok()
        );
        let key = "k".repeat(MAX_IDEMPOTENCY_KEY + 1);
        for (key, fits) in [(&key[..], false), (&key[1..], true), ("", false)] {
            out.clear();
            let head = CallHead { content_type: "", invocation: "", key: Some(key), trace: None };
            assert_eq!(head.encode(&mut out).is_ok(), fits, "{} bytes", key.len());
            assert_eq!(out.len(), if fits { head.encoded_len() } else { 0 });
        }
    }

    #[test]
    fn a_trace_is_there_whole_or_not_at_all() {
        let mut out = Vec::new();
        CallHead { content_type: "", invocation: "", key: None, trace: None }.encode(&mut out).unwrap();
        assert_eq!(CallHead::decode(&out).unwrap().0.trace, None);
        *out.last_mut().unwrap() = 2;
        assert!(CallHead::decode(&out).is_err());
    }

    #[test]
    fn a_log_line_says_which_trace_it_is_of() {
        let header = Header::new(Kind::LogLine, 1);
        for trace in [None, Some(&[3; TRACE_LEN])] {
            let (header, head) = log_line_head(header, trace);
            let payload = [head, b"line"].concat();
            let frame = Frame { header, payload: &payload };
            assert_eq!(split_log_line(&frame).unwrap(), (trace, &b"line"[..]));
        }
        for (a, payload) in [(1, &[0; 40][..]), (u32::MAX, &[0; 40]), (TRACE_LEN_U32, &[0; 24])] {
            assert!(split_log_line(&Frame { header: Header { a, ..header }, payload }).is_err());
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert!(ReplyHead::decode(&[2, 0, 0xC3, 0x28]).is_err());
    }
}
