//! Which type an object has: by its fingerprint, among those that the image declares and some plain ones of which nobody declares any.

use std::collections::HashMap;

use denizen_client::TypeLayout;
use denizen_layout::{ArchiveError, Layout, Writing, from_json, to_json};
use serde_json::Value;

use super::key::Key;
use crate::failure::Failure;

/// Types that functions keep without marking any of their own.
const PLAIN: [&str; 20] = [
    "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f32", "f64",
    "bool", "char", "()", "String", "Duration", "Vec<u8>",
];

/// What may stand around a type that somebody keeps.
const AROUND: [&str; 9] = [
    "Option<_>",
    "Vec<_>",
    "VecDeque<_>",
    "BTreeMap<String, _>",
    "HashMap<String, _>",
    "BTreeMap<u64, _>",
    "HashMap<u64, _>",
    "BTreeSet<_>",
    "HashSet<_>",
];

/// A type that can be read and written.
#[derive(Debug)]
pub(super) struct Type {
    pub(super) name: String,
    pub(super) fingerprint: u64,
    layout: Layout,
}

impl Type {
    pub(super) fn read(&self, bytes: &[u8]) -> Result<Value, ArchiveError> {
        to_json(&self.layout, bytes)
    }

    pub(super) fn write(&self, value: &Value, writing: Writing) -> Result<Vec<u8>, Failure> {
        from_json(&self.layout, value, writing).map_err(|error| {
            let hint = if error.why.contains("derives `Ord`") {
                "add --derived-keys if it derives them"
            } else {
                "correct the value; `denizen image inspect APP` shows the layouts"
            };
            Failure::usage(format!("the value is no {}", self.name)).detail(error.to_string()).remedy(hint)
        })
    }
}

/// The types of an image.
#[derive(Debug, Default)]
pub(super) struct Types {
    known: HashMap<u64, Type>,
    /// Names that the image declares, with their fingerprints, in its order.
    declared: Vec<(String, u64)>,
}

impl Types {
    /// From what an image declares. A layout that is not understood, or that a plugin lays out in a way of its own, is a name without
    /// a layout: its objects are bytes.
    pub(super) fn of(declared: &[TypeLayout]) -> Types {
        let mut types = Types::default();
        for one in declared {
            let fingerprint = one.more.get("fingerprint").and_then(number);
            let Some(fingerprint) = fingerprint else { continue };
            types.declared.push((one.name.clone(), fingerprint));
            let layout = Layout::parse(&one.layout).ok();
            let Some(layout) = layout.filter(|layout| layout.fingerprint() == fingerprint) else { continue };
            types.add_with_what_is_around(&one.name, layout);
        }
        for plain in PLAIN {
            if let Ok(layout) = Layout::parse(plain) {
                types.add_with_what_is_around(plain, layout);
            }
        }
        types
    }

    fn add_with_what_is_around(&mut self, name: &str, layout: Layout) {
        for around in AROUND {
            if let Ok(layout) = Layout::parse(&around.replace('_', layout.text())) {
                self.add(around.replace('_', name), layout);
            }
        }
        self.add(name.to_owned(), layout);
    }

    fn add(&mut self, name: String, layout: Layout) {
        let fingerprint = layout.fingerprint();
        self.known.entry(fingerprint).or_insert(Type { name, fingerprint, layout });
    }

    /// The type with a fingerprint.
    pub(super) fn find(&self, fingerprint: u64) -> Option<&Type> {
        self.known.get(&fingerprint)
    }

    /// Its name for people.
    pub(super) fn shown(&self, fingerprint: u64) -> String {
        match self.name(fingerprint) {
            Some(name) => name.to_owned(),
            None if fingerprint == 0 => "bytes".to_owned(),
            None => format!("unknown {fingerprint:016x}"),
        }
    }

    /// Its name, also where its layout is not understood.
    pub(super) fn name(&self, fingerprint: u64) -> Option<&str> {
        let declared = self.declared.iter().find(|(_, one)| *one == fingerprint);
        declared.map(|(name, _)| name.as_str()).or(self.find(fingerprint).map(|known| known.name.as_str()))
    }

