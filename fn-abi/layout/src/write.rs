//! From JSON to an archive, byte for byte as rkyv writes it.
//!
//! What a value points to lies before it. So a value is written in two steps: into a [`Block`], while what it points to goes to the end of
//! the archive; then the block itself goes there, and its pointers are filled in, because only now its place is known.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use crate::key::Key;
use crate::layout::{Extent, Fields, Shape, Type, TypeId, entry};
use crate::read::{GROUP, INLINE, NODE_ENTRIES, NOWHERE, Tree, behind_tag};
use crate::{JsonError, Layout, MAX_DEPTH};

/// The longest `String` that rkyv can write.
const MAX_TEXT: usize = (1 << 30) - 1;

/// What a caller knows that no layout tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Writing {
    /// Marked types that are keys of maps or items of sets derive `Ord` and `Hash`, with their fields in the order of the layout. Without
    /// this, such maps and sets are refused: in a wrong order a plugin would not find what is there.
    pub derived_order: bool,
}

/// Makes the archive of a value of the type.
///
/// # Errors
/// [`JsonError`]: the value is none of the type, is nested too deeply, or takes more than 2 GiB.
pub fn from_json(layout: &Layout, value: &Value, writing: Writing) -> Result<Vec<u8>, JsonError> {
    let mut writer = Writer { layout, writing, out: Vec::new(), depth: 0 };
    let mut block = Block::new(layout.extent(layout.root), 1)?;
    writer.fill(&mut block, 0, layout.root, value)?;
    writer.place(block)?;
    Ok(writer.out)
}

type Written<T> = Result<T, JsonError>;

/// Values that lie side by side, while the places of what they point to are collected.
struct Block {
    bytes: Vec<u8>,
    align: u64,
    /// Where in it a pointer is, from which place in it that counts, and where it points to.
    links: Vec<Link>,
}

struct Link {
    at: usize,
    from: usize,
    /// A place in the archive.
    target: usize,
}

impl Block {
    fn new(extent: Extent, count: usize) -> Written<Block> {
        let size = usize::try_from(extent.size).ok().and_then(|size| size.checked_mul(count));
        let size = size.filter(|size| i32::try_from(*size).is_ok()).ok_or_else(too_large)?;
        Ok(Block { bytes: vec![0; size], align: extent.align, links: Vec::new() })
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn link(&mut self, at: usize, target: usize) {
        self.links.push(Link { at, from: at, target });
    }
}

struct Writer<'l> {
    layout: &'l Layout,
    writing: Writing,
    out: Vec<u8>,
    depth: usize,
}

impl<'l> Writer<'l> {
    /// Writes zeros up to a multiple of `align`; gives the place.
    fn align(&mut self, align: u64) -> usize {
        let align = usize::try_from(align).unwrap_or(1);
        self.out.resize(self.out.len().next_multiple_of(align), 0);
        self.out.len()
    }

    fn append(&mut self, bytes: &[u8]) -> Written<usize> {
        let at = self.out.len();
        if i32::try_from(at + bytes.len()).is_err() {
            return Err(too_large());
        }
        self.out.extend_from_slice(bytes);
        Ok(at)
    }

    fn place(&mut self, mut block: Block) -> Written<usize> {
        let place = self.align(block.align);
        for link in std::mem::take(&mut block.links) {
            // Both are below 2 GiB, so the difference is within 32 bits.
            let offset = i64::try_from(link.target).ok().zip(i64::try_from(place + link.from).ok());
            let offset = offset.and_then(|(to, from)| i32::try_from(to - from).ok()).ok_or_else(too_large)?;
            block.put(link.at, &offset.to_le_bytes());
        }
        self.append(&block.bytes)
    }

