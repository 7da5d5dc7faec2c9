//! FAIL: a typed error, of one call or of the whole connection.
//!
//! It says what the `application/problem+json` documents of the HTTP interface say, with the same types, `blame` and `retry`. The set of
//! types is open: a receiver acts on `retry`, and shows the rest.

use denizen_abi::{Blame, Retry};

use crate::fields::{
    ADDRESS, CAUSE, DETAIL, FieldReader, FrameWriter, INVOCATION, PROBLEM, PROCESS, REMEDY, u64_in, zero_from,
};
use crate::header::{FLAG_REPLAYED, Header, Kind};
use crate::limits::{MAX_ADDRESS, MAX_CAUSE, MAX_DETAIL, MAX_INVOCATION_ID, MAX_REMEDY};
use crate::text;
use crate::violation::Violation;

/// The prefix of a problem type where it is written as a URN.
pub const URN: &str = "urn:denizen:problem:";

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal $blame:ident $retry:ident;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*

        /// Type, blame and retry of each, for the comparison with the documents.
        #[cfg(test)]
        pub(crate) const KINDS: &[(&str, Blame, Retry)] = &[$(($name, Blame::$blame, Retry::$retry),)*];
    };
}

kinds! {
    /// The peer broke a rule of the protocol; the cause is the name of a [`Violation`].
    PROTOCOL_ERROR = "protocol-error" Caller Unknown;
    /// No version of the protocol in common.
    UNSUPPORTED_VERSION = "unsupported-version" Caller Never;
    /// The token is refused; the cause is the name of a refusal.
    BAD_TOKEN = "bad-token" Caller Never;
    /// The token does not cover this process or function.
    NOT_PERMITTED = "not-permitted" Caller Never;
    /// The process has another epoch than the HELLO asked for.
    EPOCH_MISMATCH = "epoch-mismatch" Caller Safe;
    /// On an unbound connection: the process of this call lives at the address in the problem.
    MOVED = "moved" Host Safe;
    /// The index was learned from another function table; call by name.
    FUNCTIONS_CHANGED = "functions-changed" Host Safe;
    /// No such application.
    UNKNOWN_APP = "unknown-app" Caller Never;
    /// No such process, and it is not to be created.
    UNKNOWN_PROCESS = "unknown-process" Caller Never;
    /// No such function.
    UNKNOWN_FUNCTION = "unknown-function" Caller Never;
    /// The input is over its limit.
    BODY_TOO_LARGE = "body-too-large" Caller Never;
    /// The idempotency key stands for another call.
    KEY_REUSED = "key-reused" Caller Never;
    /// An earlier call with the same idempotency key runs, and this one has waited for it until its deadline.
    IN_PROGRESS = "in-progress" Caller Safe;
    /// An earlier call with the same idempotency key has committed in the middle, and was cut off before its end.
    INTERRUPTED = "interrupted" Host Unknown;
    /// On an unbound connection: a call with an idempotency key names no process.
    PROCESS_NEEDED = "process-needed" Caller Never;
    /// The caller cancelled, or its connection ended.
    CALLER_GONE = "caller-gone" Caller Unknown;
    /// The deadline of the call passed.
    DEADLINE_EXCEEDED = "deadline-exceeded" Function Unknown;
    /// The sandbox ended under the call.
    SANDBOX_LOST = "sandbox-lost" Function Unknown;
    /// Too many calls wait, or too many connections are open.
    OVERLOADED = "overloaded" Host Safe;
    /// The process is about to be given up or swapped out, and had not read the whole call.
    DRAINING = "draining" Host Safe;
    /// The node stops.
    SHUTTING_DOWN = "shutting-down" Host Safe;
}

/// A typed error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The type, without [`URN`]. 1 to 64 of `a-z 0-9 -`.
    pub kind: String,
    /// Whose doing it is.
    pub blame: Blame,
    /// Whether the same call may be sent again.
    pub retry: Retry,
    /// When to, in milliseconds from now; 0 leaves it to the caller.
    pub retry_after_ms: u32,
    /// The ownership term that answers; 0 where none does.
    pub epoch: u64,
    /// The process's last commit; 0 where it is not known.
    pub commit: u64,
    /// What happened.
    pub detail: Option<String>,
    /// What was behind it.
    pub cause: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
    /// The process that it is about, where the caller may not know.
    pub process: Option<String>,
    /// The invocation, as logs name it.
    pub invocation: Option<String>,
    /// Where to go instead, for [`MOVED`].
    pub address: Option<String>,
    /// It is how an earlier call with the same idempotency key failed.
    pub replayed: bool,
}

