//! From an archive to JSON.
//!
//! Invariant of the reader: a value is read at `at` only after `at..at + size` was found inside the bytes and `at` at a multiple of its
//! alignment; so reading the parts of a value needs no further checks, only following a pointer does.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Number, Value};

use crate::layout::{Extent, Fields, Shape, TAG, Type, TypeId, entry};
use crate::{ArchiveError, Layout, MAX_DEPTH};

/// Entries of a node of a B-tree.
pub(crate) const NODE_ENTRIES: u64 = 5;
/// Control bytes of a hash table are probed in groups of so many.
pub(crate) const GROUP: u64 = 16;
/// Strings up to this many bytes lie in their place.
pub(crate) const INLINE: usize = 8;
/// A relative pointer with this offset points nowhere.
pub(crate) const NOWHERE: i32 = 1;
/// No B-tree of what fits into memory is higher.
const MAX_HEIGHT: usize = 32;

/// Shows an archive of the type as JSON. The first of `bytes` counts as aligned: their address does not matter.
///
/// # Errors
/// [`ArchiveError`]: they are no archive of it, are nested too deeply, or point to the same bytes again and again.
pub fn to_json(layout: &Layout, bytes: &[u8]) -> Result<Value, ArchiveError> {
    let len = bytes.len() as u64;
    let mut reader =
        Reader { layout, bytes, budget: len.saturating_mul(4).saturating_add(1 << 16), depth: 0 };
    let extent = layout.extent(layout.root);
    let at = len.checked_sub(extent.size).ok_or(ArchiveError::new("it is too short"))?;
    if !at.is_multiple_of(extent.align) {
        return Err(ArchiveError::new("its length is impossible"));
    }
    reader.value(layout.root, at)
}

struct Reader<'a> {
    layout: &'a Layout,
    bytes: &'a [u8],
    /// What may still be shown: bounds the work for archives whose parts share bytes.
    budget: u64,
    depth: usize,
}

type Read<T> = Result<T, ArchiveError>;

impl<'a> Reader<'a> {
    fn spend(&mut self, cost: u64) -> Read<()> {
        let left = self.budget.checked_sub(cost);
        self.budget = left.ok_or(ArchiveError::new("it points to the same bytes too often"))?;
        Ok(())
    }