    fn fill(&mut self, block: &mut Block, at: usize, id: TypeId, json: &Value) -> Written<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(JsonError::new(format!("is nested deeper than {MAX_DEPTH} types")));
        }
        let done = self.any(block, at, id, json);
        self.depth -= 1;
        done
    }

    fn any(&mut self, block: &mut Block, at: usize, id: TypeId, json: &Value) -> Written<()> {
        let layout = self.layout;
        match layout.ty(id) {
            Type::Box(item) => {
                let mut inner = Block::new(layout.extent(*item), 1)?;
                self.fill(&mut inner, 0, *item, json)?;
                let target = self.place(inner)?;
                block.link(at, target);
            }
            Type::List { item, .. } => {
                let (target, len) = self.list(*item, json)?;
                block.link(at, target);
                block.put(at + 4, &len.to_le_bytes());
            }
            Type::Array { item, len } => self.array(block, at, *item, *len, json)?,
            Type::Tuple(fields) => self.fields(block, at, fields, json, false)?,
            Type::Struct { fields, .. } => self.fields(block, at, fields, json, true)?,
            Type::Option(item) => {
                if let Some(json) = Given::some(layout, *item, json) {
                    block.put(at, &[1]);
                    self.fill(block, at + place_of(behind_tag(layout.extent(*item))), *item, json)?;
                }
            }
            Type::Result(ok, err) => {
                let (name, json) = Given::variant(json)?;
                let (tag, ty) = match name {
                    "Ok" => (0, *ok),
                    "Err" => (1, *err),
                    _ => return Err(expected("{\"Ok\": value} or {\"Err\": value}", json)),
                };
                block.put(at, &[tag]);
                let at = at + place_of(behind_tag(layout.extent(ty)));
                let done = self.fill(block, at, ty, json.unwrap_or(&Value::Null));
                done.map_err(|error| error.under(format!(".{name}")))?;
            }
            Type::Enum { name, variants } => {
                let (given, json) = Given::variant(json)?;
                let place = variants.iter().position(|variant| variant.name == given);
                let unknown = || JsonError::new(format!("`{name}` has no variant `{given}`"));
                let place = place.ok_or_else(unknown)?;
                block.put(at, &[u8::try_from(place).unwrap_or(u8::MAX)]);
                let fields = &variants[place].fields;
                let done = match json {
                    None if fields.shape != Shape::Unit => Err(JsonError::new("its fields are missing")),
                    json => self.fields(block, at, fields, json.unwrap_or(&Value::Null), true),
                };
                done.map_err(|error| error.under(format!(".{given}")))?;
            }
            Type::Map { key, value, hashed } => {
                let entries = Given::entries(layout, *key, json)?;
                let entries: Vec<(&Value, Option<&Value>)> =
                    entries.iter().map(|(key, value)| (key, Some(*value))).collect();
                self.entries(block, at, (*key, Some(*value)), *hashed, &entries)?;
            }
            Type::Set { item, hashed } => {
                let items = json.as_array().ok_or_else(|| expected("an array", Some(json)))?;
                let entries: Vec<(&Value, Option<&Value>)> = items.iter().map(|item| (item, None)).collect();
                self.entries(block, at, (*item, None), *hashed, &entries)?;
            }
            Type::Text => self.text(block, at, json)?,
            plain => plain_into(block, at, plain, json)?,
        }
        Ok(())
    }

    fn text(&mut self, block: &mut Block, at: usize, json: &Value) -> Written<()> {
        let text = text_of(json)?.as_bytes();
        if text.len() <= INLINE {
            let mut place = [0xff; INLINE];
            place[..text.len()].copy_from_slice(text);
            block.put(at, &place);
            return Ok(());
        }
        let len = u32::try_from(text.len()).ok().filter(|_| text.len() <= MAX_TEXT).ok_or_else(too_large)?;
        // The two high bits of the first byte say that it is not UTF-8: the text lies elsewhere.
        block.put(at, &((len & 0x3f) | 0x80 | ((len & !0x3f) << 2)).to_le_bytes());
        let target = self.append(text)?;
        block.links.push(Link { at: at + 4, from: at, target });
        Ok(())
    }

    fn list(&mut self, item: TypeId, json: &Value) -> Written<(usize, u32)> {
        if let Some(bytes) = Given::bytes(self.layout, item, json)? {
            let len = u32::try_from(bytes.len()).map_err(|_| too_large())?;
            return Ok((self.append(&bytes)?, len));
        }
        let items = json.as_array().ok_or_else(|| expected("an array", Some(json)))?;
        let len = u32::try_from(items.len()).map_err(|_| too_large())?;
        let mut block = Block::new(self.layout.extent(item), items.len())?;
        self.items(&mut block, 0, item, items)?;
        Ok((self.place(block)?, len))
    }

    fn items(&mut self, block: &mut Block, at: usize, item: TypeId, items: &[Value]) -> Written<()> {
        let size = place_of(self.layout.extent(item).size);
        for (n, json) in items.iter().enumerate() {
            let done = self.fill(block, at + n * size, item, json);
            done.map_err(|error| error.under(format!("[{n}]")))?;
        }
        Ok(())
    }

    fn array(&mut self, block: &mut Block, at: usize, item: TypeId, len: u64, json: &Value) -> Written<()> {
        let is = |given: usize| {
            if given as u64 == len {
                Ok(())
            } else {
                Err(JsonError::new(format!("{len} items are expected, not {given}")))
            }
        };
        if let Some(bytes) = Given::bytes(self.layout, item, json)? {
            is(bytes.len())?;
            block.put(at, &bytes);
            return Ok(());
        }
        let items = json.as_array().ok_or_else(|| expected("an array", Some(json)))?;
        is(items.len())?;
        self.items(block, at, item, items)
    }

    fn fields(
        &mut self,
        block: &mut Block,
        at: usize,
        fields: &Fields,
        json: &Value,
        is_named: bool,
    ) -> Written<()> {
        if let Some(only) = Layout::newtype(fields).filter(|_| is_named) {
            return self.fill(block, at + place_of(fields.slots[0].at), only, json);
        }
        match fields.shape {
            Shape::Unit if json.is_null() => Ok(()),
            Shape::Unit => Err(expected("null", Some(json))),
            Shape::Tuple => {
                let given = json.as_array().ok_or_else(|| expected("an array", Some(json)))?;
                if given.len() != fields.slots.len() {
                    let (given, wanted) = (given.len(), fields.slots.len());
                    return Err(JsonError::new(format!("{wanted} items are expected, not {given}")));
                }
                for (n, (slot, json)) in fields.slots.iter().zip(given).enumerate() {
                    let done = self.fill(block, at + place_of(slot.at), slot.ty, json);
                    done.map_err(|error| error.under(format!(".{n}")))?;
                }
                Ok(())
            }
            Shape::Named => {
                let given = json.as_object().ok_or_else(|| expected("an object", Some(json)))?;
                self.named(block, at, fields, given)
            }
        }
    }

    fn named(
        &mut self,
        block: &mut Block,
        at: usize,
        fields: &Fields,
        given: &Map<String, Value>,
    ) -> Written<()> {
        if let Some(unknown) = given.keys().find(|name| fields.slots.iter().all(|slot| slot.name != **name)) {
            return Err(JsonError::new(format!("there is no field `{unknown}`")));
        }
        for slot in &fields.slots {
            let optional = matches!(self.layout.ty(slot.ty), Type::Option(_)).then_some(&Value::Null);
            let json = given.get(&slot.name).or(optional);
            let json = json.ok_or_else(|| JsonError::new(format!("the field `{}` is missing", slot.name)))?;
            let done = self.fill(block, at + place_of(slot.at), slot.ty, json);
            done.map_err(|error| error.under(format!(".{}", slot.name)))?;
        }
        Ok(())
    }

    fn entries(
        &mut self,
        block: &mut Block,
        at: usize,
        (key, value): (TypeId, Option<TypeId>),
        hashed: bool,
        given: &[(&Value, Option<&Value>)],
    ) -> Written<()> {
        let len = u32::try_from(given.len()).map_err(|_| too_large())?;
        block.put(at + 4, &len.to_le_bytes());
        let Some(first) = given.first() else {
            block.put(at, &NOWHERE.to_le_bytes());
            return Ok(());
        };
        // Any order of one entry is right; its place in a hash table may still be wrong.
        let derived = self.writing.derived_order;
        let mut entries = Vec::with_capacity(given.len());
        if given.len() == 1 && !hashed {
            entries.push(Entry { key: Key::Several(Vec::new()), name: first.0, value: first.1 });
        } else {
            for (name, value) in given {
                let known = Key::of(self.layout, key, name, derived, MAX_DEPTH);
                let known = known.map_err(|error| error.under(".key"))?;
                entries.push(Entry { key: known, name, value: *value });
            }
        }
        let mut sorted: Vec<&Key> = entries.iter().map(|entry| &entry.key).collect();
        sorted.sort();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(JsonError::new("a key comes twice"));
        }
        if hashed {
            let (target, capacity) = self.table(key, value, &entries)?;
            block.link(at, target);
            block.put(at + 8, &capacity.to_le_bytes());
        } else {
            entries.sort_by(|one, other| one.key.cmp(&other.key));
            let tree = Tree::new(self.layout, key, value);
            let target = TreeWriter { writer: self, tree, entries: entries.into_iter() }.write()?;
            block.link(at, target);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        block: &mut Block,
        key: (TypeId, usize),
        value: (Option<TypeId>, usize),
        entry: &Entry<'_>,
    ) -> Written<()> {
        self.fill(block, key.1, key.0, entry.name).map_err(|error| error.under(".key"))?;
        if let (Some(id), Some(json)) = (value.0, entry.value) {
            let done = self.fill(block, value.1, id, json);
            done.map_err(|error| error.under(format!("[{}]", entry.name)))?;
        }
        Ok(())
    }

    /// Writes the entries of a hash table and its control bytes; gives the place of these, and the capacity.
    fn table(&mut self, key: TypeId, value: Option<TypeId>, entries: &[Entry<'_>]) -> Written<(usize, u32)> {
        let value_extent = value.map_or(crate::layout::EMPTY, |value| self.layout.extent(value));
        let (extent, value_at) = entry(self.layout.extent(key), value_extent);
        // rkyv's load factor of 7/8.
        let capacity = (entries.len() * 8 / 7).max(entries.len() + 1);
        let mut places: Vec<Option<&Entry<'_>>> = vec![None; capacity];
        let mut controls = Controls::new(capacity);
        for entry in entries {
            places[controls.take(entry.key.hash(self.layout, key))] = Some(entry);
        }
        let mut block = Block::new(extent, capacity)?;
        let size = place_of(extent.size);
        for (n, entry) in places.iter().enumerate() {
            let Some(entry) = entry else { continue };
            // The first entry lies last.
            let at = (capacity - 1 - n) * size;
            self.entry(&mut block, (key, at), (value, at + place_of(value_at)), entry)?;
        }
        self.place(block)?;
        let target = self.append(&controls.bytes)?;
        Ok((target, u32::try_from(capacity).map_err(|_| too_large())?))
    }
}