impl Problem {
    /// A problem with nothing else to say.
    pub fn new(kind: &str, blame: Blame, retry: Retry) -> Problem {
        Problem {
            kind: kind.to_owned(),
            blame,
            retry,
            retry_after_ms: 0,
            epoch: 0,
            commit: 0,
            detail: None,
            cause: None,
            remedy: None,
            process: None,
            invocation: None,
            address: None,
            replayed: false,
        }
    }

    /// The same, saying what happened.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Problem {
        self.detail = Some(detail.into());
        self
    }

    /// Appends the frame about call `id`, or about the connection if it is 0. Texts for people are cut to their limits.
    ///
    /// # Errors
    /// [`Violation`] if another text breaks its rule; `out` is then as before.
    pub fn encode(&self, id: u64, out: &mut Vec<u8>) -> Result<(), Violation> {
        let mut frame = FrameWriter::new(Kind::Fail, out);
        frame.fixed(&self.commit.to_le_bytes());
        frame.fixed(&[0; 8]);
        frame.field((PROCESS, "process"), self.process.as_ref(), text::name);
        frame.field((INVOCATION, "invocation"), self.invocation.as_ref(), |t| {
            text::visible(t, MAX_INVOCATION_ID)
        });
        frame.field((ADDRESS, "address"), self.address.as_ref(), |t| text::visible(t, MAX_ADDRESS));
        frame.field((PROBLEM, "type"), Some(&self.kind), text::problem_type);
        prose(&mut frame, DETAIL, self.detail.as_ref(), MAX_DETAIL);
        prose(&mut frame, CAUSE, self.cause.as_ref(), MAX_CAUSE);
        prose(&mut frame, REMEDY, self.remedy.as_ref(), MAX_REMEDY);
        frame.finish(Header {
            flags: if self.replayed { FLAG_REPLAYED } else { 0 },
            a: self.blame.as_u32() | self.retry.as_u32() << 8,
            b: self.retry_after_ms,
            c: self.epoch,
            ..Header::new(Kind::Fail, id)
        })
    }

    pub(crate) fn decode(header: &Header, head: &[u8]) -> Result<Problem, Violation> {
        let kind = Kind::Fail;
        let (fixed, mut fields) = FieldReader::new(kind, head)?;
        zero_from(kind, fixed, 8)?;
        let bad = || Violation::BadValue { kind, what: "blame and retry", value: u64::from(header.a) };
        let blame = Blame::from_u32(header.a & 0xFF).ok_or_else(bad)?;
        let retry = Retry::from_u32(header.a >> 8).ok_or_else(bad)?;
        let mut problem = Problem {
            retry_after_ms: header.b,
            epoch: header.c,
            commit: u64_in(fixed, 0),
            replayed: header.flags & FLAG_REPLAYED != 0,
            ..Problem::new("", blame, retry)
        };
        while let Some((tag, value)) = fields.next()? {
            let (place, field, checked) = match tag {
                PROCESS => (&mut problem.process, "process", text::name(value)),
                INVOCATION => {
                    (&mut problem.invocation, "invocation", text::visible(value, MAX_INVOCATION_ID))
                }
                ADDRESS => (&mut problem.address, "address", text::visible(value, MAX_ADDRESS)),
                PROBLEM => {
                    problem.kind =
                        fields.text("type", text::problem_type(value))?.unwrap_or_default().to_owned();
                    continue;
                }
                DETAIL => (&mut problem.detail, "detail", text::prose(value, MAX_DETAIL)),
                CAUSE => (&mut problem.cause, "cause", text::prose(value, MAX_CAUSE)),
                REMEDY => (&mut problem.remedy, "remedy", text::prose(value, MAX_REMEDY)),
                other => {
                    fields.unknown(other)?;
                    continue;
                }
            };
            *place = fields.text(field, checked)?.map(str::to_owned);
        }
        if problem.kind.is_empty() {
            return Err(Violation::MissingField { kind, field: "type" });
        }
        Ok(problem)
    }
}

fn prose(frame: &mut FrameWriter<'_>, tag: u16, value: Option<&String>, max: usize) {
    let tame = value.map(|text| text::tamed(text, max)).filter(|text| !text.is_empty());
    if let Some(tame) = tame {
        frame.raw(tag, tame.as_bytes());
    }
}

/// What the end that noticed it tells the other before it closes.
impl From<&Violation> for Problem {
    fn from(violation: &Violation) -> Problem {
        let mut problem = match violation {
            Violation::UnsupportedVersion { .. } => {
                Problem::new(UNSUPPORTED_VERSION, Blame::Caller, Retry::Never)
            }
            _ => Problem::new(PROTOCOL_ERROR, Blame::Caller, Retry::Unknown),
        };
        problem.detail = Some(violation.to_string());
        problem.cause = Some(violation.name().to_owned());
        problem
    }
}
