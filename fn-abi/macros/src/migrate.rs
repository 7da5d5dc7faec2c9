//! `#[migrate]`: the function as it stands, and beside it what the SDK needs to run it on old records.

use crate::attribute::submit;
use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, GenericArgument, ItemFn, PathArguments, Result, ReturnType, Signature, Type};

pub(crate) fn expand(arguments: &TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new(arguments.span(), "`#[migrate]` takes no arguments"));
    }
    let function: ItemFn = syn::parse2(item)?;
    refuse_what_cannot_be(&function.sig)?;
    let old = Old::of(&function.sig)?;
    let (new, fallible) = new_type(&function.sig)?;
    let (ident, name) = (&function.sig.ident, function.sig.ident.to_string());
    let cfgs = function.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let result = if fallible { quote!(#ident(old)) } else { quote!(::denizen::Result::<_>::Ok(#ident(old))) };
    let (ty, made) = match old {
        Old::Value(ty) => (ty, quote_spanned!(ty.span()=> from_value)),
        Old::InPlace(ty) => (ty, quote_spanned!(ty.span()=> from_archive)),
    };
    let made = quote! {
        new::<#ty, #new>(#name, |bytes| ::denizen::__private::#made::<#ty, #new, _>(bytes, |old| #result))
    };
    let submitted = submit(&quote!(::denizen::__private::Migration), &made);
    Ok(quote!(#function #(#cfgs)* #submitted))
}

/// How the function takes an old record.
enum Old<'a> {
    Value(&'a Type),
    InPlace(&'a Type),
}

const ONE_OLD: &str =
    "a migration takes the old record, `old: CounterV1`, or reads it in place, `old: &Archived<CounterV1>`";

impl Old<'_> {
    fn of(signature: &Signature) -> Result<Old<'_>> {
        let mut parameters = signature.inputs.iter();
        let (Some(FnArg::Typed(old)), None) = (parameters.next(), parameters.next()) else {
            return Err(Error::new(signature.ident.span(), ONE_OLD));
        };
        match &*old.ty {
            Type::Reference(reference) if reference.mutability.is_none() => {
                let inner = argument_of(&reference.elem, "Archived");
                inner.map(Old::InPlace).ok_or_else(|| Error::new(old.ty.span(), ONE_OLD))
            }
            Type::Path(_) | Type::Tuple(_) | Type::Array(_) => Ok(Old::Value(&old.ty)),
            other => Err(Error::new(other.span(), ONE_OLD)),
        }
    }
}

/// The first type between the brackets of a path that ends with `name`.
fn argument_of<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    })
}

/// The type that comes out, and whether it comes in a `Result`.
fn new_type(signature: &Signature) -> Result<(&Type, bool)> {
    match &signature.output {
        ReturnType::Type(_, ty) => Ok(argument_of(ty, "Result").map_or((&**ty, false), |new| (new, true))),
        ReturnType::Default => Err(Error::new(
            signature.ident.span(),
            "a migration returns the new record: `-> Result<Counter>`",
        )),
    }
}

fn refuse_what_cannot_be(signature: &Signature) -> Result<()> {
    if let Some(keyword) = &signature.asyncness {
        return Err(Error::new(keyword.span(), "a migration is not `async`: it runs where a record is read"));
    }
    if let Some(keyword) = &signature.unsafety {
        return Err(Error::new(
            keyword.span(),
            "a migration cannot be `unsafe`: nobody could keep its conditions",
        ));
    }
    let generics =
        signature.generics.params.iter().find(|one| !matches!(one, syn::GenericParam::Lifetime(_)));
    match generics {
        Some(generic) => Err(Error::new(generic.span(), "a migration leads from one layout to one other")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(function: TokenStream) -> String {
        expand(&TokenStream::new(), function).expect_err("it is refused").to_string()
    }

    fn made(function: TokenStream) -> String {
        expand(&TokenStream::new(), function).expect("it is taken").to_string().replace(' ', "")
    }

    #[test]
    fn what_is_no_migration_is_refused_with_a_reason() {
        for (function, why) in [
            (
                quote!(
                    fn f() -> New {}
                ),
                "takes the old record",
            ),
            (
                quote!(
                    fn f(cx: &mut Context, old: Old) -> New {}
                ),
                "takes the old record",
            ),
            (
                quote!(
                    fn f(old: &Old) -> New {}
                ),
                "`old: &Archived<CounterV1>`",
            ),
            (
                quote!(
                    fn f(old: &mut Archived<Old>) -> New {}
                ),
                "`old: &Archived<CounterV1>`",
            ),
            (
                quote!(
                    fn f(self) -> New {}
                ),
                "takes the old record",
            ),
            (
                quote!(
                    fn f(old: Old) {}
                ),
                "returns the new record",
            ),
            (
                quote!(
                    async fn f(old: Old) -> New {}
                ),
                "not `async`",
            ),
            (
                quote!(
                    unsafe fn f(old: Old) -> New {}
                ),
                "cannot be `unsafe`",
            ),
            (
                quote!(
                    fn f<T>(old: T) -> New {}
                ),
                "one layout",
            ),
        ] {
            let told = refused(function.clone());
            assert!(told.contains(why), "{function}: {told}");
        }
        assert!(
            expand(
                &quote!(from = 1),
                quote!(
                    fn f(old: Old) -> New {}
                )
            )
            .is_err()
        );
    }

    #[test]
    fn the_types_are_read_from_the_signature() {
        let plain = made(quote!(
            fn f(old: Old) -> New {}
        ));
        assert!(plain.contains("new::<Old,New>") && plain.contains("Ok(f(old))"), "{plain}");
        let fallible = made(quote!(
            fn f(old: &denizen::Archived<a::Old>) -> std::result::Result<New, E> {}
        ));
        assert!(fallible.contains("new::<a::Old,New>"), "{fallible}");
        assert!(
            fallible.contains("from_archive::<a::Old,New,_>") && fallible.contains("|old|f(old)"),
            "{fallible}"
        );
    }
}
