//! REPLY, and the numbers at the end of a streamed one.

use denizen_abi::Durability;

use crate::fields::{
    CONTENT_TYPE, FUNCTION_REF, FieldReader, FrameWriter, INVOCATION, PROCESS, u32_in, u64_in,
};
use crate::header::{FLAG_END, FLAG_REPLAYED, Header, Kind, LENGTH_UNKNOWN};
use crate::limits::{MAX_CONTENT_TYPE, MAX_FUNCTIONS, MAX_INVOCATION_ID};
use crate::text;
use crate::violation::Violation;

/// What a finished reply rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Final {
    /// Number of the process's last commit.
    pub commit: u64,
    /// What that commit survives.
    pub durability: Durability,
}

/// The head of a REPLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHead<'a> {
    /// The ownership term that answers; vouched for by the agent where it relays, else by the process.
    pub epoch: u64,
    /// What the reply rests on so far. In a streamed reply the last DATA has the final numbers.
    pub rests_on: Final,
    /// Length of the whole body in bytes, if known.
    pub length: Option<u64>,
    /// Remembered from an earlier call with the same idempotency key.
    pub replayed: bool,
    /// The process that ran the call, on an unbound connection.
    pub process: Option<&'a str>,
    /// Visible ASCII.
    pub content_type: Option<&'a str>,
    /// The invocation, as logs name it. Visible ASCII.
    pub invocation: Option<&'a str>,
    /// Where the function stands in which table, in answer to a call by name.
    pub function: Option<(u64, u32)>,
}

impl<'a> ReplyHead<'a> {
    /// A reply of `epoch` that rests on `rests_on`, with nothing else to say.
    pub const fn new(epoch: u64, rests_on: Final) -> ReplyHead<'a> {
        ReplyHead {
            epoch,
            rests_on,
            length: None,
            replayed: false,
            process: None,
            content_type: None,
            invocation: None,
            function: None,
        }
    }

    /// Appends the frame up to its body, which is `body_len` bytes and their padding and follows it. With `end` these are the whole body.
    ///
    /// # Errors
    /// [`Violation`] if a text breaks its rule or a number its range; `out` is then as before.
    pub fn encode(&self, id: u64, body_len: u32, end: bool, out: &mut Vec<u8>) -> Result<(), Violation> {
        let length = if end { u64::from(body_len) } else { self.length.unwrap_or(LENGTH_UNKNOWN) };
        let mut frame = FrameWriter::new(Kind::Reply, out);
        frame.fixed(&self.rests_on.commit.to_le_bytes());
        frame.fixed(&length.to_le_bytes());
        frame.field((PROCESS, "process"), self.process, text::name);
        frame
            .field((CONTENT_TYPE, "content type"), self.content_type, |t| text::visible(t, MAX_CONTENT_TYPE));
        frame.field((INVOCATION, "invocation"), self.invocation, |t| text::visible(t, MAX_INVOCATION_ID));
        if let Some((table, index)) = self.function {
            if !function_fits(table, index) {
                frame.refuse(bad_function());
            }
            let mut bytes = [0; 12];
            bytes[..8].copy_from_slice(&table.to_le_bytes());
            bytes[8..].copy_from_slice(&index.to_le_bytes());
            frame.raw(FUNCTION_REF, &bytes);
        }
        let flags = if end { FLAG_END } else { 0 } | if self.replayed { FLAG_REPLAYED } else { 0 };
        frame.finish(Header {
            body_len,
            flags,
            b: self.rests_on.durability.as_u32(),
            c: self.epoch,
            ..Header::new(Kind::Reply, id)
        })
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn decode(header: &Header, head: &'a [u8]) -> Result<ReplyHead<'a>, Violation> {
        let (fixed, mut fields) = FieldReader::new(Kind::Reply, head)?;
        let rests_on =
            Final { commit: u64_in(fixed, 0), durability: super::durability(Kind::Reply, header.b)? };
        let length = u64_in(fixed, 8);
        if header.is_end() && length != u64::from(header.body_len) {
            return Err(Violation::LengthMismatch { id: header.id });
        }
        let mut reply = ReplyHead {
            length: (length != LENGTH_UNKNOWN).then_some(length),
            replayed: header.flags & FLAG_REPLAYED != 0,
            ..ReplyHead::new(header.c, rests_on)
        };
        while let Some((tag, value)) = fields.next()? {
            match tag {
                PROCESS => reply.process = fields.text("process", text::name(value))?,
                CONTENT_TYPE => {
                    reply.content_type =
                        fields.text("content type", text::visible(value, MAX_CONTENT_TYPE))?;
                }
                INVOCATION => {
                    reply.invocation = fields.text("invocation", text::visible(value, MAX_INVOCATION_ID))?;
                }
                FUNCTION_REF => reply.function = Some(read_function(value)?),
                other => fields.unknown(other)?,
            }
        }
        Ok(reply)
    }
}

fn read_function(value: &[u8]) -> Result<(u64, u32), Violation> {
    if value.len() != 12 {
        return Err(bad_function());
    }
    let (table, index) = (u64_in(value, 0), u32_in(value, 8));
    if function_fits(table, index) { Ok((table, index)) } else { Err(bad_function()) }
}

const fn function_fits(table: u64, index: u32) -> bool {
    table != 0 && index < MAX_FUNCTIONS
}

fn bad_function() -> Violation {
    Violation::BadField { kind: Kind::Reply, field: "function", why: "it is not a table and an index" }
}

impl Final {
    /// Appends a DATA frame of the server up to its body; with `done` it is the last.
    pub(crate) fn encode_data(id: u64, body_len: u32, done: Option<Final>, out: &mut Vec<u8>) {
        let plain = Header { body_len, ..Header::new(Kind::Data, id) };
        let header = match done {
            Some(done) => Header { flags: FLAG_END, b: done.durability.as_u32(), c: done.commit, ..plain },
            None => plain,
        };
        crate::fields::bare(header, out);
    }

    /// Reads the numbers of a DATA frame of the server that ends a reply.
    pub(crate) fn of_data(header: &Header) -> Result<Option<Final>, Violation> {
        if !header.is_end() {
            return Ok(None);
        }
        let durability = super::durability(Kind::Data, header.b)?;
        Ok(Some(Final { commit: header.c, durability }))
    }
}
