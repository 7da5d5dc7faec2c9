//! Macros of the Denizen SDK. The crate `denizen` re-exports and documents them; their output names only what
//! is in `denizen::__private` and in its public face, always by absolute path.

mod attribute;
mod export;
mod function;
mod migrate;
mod state;

use proc_macro::TokenStream;

/// Makes a function callable from outside, once [`export!`] names it. It stays an ordinary function too.
///
/// ```text
/// #[function]
/// fn name(cx: &mut Context, input: Input) -> Result<Output> { … }
/// ```
///
/// * The first parameter decides who runs beside it: `&mut Context` makes it exclusive, `&Context` read-only.
/// * The second parameter is the input; it may be left out.
/// * What it returns is the reply, bare or in a `Result`.
/// * Its doc comment becomes the description that people see.
/// * `#[function(name = "other-name")]` is what callers say instead of the function's name: 1 to 128 of
///   `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
/// * `#[function(concurrent)]`, with `&mut Context`: it runs beside any other, on the state as it was when it
///   began and with a write set of its own. If another invocation commits first to a key that it writes, or
///   reads with `get_for_update` or `watch`, it fails with a conflict and commits nothing; its caller may call
///   again. What it only *reads* is not checked, so two of them may each write what the other has read and
///   overlook one another (write skew): watch what the outcome rests on.
#[proc_macro_attribute]
pub fn function(arguments: TokenStream, item: TokenStream) -> TokenStream {
    function::expand(arguments.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a struct or enum a record of the state: `cx.put("key", &value)`, `cx.get::<T>("key")`.
///
/// It derives rkyv's `Archive`, `Serialize` and `Deserialize` and `denizen::StateType`, and declares the type
/// to the host under its name. Every field must be a state type too. For a `struct Counter` the form that is
/// read in place is called `ArchivedCounter`.
///
/// The layout is everything that the definition says: names and types of the fields, names and order of the
/// variants, and the type's own name. Change any of it and records written before can no longer be read
/// (`ErrorKind::TypeChanged`), unless a [`macro@migrate`] function leads from the old layout to the new one.
/// `#[state(name = "Old")]` keeps the name while the Rust type is renamed.
///
/// A type may contain itself through `Box`, `Vec` and the like, directly but not by way of another type.
/// Generic types, and rkyv attributes that change the layout, are refused.
#[proc_macro_attribute]
pub fn state(arguments: TokenStream, item: TokenStream) -> TokenStream {
    state::expand(state::Use::Record, arguments.into(), item.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Makes a function the way from an older layout of records to a newer one.
///
/// ```text
/// #[state(name = "Counter")]                  // laid out and called as it was
/// struct CounterV1 { count: u64 }
///
/// #[state]
/// struct Counter { count: u64, name: String }
///
/// #[migrate]
/// fn counter_from_v1(old: CounterV1) -> Result<Counter> {
///     Ok(Counter { count: old.count, name: String::new() })
/// }
/// ```
///
/// It is found by itself, like the types. It takes the old record as a value or, for a large one, in place
/// (`old: &Archived<CounterV1>`), and returns the new one, bare or in a `Result`.
///
/// Where a record of the old layout is read, edited, updated or scanned as the new type, the function runs
/// first. If the invocation may write, the new record is part of its commit; in a read-only function it lives
/// until the invocation returns. Migrations chain: from V1 to V2 and from V2 to V3 gives from V1 to V3. If one
/// returns an error the record stays as it was, and reading it fails with `ErrorKind::TypeChanged`.
///
/// Two ways from one layout to another are refused when the plugin starts. The plugin tells its host which
/// layouts it can migrate from; a node takes it over processes that hold such records.
#[proc_macro_attribute]
pub fn migrate(arguments: TokenStream, item: TokenStream) -> TokenStream {
    migrate::expand(&arguments.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// As [`macro@state`], for a type that is only a part of records, or that travels as an archive
/// (`&Archived<T>`, `Archive<T>`): it is not declared to the host as a record of its own.
#[proc_macro_attribute]
pub fn payload(arguments: TokenStream, item: TokenStream) -> TokenStream {
    state::expand(state::Use::Part, arguments.into(), item.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Makes the package a plugin that offers these functions: `denizen::export!(increment, orders::place);`.
/// Once per package.
///
/// A function of another module is named with its path, also where it is imported. `init = f` at the end runs
/// `fn f(init: &mut denizen::Init) -> denizen::Result<()>` when the plugin starts, to declare functions that
/// are known only then. A plugin may have nothing but that.
#[proc_macro]
pub fn export(functions: TokenStream) -> TokenStream {
    export::expand(functions.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
