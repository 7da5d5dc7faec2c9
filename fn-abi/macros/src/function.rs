//! `#[function]`: the function as it stands, and beside it a hidden type that tells `export!` how to run it.

use crate::attribute::{Arguments, is_name};
use proc_macro2::{Group, Punct, Spacing, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Attribute, Error, Expr, ExprLit, FnArg, Ident, ItemFn, Lit, Meta, Result, ReturnType, Signature, Type,
};

/// The hidden type of a function. `export!` finds it by this name.
pub(crate) fn hidden(function: &Ident) -> Ident {
    format_ident!("__denizen_function_{}", function)
}

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let arguments = Arguments::parse(arguments, &["concurrent"])?;
    let function: ItemFn = syn::parse2(item)?;
    let signature = Parts::of(&function.sig)?;
    let concurrency = concurrency(&arguments, &signature)?;
    let name = name(&arguments, &function.sig.ident)?;
    let described = described(&function, &name, &concurrency, &signature);
    Ok(quote!(#function #described))
}

/// What matters of a signature.
struct Parts<'a> {
    writes: bool,
    input: Option<&'a Type>,
}

impl Parts<'_> {
    fn of(signature: &Signature) -> Result<Parts<'_>> {
        refuse_what_cannot_be(signature)?;
        let mut parameters = signature.inputs.iter();
        let writes = match parameters.next() {
            Some(FnArg::Typed(first)) => context(&first.ty)?,
            _ => return Err(Error::new(signature.ident.span(), CONTEXT_FIRST)),
        };
        let input = match parameters.next() {
            Some(FnArg::Typed(second)) => Some(&*second.ty),
            _ => None,
        };
        if let Some(third) = parameters.next() {
            return Err(Error::new(
                third.span(),
                "a function has one input: put the parts in a struct and take `Json<ThatStruct>`",
            ));
        }
        Ok(Parts { writes, input })
    }
}

const CONTEXT_FIRST: &str = "the first parameter is the context: `cx: &mut Context` (runs alone and may write) or \
                             `cx: &Context` (runs beside others and reads)";

/// Whether the parameter is the context of a function that writes.
fn context(first: &Type) -> Result<bool> {
    match first {
        Type::Reference(reference) if is_context(&reference.elem) => Ok(reference.mutability.is_some()),
        _ => Err(Error::new(first.span(), CONTEXT_FIRST)),
    }
}

/// By its name, because the macro sees no types: so `fn f(body: &str)` gets the message that helps.
fn is_context(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Context"))
}

fn refuse_what_cannot_be(signature: &Signature) -> Result<()> {
    let refuse = |tokens: &dyn ToTokens, why: &str| Err(Error::new(tokens.span(), why));
    if let Some(keyword) = &signature.asyncness {
        return refuse(
            keyword,
            "a function is not `async`: it has a thread of its own while it runs, and may block",
        );
    }
    if let Some(keyword) = &signature.unsafety {
        return refuse(keyword, "a function cannot be `unsafe`: nobody could keep its conditions");
    }
    if let Some(abi) = &signature.abi {
        return refuse(abi, "a function has Rust's own calling convention; the SDK makes the C entry");
    }
    if let Some(generic) = signature.generics.type_params().next() {
        return refuse(generic, "a function cannot be generic: its caller sends bytes, not types");
    }
    if let Some(generic) = signature.generics.const_params().next() {
        return refuse(generic, "a function cannot be generic: its caller sends bytes, not types");
    }
    match signature.inputs.first() {
        Some(FnArg::Receiver(this)) => {
            refuse(this, "a function is free-standing: what it keeps is in its state")
        }
        _ => Ok(()),
    }
}

fn concurrency(arguments: &Arguments, signature: &Parts<'_>) -> Result<Ident> {
    match (arguments.flags.first(), signature.writes) {
        (Some(flag), false) => Err(Error::new(
            flag.span(),
            "a function with `&Context` runs beside others anyway; `concurrent` is for `&mut Context`",
        )),
        (Some(_), true) => Ok(format_ident!("Concurrent")),
        (None, true) => Ok(format_ident!("Exclusive")),
        (None, false) => Ok(format_ident!("ReadOnly")),
    }
}

fn name(arguments: &Arguments, function: &Ident) -> Result<String> {
    let (name, span) = match &arguments.name {
        Some(literal) => (literal.value(), literal.span()),
        None => (function.to_string().trim_start_matches("r#").to_owned(), function.span()),
    };
    if is_name(&name) {
        return Ok(name);
    }
    Err(Error::new(
        span,
        "callers write this name in an address: 1 to 128 of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`; give \
         another with #[function(name = \"...\")]",
    ))
}