    fn slice(&self, at: u64, len: u64) -> Read<&'a [u8]> {
        let end = at.checked_add(len).and_then(|end| usize::try_from(end).ok());
        let found = usize::try_from(at).ok().zip(end).and_then(|(at, end)| self.bytes.get(at..end));
        found.ok_or(ArchiveError::new("it points outside of the record"))
    }

    fn bytes_at<const N: usize>(&self, at: u64) -> Read<[u8; N]> {
        let bytes = self.slice(at, N as u64)?;
        Ok(bytes.try_into().unwrap_or([0; N]))
    }

    fn u32_at(&self, at: u64) -> Read<u32> {
        self.bytes_at(at).map(u32::from_le_bytes)
    }

    fn u8_at(&self, at: u64) -> Read<u8> {
        self.bytes_at::<1>(at).map(|[byte]| byte)
    }

    /// Follows the relative pointer at `at` to `count` things, which are all inside then.
    fn follow(&self, at: u64, extent: Extent, count: u64) -> Read<u64> {
        let offset = i32::from_le_bytes(self.bytes_at(at)?);
        let outside = ArchiveError::new("it points outside of the record");
        let target = at.checked_add_signed(i64::from(offset)).ok_or(outside.clone())?;
        let len = extent.size.checked_mul(count).ok_or(outside)?;
        self.slice(target, len)?;
        if target.is_multiple_of(extent.align) {
            Ok(target)
        } else {
            Err(ArchiveError::new("it points between two places"))
        }
    }

    fn value(&mut self, id: TypeId, at: u64) -> Read<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ArchiveError::new("it is nested too deeply to be shown"));
        }
        let value = self.any(id, at);
        self.depth -= 1;
        value
    }

    fn any(&mut self, id: TypeId, at: u64) -> Read<Value> {
        let layout = self.layout;
        match layout.ty(id) {
            Type::Box(item) => {
                let target = self.follow(at, layout.extent(*item), 1)?;
                self.value(*item, target)
            }
            Type::List { item, .. } => {
                let len = u64::from(self.u32_at(at + 4)?);
                let target = if len == 0 { 0 } else { self.follow(at, layout.extent(*item), len)? };
                self.items(*item, target, len)
            }
            Type::Array { item, len } => self.items(*item, at, *len),
            Type::Tuple(fields) => self.fields(fields, at, false),
            Type::Struct { fields, .. } => self.fields(fields, at, true),
            Type::Option(item) => self.option(*item, at),
            Type::Result(ok, err) => {
                let (name, ty) = [("Ok", *ok), ("Err", *err)][usize::from(self.tag(at, 2)?)];
                let value = self.value(ty, at + behind_tag(layout.extent(ty)));
                Ok(tagged(name, value.map_err(|error| error.under(format!(".{name}")))?))
            }
            Type::Enum { variants, .. } => {
                let tag = self.tag(at, variants.len())?;
                let variant = &variants[usize::from(tag)];
                if variant.fields.shape == Shape::Unit {
                    self.spend(1)?;
                    return Ok(Value::String(variant.name.clone()));
                }
                let value = self.fields(&variant.fields, at, true);
                Ok(tagged(&variant.name, value.map_err(|error| error.under(format!(".{}", variant.name)))?))
            }
            Type::Map { key, value, hashed } => {
                let entries = self.entries(*key, Some(*value), *hashed, at)?;
                self.map(layout.is_name(*key), entries)
            }
            Type::Set { item, hashed } => {
                let entries = self.entries(*item, None, *hashed, at)?;
                Ok(Value::Array(entries.into_iter().map(|(item, _)| item).collect()))
            }
            plain => {
                self.spend(1)?;
                self.plain(plain, at)
            }
        }
    }

    fn plain(&mut self, ty: &Type, at: u64) -> Read<Value> {
        Ok(match ty {
            Type::Int { bytes: 16, signed: false, .. } => {
                Value::String(u128::from_le_bytes(self.bytes_at(at)?).to_string())
            }
            Type::Int { bytes: 16, .. } => Value::String(i128::from_le_bytes(self.bytes_at(at)?).to_string()),
            Type::Int { bytes: 8, signed: false, .. } => u64::from_le_bytes(self.bytes_at(at)?).into(),
            Type::Int { bytes: 8, .. } => i64::from_le_bytes(self.bytes_at(at)?).into(),
            Type::Int { bytes: 4, signed: false, .. } => self.u32_at(at)?.into(),
            Type::Int { bytes: 4, .. } => i32::from_le_bytes(self.bytes_at(at)?).into(),
            Type::Int { bytes: 2, signed: false, .. } => u16::from_le_bytes(self.bytes_at(at)?).into(),
            Type::Int { bytes: 2, .. } => i16::from_le_bytes(self.bytes_at(at)?).into(),
            Type::Int { signed: false, .. } => self.u8_at(at)?.into(),
            Type::Int { .. } => i8::from_le_bytes(self.bytes_at(at)?).into(),
            Type::F64 => float(f64::from_le_bytes(self.bytes_at(at)?)),
            Type::F32 => {
                let single = f32::from_le_bytes(self.bytes_at(at)?);
                // By its own shortest digits: 0.1 stays 0.1 and does not become 0.10000000149011612.
                float(single.to_string().parse().unwrap_or(f64::from(single)))
            }
            Type::Bool => match self.u8_at(at)? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(ArchiveError::new("a `bool` is neither 0 nor 1")),
            },
            Type::Char => {
                let sign = char::from_u32(self.u32_at(at)?);
                Value::String(sign.ok_or(ArchiveError::new("a `char` is none"))?.into())
            }
            Type::Duration => {
                let (secs, nanos) = (u64::from_le_bytes(self.bytes_at(at)?), self.u32_at(at + 8)?);
                if nanos >= 1_000_000_000 {
                    return Err(ArchiveError::new("a `Duration` has more nanoseconds than a second"));
                }
                Value::Object(Map::from_iter([("secs".into(), secs.into()), ("nanos".into(), nanos.into())]))
            }
            Type::Text => Value::String(self.text(at)?.to_owned()),
            _ => Value::Null,
        })
    }

    fn text(&mut self, at: u64) -> Read<&'a str> {
        let place = self.bytes_at::<INLINE>(at)?;
        let bytes = if place[0] & 0xc0 == 0x80 {
            let len = self.u32_at(at)?;
            let len = u64::from((len & 0x3f) | ((len & !0xff) >> 2));
            if len <= INLINE as u64 {
                return Err(ArchiveError::new("a short `String` lies elsewhere"));
            }
            let offset = i32::from_le_bytes(self.bytes_at(at + 4)?);
            let target = at.checked_add_signed(i64::from(offset));
            self.slice(target.ok_or(ArchiveError::new("it points outside of the record"))?, len)?
        } else {
            let len = place.iter().position(|byte| *byte == 0xff).unwrap_or(INLINE);
            self.slice(at, len as u64)?
        };
        self.spend(bytes.len() as u64)?;
        std::str::from_utf8(bytes).map_err(|_| ArchiveError::new("a `String` is not UTF-8"))
    }

    fn items(&mut self, item: TypeId, at: u64, len: u64) -> Read<Value> {
        let size = self.layout.extent(item).size;
        if self.layout.is_byte(item) {
            self.spend(len)?;
            return Ok(Value::String(BASE64_STANDARD.encode(self.slice(at, len)?)));
        }
        let mut items = Vec::new();
        for n in 0..len {
            let value = self.value(item, at + n * size);
            items.push(value.map_err(|error| error.under(format!("[{n}]")))?);
            if size == 0 {
                // What takes no bytes is bounded by nothing else.
                self.spend(1)?;
            }
        }
        Ok(Value::Array(items))
    }

    fn fields(&mut self, fields: &Fields, at: u64, is_named: bool) -> Read<Value> {
        if let Some(only) = Layout::newtype(fields).filter(|_| is_named) {
            return self.value(only, at + fields.slots[0].at);
        }
        match fields.shape {
            Shape::Unit => {
                self.spend(1)?;
                Ok(Value::Null)
            }
            Shape::Tuple => {
                let slots = fields.slots.iter().enumerate();
                let value = |(n, slot): (usize, &crate::layout::Slot)| {
                    self.value(slot.ty, at + slot.at).map_err(|error| error.under(format!(".{n}")))
                };
                slots.map(value).collect::<Read<Vec<Value>>>().map(Value::Array)
            }
            Shape::Named => {
                let value = |slot: &crate::layout::Slot| {
                    let value = self.value(slot.ty, at + slot.at);
                    let value = value.map_err(|error| error.under(format!(".{}", slot.name)))?;
                    Ok((slot.name.clone(), value))
                };
                fields.slots.iter().map(value).collect::<Read<Map<String, Value>>>().map(Value::Object)
            }
        }
    }

    fn option(&mut self, item: TypeId, at: u64) -> Read<Value> {
        if self.tag(at, 2)? == 0 {
            self.spend(1)?;
            return Ok(Value::Null);
        }
        let value = self.value(item, at + behind_tag(self.layout.extent(item)))?;
        Ok(if self.layout.may_be_null(item) { tagged("Some", value) } else { value })
    }

    fn tag(&self, at: u64, variants: usize) -> Read<u8> {
        let tag = self.u8_at(at)?;
        if usize::from(tag) < variants { Ok(tag) } else { Err(ArchiveError::new("its variant is unknown")) }
    }

    fn map(&self, named: bool, entries: Vec<(Value, Value)>) -> Read<Value> {
        if !named {
            let pair = |(key, value)| Value::Array(vec![key, value]);
            return Ok(Value::Array(entries.into_iter().map(pair).collect()));
        }
        let mut map = Map::new();
        for (key, value) in entries {
            let key = match key {
                Value::String(text) => text,
                other => other.to_string(),
            };
            if map.insert(key, value).is_some() {
                return Err(ArchiveError::new("a map has a key twice"));
            }
        }
        Ok(Value::Object(map))
    }

    /// The entries of a map, or of a set, which has no values. Those of hash tables are sorted, so that the same value looks the same.
    fn entries(
        &mut self,
        key: TypeId,
        value: Option<TypeId>,
        hashed: bool,
        at: u64,
    ) -> Read<Vec<(Value, Value)>> {
        let len = u64::from(self.u32_at(at + 4)?);
        let mut entries = Vec::new();
        if hashed {
            self.table(key, value, len, at, &mut entries)?;
            entries.sort_by_cached_key(|(key, _)| key.to_string());
        } else if len > 0 {
            let tree = Tree::new(self.layout, key, value);
            self.node(&tree, at, MAX_HEIGHT, &mut entries)?;
        }
        if entries.len() as u64 != len {
            return Err(ArchiveError::new("a map or set has another length than it says"));
        }
        Ok(entries)
    }

    fn entry(&mut self, key: (TypeId, u64), value: Option<(TypeId, u64)>) -> Read<(Value, Value)> {
        // Also what takes no bytes has its price.
        self.spend(1)?;
        let key = self.value(key.0, key.1).map_err(|error| error.under(".key"))?;
        let value = value.map_or(Ok(Value::Null), |(id, at)| {
            let step = |error: ArchiveError| error.under(format!("[{key}]"));
            self.value(id, at).map_err(step)
        })?;
        Ok((key, value))
    }

    fn table(
        &mut self,
        key: TypeId,
        value: Option<TypeId>,
        len: u64,
        at: u64,
        entries: &mut Vec<(Value, Value)>,
    ) -> Read<()> {
        let capacity = u64::from(self.u32_at(at + 8)?);
        if len == 0 {
            return Ok(());
        }
        if len >= capacity {
            return Err(ArchiveError::new("a hash table is fuller than it can be"));
        }
        let value_extent = value.map_or(crate::layout::EMPTY, |value| self.layout.extent(value));
        let (entry, value_at) = entry(self.layout.extent(key), value_extent);
        let outside = || ArchiveError::new("a hash table lies outside of the record");
        let controls = self.follow(at, Extent::new(1, 1), capacity.next_multiple_of(GROUP) + GROUP - 1)?;
        // Entries lie before the control bytes, the first one last.
        let begin = entry.size.checked_mul(capacity).and_then(|len| controls.checked_sub(len));
        if !begin.ok_or_else(outside)?.is_multiple_of(entry.align) {
            return Err(ArchiveError::new("it points between two places"));
        }
        for n in 0..capacity {
            if self.u8_at(controls + n)? & 0x80 != 0 {
                continue;
            }
            let at = controls - (n + 1) * entry.size;
            let found = self.entry((key, at), value.map(|value| (value, at + value_at)))?;
            entries.push(found);
        }
        Ok(())
    }

    /// Reads the node that the pointer at `at` points to, and those below, in order.
    fn node(&mut self, tree: &Tree, at: u64, height: usize, entries: &mut Vec<(Value, Value)>) -> Read<()> {
        let below = height.checked_sub(1).ok_or(ArchiveError::new("a B-tree is too high"))?;
        self.spend(1)?;
        let node = self.follow(at, tree.node, 1)?;
        let is_leaf = self.tag(node, 2)? == 0;
        let node = self.follow(at, if is_leaf { tree.leaf } else { tree.inner }, 1)?;
        let links = node + tree.links_at;
        let count = if is_leaf { u64::from(self.u32_at(node + tree.len_at)?) } else { NODE_ENTRIES };
        if count > NODE_ENTRIES {
            return Err(ArchiveError::new("a node of a B-tree has too many entries"));
        }
        for n in 0..count {
            if !is_leaf {
                self.child(tree, links + 4 * n, below, entries)?;
            }
            let key = (tree.key, node + tree.keys_at + n * tree.key_size);
            let value = tree.value.map(|value| (value, node + tree.values_at + n * tree.value_size));
            let found = self.entry(key, value)?;
            entries.push(found);
        }
        if is_leaf { Ok(()) } else { self.child(tree, links + 4 * NODE_ENTRIES, below, entries) }
    }

    fn child(&mut self, tree: &Tree, at: u64, below: usize, entries: &mut Vec<(Value, Value)>) -> Read<()> {
        if i32::from_le_bytes(self.bytes_at(at)?) == NOWHERE {
            return Ok(());
        }
        self.node(tree, at, below, entries)
    }
}

