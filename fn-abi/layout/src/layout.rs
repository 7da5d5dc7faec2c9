//! A layout: the types in it, and how many bytes they take in an archive.
//!
//! Sizes follow rkyv 0.8 with its default features: little-endian, aligned, 32-bit relative pointers, `#[repr(C)]` structs and
//! `#[repr(u8)]` enums. Whether a plugin was built like that is told by its fingerprints, which hold the features:
//! [`Layout::fingerprint`].

use crate::LayoutError;

/// No type and no value is larger than what a relative pointer reaches.
const MAX_SIZE: u64 = 1 << 31;

/// A type in a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypeId(pub(crate) usize);

/// What a type is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    /// An integer of so many bytes.
    Int {
        bytes: u64,
        signed: bool,
        pointer_sized: bool,
    },
    F32,
    F64,
    Bool,
    Char,
    Unit,
    Text,
    Duration,
    Box(TypeId),
    /// `Vec`, or `VecDeque`, whose keys hash in another way.
    List {
        item: TypeId,
        deque: bool,
    },
    Array {
        item: TypeId,
        len: u64,
    },
    Tuple(Fields),
    Map {
        key: TypeId,
        value: TypeId,
        hashed: bool,
    },
    Set {
        item: TypeId,
        hashed: bool,
    },
    Option(TypeId),
    Result(TypeId, TypeId),
    Struct {
        name: String,
        fields: Fields,
    },
    Enum {
        name: String,
        variants: Vec<Variant>,
    },
}

/// A variant of an enum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) fields: Fields,
}

/// How the fields of a struct or variant were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Unit,
    Tuple,
    Named,
}

/// The fields of a struct, variant or tuple.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) shape: Shape,
    pub(crate) slots: Vec<Slot>,
}

/// A field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Empty where it has none.
    pub(crate) name: String,
    pub(crate) ty: TypeId,
    /// Where it lies in what holds it; of a variant, the tag included.
    pub(crate) at: u64,
}

/// How many bytes a type takes, and at which multiples it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) size: u64,
    pub(crate) align: u64,
}

impl Extent {
    pub(crate) const fn new(size: u64, align: u64) -> Extent {
        Extent { size, align }
    }

    /// Puts another one behind; gives where it begins.
    pub(crate) fn push(&mut self, next: Extent) -> u64 {
        let at = self.size.next_multiple_of(next.align);
        self.size = at + next.size;
        self.align = self.align.max(next.align);
        at
    }

    /// Padded to its alignment, as `#[repr(C)]` does.
    pub(crate) fn padded(self) -> Extent {
        Extent { size: self.size.next_multiple_of(self.align), align: self.align }
    }
}

/// Nothing yet, to begin a struct with.
pub(crate) const EMPTY: Extent = Extent::new(0, 1);
/// The tag of an enum, to begin a variant with.
pub(crate) const TAG: Extent = Extent::new(1, 1);

/// The parsed layout of a state type.
#[derive(Debug, Clone)]
pub struct Layout {
    pub(crate) text: String,
    pub(crate) types: Vec<Type>,
    pub(crate) extents: Vec<Extent>,
    pub(crate) root: TypeId,
}