/// An entry of a map, or of a set, which has no value.
struct Entry<'j> {
    key: Key,
    name: &'j Value,
    value: Option<&'j Value>,
}

/// The control bytes of a hash table while it fills.
struct Controls {
    bytes: Vec<u8>,
    capacity: usize,
    /// How many of the bytes a probe may begin at.
    probed: usize,
}

impl Controls {
    fn new(capacity: usize) -> Controls {
        let group = place_of(GROUP);
        let probed = capacity.next_multiple_of(group);
        Controls { bytes: vec![0xff; probed + group - 1], capacity, probed }
    }

    /// Takes the first free place for a hash.
    fn take(&mut self, hash: u64) -> usize {
        let group = place_of(GROUP);
        let mask = self.bytes.len().next_power_of_two() - 1;
        // Below the capacity, which is a `usize`.
        let mut at = usize::try_from(hash % self.capacity as u64).unwrap_or_default();
        let mut stride = 0;
        loop {
            if let Some(free) = self.bytes[at..at + group].iter().position(|byte| byte & 0x80 != 0) {
                let place = (at + free) % self.capacity;
                let mark = hash.to_be_bytes()[0] >> 1;
                self.bytes[place] = mark;
                // The last control bytes repeat the first, so that a group may go over the end.
                if let Some(repeated) = self.bytes.get_mut(self.capacity + place) {
                    *repeated = mark;
                }
                return place;
            }
            loop {
                stride += group;
                at = (at + stride) & mask;
                if at < self.probed {
                    break;
                }
            }
        }
    }
}

