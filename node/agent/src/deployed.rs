//! An image as an application runs it: what its manifest allows and what its plugin declared, ready to be looked up.

use std::collections::HashMap;
use std::time::Duration;

use denizen_image::{Create, ImageId, Manifest};
use denizen_sched::{self as sched, ImageRecord};
use denizen_wire::{Builtin, Declarations, Durability, FunctionDecl, RunnerLimits};
use serde_json::{Value, json};

use crate::problem::{Kind, Problem};

/// What a call needs to know of its function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    /// Its number on the wire.
    pub(crate) index: u32,
    pub(crate) deadline: Duration,
    pub(crate) body_bytes: u64,
    /// What a reply has reached at least.
    pub(crate) durability: Durability,
}

/// How long reading or writing a whole state may take.
const WHOLE_STATE_DEADLINE: Duration = Duration::from_secs(3600);
/// What asks for a key or for a list of keys, in bytes.
const ASK_BYTES: u64 = 64 << 10;

/// An image in use.
#[derive(Debug)]
pub(crate) struct Deployed {
    pub(crate) id: ImageId,
    pub(crate) manifest: Manifest,
    /// As the wire carries it.
    pub(crate) manifest_json: Value,
    pub(crate) declarations: Declarations,
    /// Tells apart lists of functions, so that an index is never read against another one than its own; not 0.
    pub(crate) table: u64,
    functions: HashMap<Box<str>, Function>,
}

impl Deployed {
    /// Puts together what the scheduler remembers.
    ///
    /// # Errors
    /// `store-failed` where the record cannot be read: another version of this program wrote it.
    pub(crate) fn from_record(record: &ImageRecord) -> Result<Deployed, Problem> {
        let unreadable = |error: serde_json::Error| {
            Problem::new(
                Kind::StoreFailed,
                format!("the record of image {} cannot be read", record.image.short()),
            )
            .cause(error)
        };
        let manifest = serde_json::from_value(record.manifest.clone()).map_err(unreadable)?;
        let declarations = serde_json::from_value(record.declarations.clone()).map_err(unreadable)?;
        Ok(Deployed::new(record.image, manifest, record.manifest.clone(), declarations))
    }

    pub(crate) fn new(
        id: ImageId,
        manifest: Manifest,
        manifest_json: Value,
        declarations: Declarations,
    ) -> Deployed {
        let functions = table(&manifest, &declarations.functions);
        let names = declarations.functions.iter().map(|function| function.name.as_str());
        let table = denizen_wire::table_tag(names);
        Deployed { id, manifest, manifest_json, declarations, table, functions }
    }

    /// The same image with what a sandbox of it declared this time, where that differs (a plugin may find functions at run time).
    pub(crate) fn redeclared(&self, declarations: Declarations) -> Option<Deployed> {
        let same = declarations.functions == self.declarations.functions;
        (!same)
            .then(|| Deployed::new(self.id, self.manifest.clone(), self.manifest_json.clone(), declarations))
    }

    /// # Errors
    /// `unknown-function`, listing those that there are.
    pub(crate) fn function(&self, app: &str, name: &str) -> Result<&Function, Problem> {
        self.functions.get(name).ok_or_else(|| {
            let names: Vec<_> =
                self.declarations.functions.iter().map(|function| function.name.as_str()).take(50).collect();
            let names = if names.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", names.join(", "))
            };
            Problem::new(Kind::UnknownFunction, format!("{app} has no function {name}; {names}"))
        })
    }

    /// The longest input that any of its functions takes, in bytes.
    pub(crate) fn longest_input(&self) -> u64 {
        let limits = self.functions.values().map(|function| function.body_bytes);
        limits.max().unwrap_or(self.manifest.limits.body.bytes())
    }

    /// A function of the runner.
    pub(crate) fn builtin(&self, builtin: Builtin) -> Function {
        let limits = &self.manifest.limits;
        let whole = matches!(
            builtin,
            Builtin::StateExport | Builtin::StateImport | Builtin::FilesGet | Builtin::FilesExport
        );
        let body_bytes = match builtin {
            Builtin::StatePut => limits.body.bytes().saturating_add(ASK_BYTES),
            // An archive has less beside its objects than the quota counts for them; what it replaces may be in it, too.
            Builtin::StateImport => limits.state.bytes().saturating_mul(2),
            _ => ASK_BYTES,
        };
        Function {
            index: builtin.index(),
            deadline: if whole { WHOLE_STATE_DEADLINE } else { limits.deadline },
            body_bytes,
            durability: Durability::Process,
        }
    }

    /// The longest that a call of any of its functions may take.
    pub(crate) fn longest_deadline(&self) -> Duration {
        let own = self.functions.values().map(|function| function.deadline);
        own.fold(self.manifest.limits.deadline, Ord::max)
    }

    /// Whether a call may create its process. `never`: its caller says not to.
    pub(crate) fn creates(&self, never: bool) -> sched::Create {
        // Explicit: processes come into being only by the control interface.
        let explicit = self.manifest.process.create == Create::Explicit;
        if never || explicit { sched::Create::Never } else { sched::Create::IfMissing }
    }

    pub(crate) fn runner_limits(&self) -> RunnerLimits {
        let limits = &self.manifest.limits;
        // The runner has one limit for all functions. Each one's own is kept here, before anything is sent.
        let own = self.manifest.functions.values().filter_map(|policy| policy.body);
        RunnerLimits {
            memory_bytes: limits.memory.bytes(),
            state_bytes: limits.state.bytes(),
            body_bytes: own.fold(limits.body, Ord::max).bytes(),
            reply_bytes: limits.reply.bytes(),
            threads: limits.threads,
        }
    }

    /// How long replies of calls with idempotency keys are remembered, in milliseconds.
    pub(crate) fn remember_ms(&self) -> u64 {
        u64::try_from(self.manifest.process.remember.as_millis()).unwrap_or(u64::MAX)
    }

    /// The most that the process may have under `/state`; 0 if it has none.
    pub(crate) fn files_bytes(&self) -> u64 {
        self.manifest.limits.files.map_or(0, |files| files.bytes())
    }

    pub(crate) fn functions_json(&self) -> Value {
        json!(self.declarations.functions)
    }

    pub(crate) fn types_json(&self) -> Value {
        json!(self.declarations.types)
    }
}