    /// The type that somebody names, or whose layout somebody writes.
    pub(super) fn named(&self, name: &str) -> Result<Type, Failure> {
        let declared = self.declared.iter().find(|(known, _)| known == name);
        let found = match declared {
            Some((_, fingerprint)) => self.find(*fingerprint),
            None => self.known.values().find(|known| known.name == name),
        };
        if let Some(Type { name, fingerprint, layout }) = found {
            return Ok(Type { name: name.clone(), fingerprint: *fingerprint, layout: layout.clone() });
        }
        if declared.is_some() {
            return Err(Failure::usage(format!("the layout of `{name}` is not understood here"))
                .remedy("build the plugin with the SDK of this version, or put bytes with --raw"));
        }
        let layout = Layout::parse(name).map_err(|error| {
            Failure::usage(format!("there is no type `{name}`")).because(&error).remedy(self.choice())
        })?;
        Ok(Type { name: name.to_owned(), fingerprint: layout.fingerprint(), layout })
    }

    /// The type of an object that is to be put in the place of another.
    pub(super) fn of_existing(&self, key: &Key<'_>, fingerprint: Option<u64>) -> Result<Type, Failure> {
        match fingerprint {
            None => Err(Failure::usage(format!("there is no object {key} whose type the new one could have"))
                .remedy(format!("say which type with --type NAME, or put bytes with --raw: {}", self.choice()))),
            Some(0) => Err(Failure::usage(format!("the object {key} is bytes without a type"))
                .remedy("put bytes with --raw, or another type with --type NAME")),
            Some(fingerprint) => match self.find(fingerprint) {
                Some(known) => self.named(&known.name),
                None => Err(Failure::usage(format!(
                    "the object {key} has the fingerprint {fingerprint}, and the image declares no type with it"
                ))
                .remedy(format!("say which type the new one has with --type NAME: {}", self.choice()))),
            },
        }
    }

    fn choice(&self) -> String {
        let names: Vec<&str> = self.declared.iter().map(|(name, _)| name.as_str()).collect();
        match names.as_slice() {
            [] => "the image declares no types; a layout such as `Vec<u32>` is one as well".to_owned(),
            names => format!("the image declares {}", names.join(", ")),
        }
    }
}

/// Fingerprints are text in JSON: other readers of JSON lose the low bits of such numbers.
pub(super) fn number(json: &Value) -> Option<u64> {
    json.as_str().and_then(|text| text.parse().ok()).or(json.as_u64())
}

#[cfg(test)]
mod tests {
    use denizen_client::TypeLayout;
    use denizen_layout::Layout;
    use serde_json::json;

    use super::Types;

    fn declared(name: &str, layout: &str, fingerprint: u64) -> TypeLayout {
        let json = json!({ "name": name, "layout": layout, "fingerprint": fingerprint.to_string() });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn types_are_told_by_their_fingerprints() {
        let text = "struct Counter { count: u64 }";
        let fingerprint = Layout::parse(text).unwrap().fingerprint();
        let types =
            Types::of(&[declared("Counter", text, fingerprint), declared("Odd", "struct Odd { a: u9 }", 5)]);
        assert_eq!(types.shown(fingerprint), "Counter");
        assert_eq!(
            types.find(fingerprint).unwrap().read(&[7, 0, 0, 0, 0, 0, 0, 0]).unwrap(),
            json!({"count": 7})
        );
        let list = Layout::parse(&format!("Vec<{text}>")).unwrap().fingerprint();
        assert_eq!(types.shown(list), "Vec<Counter>");
        assert_eq!(
            types.shown(Layout::parse("HashMap<String, u32>").unwrap().fingerprint()),
            "HashMap<String, u32>"
        );
        for around in super::AROUND {
            let name = around.replace('_', "u32");
            assert_eq!(types.shown(Layout::parse(&name).unwrap().fingerprint()), name);
        }
        assert_eq!(types.shown(0), "bytes");
        assert_eq!(types.shown(5), "Odd");
        assert!(types.find(5).is_none());
        assert_eq!(types.shown(6), "unknown 0000000000000006");
        assert!(types.named("Odd").is_err() && types.named("Nothing").is_err());
        assert_eq!(types.named("Vec<Counter>").unwrap().fingerprint, list);
        assert_eq!(types.named("[u8; 4]").unwrap().name, "[u8; 4]");
    }

    #[test]
    fn a_plugin_that_lays_out_otherwise_is_not_interpreted() {
        let types = Types::of(&[declared("Counter", "struct Counter { count: u64 }", 12345)]);
        assert!(types.find(12345).is_none());
        assert_eq!(types.shown(12345), "Counter");
    }
}
