//! Keys of maps and items of sets: in which order they stand, and how they hash.
//!
//! Order and hash are those of `std` and of derived implementations. A type that its author marked may have others, which no layout tells:
//! then nothing is written unless the caller vouches that they are derived.

use std::hash::{Hash, Hasher};

use rkyv::hash::FxHasher64;
use serde_json::Value;

use crate::layout::{Fields, Shape, Type, TypeId};
use crate::write::{Given, boolean, character, integer, text_of};
use crate::{JsonError, Layout};

/// A key, so that comparing two of one type compares them as the type itself does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Unsigned(u128),
    Signed(i128),
    Bool(bool),
    Char(char),
    Text(String),
    /// A tuple, the fields of a struct, the items of an array or collection.
    Several(Vec<Key>),
    /// A variant and its fields.
    Variant(usize, Vec<Key>),
}

impl Key {
    /// The key that a JSON value stands for. Not everything is checked: the value is written after this, which does.
    pub(crate) fn of(
        layout: &Layout,
        id: TypeId,
        json: &Value,
        derived: bool,
        depth: usize,
    ) -> Result<Key, JsonError> {
        let depth = depth.checked_sub(1).ok_or_else(|| JsonError::new("is nested too deeply"))?;
        let again = |id, json: &Value| Key::of(layout, id, json, derived, depth);
        let none = Value::Null;
        Ok(match layout.ty(id) {
            Type::Int { bytes, signed: false, .. } => Key::Unsigned(integer(json, *bytes)?),
            Type::Int { bytes, .. } => Key::Signed(integer(json, *bytes)?),
            Type::Bool => Key::Bool(boolean(json)?),
            Type::Char => Key::Char(character(json)?),
            Type::Text => Key::Text(text_of(json)?.to_owned()),
            Type::Unit => Key::Several(Vec::new()),
            Type::Duration => {
                let part = |name| integer(json.get(name).unwrap_or(&none), 8).map(Key::Unsigned);
                Key::Several(vec![part("secs")?, part("nanos")?])
            }
            Type::Box(item) => again(*item, json)?,
            Type::List { item, .. } | Type::Array { item, .. } => {
                Key::Several(items(layout, *item, json, &again)?)
            }
            Type::Set { item, hashed: false } => {
                let mut items = items(layout, *item, json, &again)?;
                items.sort();
                Key::Several(items)
            }
            Type::Map { key, value, hashed: false } => {
                let mut entries = Vec::new();
                for (name, json) in &Given::entries(layout, *key, json)? {
                    entries.push(Key::Several(vec![again(*key, name)?, again(*value, json)?]));
                }
                entries.sort();
                Key::Several(entries)
            }
            Type::Tuple(fields) => Key::Several(parts(fields, json, &again, false)?),
            Type::Option(item) => match Given::some(layout, *item, json) {
                None => Key::Variant(0, Vec::new()),
                Some(json) => Key::Variant(1, vec![again(*item, json)?]),
            },
            Type::Result(ok, err) => {
                let (name, json) = Given::variant(json)?;
                let (place, ty) = if name == "Ok" { (0, *ok) } else { (1, *err) };
                Key::Variant(place, vec![again(ty, json.unwrap_or(&none))?])
            }
            Type::Struct { name, .. } | Type::Enum { name, .. } if !derived => {
                return Err(JsonError::new(format!(
                    "`{name}` is a key, and its author may order and hash it in a way of its own: if it derives `Ord` and \
                     `Hash`, say so"
                )));
            }
            Type::Struct { fields, .. } => Key::Several(parts(fields, json, &again, true)?),
            Type::Enum { variants, .. } => {
                let (name, json) = Given::variant(json)?;
                let place = variants.iter().position(|variant| variant.name == name);
                let place = place.ok_or_else(|| JsonError::new(format!("there is no variant `{name}`")))?;
                let fields = &variants[place].fields;
                Key::Variant(place, parts(fields, json.unwrap_or(&none), &again, true)?)
            }
            Type::F32 | Type::F64 | Type::Map { .. } | Type::Set { .. } => {
                return Err(JsonError::new(
                    "numbers with a point and hash tables have no order and no hash of their own",
                ));
            }
        })
    }

    /// The hash that rkyv gives it.
    pub(crate) fn hash(&self, layout: &Layout, id: TypeId) -> u64 {
        let mut state = FxHasher64::default();
        self.hash_into(layout, id, &mut state);
        state.finish()
    }