/// Writes a B-tree, in the shape that rkyv gives it: full on the left, as high as it must be.
struct TreeWriter<'w, 'l, 'j> {
    writer: &'w mut Writer<'l>,
    tree: Tree,
    entries: std::vec::IntoIter<Entry<'j>>,
}

/// An inner node that is being filled: entries, each with what lies before it.
type Open<'j> = Vec<(Entry<'j>, Option<usize>)>;

impl<'j> TreeWriter<'_, '_, 'j> {
    fn write(mut self) -> Written<usize> {
        let width = place_of(NODE_ENTRIES);
        let len = self.entries.len();
        let height = 1 + len.ilog(width + 1);
        // As many are on the lowest level as do not fit above it.
        let lowest = len - ((width + 1).pow(height - 1) - 1);
        let mut inners: Vec<Open<'j>> = (1..height).map(|_| Vec::new()).collect();
        let mut leaf = Vec::new();
        let mut child = None;
        let mut in_leaves = 0;
        while let Some(entry) = self.entries.next() {
            leaf.push(entry);
            in_leaves += 1;
            if in_leaves != lowest && leaf.len() < width {
                continue;
            }
            child = Some(self.close_leaf(&std::mem::take(&mut leaf))?);
            if in_leaves == lowest
                && let Some(mut inner) = inners.pop()
            {
                // From here on the lowest level is empty.
                while inner.len() < width {
                    let Some(entry) = self.entries.next() else { break };
                    inner.push((entry, child.take()));
                }
                child = Some(self.close_inner(&inner, child)?);
            }
            self.close_full(&mut inners, &mut child)?;
        }
        if !leaf.is_empty() {
            child = Some(self.close_leaf(&leaf)?);
        }
        while let Some(inner) = inners.pop() {
            child = Some(self.close_inner(&inner, child)?);
        }
        child.ok_or_else(|| JsonError::new("a map lost its entries"))
    }

