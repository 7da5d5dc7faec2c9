//! The types of `std` that can be kept in state, as they are or inside a type marked with `#[state]`.

use crate::layout::{Layout, StateType};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

macro_rules! plain {
    ($($type:ty),* $(,)?) => { $(
        // SAFETY: the name is the type's own, and its archived form follows from it and from rkyv's features.
        unsafe impl StateType for $type {
            fn describe(layout: &mut Layout) {
                layout.text(stringify!($type));
            }
        }
    )* };
}

plain!(
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    bool,
    char,
    (),
    String,
    Duration
);

/// Types that rkyv archives by the layout of their parts.
macro_rules! generic {
    ($($name:ident<$($part:ident $(: $bound:ident + $also:ident)?),+>),* $(,)?) => { $(
        // SAFETY: the text names the type and describes every part, and the archived form follows from these.
        unsafe impl<$($part: StateType $(<Archived: $bound + $also> + $bound + $also)?),+> StateType for $name<$($part),+> {
            fn describe(layout: &mut Layout) {
                layout.text(concat!(stringify!($name), "<"));
                let mut _separator = "";
                $(
                    layout.text(_separator);
                    layout.ty::<$part>();
                    _separator = ", ";
                )+
                layout.text(">");
            }
        }
    )* };
}

generic!(
    Option<T>,
    Box<T>,
    Vec<T>,
    VecDeque<T>,
    Result<T, E>,
    BTreeMap<K: Ord + Eq, V>,
    BTreeSet<K: Ord + Eq>,
    HashMap<K: Hash + Eq, V>,
    HashSet<K: Hash + Eq>,
);

// SAFETY: as for `generic!`, the length included.
unsafe impl<T: StateType, const N: usize> StateType for [T; N] {
    fn describe(layout: &mut Layout) {
        layout.text("[");
        layout.ty::<T>();
        layout.text(&format!("; {N}]"));
    }
}

macro_rules! tuples {
    ($(($first:ident $(, $rest:ident)*))*) => { $(
        // SAFETY: as for `generic!`.
        unsafe impl<$first: StateType $(, $rest: StateType)*> StateType for ($first, $($rest,)*) {
            fn describe(layout: &mut Layout) {
                layout.text("(");
                layout.ty::<$first>();
                $(
                    layout.text(", ");
                    layout.ty::<$rest>();
                )*
                layout.text(")");
            }
        }
    )* };
}

tuples!((A)(A, B)(A, B, C)(A, B, C, D)(A, B, C, D, E)(A, B, C, D, E, F)(A, B, C, D, E, F, G)(
    A, B, C, D, E, F, G, H
));
