//! What goes wrong in a function, and who is told to be at fault for it.

use denizen_abi as abi;
use std::error::Error as StdError;
use std::fmt;

/// A result whose error is [`Error`] unless it says otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an invocation fails. Nothing of it is committed then, and the caller gets the message.
///
/// Any [`std::error::Error`] turns into one with `?`: the function is then at fault. If the *caller* sent
/// something that cannot be used, say so with [`bad_input`]: `text.parse::<u64>().map_err(bad_input)?`.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The function's own failure. The function is at fault.
    Failed,
    /// The input cannot be used. The caller is at fault.
    BadInput,
    /// A record was written with another layout than the type that it is read as.
    TypeChanged,
    /// A record is damaged: it is no longer what was written. Others can be read, and writing it anew heals it.
    Corrupt,
    /// Another invocation changed first what this one wrote or [watches](crate::Context::watch). Nothing was
    /// committed; the same call may be made again.
    Conflict,
    /// The state of the process is full.
    Quota,
    /// The node's disk is full.
    NoSpace,
    /// The key is empty, or longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    BadKey,
    /// The input, the reply, a key or a value is over a limit.
    TooLarge,
    /// The deadline passed.
    Cancelled,
    /// The caller went away.
    Closed,
    /// A read-only function asked for a write.
    ReadOnly,
    /// The record is being edited: an [`Edit`](crate::Edit) of it is still alive. Or a savepoint is.
    InUse,
    /// The node failed, or the SDK and the node disagree.
    Internal,
}

/// An error of the caller: what was sent cannot be used, and `message` says why.
#[must_use]
pub fn bad_input(message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::BadInput, message)
}

/// An error of the function's own.
#[must_use]
pub fn failed(message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Failed, message)
}

impl Error {
    /// An error of any kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Error {
        Error { kind, message: message.to_string() }
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the caller is told.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with `context: ` before its message.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Error {
        Error { message: format!("{context}: {}", self.message), ..self }
    }

    /// What the host's status means for the author. `what` names the thing that was asked for.
    pub(crate) fn from_status(status: i32, what: impl fmt::Display) -> Error {
        use ErrorKind as K;
        let (kind, why) = match status {
            abi::DZ_E_NOT_FOUND => (K::Failed, "there is none"),
            abi::DZ_E_TYPE_CHANGED => (K::TypeChanged, "its layout has changed"),
            abi::DZ_E_QUOTA => (
                K::Quota,
                "the state of this process is full; delete records, or raise `state` under [limits] in denizen.toml",
            ),
            abi::DZ_E_READ_ONLY => {
                (K::ReadOnly, "a read-only function can neither write nor commit; take `&mut Context`")
            }
            abi::DZ_E_TOO_LARGE => (K::TooLarge, "it is over the limit; see [limits] in denizen.toml"),
            abi::DZ_E_CANCELLED => (K::Cancelled, "the deadline of the call has passed"),
            abi::DZ_E_CLOSED => (K::Closed, "the caller went away"),
            abi::DZ_E_CONFLICT => (
                K::Conflict,
                "another invocation changed first what this one wrote or watches; nothing was committed, and it may be called again",
            ),
            abi::DZ_E_NO_SPACE => (K::NoSpace, "the node's disk is full; make room there"),
            abi::DZ_E_CORRUPT => (
                K::Corrupt,
                "it is damaged, and no longer what was written; others are not: write it anew, or restore it from a copy",
            ),
            abi::DZ_E_BUSY => (K::InUse, "it is in use; try again later"),
            abi::DZ_E_IO => (K::Internal, "the node's disk or connection failed"),
            abi::DZ_E_INVALID => (
                K::Internal,
                "the node refuses it as malformed, or at this moment (two replies? an empty key? input read in two ways?)",
            ),
            other => {
                return Error::new(
                    K::Internal,
                    format!("{what}: the node answered {other}, unknown to this SDK"),
                );
            }
        };
        Error::new(kind, format!("{what}: {why}"))
    }

