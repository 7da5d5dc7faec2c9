//! What must not compile, each beside the nearest thing that does. These are tests, and nothing else.
//!
//! A read-only function has no way to write:
//! ```compile_fail,E0596
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &Context) -> Result<()> { cx.put("key", &1_u64) }
//! ```
//! ```
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &mut Context) -> Result<()> { cx.put("key", &1_u64) }
//! ```
//!
//! ```compile_fail,E0596
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &Context) -> Result<()> { cx.update::<u64, _>("key", |mut n| *n = 1.into()).map(drop) }
//! ```
//! ```
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &mut Context) -> Result<()> { cx.update::<u64, _>("key", |mut n| *n = 1.into()).map(drop) }
//! ```
//!
//! What is updated in place keeps its size, and nothing else is looked at meanwhile:
//! ```compile_fail,E0594
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &mut Context) -> Result<()> {
//!     cx.update::<String, _>("key", |mut text| *text = denizen::rkyv::Archived::<String>::default()).map(drop)
//! }
//! ```
//! ```compile_fail,E0502
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &mut Context) -> Result<()> {
//!     cx.update::<u64, _>("key", |_| cx.get_bytes("key").map(drop)).map(drop)
//! }
//! ```
//!
//! A migration leads from one record to another:
//! ```compile_fail,E0277
//! # use denizen::prelude::*;
//! #[migrate]
//! fn f(old: u32) -> Result<std::rc::Rc<u64>> { Ok(std::rc::Rc::new(old.into())) }
//! ```
//! ```
//! # use denizen::prelude::*;
//! #[migrate]
//! fn f(old: u32) -> Result<u64> { Ok(old.into()) }
//! ```
//!
//! A field that cannot be kept, and one that can:
//! ```compile_fail,E0277
//! # use denizen::prelude::*;
//! #[state]
//! struct S { shared: std::rc::Rc<u8> }
//! ```
//! ```
//! # use denizen::prelude::*;
//! #[state]
//! struct S { own: Box<u8> }
//! ```
//!
//! An input or a reply that is neither bytes nor marked:
//! ```compile_fail,E0277
//! # use denizen::prelude::*;
//! #[function]
//! fn f(_: &Context, input: u64) {}
//! ```
//! ```compile_fail,E0277
//! # use denizen::prelude::*;
//! #[function]
//! fn f(_: &Context) -> Result<u64> { Ok(1) }
//! ```
//! ```
//! # use denizen::prelude::*;
//! #[function]
//! fn f(_: &Context, Json(input): Json<u64>) -> Result<Json<u64>> { Ok(Json(input)) }
//! ```
//!
//! Nothing of the host outlives the invocation:
//! ```compile_fail,E0521
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &mut Context, body: &[u8]) {
//!     std::thread::spawn(move || println!("{}", body.len()));
//! }
//! ```
//! ```compile_fail
//! # use denizen::prelude::*;
//! # use std::cell::Cell;
//! thread_local!(static KEPT: Cell<Option<&'static [u8]>> = const { Cell::new(None) });
//! #[function]
//! fn f(cx: &Context) -> Result<()> {
//!     KEPT.set(cx.get_bytes("key")?);
//!     Ok(())
//! }
//! ```
//! ```compile_fail
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &mut Context<'static>) {}
//! ```
//!
//! The context stays on its thread:
//! ```compile_fail,E0277
//! # use denizen::prelude::*;
//! #[function]
//! fn f(cx: &mut Context) {
//!     std::thread::scope(|scope| { scope.spawn(|| cx.put("key", &1_u64)); });
//! }
//! ```
//!
//! Two functions of one name:
//! ```compile_fail,E0080
//! # use denizen::prelude::*;
//! #[function]
//! fn f(_: &Context) {}
//! #[function(name = "f")]
//! fn g(_: &Context) {}
//! denizen::export!(f, g);
//! # fn main() {}
//! ```
//!
//! A function that is not marked:
//! ```compile_fail
//! # use denizen::prelude::*;
//! fn f(_: &Context) {}
//! denizen::export!(f);
//! # fn main() {}
//! ```
