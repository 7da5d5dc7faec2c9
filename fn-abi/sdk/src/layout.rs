//! Which bytes a record consists of: the layout of a state type as text, and its fingerprint.
//!
//! An archive does not say what it is. Bytes of one type can pass validation as another and read as garbage,
//! so each record carries the fingerprint of the type that wrote it, and is read only as a type with the same
//! one.

use crate::submitted::{List, Submitted};
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// A type whose values can be kept in the state of a process.
///
/// Mark a struct or enum with [`#[state]`](macro@crate::state) rather than implementing it. Numbers, `bool`,
/// `char`, `String`, `Option`, `Box`, `Result`, arrays, tuples, `Duration` and the collections of `std` are
/// state types already.
///
/// # Safety
/// [`describe`](StateType::describe) must tell two types apart whenever their archived forms differ in any
/// way: archives are read as the type with the same fingerprint without being validated again.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be kept in the state of a process",
    label = "not a state type",
    note = "mark it with `#[state]` if it is a record of the state",
    note = "mark it with `#[payload]` if it is only a part of one, or travels as an archive",
    note = "numbers, `String`, `Option`, arrays, tuples and the collections of `std` are state types already"
)]
pub unsafe trait StateType:
    rkyv::Archive<
        Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
                      + rkyv::Deserialize<Self, HighDeserializer<rancor::Error>>,
    > + for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
    + Sized
    + 'static
{
    /// Writes the type's layout, with everything inside it.
    fn describe(layout: &mut Layout);

    /// A hash of the layout and of how rkyv lays things out in this build. Never 0.
    #[must_use]
    fn fingerprint() -> u64 {
        thread_local! {
            static KNOWN: RefCell<HashMap<TypeId, u64>> = RefCell::new(HashMap::new());
        }
        KNOWN.with_borrow_mut(|known| *known.entry(TypeId::of::<Self>()).or_insert_with(compute::<Self>))
    }

    /// The layout as text, such as `struct Counter { count: u64 }`.
    #[must_use]
    fn layout() -> String {
        let mut layout = Layout::default();
        Self::describe(&mut layout);
        layout.text
    }
}

/// The layout of a type while it is being written.
#[derive(Debug, Default)]
pub struct Layout {
    text: String,
    /// The types spelled out so far, so that a recursive one ends, and one used often stays short.
    defined: Vec<(&'static str, TypeId)>,
}

impl Layout {
    /// Appends text.
    pub fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Appends a type.
    pub fn ty<T: StateType>(&mut self) {
        T::describe(self);
    }

    /// Appends `name: T`.
    pub fn field<T: StateType>(&mut self, name: &str) {
        self.text.push_str(name);
        self.text.push_str(": ");
        T::describe(self);
    }

    /// Appends the definition of `T`, which `body` writes, or `^name` if the text has it already.
    pub fn definition<T: 'static>(&mut self, name: &'static str, body: impl FnOnce(&mut Layout)) {
        let id = TypeId::of::<T>();
        let namesakes = self.defined.iter().filter(|(known, _)| *known == name);
        let (mut count, mut place) = (0_usize, None);
        for (_, known) in namesakes {
            count += 1;
            if *known == id {
                place = Some(count);
            }
        }
        let Some(place) = place else {
            self.defined.push((name, id));
            return body(self);
        };
        // Marked, because a type of `std` could have the same name.
        self.text.push('^');
        self.text.push_str(name);
        if count > 1 {
            // Two types of one name are in the text: say which of them is meant.
            let _infallible = write!(self.text, "#{place}");
        }
    }
}

/// [`StateType::fingerprint`] with a cell that remembers it, for the types that `#[state]` marks.
#[doc(hidden)]
pub fn fingerprint_of<T: StateType>(cell: &AtomicU64) -> u64 {
    match cell.load(Ordering::Relaxed) {
        0 => {
            let fingerprint = compute::<T>();
            cell.store(fingerprint, Ordering::Relaxed);
            fingerprint
        }
        known => known,
    }
}

