//! CALL and CANCEL: what a caller asks for.

use std::num::NonZeroU32;

use denizen_abi::Durability;

use crate::fields::{
    CONTENT_TYPE, FUNCTION, FieldReader, FrameWriter, IDEMPOTENCY_KEY, PROCESS, TRACEPARENT, u64_in,
    zero_from,
};
use crate::header::{BY_NAME, FLAG_END, Header, Kind, LENGTH_UNKNOWN};
use crate::limits::{MAX_CONTENT_TYPE, MAX_FUNCTIONS, MAX_IDEMPOTENCY_KEY};
use crate::text;
use crate::trace::TraceParent;
use crate::violation::Violation;

/// `durability` in a fixed head where the caller leaves it to the image.
const DURABILITY_OF_IMAGE: u8 = 255;
/// Bit of the options: refuse the call rather than create its process.
const CREATE_NEVER: u8 = 1;

/// Which function a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionRef<'a> {
    /// By name: the first time, or always.
    Name(&'a str),
    /// By its place in a function table.
    Index {
        /// The tag of that table, not 0. A process whose table has another tag refuses the call with `functions-changed`: the
        /// image may have changed under an open connection, and the index might name another function.
        table: u64,
        /// Below [`MAX_FUNCTIONS`].
        index: u32,
    },
}

/// The head of a CALL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallHead<'a> {
    /// What to call.
    pub function: FunctionRef<'a>,
    /// Only on an unbound connection: the process, or any idle or new one of the application.
    pub process: Option<&'a str>,
    /// Time for the call, in milliseconds from when the server reads it; `None` leaves it to the image.
    pub deadline_ms: Option<NonZeroU32>,
    /// Length of the whole body in bytes, if known.
    pub length: Option<u64>,
    /// What the reply's commit must survive, or the image's choice.
    pub durability: Option<Durability>,
    /// Refuse the call with `unknown-process` rather than create the process.
    pub create_never: bool,
    /// Visible ASCII.
    pub content_type: Option<&'a str>,
    /// Calls with the same key are executed once. Visible ASCII.
    pub idempotency_key: Option<&'a str>,
    /// The trace that this is part of.
    pub traceparent: Option<TraceParent>,
}

