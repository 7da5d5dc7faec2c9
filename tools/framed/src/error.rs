//! What can go wrong between a caller and a function, told apart by what to do about it.

use std::{io, sync::Arc, time::Duration};

use denizen_protocol::{
    Blame, CommandError, Problem, Retry, Violation,
    problem::{BAD_TOKEN, DEADLINE_EXCEEDED, UNKNOWN_APP, UNKNOWN_FUNCTION},
    token::Refusal,
};

/// A call, or a connection, that did not come to its end. Cheap to clone: one cause often ends many calls.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node or the function says what is wrong.
    #[error("{}{}", .0.kind, .0.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default())]
    Problem(Box<Problem>),
    /// Nobody answers there, and the time to try is over. Nothing was executed.
    #[error("no node answers at {address}")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// What the last attempt came to.
        source: Arc<io::Error>,
    },
    /// The connection ended before the call did.
    #[error("the connection to {address} ended before the call did")]
    Lost {
        /// `host:port`.
        address: String,
        /// Whether the call may be made again.
        retry: Retry,
        /// How it ended.
        source: Arc<io::Error>,
    },
    /// The other end broke a rule of the protocol, or answers for an ownership term that is over.
    #[error("the server at {address} breaks the protocol")]
    Broken {
        /// `host:port`.
        address: String,
        /// Whether the call may be made again.
        retry: Retry,
        /// The rule.
        source: Violation,
    },
    /// The caller's time for the call is over. The server was told.
    #[error("no answer came within {after:?}")]
    Deadline {
        /// The time that the caller gave it.
        after: Duration,
        /// `safe` if the call had not been sent yet.
        retry: Retry,
    },
    /// The reply is longer than this client takes whole.
    #[error("the reply is longer than {limit} bytes")]
    ReplyTooLong {
        /// [`crate::Options::reply_limit`].
        limit: usize,
    },
    /// The call cannot be made as it was asked for. Nothing was sent.
    #[error("the call cannot be made like this")]
    Refused(#[source] CommandError),
    /// What was given as a token is none.
    #[error("the token cannot be read")]
    Token(#[source] Refusal),
    /// The ticket is of another connection, or was waited for already.
    #[error("no such call was begun on this connection")]
    NoSuchCall,
}

impl Error {
    /// Whose doing it is.
    pub fn blame(&self) -> Blame {
        match self {
            Error::Problem(problem) => problem.blame,
            Error::Unreachable { .. } | Error::Lost { .. } | Error::Broken { .. } => Blame::Host,
            Error::Deadline { .. } => Blame::Function,
            Error::ReplyTooLong { .. } | Error::Refused(_) | Error::Token(_) | Error::NoSuchCall => {
                Blame::Caller
            }
        }
    }

    /// Whether the same call may be made again: `Never`, it would fail again; `Safe`, nothing was committed; `Unknown`, it may have been.
    pub fn retry(&self) -> Retry {
        match self {
            Error::Problem(problem) => problem.retry,
            Error::Unreachable { .. } => Retry::Safe,
            Error::Lost { retry, .. } | Error::Broken { retry, .. } | Error::Deadline { retry, .. } => *retry,
            Error::ReplyTooLong { .. } => Retry::Unknown,
            Error::Refused(_) | Error::Token(_) | Error::NoSuchCall => Retry::Never,
        }
    }

    /// A stable name for counting and comparing: the problem's type, or one of this client's own.
    pub fn kind(&self) -> &str {
        match self {
            Error::Problem(problem) => &problem.kind,
            Error::Unreachable { .. } => "unreachable",
            Error::Lost { .. } => "connection-lost",
            Error::Broken { source, .. } => source.name(),
            Error::Deadline { .. } => DEADLINE_EXCEEDED,
            Error::ReplyTooLong { .. } => "reply-too-long",
            Error::Refused(_) => "refused-here",
            Error::Token(_) => BAD_TOKEN,
            Error::NoSuchCall => "no-such-call",
        }
    }

    /// What was behind it, in words for people.
    pub fn cause(&self) -> Option<String> {
        match self {
            Error::Problem(problem) => problem.cause.clone(),
            Error::Unreachable { source, .. } | Error::Lost { source, .. } => Some(source.to_string()),
            Error::Broken { source, .. } => Some(source.to_string()),
            Error::Refused(source) => Some(source.to_string()),
            Error::Token(source) => Some(source.to_string()),
            Error::Deadline { .. } | Error::ReplyTooLong { .. } | Error::NoSuchCall => None,
        }
    }

    /// What to do about it, where there is something.
    pub fn remedy(&self) -> Option<String> {
        let words = match self {
            Error::Problem(problem) => return problem.remedy.clone().or_else(|| remedy_of(&problem.kind)),
            Error::Unreachable { .. } => "start the node, or look whether this is its data-plane address",
            Error::Lost { retry: Retry::Safe, .. } => "make the call again: it was not executed",
            Error::Lost { .. } => {
                "whether the call took effect is unknown: look, or give calls an idempotency key"
            }
            Error::Broken { source: Violation::StaleEpoch { .. }, .. } => {
                "an owner that has lost the process answered; make the call again if it may run twice"
            }
            Error::Broken { .. } => "look whether a Denizen node of the same version listens at this address",
            Error::Deadline { .. } => "give the call more time, or an idempotency key and make it again",
            Error::ReplyTooLong { .. } => "read it as a stream, or raise the limit in the options",
            Error::Refused(CommandError::BodyTooLong { .. }) => "send less, or raise the limit in the image",
            Error::Refused(_) => "a bug in the program that calls: see the cause",
            Error::Token(_) => "pass the text that the node issued, beginning with dzt1_",
            Error::NoSuchCall => "wait for each ticket once, on the connection that gave it",
        };
        Some(words.to_owned())
    }

    /// The same cause for a call that was not sent.
    pub(crate) fn for_unsent(&self) -> Error {
        match self {
            // A refusal says by itself whether the same would be refused again.
            Error::Problem(_) => self.clone(),
            _ => self.for_call(Retry::Safe),
        }
    }

    /// The same cause for a call of which that much is known.
    pub(crate) fn for_call(&self, retry: Retry) -> Error {
        let mut error = self.clone();
        match &mut error {
            Error::Problem(problem) => problem.retry = retry,
            Error::Lost { retry: known, .. } | Error::Broken { retry: known, .. } => *known = retry,
            _ => {}
        }
        error
    }
}

fn remedy_of(kind: &str) -> Option<String> {
    let words = match kind {
        BAD_TOKEN => "ask the node for a new token",
        UNKNOWN_APP => "deploy the application, or look at its name",
        UNKNOWN_FUNCTION => "look at the function's name: `denizen image inspect` lists them",
        _ => return None,
    };
    Some(words.to_owned())
}