fn compute<T: StateType>() -> u64 {
    let archived = (size_of::<T::Archived>(), align_of::<T::Archived>());
    let described = format!("{} {archived:?} {}", archive_format(), T::layout());
    // FNV-1a, 64 bit (draft-eastlake-fnv): it only has to tell an author's own layouts apart.
    let hash = described.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.max(1)
}

/// How rkyv lays archives out in this build, as far as its features decide it. They are observed, because any
/// crate of the author's package can switch them.
fn archive_format() -> String {
    let little = rkyv::rend::u16_le::from_native(1);
    let one = rkyv::primitive::ArchivedU16::from_native(1);
    // SAFETY: both are two bytes without padding; reading them as bytes is what is wanted.
    let same_order = unsafe {
        std::mem::transmute_copy::<_, [u8; 2]>(&little) == std::mem::transmute_copy::<_, [u8; 2]>(&one)
    };
    format!(
        "rkyv 0.8 {} align {} pointer {}",
        if same_order { "little" } else { "big" },
        align_of::<rkyv::primitive::ArchivedU64>(),
        size_of::<rkyv::primitive::ArchivedUsize>()
    )
}

/// A state type that the plugin tells its host about; `#[state]` submits it.
#[doc(hidden)]
#[derive(Debug)]
pub struct DeclaredType {
    pub(crate) name: &'static str,
    pub(crate) layout: fn() -> String,
    pub(crate) fingerprint: fn() -> u64,
}

impl DeclaredType {
    #[must_use]
    pub const fn new<T: StateType>(name: &'static str) -> DeclaredType {
        DeclaredType { name, layout: T::layout, fingerprint: T::fingerprint }
    }
}

impl Submitted for DeclaredType {
    fn list() -> &'static List<DeclaredType> {
        static TYPES: List<DeclaredType> = List::new();
        &TYPES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state;

    #[state]
    struct Word {
        text: String,
        seen: u32,
    }

    #[state]
    struct Tree {
        word: Word,
        best: Option<Word>,
        children: Vec<Tree>,
    }

    #[state]
    enum Shape {
        Point,
        Circle(f64),
        Box { corners: [(i32, i32); 2] },
    }

    mod other {
        use crate::state;

        #[state]
        pub(super) struct Word(u8);
    }

    #[state]
    struct Both {
        mine: Word,
        other: other::Word,
        again: Word,
        other_again: other::Word,
    }

    #[test]
    fn layouts_are_text_with_everything_in_it() {
        assert_eq!(Word::layout(), "struct Word { text: String, seen: u32 }");
        assert_eq!(Shape::layout(), "enum Shape { Point, Circle(f64), Box { corners: [(i32, i32); 2] } }");
        assert_eq!(
            HashMap::<String, Vec<Word>>::layout(),
            "HashMap<String, Vec<struct Word { text: String, seen: u32 }>>"
        );
    }

    #[test]
    fn a_recursive_layout_ends_and_a_repeated_type_is_named() {
        assert_eq!(
            Tree::layout(),
            "struct Tree { word: struct Word { text: String, seen: u32 }, best: Option<^Word>, children: Vec<^Tree> }"
        );
    }

    #[test]
    fn namesakes_are_told_apart() {
        assert_eq!(
            Both::layout(),
            "struct Both { mine: struct Word { text: String, seen: u32 }, other: struct Word(u8), again: ^Word#1, \
             other_again: ^Word#2 }"
        );
    }

    #[test]
    fn fingerprints_differ_with_the_layout_and_repeat() {
        assert_ne!(Word::fingerprint(), other::Word::fingerprint());
        assert_eq!(Word::fingerprint(), Word::fingerprint());
        assert_ne!(u32::fingerprint(), i32::fingerprint());
        assert_ne!(Vec::<u32>::fingerprint(), Vec::<Vec<u32>>::fingerprint());
        assert_eq!(archive_format(), "rkyv 0.8 little align 8 pointer 4");
    }

    #[test]
    fn marked_types_are_submitted_before_main() {
        let names: Vec<_> = DeclaredType::list().iter().map(|ty| ty.name).collect();
        for name in ["Word", "Tree", "Shape", "Both"] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
    }
}
