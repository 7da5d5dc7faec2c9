//! What the image's manifest says of each function, for calls that no agent has looked at before.

use std::collections::HashMap;
use std::time::Duration;

use denizen_protocol::limits::MAX_FUNCTIONS;
use denizen_protocol::{Durability as Level, FunctionRef};
use denizen_wire::problem::Kind;
use denizen_wire::{Assignment, Durability, table_tag};
use serde_json::Value;

use super::problems::{Refusal, refusal};
use crate::declare::Function;

/// Of an image that says nothing.
const DEADLINE: Duration = Duration::from_secs(30);
/// So many functions are listed to a caller who names none of them.
const LISTED: usize = 50;

/// What holds for the calls of one function.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) deadline: Duration,
    pub(super) body_bytes: u64,
    /// What a reply has reached at least.
    pub(super) durability: Durability,
}

/// All functions, as callers find them.
#[derive(Debug)]
pub(super) struct Policies {
    app: String,
    /// The longest that any call may take.
    pub(super) at_most: Duration,
    /// The tag of the list of functions.
    table: u64,
    by_name: HashMap<&'static str, u32>,
    policies: Vec<Policy>,
}

/// A function that was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) function: &'static Function,
    pub(super) policy: Policy,
    /// What the caller is told who has named it: table and index.
    pub(super) place: Option<(u64, u32)>,
}

impl Policies {
    pub(super) fn new(assignment: &Assignment, functions: &'static [Function]) -> Policies {
        let manifest = &assignment.manifest;
        let limits = manifest.get("limits").unwrap_or(&Value::Null);
        let process = manifest.get("process").unwrap_or(&Value::Null);
        let of = |function: &Function| {
            let own = manifest.get("functions").and_then(|all| all.get(&function.decl.name));
            let own = own.unwrap_or(&Value::Null);
            Policy {
                deadline: millis(own).or(millis(limits)).unwrap_or(DEADLINE),
                body_bytes: body(own).or(body(limits)).unwrap_or(assignment.limits.body_bytes),
                durability: level(own).or(level(process)).unwrap_or(Durability::Process),
            }
        };
        let named = functions.iter().zip(0..).map(|(function, index)| (function.decl.name.as_str(), index));
        Policies {
            app: assignment.app.clone(),
            at_most: millis(limits).unwrap_or(DEADLINE),
            table: table_tag(functions.iter().map(|function| function.decl.name.as_str())),
            by_name: named.collect(),
            policies: functions.iter().map(of).collect(),
        }
    }

    /// The function that a call is for.
    pub(super) fn find(
        &self,
        functions: &'static [Function],
        wanted: FunctionRef<'_>,
    ) -> Result<Found, Refusal> {
        let (index, named) = match wanted {
            FunctionRef::Index { table, .. } if table != self.table => {
                let text = "the list that the index is of is not in use any more";
                return Err(refusal(Kind::FunctionsChanged, text));
            }
            FunctionRef::Index { index, .. } => (Some(index), false),
            FunctionRef::Name(name) => (self.by_name.get(name).copied(), true),
        };
        let found = index.and_then(|index| {
            let at = usize::try_from(index).ok()?;
            let place = (named && index < MAX_FUNCTIONS).then_some((self.table, index));
            Some(Found { function: functions.get(at)?, policy: *self.policies.get(at)?, place })
        });
        found.ok_or_else(|| self.unknown(functions, wanted))
    }

    fn unknown(&self, functions: &[Function], wanted: FunctionRef<'_>) -> Refusal {
        let text = match wanted {
            FunctionRef::Index { index, .. } => format!("no function has the index {index}"),
            FunctionRef::Name(name) => {
                let names: Vec<_> =
                    functions.iter().map(|function| function.decl.name.as_str()).take(LISTED).collect();
                format!("{} has no function {name}; it has {}", self.app, names.join(", "))
            }
        };
        refusal(Kind::UnknownFunction, text)
    }
}

impl Policy {
    /// What a reply is to have reached.
    pub(super) fn level(&self, wanted: Option<Level>) -> Result<Durability, Refusal> {
        match (wanted, self.durability) {
            (Some(Level::Store), _) => {
                let text = "the durability `store` cannot be asked for yet: use `node`";
                Err(refusal(Kind::NotSupported, text))
            }
            (Some(Level::Node), _) | (_, Durability::Node) => Ok(Durability::Node),
            (None | Some(Level::Process), Durability::Process) => Ok(Durability::Process),
        }
    }
}

fn millis(of: &Value) -> Option<Duration> {
    of.get("deadline_ms").and_then(Value::as_u64).map(Duration::from_millis)
}

fn body(of: &Value) -> Option<u64> {
    of.get("body_bytes").and_then(Value::as_u64)
}

/// A manifest that asks for more than `node` is refused when it is read.
fn level(of: &Value) -> Option<Durability> {
    let text = of.get("durability")?.as_str()?;
    Some(if text == "process" { Durability::Process } else { Durability::Node })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_functions_own_policy_comes_before_its_images() {
        let manifest = json!({"deadline_ms": 5, "body_bytes": 7, "durability": "node"});
        assert_eq!(millis(&manifest), Some(Duration::from_millis(5)));
        assert_eq!((body(&manifest), level(&manifest)), (Some(7), Some(Durability::Node)));
        assert_eq!((millis(&Value::Null), body(&Value::Null), level(&Value::Null)), (None, None, None));
    }

    #[test]
    fn a_reply_has_at_least_the_level_of_its_function() {
        let policy = |durability| Policy { deadline: DEADLINE, body_bytes: 0, durability };
        let (process, node) = (policy(Durability::Process), policy(Durability::Node));
        assert_eq!(process.level(None), Ok(Durability::Process));
        assert_eq!(process.level(Some(Level::Node)), Ok(Durability::Node));
        assert_eq!(node.level(Some(Level::Process)), Ok(Durability::Node));
        assert_eq!(node.level(Some(Level::Store)).unwrap_err().kind, Kind::NotSupported.entry().slug);
    }
}
