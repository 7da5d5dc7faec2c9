//! Failures as callers of direct connections are told: the same types, blame and retry as over the agent, from the same table.

use denizen_protocol::Problem;
use denizen_wire::Failure;
use denizen_wire::problem::{Deadline, Kind, Said};

use crate::serve::Runner;

/// A call that comes to nothing before it is one.
pub(super) type Refusal = Box<Problem>;

/// A problem with what its kind says of it.
pub(super) fn refusal(kind: Kind, detail: impl Into<String>) -> Refusal {
    let entry = kind.entry();
    Box::new(Problem {
        detail: Some(detail.into()),
        remedy: Some(entry.remedy.to_owned()),
        ..Problem::new(entry.slug, entry.blame.framed(), entry.retry.framed())
    })
}

impl Runner {
    /// The end of a call as its caller is told.
    pub(super) fn problem_of(&self, failure: Failure, invocation: &str, commit: u64) -> Problem {
        let deadline = Deadline { invocation, at_most: self.direct.policies.at_most, callers: None };
        let Said { kind, detail, retry, replayed, .. } =
            Said::of(failure, deadline, self.limits().state_bytes);
        Problem {
            retry: retry.framed(),
            invocation: Some(invocation.to_owned()),
            replayed,
            ..self.standing(*refusal(kind, detail), commit)
        }
    }

    /// The same problem of this term of the process.
    pub(super) fn standing(&self, problem: Problem, commit: u64) -> Problem {
        Problem { epoch: self.assignment().epoch, commit, ..problem }
    }
}