    fn hash_into(&self, layout: &Layout, id: TypeId, state: &mut FxHasher64) {
        match (layout.ty(id), self) {
            (Type::Box(item), _) => self.hash_into(layout, *item, state),
            (Type::Int { .. }, Key::Unsigned(_) | Key::Signed(_)) => self.hash_number(layout.ty(id), state),
            (_, Key::Bool(value)) => value.hash(state),
            (_, Key::Char(value)) => value.hash(state),
            (_, Key::Text(value)) => value.hash(state),
            (Type::List { item, deque: true }, Key::Several(items)) => {
                items.len().hash(state);
                items.iter().for_each(|key| key.hash_into(layout, *item, state));
            }
            (Type::List { item, .. } | Type::Array { item, .. }, Key::Several(items)) => {
                items.len().hash(state);
                if let ints @ Type::Int { .. } = layout.ty(*item) {
                    // The standard library hashes the memory of a slice of integers at once.
                    state.write(&items.iter().flat_map(|key| key.memory(ints)).collect::<Vec<u8>>());
                } else {
                    items.iter().for_each(|key| key.hash_into(layout, *item, state));
                }
            }
            (Type::Set { item, .. }, Key::Several(items)) => {
                items.len().hash(state);
                items.iter().for_each(|key| key.hash_into(layout, *item, state));
            }
            (Type::Map { key, value, .. }, Key::Several(entries)) => {
                entries.len().hash(state);
                for entry in entries {
                    if let Key::Several(pair) = entry
                        && let [name, of] = pair.as_slice()
                    {
                        name.hash_into(layout, *key, state);
                        of.hash_into(layout, *value, state);
                    }
                }
            }
            (Type::Duration, Key::Several(parts)) => {
                if let [Key::Unsigned(secs), Key::Unsigned(nanos)] = parts.as_slice() {
                    u64::try_from(*secs).unwrap_or_default().hash(state);
                    u32::try_from(*nanos).unwrap_or_default().hash(state);
                }
            }
            (Type::Tuple(fields) | Type::Struct { fields, .. }, Key::Several(parts)) => {
                hash_parts(layout, fields, parts, state);
            }
            (Type::Option(item), Key::Variant(place, parts)) => {
                hash_tag(*place, state);
                parts.iter().for_each(|key| key.hash_into(layout, *item, state));
            }
            (Type::Result(ok, err), Key::Variant(place, parts)) => {
                hash_tag(*place, state);
                let ty = if *place == 0 { *ok } else { *err };
                parts.iter().for_each(|key| key.hash_into(layout, ty, state));
            }
            (Type::Enum { variants, .. }, Key::Variant(place, parts)) => {
                // The one variant of an enum has no number to hash.
                if variants.len() > 1 {
                    hash_tag(*place, state);
                }
                hash_parts(layout, &variants[*place].fields, parts, state);
            }
            _ => {}
        }
    }

    fn hash_number(&self, ty: &Type, state: &mut FxHasher64) {
        let memory = self.memory(ty);
        match (ty, memory.as_slice()) {
            (Type::Int { pointer_sized: true, .. }, _) => match self {
                // As wide here as where the plugin ran; rkyv's hasher keeps the low half.
                Key::Signed(value) => isize::try_from(*value).unwrap_or_default().hash(state),
                Key::Unsigned(value) => usize::try_from(*value).unwrap_or_default().hash(state),
                _ => {}
            },
            (_, [byte]) => state.write_u8(*byte),
            (_, [a, b]) => state.write_u16(u16::from_le_bytes([*a, *b])),
            (_, bytes) => {
                match (<[u8; 4]>::try_from(bytes), <[u8; 8]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
                    (Ok(four), ..) => state.write_u32(u32::from_le_bytes(four)),
                    (_, Ok(eight), _) => state.write_u64(u64::from_le_bytes(eight)),
                    (.., Ok(sixteen)) => state.write_u128(u128::from_le_bytes(sixteen)),
                    _ => {}
                }
            }
        }
    }

    /// A number as it lies in the memory of a plugin, where pointers have 64 bits.
    fn memory(&self, ty: &Type) -> Vec<u8> {
        let Type::Int { bytes, pointer_sized, .. } = ty else { return Vec::new() };
        let bytes = if *pointer_sized { 8 } else { usize::try_from(*bytes).unwrap_or(16) };
        match self {
            Key::Unsigned(value) => value.to_le_bytes()[..bytes].to_vec(),
            Key::Signed(value) => value.to_le_bytes()[..bytes].to_vec(),
            _ => Vec::new(),
        }
    }
}

fn hash_tag(place: usize, state: &mut FxHasher64) {
    isize::try_from(place).unwrap_or_default().hash(state);
}

fn hash_parts(layout: &Layout, fields: &Fields, parts: &[Key], state: &mut FxHasher64) {
    for (slot, key) in fields.slots.iter().zip(parts) {
        key.hash_into(layout, slot.ty, state);
    }
}

type Again<'a> = &'a dyn Fn(TypeId, &Value) -> Result<Key, JsonError>;

fn items(layout: &Layout, item: TypeId, json: &Value, again: Again<'_>) -> Result<Vec<Key>, JsonError> {
    if let Some(bytes) = Given::bytes(layout, item, json)? {
        return Ok(bytes.into_iter().map(|byte| Key::Unsigned(byte.into())).collect());
    }
    let items = json.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|json| again(item, json)).collect()
}

fn parts(fields: &Fields, json: &Value, again: Again<'_>, is_named: bool) -> Result<Vec<Key>, JsonError> {
    if let Some(only) = Layout::newtype(fields).filter(|_| is_named) {
        return Ok(vec![again(only, json)?]);
    }
    let none = Value::Null;
    let part = |n: usize, name: &str| match fields.shape {
        Shape::Named => json.get(name),
        _ => json.get(n),
    };
    let slots = fields.slots.iter().enumerate();
    slots.map(|(n, slot)| again(slot.ty, part(n, &slot.name).unwrap_or(&none))).collect()
}