    /// Closes the inner nodes that are full, and hangs `child` into the first that is not.
    fn close_full(&mut self, inners: &mut Vec<Open<'j>>, child: &mut Option<usize>) -> Written<()> {
        let mut closed = 0;
        while let Some(last) = inners.last_mut() {
            if last.len() < place_of(NODE_ENTRIES) {
                if let Some(entry) = self.entries.next() {
                    last.push((entry, child.take()));
                    inners.extend((0..closed).map(|_| Vec::new()));
                }
                return Ok(());
            }
            let full = std::mem::take(last);
            inners.pop();
            *child = Some(self.close_inner(&full, *child)?);
            closed += 1;
        }
        Ok(())
    }

    fn close_leaf(&mut self, entries: &[Entry<'j>]) -> Written<usize> {
        let mut block = Block::new(self.tree.leaf, 1)?;
        for (n, entry) in entries.iter().enumerate() {
            self.entry(&mut block, n, entry)?;
        }
        let len = u32::try_from(entries.len()).map_err(|_| too_large())?;
        block.put(place_of(self.tree.len_at), &len.to_le_bytes());
        self.writer.place(block)
    }

    fn close_inner(
        &mut self,
        entries: &[(Entry<'j>, Option<usize>)],
        greater: Option<usize>,
    ) -> Written<usize> {
        let mut block = Block::new(self.tree.inner, 1)?;
        block.put(0, &[1]);
        for (n, (entry, lesser)) in entries.iter().enumerate() {
            self.entry(&mut block, n, entry)?;
            self.child(&mut block, n, *lesser);
        }
        self.child(&mut block, place_of(NODE_ENTRIES), greater);
        self.writer.place(block)
    }

    fn child(&self, block: &mut Block, n: usize, child: Option<usize>) {
        let at = place_of(self.tree.links_at) + 4 * n;
        match child {
            Some(child) => block.link(at, child),
            None => block.put(at, &NOWHERE.to_le_bytes()),
        }
    }

    fn entry(&mut self, block: &mut Block, n: usize, entry: &Entry<'j>) -> Written<()> {
        let tree = &self.tree;
        let key_at = place_of(tree.keys_at) + n * place_of(tree.key_size);
        let value_at = place_of(tree.values_at) + n * place_of(tree.value_size);
        let (key, value) = (tree.key, tree.value);
        self.writer.entry(block, (key, key_at), (value, value_at), entry)
    }
}

/// What a JSON value is given as.
pub(crate) struct Given;

impl Given {
    /// The bytes of a sequence of bytes, unless the items are something else.
    pub(crate) fn bytes(layout: &Layout, item: TypeId, json: &Value) -> Written<Option<Vec<u8>>> {
        if !layout.is_byte(item) {
            return Ok(None);
        }
        match json {
            Value::String(text) => {
                let bytes = BASE64_STANDARD.decode(text);
                bytes.map(Some).map_err(|error| JsonError::new(format!("is no base64 text: {error}")))
            }
            Value::Array(items) => {
                let byte = |json| integer::<u128>(json, 1).map(|byte| u8::try_from(byte).unwrap_or_default());
                items.iter().map(byte).collect::<Written<Vec<u8>>>().map(Some)
            }
            other => Err(expected("base64 text or an array of numbers", Some(other))),
        }
    }

    /// What is in an `Option`.
    pub(crate) fn some<'j>(layout: &Layout, item: TypeId, json: &'j Value) -> Option<&'j Value> {
        match json {
            Value::Null => None,
            Value::Object(map) if map.len() == 1 && layout.may_be_null(item) => {
                map.get("Some").or(Some(json))
            }
            other => Some(other),
        }
    }

    /// A variant's name, and its fields if they are given.
    pub(crate) fn variant(json: &Value) -> Written<(&str, Option<&Value>)> {
        let wanted = "the name of a variant, or an object with that name alone";
        match json {
            Value::String(name) => Ok((name, None)),
            Value::Object(map) if map.len() == 1 => {
                let (name, value) = map.iter().next().ok_or_else(|| expected(wanted, Some(json)))?;
                Ok((name, Some(value)))
            }
            other => Err(expected(wanted, Some(other))),
        }
    }

    /// The entries of a map, keys as values of their own.
    pub(crate) fn entries<'j>(
        layout: &Layout,
        key: TypeId,
        json: &'j Value,
    ) -> Written<Vec<(Value, &'j Value)>> {
        match json {
            Value::Object(map) if layout.is_name(key) => {
                map.iter().map(|(name, value)| Ok((name_of(layout, key, name), value))).collect()
            }
            Value::Array(items) => {
                let pair = |(n, item): (usize, &'j Value)| match item.as_array().map(Vec::as_slice) {
                    Some([key, value]) => Ok((key.clone(), value)),
                    _ => Err(expected("[key, value]", Some(item)).under(format!("[{n}]"))),
                };
                items.iter().enumerate().map(pair).collect()
            }
            other if layout.is_name(key) => Err(expected("an object", Some(other))),
            other => Err(expected("an array of [key, value]", Some(other))),
        }
    }
}