impl Layout {
    /// Parses a layout as an SDK writes it, such as `struct Counter { count: u64 }`.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn parse(text: &str) -> Result<Layout, LayoutError> {
        let (types, root) = crate::parse::parse(text)?;
        let mut sizing = Sizing { extents: vec![Known::Not; types.len()], types };
        for id in 0..sizing.types.len() {
            sizing.size(TypeId(id))?;
        }
        let known = sizing.extents.iter().map(|extent| match extent {
            Known::Is(extent) => *extent,
            Known::Not | Known::Begun => EMPTY,
        });
        Ok(Layout { text: text.to_owned(), extents: known.collect(), types: sizing.types, root })
    }

    /// The fingerprint that a plugin gives this layout if its rkyv lays archives out as they are read here. If it declares another one,
    /// its records are not to be interpreted.
    pub fn fingerprint(&self) -> u64 {
        let Extent { size, align } = self.extent(self.root);
        // What the SDK hashes, word for word: `fn-abi/sdk/src/layout.rs`.
        let described = format!("rkyv 0.8 little align 8 pointer 4 ({size}, {align}) {}", self.text);
        let hash = described.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        hash.max(1)
    }

    /// The text that it was parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn ty(&self, id: TypeId) -> &Type {
        &self.types[id.0]
    }

    pub(crate) fn extent(&self, id: TypeId) -> Extent {
        self.extents[id.0]
    }

    /// Whether these are plain bytes.
    pub(crate) fn is_byte(&self, id: TypeId) -> bool {
        matches!(self.ty(id), Type::Int { bytes: 1, signed: false, .. })
    }

    /// The only field of a struct with one and no name for it, which JSON shows as that field alone.
    pub(crate) fn newtype(fields: &Fields) -> Option<TypeId> {
        match (fields.shape, fields.slots.as_slice()) {
            (Shape::Tuple, [slot]) => Some(slot.ty),
            _ => None,
        }
    }

    /// What is in a box or a newtype, or in one of those in there.
    pub(crate) fn unwrapped(&self, mut id: TypeId) -> TypeId {
        // A type that boxes itself and nothing else has no values; the walk ends all the same.
        for _ in 0..self.types.len() {
            id = match self.ty(id) {
                Type::Box(item) => *item,
                Type::Struct { fields, .. } => match Layout::newtype(fields) {
                    Some(item) => item,
                    None => return id,
                },
                _ => return id,
            };
        }
        id
    }

    /// Whether a value may look like `null` in JSON.
    pub(crate) fn may_be_null(&self, id: TypeId) -> bool {
        match self.ty(self.unwrapped(id)) {
            Type::Unit | Type::Option(_) => true,
            Type::Struct { fields, .. } => fields.shape == Shape::Unit,
            _ => false,
        }
    }

    /// Whether values can be keys of a JSON object.
    pub(crate) fn is_name(&self, id: TypeId) -> bool {
        match self.ty(self.unwrapped(id)) {
            Type::Int { .. } | Type::Bool | Type::Char | Type::Text => true,
            Type::Enum { variants, .. } => variants.iter().all(|variant| variant.fields.shape == Shape::Unit),
            _ => false,
        }
    }
}

/// Lays out an entry of a hash table.
pub(crate) fn entry(key: Extent, value: Extent) -> (Extent, u64) {
    let mut entry = EMPTY;
    entry.push(key);
    let value_at = entry.push(value);
    (entry.padded(), value_at)
}

#[derive(Debug, Clone, Copy)]
enum Known {
    Not,
    Begun,
    Is(Extent),
}

/// Works out sizes and places.
struct Sizing {
    types: Vec<Type>,
    extents: Vec<Known>,
}

impl Sizing {
    fn size(&mut self, id: TypeId) -> Result<Extent, LayoutError> {
        match self.extents[id.0] {
            Known::Is(extent) => return Ok(extent),
            Known::Begun => return Err(LayoutError::NoSize { name: String::new() }),
            Known::Not => {}
        }
        self.extents[id.0] = Known::Begun;
        // Taken out while its parts are looked at; whoever meets it meanwhile sees `Begun`.
        let mut ty = std::mem::replace(&mut self.types[id.0], Type::Unit);
        let extent = self.extent_of(&mut ty);
        let extent = extent.and_then(|extent| {
            let possible = extent.filter(|extent| extent.size <= MAX_SIZE);
            possible.ok_or(LayoutError::NoSize { name: String::new() })
        });
        let extent = extent.map_err(|error| named(error, &ty));
        self.types[id.0] = ty;
        self.extents[id.0] = Known::Is(extent.clone()?);
        extent
    }