impl<'a> CallHead<'a> {
    /// A call of `function` that leaves everything else to the image.
    pub const fn new(function: FunctionRef<'a>) -> CallHead<'a> {
        CallHead {
            function,
            process: None,
            deadline_ms: None,
            length: None,
            durability: None,
            create_never: false,
            content_type: None,
            idempotency_key: None,
            traceparent: None,
        }
    }

    /// Appends the frame up to its body, which is `body_len` bytes and their padding and follows it. With `end` these are the whole body.
    ///
    /// # Errors
    /// [`Violation`] if a text breaks its rule or a number its range; `out` is then as before.
    pub fn encode(&self, id: u64, body_len: u32, end: bool, out: &mut Vec<u8>) -> Result<(), Violation> {
        let (table, index, name) = match self.function {
            FunctionRef::Name(name) => (0, BY_NAME, Some(name)),
            FunctionRef::Index { table, index } => (table, index, None),
        };
        let mut frame = FrameWriter::new(Kind::Call, out);
        let durability = self.durability.map_or(DURABILITY_OF_IMAGE, number);
        frame.fixed(&table.to_le_bytes());
        frame.fixed(&[durability, u8::from(self.create_never) * CREATE_NEVER, 0, 0, 0, 0, 0, 0]);
        frame.field((PROCESS, "process"), self.process, text::name);
        frame.field((FUNCTION, "function"), name, text::name);
        frame
            .field((CONTENT_TYPE, "content type"), self.content_type, |t| text::visible(t, MAX_CONTENT_TYPE));
        frame.field((IDEMPOTENCY_KEY, "idempotency key"), self.idempotency_key, |t| {
            text::visible(t, MAX_IDEMPOTENCY_KEY)
        });
        if let Some(trace) = self.traceparent {
            if !trace.is_valid() {
                frame.refuse(bad_trace());
            }
            frame.raw(TRACEPARENT, &trace.to_bytes());
        }
        if let Err(why) = check_function(table, index) {
            frame.refuse(why);
        }
        frame.finish(Header {
            body_len,
            flags: if end { FLAG_END } else { 0 },
            a: index,
            b: self.deadline_ms.map_or(0, NonZeroU32::get),
            c: if end { u64::from(body_len) } else { self.length.unwrap_or(LENGTH_UNKNOWN) },
            ..Header::new(Kind::Call, id)
        })
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn decode(header: &Header, head: &'a [u8]) -> Result<CallHead<'a>, Violation> {
        let kind = Kind::Call;
        let (fixed, mut fields) = FieldReader::new(kind, head)?;
        let table = u64_in(fixed, 0);
        zero_from(kind, fixed, 10)?;
        check_function(table, header.a)?;
        let mut name = None;
        let mut call = CallHead {
            deadline_ms: NonZeroU32::new(header.b),
            length: (header.c != LENGTH_UNKNOWN).then_some(header.c),
            durability: wanted(fixed[8])?,
            create_never: options(fixed[9])?,
            ..CallHead::new(FunctionRef::Index { table, index: header.a })
        };
        while let Some((tag, value)) = fields.next()? {
            match tag {
                PROCESS => call.process = fields.text("process", text::name(value))?,
                FUNCTION => name = fields.text("function", text::name(value))?,
                CONTENT_TYPE => {
                    call.content_type =
                        fields.text("content type", text::visible(value, MAX_CONTENT_TYPE))?;
                }
                IDEMPOTENCY_KEY => {
                    let key = text::visible(value, MAX_IDEMPOTENCY_KEY);
                    call.idempotency_key = fields.text("idempotency key", key)?;
                }
                // What is no trace is none: the standard has whoever gets it go on without.
                TRACEPARENT => call.traceparent = TraceParent::from_bytes(value),
                other => fields.unknown(other)?,
            }
        }
        match (name, header.a == BY_NAME) {
            (Some(name), true) => call.function = FunctionRef::Name(name),
            (None, false) => {}
            (None, true) => return Err(Violation::MissingField { kind, field: "function" }),
            (Some(_), false) => return Err(Violation::UnknownField { kind, tag: FUNCTION }),
        }
        Ok(call)
    }
}

fn check_function(table: u64, index: u32) -> Result<(), Violation> {
    let by_name = index == BY_NAME;
    if !by_name && index >= MAX_FUNCTIONS {
        return Err(Violation::BadValue {
            kind: Kind::Call,
            what: "function index",
            value: u64::from(index),
        });
    }
    if by_name != (table == 0) {
        return Err(Violation::BadValue { kind: Kind::Call, what: "table tag", value: table });
    }
    Ok(())
}

fn wanted(byte: u8) -> Result<Option<Durability>, Violation> {
    if byte == DURABILITY_OF_IMAGE {
        return Ok(None);
    }
    super::durability(Kind::Call, u32::from(byte)).map(Some)
}

fn options(byte: u8) -> Result<bool, Violation> {
    match byte {
        0 => Ok(false),
        CREATE_NEVER => Ok(true),
        other => Err(Violation::BadValue { kind: Kind::Call, what: "options", value: u64::from(other) }),
    }
}

const fn number(durability: Durability) -> u8 {
    match durability {
        Durability::Process => 0,
        Durability::Node => 1,
        Durability::Store => 2,
    }
}

fn bad_trace() -> Violation {
    Violation::BadField { kind: Kind::Call, field: "traceparent", why: "an id is all zero" }
}

/// Why a caller cancels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CancelReason {
    /// The reply is no longer wanted.
    Unwanted = 0,
    /// The caller's own time for the call is over.
    Deadline = 1,
    /// The input broke off and will never be complete.
    InputBroken = 2,
}

impl CancelReason {
    /// From `a` of a CANCEL.
    pub(crate) fn from_number(number: u32) -> Result<CancelReason, Violation> {
        match number {
            0 => Ok(CancelReason::Unwanted),
            1 => Ok(CancelReason::Deadline),
            2 => Ok(CancelReason::InputBroken),
            other => Err(Violation::BadValue { kind: Kind::Cancel, what: "reason", value: u64::from(other) }),
        }
    }
}