    /// How the ABI names the kind.
    pub(crate) fn fail_kind(&self) -> abi::FailKind {
        use abi::FailKind as F;
        match self.kind {
            ErrorKind::Failed | ErrorKind::ReadOnly | ErrorKind::InUse | ErrorKind::BadKey => F::Failed,
            ErrorKind::BadInput => F::BadInput,
            ErrorKind::TypeChanged => F::TypeChanged,
            ErrorKind::Corrupt => F::Corrupt,
            ErrorKind::Conflict => F::Conflict,
            // The host knows its own disk, and says so instead.
            ErrorKind::Quota | ErrorKind::NoSpace => F::Quota,
            ErrorKind::TooLarge => F::TooLarge,
            ErrorKind::Cancelled | ErrorKind::Closed => F::Cancelled,
            ErrorKind::Internal => F::Internal,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

/// [`Error`] is itself no `std::error::Error`, because then this conversion could not exist.
impl<E: StdError + 'static> From<E> for Error {
    fn from(error: E) -> Error {
        passenger(&error).unwrap_or_else(|| failed(with_sources(&error)))
    }
}

/// So that an [`Error`] passes through code that knows only I/O errors ([`Stream`](crate::Stream) and
/// [`ReplyWriter`](crate::ReplyWriter) hand it over so) and comes out as it went in.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        let kind = match error.kind {
            ErrorKind::Closed => std::io::ErrorKind::BrokenPipe,
            ErrorKind::Cancelled => std::io::ErrorKind::TimedOut,
            _ => std::io::ErrorKind::Other,
        };
        let again = Box::new(Passenger { error: error.clone(), again: None });
        std::io::Error::new(kind, Passenger { error, again: Some(again) })
    }
}

/// An [`Error`] inside a foreign error.
#[derive(Debug)]
struct Passenger {
    error: Error,
    /// The same once more, as the source: `io::Error` skips its content when asked for a source, and
    /// libraries ask it.
    again: Option<Box<Passenger>>,
}

impl fmt::Display for Passenger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for Passenger {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.again {
            Some(again) => Some(&**again),
            None => None,
        }
    }
}

/// The [`Error`] that `error` carries, if any.
fn passenger(error: &(dyn StdError + 'static)) -> Option<Error> {
    let content = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let content = content.and_then(|inner| inner.downcast_ref::<Passenger>());
    match content.or_else(|| error.downcast_ref::<Passenger>()) {
        Some(found) => Some(found.error.clone()),
        None => passenger(error.source()?),
    }
}

/// The message of an error and of what caused it, without saying anything twice.
fn with_sources(error: &dyn StdError) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64> {
        Ok(text.parse::<u64>()?)
    }

    #[test]
    fn an_ordinary_error_blames_the_function() {
        let error = parse("seven").unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Failed, "invalid digit found in string"));
    }

    #[test]
    fn an_error_keeps_its_kind_through_io_and_json() {
        let closed = || Error::new(ErrorKind::Closed, "gone");
        let through_io: Error = std::io::Error::from(closed()).into();
        assert_eq!(through_io.kind(), ErrorKind::Closed);

        struct Broken(fn() -> Error);
        impl std::io::Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(self.0().into())
            }
        }
        let json = serde_json::from_reader::<_, u64>(Broken(|| Error::new(ErrorKind::Closed, "gone")));
        assert_eq!(Error::from(json.unwrap_err()).kind(), ErrorKind::Closed);
    }

    #[test]
    fn sources_are_told_once() {
        #[derive(Debug)]
        struct Outer(std::num::ParseIntError);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "no age")
            }
        }
        impl StdError for Outer {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&self.0)
            }
        }
        let error = Error::from(Outer("x".parse::<u8>().unwrap_err())).context("row 3");
        assert_eq!(error.message(), "row 3: no age: invalid digit found in string");
    }
}
