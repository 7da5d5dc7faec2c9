//! `#[state]` and `#[payload]`: rkyv's derives, and a layout text that tells any two definitions apart.

use crate::attribute::{Arguments, submit};
use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, Ident, Meta, Result, Token, Type, Variant};

/// What a marked type is for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Use {
    /// A record of the state: declared to the host.
    Record,
    /// Only a part of one, or something that travels.
    Part,
}

/// Attributes of rkyv that leave the archived layout as the definition says. Any other could change what the
/// fingerprint stands for.
const HARMLESS: &[&str] = &[
    "derive",
    "compare",
    "archived",
    "resolver",
    "bytecheck",
    "serialize_bounds",
    "deserialize_bounds",
    "omit_bounds",
];

pub(crate) fn expand(usage: Use, arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let arguments = Arguments::parse(arguments, &[])?;
    let mut input: DeriveInput = syn::parse2(item)?;
    refuse_what_cannot_be(&input)?;
    let name = match &arguments.name {
        Some(name) => plain(&name.parse::<Ident>()?),
        None => plain(&input.ident),
    };
    let describe = describe(&input, &name)?;
    let recursion = let_contain_itself(&mut input)?;
    let ident = &input.ident;
    let declared = if usage == Use::Record { declared(ident, &name) } else { TokenStream::new() };
    let first = say_first_what_is_wrong(&input);
    Ok(quote! {
        #first

        #[derive(::denizen::rkyv::Archive, ::denizen::rkyv::Serialize, ::denizen::rkyv::Deserialize)]
        #[rkyv(crate = ::denizen::rkyv, derive(Debug))]
        #recursion
        #input

        // SAFETY: the text below is made from the whole definition, and rkyv attributes that change its
        // layout are refused.
        #[automatically_derived]
        unsafe impl ::denizen::StateType for #ident {
            fn describe(layout: &mut ::denizen::Layout) {
                layout.definition::<Self>(#name, |layout| { #describe });
            }

            fn fingerprint() -> u64 {
                static KNOWN: ::std::sync::atomic::AtomicU64 = ::std::sync::atomic::AtomicU64::new(0);
                ::denizen::__private::fingerprint_of::<Self>(&KNOWN)
            }
        }

        #declared
    })
}

