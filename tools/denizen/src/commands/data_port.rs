//! The data port of the node that a command talks to: where it is, a token for it, and its errors as this program tells them.

use std::{fs, io, path::Path, time::Duration};

use denizen_agent::{Keys, KeysError};
use denizen_client::{Blame, Problem, Retry};
use denizen_framed::Error;
use denizen_protocol::token::{self, Claims};
use denizen_wire::problem::Kind;
use serde_json::Map;

use super::token::holds_for;
use crate::failure::Failure;

/// The address of the data port of the node on `dir`; `None` if no node with one runs there.
pub(super) fn address(dir: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(dir.join("data-endpoint")) {
        Ok(address) => Ok(Some(address.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::host("the data port's address cannot be read").because(&error)),
    }
}

/// Whoever may read the node's keys needs no token from anybody: one for a function, of one process or of any.
pub(super) fn own_token(
    dir: &Path,
    app: &str,
    process: Option<&str>,
    function: &str,
    ttl: Duration,
) -> Result<String, KeysError> {
    let (not_before_s, expires_s) = holds_for(ttl.as_secs().max(1));
    let claims = Claims {
        app: app.to_owned(),
        process: process.map(str::to_owned),
        functions: Some(vec![function.to_owned()]),
        not_before_s,
        expires_s,
    };
    Ok(token::to_text(&Keys::open(dir)?.issue(&claims)?))
}

/// An error of the framed client as this program tells it: what comes from the node like what comes over HTTP.
pub(super) fn told(error: &Error) -> Failure {
    if let Error::Problem(problem) = error {
        return of_problem(problem).into();
    }
    let failure = match blame(error.blame()) {
        Blame::Caller => Failure::usage(error.to_string()),
        Blame::Function => Failure::function(error.to_string()),
        Blame::Host | Blame::Store => Failure::host(error.to_string()),
    };
    let failure = match error.cause() {
        Some(cause) => failure.detail(cause),
        None => failure,
    };
    match error.remedy() {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}

/// A frame says what the document over HTTP says, but for what follows from its type.
pub(super) fn of_problem(problem: &denizen_framed::Problem) -> denizen_client::ClientError {
    let mut more = Map::new();
    if problem.replayed {
        more.insert("replayed".to_owned(), true.into());
    }
    let entry = Kind::ALL.map(Kind::entry).into_iter().find(|entry| entry.slug == problem.kind);
    denizen_client::ClientError::Problem(Box::new(Problem {
        kind: format!("urn:denizen:problem:{}", problem.kind),
        title: entry.map_or(problem.kind.as_str(), |entry| entry.title).to_owned(),
        status: entry.map_or(0, |entry| entry.status),
        detail: problem.detail.clone(),
        blame: blame(problem.blame),
        retry: retry(problem.retry),
        cause: problem.cause.clone(),
        remedy: problem.remedy.clone().or_else(|| entry.map(|entry| entry.remedy.to_owned())),
        process: problem.process.clone(),
        invocation: problem.invocation.clone(),
        more,
    }))
}

fn blame(blame: denizen_framed::Blame) -> Blame {
    match blame {
        denizen_framed::Blame::Caller => Blame::Caller,
        denizen_framed::Blame::Function => Blame::Function,
        denizen_framed::Blame::Host => Blame::Host,
        denizen_framed::Blame::Store => Blame::Store,
    }
}

fn retry(retry: denizen_framed::Retry) -> Retry {
    match retry {
        denizen_framed::Retry::Never => Retry::Never,
        denizen_framed::Retry::Safe => Retry::Safe,
        denizen_framed::Retry::Unknown => Retry::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use denizen_framed::{Blame, Error, Problem, Retry};

    use super::told;

    #[test]
    fn a_frame_fails_like_a_document() {
        let mut problem = Problem::new("unknown-function", Blame::Caller, Retry::Never);
        problem.detail = Some("there are `a` and `b`".to_owned());
        let said = told(&Error::Problem(Box::new(problem))).to_json();
        assert_eq!(said["error"]["type"], "urn:denizen:problem:unknown-function", "{said}");
        assert_eq!(
            (&said["error"]["title"], &said["error"]["status"]),
            (&"no such function".into(), &404.into())
        );
        assert_eq!((&said["error"]["blame"], &said["error"]["retry"]), (&"caller".into(), &"never".into()));
        let strange = Problem::new("of-tomorrow", Blame::Host, Retry::Safe);
        let said = told(&Error::Problem(Box::new(strange))).to_json();
        assert_eq!(
            (&said["error"]["title"], &said["error"]["blame"]),
            (&"of-tomorrow".into(), &"host".into())
        );
    }
}
