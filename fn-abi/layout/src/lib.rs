//! Archives of state types, read and written without the plugin that they belong to: only by the layout that it declared.
//!
//! A plugin tells its host of every state type a text such as `struct Counter { count: u64 }` ([`Layout::parse`]). That text and the
//! rules of rkyv 0.8 say where every byte of an archive lies, so a tool can show a record as JSON ([`to_json`]) and make one from JSON
//! ([`from_json`]) while no code of the tenant runs. What must hold:
//!
//! - **Layout and bytes are allegations.** Both come from a tenant. Lengths, offsets, alignment, depth and the amount of work are checked
//!   before they are believed; whatever is wrong is an error that says where, and never a panic.
//! - **No guess.** [`Layout::fingerprint`] is compared with the declared one by whoever has both: a plugin whose rkyv lays things out in
//!   another way has another fingerprint, and is not interpreted. What depends on an author's own `Ord` or `Hash` is not written unless
//!   the caller vouches for it ([`Writing::derived_order`]).
//! - **What is written reads like the SDK's own.** Archives are byte for byte what rkyv makes of the same value; of hash tables the
//!   order may differ.
//!
//! # How types look in JSON
//! As `serde_json` writes them with derived implementations, except for what JSON cannot hold or people would not want to read:
//!
//! | type | JSON |
//! |---|---|
//! | integers up to 64 bits | number; 64-bit ones are also read from decimal text |
//! | `u128`, `i128` | decimal text; also read from a number |
//! | `f32`, `f64` | number; `"NaN"`, `"inf"`, `"-inf"` |
//! | `bool`, `char`, `String`, `()` | `true`, `"c"`, `"text"`, `null` |
//! | `Vec<u8>`, `VecDeque<u8>`, `[u8; N]` | base64 text; also read from an array of numbers |
//! | other sequences, tuples, sets | array |
//! | `Option<T>` | `null` or the value; where the value itself can be `null`, `{"Some": value}` |
//! | `Result<T, E>` | `{"Ok": value}`, `{"Err": value}` |
//! | `Duration` | `{"secs": n, "nanos": n}` |
//! | maps with keys that are text, numbers, `bool`, `char` or enums without fields | object |
//! | other maps | array of `[key, value]` |
//! | `struct S { a: A }`, `struct S(A)`, `struct S(A, B)`, `struct S` | object, the value alone, array, `null` |
//! | variants `V`, `V(A)`, `V(A, B)`, `V { a: A }` | `"V"`, `{"V": value}`, `{"V": [..]}`, `{"V": {..}}` |
//!
//! Fields of type `Option` may be absent when a struct is read from JSON. Everything else has to be there, and nothing else.

mod error;
mod key;
mod layout;
mod parse;
mod read;
mod write;

pub use error::{ArchiveError, JsonError, LayoutError, Path};
pub use layout::Layout;
pub use read::to_json;
pub use write::{Writing, from_json};

/// How deep values may be nested: beyond it a record is refused in both directions.
pub const MAX_DEPTH: usize = 128;

/// The longest layout that is parsed, in bytes.
pub const MAX_LAYOUT_LEN: usize = 256 << 10;