/// The compiler checks these bounds before rkyv's derives, which say the same of a wrong field six times and
/// less clearly.
fn say_first_what_is_wrong(input: &DeriveInput) -> TokenStream {
    let fields: Vec<&Field> = match &input.data {
        Data::Struct(data) => data.fields.iter().collect(),
        Data::Enum(data) => data.variants.iter().flat_map(|variant| &variant.fields).collect(),
        Data::Union(_) => Vec::new(),
    };
    let conditional = inner_attributes(input).any(|attribute| attribute.path().is_ident("cfg"));
    if conditional || fields.is_empty() {
        return TokenStream::new();
    }
    let bounds = fields.iter().filter(|field| !mentions(&field.ty, &input.ident)).map(|field| {
        let ty = &field.ty;
        quote_spanned!(ty.span()=> #ty: ::denizen::StateType,)
    });
    quote! {
        const _: () = {
            #[allow(dead_code, trivial_bounds, reason = "generated, only to be checked")]
            struct EveryFieldIsAStateType where #(#bounds)*;
        };
    }
}

/// Has the type declared to the host.
fn declared(ident: &Ident, name: &str) -> TokenStream {
    submit(&quote!(::denizen::__private::DeclaredType), &quote!(new::<#ident>(#name)))
}

fn refuse_what_cannot_be(input: &DeriveInput) -> Result<()> {
    if let Data::Union(data) = &input.data {
        return Err(Error::new(
            data.union_token.span(),
            "a union does not say which of its fields is valid: use an enum",
        ));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new(
            input.generics.span(),
            "a type of the state cannot be generic: its records need one layout. Write out the types that you keep",
        ));
    }
    input.attrs.iter().chain(inner_attributes(input)).try_for_each(refuse_other_layouts)
}

/// The attributes of the variants and fields.
fn inner_attributes(input: &DeriveInput) -> impl Iterator<Item = &Attribute> {
    let (variants, own) = match &input.data {
        Data::Struct(data) => (None, Some(&data.fields)),
        Data::Enum(data) => (Some(&data.variants), None),
        Data::Union(_) => (None, None),
    };
    let variants = variants.into_iter().flatten();
    let on_variants = variants.clone().flat_map(|variant| &variant.attrs);
    let fields = own.into_iter().chain(variants.map(|variant| &variant.fields)).flatten();
    on_variants.chain(fields.flat_map(|field| &field.attrs))
}

/// Refuses an rkyv attribute that could change the archived layout, also inside a `cfg_attr`.
fn refuse_other_layouts(attribute: &Attribute) -> Result<()> {
    let path = attribute.path();
    if path.is_ident("cfg_attr") && attribute.to_token_stream().to_string().contains("rkyv") {
        return Err(Error::new(
            attribute.span(),
            "an rkyv attribute cannot hang on a `cfg_attr` here: layouts must not vary",
        ));
    }
    if !path.is_ident("rkyv") {
        return Ok(());
    }
    for meta in attribute.parse_args_with(Punctuated::<LooseMeta, Token![,]>::parse_terminated)? {
        if !HARMLESS.iter().any(|word| meta.0 == word) {
            return Err(Error::new(
                meta.0.span(),
                "this lays records out in a way that the fingerprint does not know; keep the value as another type",
            ));
        }
    }
    Ok(())
}

/// An argument of an rkyv attribute, of which only the first word matters.
struct LooseMeta(Ident);

impl syn::parse::Parse for LooseMeta {
    fn parse(input: syn::parse::ParseStream<'_>) -> Result<LooseMeta> {
        use syn::ext::IdentExt;
        let word = input.call(Ident::parse_any)?;
        while !input.is_empty() && !input.peek(Token![,]) {
            input.parse::<TokenTree>()?;
        }
        Ok(LooseMeta(word))
    }
}

/// Statements that write the definition as text.
fn describe(input: &DeriveInput, name: &str) -> Result<TokenStream> {
    match &input.data {
        Data::Struct(data) => {
            let (head, body) = (format!("struct {name}"), fields(&data.fields));
            Ok(quote!(layout.text(#head); #body))
        }
        Data::Enum(data) => {
            let head = format!("enum {name} {{");
            let variants = data.variants.iter().map(variant).collect::<Result<Vec<_>>>()?;
            Ok(quote! {
                layout.text(#head);
                let mut separator = " ";
                #(#variants)*
                layout.text(if separator == " " { "}" } else { " }" });
            })
        }
        Data::Union(data) => Err(Error::new(data.union_token.span(), "a union cannot be described")),
    }
}

fn variant(variant: &Variant) -> Result<TokenStream> {
    if let Some((_, number)) = &variant.discriminant {
        return Err(Error::new(
            number.span(),
            "records number the variants by their order; leave the number out, or keep it in a match",
        ));
    }
    let (cfgs, name, fields) = (cfgs(&variant.attrs), plain(&variant.ident), fields(&variant.fields));
    Ok(quote! {
        #(#cfgs)*
        {
            layout.text(separator);
            layout.text(#name);
            #fields
            separator = ", ";
        }
    })
}

fn fields(fields: &Fields) -> TokenStream {
    let (open, close, first) = match fields {
        Fields::Unit => return TokenStream::new(),
        Fields::Named(_) => (" {", "}", " "),
        Fields::Unnamed(_) => ("(", ")", ""),
    };
    let last = if first.is_empty() { close.to_owned() } else { format!(" {close}") };
    let each = fields.iter().map(|field| {
        let (cfgs, ty) = (cfgs(&field.attrs), &field.ty);
        let write = match &field.ident {
            Some(name) => {
                let name = plain(name);
                quote_spanned!(ty.span()=> layout.field::<#ty>(#name);)
            }
            None => quote_spanned!(ty.span()=> layout.ty::<#ty>();),
        };
        quote!(#(#cfgs)* { layout.text(separator); #write separator = ", "; })
    });
    quote! {
        layout.text(#open);
        {
            let mut separator = #first;
            #(#each)*
            layout.text(if separator == #first { #close } else { #last });
        }
    }
}

fn cfgs(attributes: &[Attribute]) -> Vec<&Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect()
}

fn plain(ident: &Ident) -> String {
    let name = ident.to_string();
    name.strip_prefix("r#").map(str::to_owned).unwrap_or(name)
}

/// rkyv's derives bound each field's type, which for a type inside itself never ends. So such fields go
/// without, and the bounds that the rest needs are spelled out (rkyv's own example `json_like_schema` does
/// this by hand).
fn let_contain_itself(input: &mut DeriveInput) -> Result<TokenStream> {
    let ident = input.ident.clone();
    let mut found = false;
    let mut mark = |field: &mut Field| {
        if mentions(&field.ty, &ident) && !omits_bounds(&field.attrs) {
            field.attrs.push(syn::parse_quote!(#[rkyv(omit_bounds)]));
            found = true;
        }
    };
    match &mut input.data {
        Data::Struct(data) => data.fields.iter_mut().for_each(&mut mark),
        Data::Enum(data) => {
            data.variants.iter_mut().flat_map(|variant| variant.fields.iter_mut()).for_each(&mut mark)
        }
        Data::Union(_) => {}
    }
    if !found {
        return Ok(TokenStream::new());
    }
    Ok(quote! {
        #[rkyv(
            serialize_bounds(
                __S: ::denizen::rkyv::ser::Writer + ::denizen::rkyv::ser::Allocator,
                __S::Error: ::denizen::rkyv::rancor::Source,
            ),
            deserialize_bounds(__D::Error: ::denizen::rkyv::rancor::Source),
            bytecheck(bounds(
                __C: ::denizen::rkyv::validation::ArchiveContext,
                __C::Error: ::denizen::rkyv::rancor::Source,
            )),
        )]
    })
}

fn mentions(ty: &Type, ident: &Ident) -> bool {
    fn find(tokens: TokenStream, ident: &Ident) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(word) => word == *ident || word == "Self",
            TokenTree::Group(group) => find(group.stream(), ident),
            _ => false,
        })
    }
    find(ty.to_token_stream(), ident)
}

fn omits_bounds(attributes: &[Attribute]) -> bool {
    let is =
        |attribute: &&Attribute| matches!(&attribute.meta, Meta::List(list) if list.path.is_ident("rkyv"));
    attributes
        .iter()
        .filter(is)
        .any(|attribute| attribute.to_token_stream().to_string().contains("omit_bounds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(item: TokenStream) -> String {
        expand(Use::Record, TokenStream::new(), item).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_has_no_one_layout_is_refused_with_a_reason() {
        assert!(refused(quote!(union U { a: u8 })).contains("use an enum"));
        assert!(
            refused(quote!(
                struct S<T>(T);
            ))
            .contains("generic")
        );
        assert!(
            refused(quote!(
                enum E {
                    A = 3,
                }
            ))
            .contains("order")
        );
        assert!(
            refused(quote!(
                struct S {
                    #[rkyv(with = Skip)]
                    a: u8,
                }
            ))
            .contains("fingerprint")
        );
        assert!(
            refused(quote!(
                #[rkyv(compare(PartialEq), remote = T)]
                struct S;
            ))
            .contains("fingerprint")
        );
        assert!(
            refused(quote!(
                enum E {
                    A(#[rkyv(niche)] u8),
                }
            ))
            .contains("fingerprint")
        );
        assert!(
            refused(quote!(
                struct S {
                    #[cfg_attr(x, rkyv(with = Skip))]
                    a: u8,
                }
            ))
            .contains("vary")
        );
        assert!(
            expand(
                Use::Part,
                quote!(version = 2),
                quote!(
                    struct S;
                )
            )
            .is_err()
        );
    }

    #[test]
    fn harmless_attributes_stay() {
        let item = quote!(
            #[rkyv(compare(PartialEq), derive(PartialEq, Eq))]
            struct S {
                a: u8,
            }
        );
        let expanded = expand(Use::Part, TokenStream::new(), item).expect("it is taken").to_string();
        assert!(expanded.contains("compare"));
    }
}
