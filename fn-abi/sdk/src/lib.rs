//! The Denizen SDK: functions that keep their state, in Rust.
//!
//! A package of the crate type `cdylib` whose functions are marked with [`macro@function`] and named in
//! [`export!`] is a plugin that a Denizen node runs. Each *process* of the application has a state of its
//! own, which the functions read and write through their [`Context`]:
//!
//! ```
//! use denizen::prelude::*;
//!
//! #[state]
//! #[derive(Default)]
//! pub struct Counter { count: u64 }
//!
//! #[derive(Deserialize)]
//! struct By { by: u64 }
//!
//! #[derive(Serialize)]
//! struct Count { count: u64 }
//!
//! /// Adds to the count of this process.
//! #[function]
//! fn increment(cx: &mut Context, Json(a): Json<By>) -> Result<Json<Count>> {
//!     let mut c = cx.edit_or_default::<Counter>("counter")?;
//!     c.count = c.count.checked_add(a.by).ok_or_else(|| bad_input("count overflows"))?;
//!     Ok(Json(Count { count: c.count }))
//! }
//!
//! denizen::export!(increment);
//! # fn main() {
//! # let mut process = denizen::testing::process!();
//! # assert_eq!(process.call("increment", r#"{"by":2}"#).unwrap().text(), r#"{"count":2}"#);
//! # }
//! ```
//!
//! The package depends on `denizen`, and on `serde` where it derives `Serialize` or `Deserialize` (serde's
//! derives name that crate; the prelude only saves the import). Nothing else is needed: the derives behind
//! [`macro@state`] find rkyv in here.
//!
//! # One invocation is one transaction
//! What a function writes is committed when it returns `Ok` (or a plain value), all at once. An `Err` or a
//! panic commits nothing. [`Context::commit`] ends the transaction earlier and begins the next;
//! [`Context::savepoint`] takes a piece of it back.
//!
//! # Who may run beside whom
//! `&mut Context` makes a function exclusive: one at a time per process. `&Context` makes it read-only: it
//! runs beside others, on the state as it was when it began, and has no way to write.
//! `#[function(concurrent)]` runs beside others with writes of its own, which may conflict.
//!
//! # State over time
//! A record is only ever read as the type that it was written as. [`macro@migrate`] leads from an older layout
//! to a newer one. Docs of the repository, `docs/state.md`, tell the whole of it: objects, keys, changes,
//! migrations, conflicts, durability and files.
//!
//! # What goes in and out
//! In: nothing, `&[u8]`, `Vec<u8>`, `&str`, `String`, [`Json<T>`], [`&Archived<T>`](Archived) (read in place)
//! or [`Stream`]; or a type of your own with [`FromInput`]. Out: `()`, bytes, text, [`Json<T>`],
//! [`Archive<T>`], [`Reply`], or piece by piece through [`Context::reply_writer`]; or a type of your own with
//! [`IntoReply`]; each bare or in a [`Result`].
//!
//! # Errors
//! `?` works on every ordinary error and blames the function; [`bad_input`] blames the caller. See [`Error`].

// The macros say `::denizen`; this makes that true in here too.
extern crate self as denizen;

mod call;
mod context;
mod edit;
mod error;
mod input;
mod layout;
mod migration;
mod panics;
mod plugin;
mod record;
#[cfg(doctest)]
mod refused;
mod reply;
mod savepoint;
mod state_types;
mod submitted;
pub mod testing;
mod update;

pub use call::MAX_KEY_BYTES;
pub use context::Context;
pub use denizen_abi::{Concurrency, Durability, FailKind, LogLevel, Payload};
pub use denizen_macros::{export, function, migrate, payload, state};
pub use edit::Edit;
pub use error::{Error, ErrorKind, Result, bad_input, failed};
pub use input::{Archived, FromInput, Stream};
pub use layout::{Layout, StateType};
pub use plugin::{Declaration, Init};
pub use record::{Entry, Key, KeyInfo};
pub use reply::{Archive, IntoReply, Json, Outcome, Reply, ReplyWriter, Streamed};

pub use rkyv;
pub use rkyv::munge::munge;
pub use rkyv::seal::Seal;
pub use serde;

/// What a function usually needs: `use denizen::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Archive, Archived, Context, Durability, Error, ErrorKind, Json, LogLevel, Reply, Result, Seal,
        Stream, bad_input, failed, function, migrate, munge, payload, state,
    };
    pub use serde::{Deserialize, Serialize};
}

/// What the macros expand to. Not for authors; it may change in any version.
#[doc(hidden)]
pub mod __private {
    pub use crate::layout::{DeclaredType, fingerprint_of};
    pub use crate::migration::{Migration, from_archive, from_value};
    pub use crate::plugin::{
        Exported, FunctionDef, assert_distinct, init, input_declaration, output_declaration, reply,
    };
    pub use crate::submitted::Node;
    pub use denizen_abi::{ABI_VERSION, Concurrency, DzHost, DzInit};
}
