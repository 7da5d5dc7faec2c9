//! An image as an application runs it: what its manifest allows and what its plugin declared, ready to be looked up.

use std::collections::HashMap;
use std::time::Duration;

use denizen_image::{Create, ImageId, Manifest};
use denizen_sched::ImageRecord;
use denizen_wire::{Declarations, FunctionDecl, RunnerLimits};
use serde_json::{Value, json};

use crate::problem::{Kind, Problem};

/// What a call needs to know of its function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    /// Its number on the wire.
    pub(crate) index: u32,
    pub(crate) deadline: Duration,
    pub(crate) body_bytes: u64,
}

/// An image in use.
#[derive(Debug)]
pub(crate) struct Deployed {
    pub(crate) id: ImageId,
    pub(crate) manifest: Manifest,
    /// As the wire carries it.
    pub(crate) manifest_json: Value,
    pub(crate) declarations: Declarations,
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
        Deployed { id, manifest, manifest_json, declarations, functions }
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

    /// Whether processes come into being only by the control interface.
    pub(crate) fn creates_explicitly(&self) -> bool {
        self.manifest.process.create == Create::Explicit
    }

    pub(crate) fn runner_limits(&self) -> RunnerLimits {
        let limits = &self.manifest.limits;
        RunnerLimits {
            memory_bytes: limits.memory.bytes(),
            state_bytes: limits.state.bytes(),
            body_bytes: limits.body.bytes(),
            reply_bytes: limits.reply.bytes(),
            threads: limits.threads,
        }
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
        };
        Some((Box::from(name), policy))
    };
    declared.iter().enumerate().filter_map(entry).collect()
}

/// Types that both images have and that are laid out differently: name, old layout, new layout.
pub(crate) fn changed_layouts(old: &Declarations, new: &Declarations) -> Vec<(String, String, String)> {
    let changed = |before: &denizen_wire::TypeDecl| {
        let after = new.types.iter().find(|after| after.name == before.name)?;
        (after.fingerprint != before.fingerprint)
            .then(|| (before.name.clone(), before.layout.clone(), after.layout.clone()))
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
        });
        Declarations {
            abi_version: 1,
            functions: vec![],
            types: types.collect(),
            state: StateSummary::default(),
        }
    }

    #[test]
    fn only_a_type_that_is_in_both_and_differs_has_changed() {
        let old = declaring(&[("Same", 1), ("Changed", 2), ("Gone", 3)]);
        let new = declaring(&[("Same", 1), ("Changed", 20), ("New", 4)]);
        let expected = ("Changed".to_owned(), "layout 2".to_owned(), "layout 20".to_owned());
        assert_eq!(changed_layouts(&old, &new), [expected]);
    }
}