fn table(manifest: &Manifest, declared: &[FunctionDecl]) -> HashMap<Box<str>, Function> {
    let entry = |(index, function): (usize, &FunctionDecl)| {
        let name = function.name.as_str();
        // An index beyond u32 cannot come through a frame of limited size.
        let index = u32::try_from(index).ok()?;
        let policy = Function {
            index,
            deadline: manifest.deadline_of(name),
            body_bytes: manifest.body_of(name).bytes(),
            durability: level(manifest.durability_of(name)),
        };
        Some((Box::from(name), policy))
    };
    declared.iter().enumerate().filter_map(entry).collect()
}

/// A manifest that asks for more than `node` is refused when it is read.
const fn level(durability: denizen_image::Durability) -> Durability {
    match durability {
        denizen_image::Durability::Process => Durability::Process,
        _ => Durability::Node,
    }
}

/// Types that both images have, where the new one cannot read all that the old one could: name, old layout, new layout.
pub(crate) fn changed_layouts(old: &Declarations, new: &Declarations) -> Vec<(String, String, String)> {
    let changed = |before: &denizen_wire::TypeDecl| {
        let after = new.types.iter().find(|after| after.name == before.name)?;
        let old = match after.reads(before.fingerprint) {
            true => format!("(or older) {}", before.layout),
            false => before.layout.clone(),
        };
        (!after.reads_all_of(before)).then(|| (before.name.clone(), old, after.layout.clone()))
    };
    old.types.iter().filter_map(changed).collect()
}

#[cfg(test)]
mod tests {
    use denizen_wire::{StateSummary, TypeDecl};

    use super::*;

    fn declaring(types: &[(&str, u64)]) -> Declarations {
        let types = types.iter().map(|(name, fingerprint)| TypeDecl {
            name: (*name).to_owned(),
            fingerprint: *fingerprint,
            layout: format!("layout {fingerprint}"),
            migrates_from: vec![],
        });
        Declarations {
            abi_version: 1,
            functions: vec![],
            types: types.collect(),
            state: StateSummary::default(),
            recovery: None,
            connections: false,
        }
    }

    #[test]
    fn only_a_type_that_is_in_both_and_differs_has_changed() {
        let old = declaring(&[("Same", 1), ("Changed", 2), ("Gone", 3)]);
        let new = declaring(&[("Same", 1), ("Changed", 20), ("New", 4)]);
        let expected = ("Changed".to_owned(), "layout 2".to_owned(), "layout 20".to_owned());
        assert_eq!(changed_layouts(&old, &new), [expected]);
    }

    #[test]
    fn a_migrated_layout_has_not_changed_until_its_migration_is_left_out() {
        let migrated = |from: &[u64]| {
            let mut declared = declaring(&[("Counter", 2)]);
            declared.types[0].migrates_from = from.to_vec();
            declared
        };
        assert_eq!(changed_layouts(&declaring(&[("Counter", 1)]), &migrated(&[1])), []);
        let expected = ("Counter".to_owned(), "(or older) layout 2".to_owned(), "layout 2".to_owned());
        assert_eq!(changed_layouts(&migrated(&[1]), &migrated(&[])), [expected]);
    }
}