/// Where things are in the nodes of a B-tree.
pub(crate) struct Tree {
    pub(crate) key: TypeId,
    pub(crate) value: Option<TypeId>,
    pub(crate) key_size: u64,
    pub(crate) value_size: u64,
    pub(crate) keys_at: u64,
    pub(crate) values_at: u64,
    /// What leaves and inner nodes begin with.
    node: Extent,
    pub(crate) leaf: Extent,
    pub(crate) inner: Extent,
    /// Length of a leaf.
    pub(crate) len_at: u64,
    /// The pointers of an inner node: to what is before each entry, and to what is behind the last.
    pub(crate) links_at: u64,
}

impl Tree {
    pub(crate) fn new(layout: &Layout, key: TypeId, value: Option<TypeId>) -> Tree {
        let key_extent = layout.extent(key);
        let value_extent = value.map_or(crate::layout::EMPTY, |value| layout.extent(value));
        let several = |extent: Extent| Extent::new(extent.size * NODE_ENTRIES, extent.align);
        let mut node = TAG;
        let keys_at = node.push(several(key_extent));
        let values_at = node.push(several(value_extent));
        let node = node.padded();
        let (mut leaf, mut inner) = (node, node);
        let len_at = leaf.push(Extent::new(4, 4));
        let links_at = inner.push(Extent::new(4 * (NODE_ENTRIES + 1), 4));
        let (leaf, inner) = (leaf.padded(), inner.padded());
        let (key_size, value_size) = (key_extent.size, value_extent.size);
        Tree { key, value, key_size, value_size, keys_at, values_at, node, leaf, inner, len_at, links_at }
    }
}

/// Where the one field of a variant lies.
pub(crate) fn behind_tag(field: Extent) -> u64 {
    let mut variant = TAG;
    variant.push(field)
}

fn float(number: f64) -> Value {
    match Number::from_f64(number) {
        Some(number) => Value::Number(number),
        None if number.is_nan() => "NaN".into(),
        None if number > 0.0 => "inf".into(),
        None => "-inf".into(),
    }
}

fn tagged(name: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(name.to_owned(), value)]))
}