/// The value that the name of a field of a JSON object stands for.
fn name_of(layout: &Layout, key: TypeId, name: &str) -> Value {
    let text = || Value::String(name.to_owned());
    match layout.ty(layout.unwrapped(key)) {
        // What cannot be read stays text, and is refused with its reason where the number is written.
        Type::Int { bytes: ..=8, .. } => match (name.parse::<u64>(), name.parse::<i64>()) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) => number.into(),
            _ => text(),
        },
        Type::Bool => name.parse().map_or_else(|_| text(), Value::Bool),
        _ => text(),
    }
}

fn plain_into(block: &mut Block, at: usize, ty: &Type, json: &Value) -> Written<()> {
    match ty {
        Type::Int { bytes, signed: false, .. } => {
            let number = integer::<u128>(json, *bytes)?.to_le_bytes();
            block.put(at, &number[..place_of(*bytes)]);
        }
        Type::Int { bytes, .. } => {
            let number = integer::<i128>(json, *bytes)?.to_le_bytes();
            block.put(at, &number[..place_of(*bytes)]);
        }
        Type::F64 => block.put(at, &float(json)?.to_le_bytes()),
        Type::F32 => block.put(at, &single(float(json)?)?.to_le_bytes()),
        Type::Bool => {
            block.put(at, &[u8::from(boolean(json)?)]);
        }
        Type::Char => {
            block.put(at, &u32::from(character(json)?).to_le_bytes());
        }
        Type::Duration => {
            let map = json.as_object().filter(|map| map.len() == 2);
            let parts = map.and_then(|map| map.get("secs").zip(map.get("nanos")));
            let (secs, nanos) = parts.ok_or_else(|| expected("{\"secs\": n, \"nanos\": n}", Some(json)))?;
            let secs = integer::<u128>(secs, 8).map_err(|error| error.under(".secs"))?;
            let nanos = integer::<u128>(nanos, 4).map_err(|error| error.under(".nanos"))?;
            if nanos >= 1_000_000_000 {
                return Err(JsonError::new("less than 1000000000 is expected").under(".nanos"));
            }
            block.put(at, &secs.to_le_bytes()[..8]);
            block.put(at + 8, &nanos.to_le_bytes()[..4]);
        }
        _ if json.is_null() => {}
        _ => return Err(expected("null", Some(json))),
    }
    Ok(())
}

