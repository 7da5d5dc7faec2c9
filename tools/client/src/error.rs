//! What can go wrong between a caller and a node, told apart by what to do about it.

use std::{io, path::PathBuf};

use crate::problem::{Blame, Problem};

/// A request that did not end in the answer that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The directory has no `endpoint` file, so no node runs on it.
    #[error("no node runs on {}", dir.display())]
    NoNode {
        /// The directory that was looked at.
        dir: PathBuf,
    },
    /// A file of the node's directory exists and cannot be read.
    #[error("{} cannot be read", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answers at the address.
    #[error("no node answers at {address}")]
    Unreachable {
        /// The address, `host:port`.
        address: String,
        /// What connecting said.
        source: io::Error,
    },
    /// The address cannot be one.
    #[error("`{address}` is not a node's address")]
    BadAddress {
        /// What was given.
        address: String,
    },
    /// The node answered with a problem.
    #[error("{}", .0.title)]
    Problem(Box<Problem>),
    /// The exchange began and did not end: what it did is unknown.
    #[error("the exchange with {address} broke off while {doing}")]
    BrokeOff {
        /// The address, `host:port`.
        address: String,
        /// What was being done, "sending the request".
        doing: &'static str,
        /// What the transport said.
        source: io::Error,
    },
    /// The answer came and is not what the interface promises.
    #[error("the answer of {address} makes no sense: {what}")]
    Nonsense {
        /// The address, `host:port`.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// The input, which the caller was to supply, could not be read.
    #[error("the input cannot be read")]
    Input {
        /// Why not.
        source: io::Error,
    },
}

impl ClientError {
    /// Whose doing it is. Everything between caller and node counts as the host's, but for a wrong address or an unreadable input.
    pub fn blame(&self) -> Blame {
        match self {
            ClientError::Problem(problem) => problem.blame,
            ClientError::BadAddress { .. } | ClientError::Input { .. } => Blame::Caller,
            _ => Blame::Host,
        }
    }

    /// What to do about it, where there is something.
    pub fn remedy(&self) -> Option<String> {
        match self {
            ClientError::Problem(problem) => problem.remedy.clone(),
            ClientError::NoNode { .. } => {
                Some("start one with `denizen dev`, or name its directory with --dir".to_owned())
            }
            ClientError::Directory { path, .. } => Some(format!(
                "only the user who started the node can read {}: use that account",
                path.display()
            )),
            ClientError::Unreachable { .. } => Some(
                "the node has probably ended: start it with `denizen dev`, or name another with --dir"
                    .to_owned(),
            ),
            ClientError::BadAddress { .. } => Some("an address looks like 127.0.0.1:7070".to_owned()),
            ClientError::BrokeOff { .. } => Some(
                "whether the request took effect is unknown: look with `denizen ps` and `denizen logs`"
                    .to_owned(),
            ),
            ClientError::Nonsense { .. } => {
                Some("use the `denizen` of the version that the node runs".to_owned())
            }
            ClientError::Input { .. } => None,
        }
    }

    /// The problem document, if the node sent one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            ClientError::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}