    /// `None`: beyond all limits.
    fn extent_of(&mut self, ty: &mut Type) -> Result<Option<Extent>, LayoutError> {
        Ok(Some(match ty {
            // 128-bit integers are aligned like themselves.
            Type::Int { bytes, .. } => Extent::new(*bytes, *bytes),
            Type::F32 | Type::Char => Extent::new(4, 4),
            Type::F64 => Extent::new(8, 8),
            Type::Bool => Extent::new(1, 1),
            Type::Unit => EMPTY,
            Type::Duration => Extent::new(16, 8),
            Type::Box(_) => Extent::new(4, 4),
            Type::Text | Type::List { .. } => Extent::new(8, 4),
            Type::Map { hashed: true, .. } | Type::Set { hashed: true, .. } => Extent::new(12, 4),
            Type::Map { .. } | Type::Set { .. } => Extent::new(8, 4),
            Type::Array { item, len } => {
                let item = self.size(*item)?;
                let size = item.size.checked_mul(*len);
                return Ok(size.map(|size| Extent::new(size, item.align)));
            }
            Type::Option(item) => self.fields_of(TAG, [*item])?,
            Type::Result(ok, err) => {
                let (ok, err) = (self.fields_of(TAG, [*ok])?, self.fields_of(TAG, [*err])?);
                widest(ok, err)
            }
            Type::Tuple(fields) | Type::Struct { fields, .. } => self.place(EMPTY, fields)?,
            Type::Enum { variants, .. } => {
                let mut all = TAG;
                for variant in variants {
                    all = widest(all, self.place(TAG, &mut variant.fields)?);
                }
                all
            }
        }))
    }

    fn fields_of(&mut self, mut extent: Extent, types: [TypeId; 1]) -> Result<Extent, LayoutError> {
        for ty in types {
            extent.push(self.size(ty)?);
        }
        Ok(extent.padded())
    }

    fn place(&mut self, mut extent: Extent, fields: &mut Fields) -> Result<Extent, LayoutError> {
        for slot in &mut fields.slots {
            // Each is within the limit and there are few, so sums stay far below what a `u64` holds.
            slot.at = extent.push(self.size(slot.ty)?);
        }
        Ok(extent.padded())
    }
}

/// A place for either.
fn widest(one: Extent, other: Extent) -> Extent {
    Extent::new(one.size.max(other.size), one.align.max(other.align)).padded()
}

/// Says which marked type it is, the innermost.
fn named(error: LayoutError, ty: &Type) -> LayoutError {
    match (error, ty) {
        (LayoutError::NoSize { name: none }, Type::Struct { name, .. } | Type::Enum { name, .. })
            if none.is_empty() =>
        {
            LayoutError::NoSize { name: name.clone() }
        }
        (error, _) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(text: &str) -> (u64, u64) {
        let layout = Layout::parse(text).expect("it is a layout");
        let Extent { size, align } = layout.extent(layout.root);
        (size, align)
    }

    #[test]
    fn sizes_are_those_of_repr_c() {
        assert_eq!(extent("u8"), (1, 1));
        assert_eq!(extent("u128"), (16, 16));
        assert_eq!(extent("usize"), (4, 4));
        assert_eq!(extent("(u8, u64, u8)"), (24, 8));
        assert_eq!(extent("[(u8, u16); 3]"), (12, 2));
        assert_eq!(extent("Option<u8>"), (2, 1));
        assert_eq!(extent("Option<Box<u8>>"), (8, 4));
        assert_eq!(extent("Result<u8, u64>"), (16, 8));
        assert_eq!(extent("struct S { }"), (0, 1));
        assert_eq!(extent("enum E { A, B(u8, u32), C { x: u16 } }"), (8, 4));
        assert_eq!(extent("struct T { next: Option<Box<^T>>, all: Vec<^T> }"), (16, 4));
    }

    #[test]
    fn what_holds_itself_has_no_size() {
        let refused = |text: &str| Layout::parse(text).expect_err("it has no size");
        assert_eq!(refused("struct A { a: ^A }"), LayoutError::NoSize { name: "A".into() });
        assert!(matches!(refused("struct A(Option<[^A; 2]>)"), LayoutError::NoSize { .. }));
        assert!(matches!(refused("[u64; 18446744073709551615]"), LayoutError::NoSize { .. }));
        assert!(matches!(refused("[u8; 3000000000]"), LayoutError::NoSize { .. }));
        assert_eq!(extent("[(); 18446744073709551615]"), (0, 1));
    }
}