/// The hidden type and what it knows.
fn described(function: &ItemFn, name: &str, concurrency: &Ident, signature: &Parts<'_>) -> TokenStream {
    let ident = &function.sig.ident;
    let visibility = &function.vis;
    let hidden = hidden(ident);
    let doc = doc(&function.attrs);
    let cfgs = function.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect::<Vec<_>>();
    let output = match &function.sig.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, ty) => any_lifetime(ty.to_token_stream()),
    };
    let output = quote_spanned!(output.span()=> ::denizen::__private::output_declaration::<#output>());
    let (input, run) = match signature.input {
        None => (quote!((::denizen::Payload::Bytes, ::std::string::String::new())), quote!(#ident(cx))),
        Some(ty) => {
            let ty = any_lifetime(ty.to_token_stream());
            (
                quote_spanned!(ty.span()=> ::denizen::__private::input_declaration::<#ty>()),
                quote_spanned!(ty.span()=> {
                    let input: #ty = ::denizen::FromInput::from_input(cx)?;
                    #ident(cx, input)
                }),
            )
        }
    };
    quote! {
        #(#cfgs)*
        #[doc(hidden)]
        #[allow(non_camel_case_types, missing_debug_implementations, reason = "generated, and never made")]
        #visibility enum #hidden {}

        #(#cfgs)*
        #[automatically_derived]
        impl ::denizen::__private::Exported for #hidden {
            const FUNCTION: ::denizen::__private::FunctionDef = ::denizen::__private::FunctionDef {
                name: #name,
                doc: #doc,
                concurrency: ::denizen::__private::Concurrency::#concurrency,
                input: || #input,
                output: || #output,
                run: |cx| ::denizen::__private::reply(cx, |cx| ::core::result::Result::Ok(#run)),
            };
        }
    }
}

/// The doc comment as text.
fn doc(attributes: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        if let Meta::NameValue(pair) = &attribute.meta
            && let Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) = &pair.value
        {
            let line = line.value();
            lines.push(line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
        }
    }
    lines.join("\n").trim().to_owned()
}

/// The same type where the function's own lifetimes are out of scope: `'_` for each but `'static`.
fn any_lifetime(tokens: TokenStream) -> TokenStream {
    let mut after_quote = false;
    let replace = |token: TokenTree| {
        let is_name =
            std::mem::replace(&mut after_quote, matches!(&token, TokenTree::Punct(p) if p.as_char() == '\''));
        match token {
            TokenTree::Ident(name) if is_name && name != "static" => Ident::new("_", name.span()).into(),
            TokenTree::Punct(quote) if quote.as_char() == '\'' => Punct::new('\'', Spacing::Joint).into(),
            TokenTree::Group(group) => {
                let mut inner = Group::new(group.delimiter(), any_lifetime(group.stream()));
                inner.set_span(group.span());
                inner.into()
            }
            other => other,
        }
    };
    tokens.into_iter().map(replace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(function: TokenStream) -> String {
        expand(TokenStream::new(), function).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_cannot_be_a_function_is_refused_with_a_reason() {
        assert!(
            refused(quote!(
                fn f() {}
            ))
            .contains("`cx: &mut Context`")
        );
        assert!(
            refused(quote!(
                fn f(cx: Context) {}
            ))
            .contains("`cx: &Context`")
        );
        assert!(
            refused(quote!(
                fn f(body: &[u8]) {}
            ))
            .contains("`cx: &Context`")
        );
        assert!(
            refused(quote!(
                async fn f(cx: &Context) {}
            ))
            .contains("may block")
        );
        assert!(
            refused(quote!(
                fn f<T>(cx: &Context, input: T) {}
            ))
            .contains("generic")
        );
        assert!(
            refused(quote!(
                fn f(&self) {}
            ))
            .contains("free-standing")
        );
        assert!(
            refused(quote!(
                fn f(cx: &Context, a: Json<A>, b: Json<B>) {}
            ))
            .contains("one input")
        );
        assert!(
            expand(
                quote!(concurrent),
                quote!(
                    fn f(cx: &Context) {}
                )
            )
            .is_err()
        );
        assert!(
            expand(
                quote!(name = "a/b"),
                quote!(
                    fn f(cx: &Context) {}
                )
            )
            .is_err()
        );
        assert!(
            expand(
                quote!(exclusive),
                quote!(
                    fn f(cx: &Context) {}
                )
            )
            .is_err()
        );
    }

    #[test]
    fn lifetimes_of_the_function_are_left_to_inference() {
        let ty = any_lifetime(quote!(Option<(&'a [u8], &'static str)>));
        assert_eq!(ty.to_string(), quote!(Option<(&'_ [u8], &'static str)>).to_string());
    }

    #[test]
    fn the_doc_comment_becomes_text() {
        let function: ItemFn = syn::parse_quote! {
            /// Adds to the count.
            ///
            ///   Indented.
            fn f(cx: &Context) {}
        };
        assert_eq!(doc(&function.attrs), "Adds to the count.\n\n  Indented.");
    }
}
