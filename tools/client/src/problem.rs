//! The error document of the interface (RFC 9457 with Denizen's members), and the two enums that decide what to do about it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Whose doing a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blame {
    /// The request: a bad name, a body over the limit, a missing token.
    Caller,
    /// The function's code.
    Function,
    /// The node: this program, or the machine under it.
    Host,
    /// The place where state is kept.
    Store,
}

/// Whether sending the same request again can do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// It would fail again.
    Never,
    /// Nothing was committed.
    Safe,
    /// Something may have been committed.
    Unknown,
}

/// One `application/problem+json` document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable URN, `urn:denizen:problem:NAME`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What happened, in a few words that do not vary.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What happened this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Whose doing it is.
    #[serde(default = "blame_of_an_unknown_server")]
    pub blame: Blame,
    /// Whether the request may be sent again.
    #[serde(default = "retry_of_an_unknown_server")]
    pub retry: Retry,
    /// Why it happened, where the node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The process it happened in, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// The invocation it happened in, if any; log lines carry the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation: Option<String>,
    /// Members that only some problems have (both layouts of a changed type, for one).
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A document without `blame` does not come from a node; nothing better than "the other side" can be said.
fn blame_of_an_unknown_server() -> Blame {
    Blame::Host
}

fn retry_of_an_unknown_server() -> Retry {
    Retry::Unknown
}

impl Problem {
    /// The last part of the type: `unknown-process` for `urn:denizen:problem:unknown-process`.
    pub fn name(&self) -> &str {
        self.kind.rsplit(':').next().unwrap_or_default()
    }

    /// Reads a reply that is not a success. A body that is no problem document (a proxy's page) still becomes a problem, made
    /// of the status and the first line.
    pub(crate) fn from_reply(status: u16, body: &[u8]) -> Problem {
        let parsed = serde_json::from_slice::<Problem>(body).ok().filter(|problem| !problem.title.is_empty());
        let mut problem = parsed.unwrap_or_else(|| Problem::from_stranger(status, body));
        problem.status = status;
        problem
    }

    fn from_stranger(status: u16, body: &[u8]) -> Problem {
        let text = String::from_utf8_lossy(body);
        let first_line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
        Problem {
            kind: "about:blank".to_owned(),
            title: format!("the answer was status {status}"),
            status,
            detail: Some(first_line).filter(|line| !line.trim().is_empty()),
            blame: if (400..500).contains(&status) { Blame::Caller } else { Blame::Host },
            retry: Retry::Unknown,
            cause: Some(
                "the answer is not a problem document, so it may not come from a Denizen node".to_owned(),
            ),
            remedy: Some("check that the address is a node's: `denizen ps` uses DIR/endpoint".to_owned()),
            process: None,
            invocation: None,
            more: Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Blame, Problem, Retry};

    #[test]
    fn a_problem_keeps_every_member() {
        let text = br#"{"type":"urn:denizen:problem:layout-changed","title":"a type changed","status":409,
            "detail":"d","blame":"function","retry":"never","cause":"c","remedy":"r","changed":[{"type":"Counter"}]}"#;
        let problem = Problem::from_reply(409, text);
        assert_eq!(problem.name(), "layout-changed");
        assert_eq!((problem.blame, problem.retry), (Blame::Function, Retry::Never));
        assert_eq!(problem.more["changed"][0]["type"], "Counter");
        let again = serde_json::to_value(&problem).unwrap();
        assert_eq!(again["changed"][0]["type"], "Counter");
        assert!(again.get("process").is_none());
    }

    #[test]
    fn a_strangers_page_becomes_a_problem() {
        let problem = Problem::from_reply(502, b"<html>bad gateway</html>\nmore");
        assert_eq!(problem.status, 502);
        assert_eq!(problem.detail.as_deref(), Some("<html>bad gateway</html>"));
        assert_eq!(problem.blame, Blame::Host);
        assert_eq!(Problem::from_reply(404, b"").blame, Blame::Caller);
    }
}