/// Widths of integers, for [`integer`].
pub(crate) trait Wide: Sized + Copy {
    fn parsed(text: &str) -> Option<Self>;
    fn is_within(self, bits: u32) -> bool;
    const KIND: &'static str;
}

impl Wide for u128 {
    fn parsed(text: &str) -> Option<u128> {
        text.parse().ok()
    }

    fn is_within(self, bits: u32) -> bool {
        self.leading_zeros() >= 128 - bits
    }

    const KIND: &'static str = "from 0 on";
}

impl Wide for i128 {
    fn parsed(text: &str) -> Option<i128> {
        text.parse().ok()
    }

    fn is_within(self, bits: u32) -> bool {
        let magnitude = if self < 0 { !self } else { self };
        magnitude.leading_zeros() >= 128 - (bits - 1)
    }

    const KIND: &'static str = "with a sign";
}

/// An integer of so many bytes, from a number or, where JSON's own numbers may lose digits on their way, from text.
pub(crate) fn integer<T: Wide>(json: &Value, bytes: u64) -> Written<T> {
    let bits = u32::try_from(bytes * 8).unwrap_or(128);
    let text = match json {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) if bytes >= 8 => Some(text.clone()),
        _ => None,
    };
    let number = text.as_deref().and_then(T::parsed).filter(|number| number.is_within(bits));
    number.ok_or_else(|| expected(&format!("a whole number of {bits} bits {}", T::KIND), Some(json)))
}

fn float(json: &Value) -> Written<f64> {
    let number = match json {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "inf" => Some(f64::INFINITY),
            "-inf" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    number.ok_or_else(|| expected("a number, or \"NaN\", \"inf\", \"-inf\"", Some(json)))
}

fn single(number: f64) -> Written<f32> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "to the nearest that there is; what is too large is refused below"
    )]
    let single = number as f32;
    if single.is_infinite() && number.is_finite() {
        return Err(JsonError::new(format!("{number} is too large for 32 bits")));
    }
    Ok(single)
}

pub(crate) fn text_of(json: &Value) -> Written<&str> {
    json.as_str().ok_or_else(|| expected("a text", Some(json)))
}

pub(crate) fn boolean(json: &Value) -> Written<bool> {
    json.as_bool().ok_or_else(|| expected("true or false", Some(json)))
}

pub(crate) fn character(json: &Value) -> Written<char> {
    let mut signs = text_of(json)?.chars();
    match (signs.next(), signs.next()) {
        (Some(sign), None) => Ok(sign),
        _ => Err(expected("a text of one character", Some(json))),
    }
}

fn expected(what: &str, found: Option<&Value>) -> JsonError {
    let found = match found {
        None => "nothing".to_owned(),
        Some(json) => {
            let text = json.to_string();
            let cut = text.char_indices().nth(60).map(|(at, _)| at);
            cut.map_or(text.clone(), |at| format!("{}…", &text[..at]))
        }
    };
    JsonError::new(format!("{what} is expected, not {found}"))
}

fn too_large() -> JsonError {
    JsonError::new("it takes more than 2 GiB")
}

/// A place or size in a block; blocks are below 2 GiB.
fn place_of(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}
