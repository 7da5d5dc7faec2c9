//! Macros of the Denizen SDK. The crate `denizen` re-exports and documents them; their output names only what
//! is in `denizen::__private` and in its public face, always by absolute path.

mod attribute;
mod export;
mod function;
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
/// * `#[function(concurrent)]`, with `&mut Context`: it runs beside others with a write set of its own, and
///   fails if another changed first what it read. (For now nodes run it as an exclusive one.)
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
/// (`ErrorKind::TypeChanged`). `#[state(name = "Old")]` keeps the name while the Rust type is renamed.
///
/// A type may contain itself through `Box`, `Vec` and the like, directly but not by way of another type.
/// Generic types, and rkyv attributes that change the layout, are refused.
#[proc_macro_attribute]
pub fn state(arguments: TokenStream, item: TokenStream) -> TokenStream {
    state::expand(state::Use::Record, arguments.into(), item.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
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
