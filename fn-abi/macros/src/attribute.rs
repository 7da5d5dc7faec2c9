//! What the attribute macros share: arguments, names, and how something is submitted to the plugin's start.

use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::{ParseStream, Parser};
use syn::{Ident, LitStr, Result, Token};

/// The arguments of an attribute: `name = "…"` and flags.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) name: Option<LitStr>,
    pub(crate) flags: Vec<Ident>,
}

impl Arguments {
    /// Parses them; `allowed` are the flags, for the message too.
    pub(crate) fn parse(tokens: TokenStream, allowed: &[&str]) -> Result<Arguments> {
        let parser = |input: ParseStream<'_>| {
            let mut arguments = Arguments::default();
            while !input.is_empty() {
                arguments.parse_one(input, allowed)?;
                if !input.is_empty() {
                    input.parse::<Token![,]>()?;
                }
            }
            Ok(arguments)
        };
        parser.parse2(tokens)
    }

    fn parse_one(&mut self, input: ParseStream<'_>, allowed: &[&str]) -> Result<()> {
        let word: Ident = input.parse()?;
        if word == "name" {
            input.parse::<Token![=]>()?;
            self.name = Some(input.parse()?);
        } else if allowed.iter().any(|flag| word == flag) {
            self.flags.push(word);
        } else {
            let mut known: Vec<String> = allowed.iter().map(|flag| format!("`{flag}`")).collect();
            known.push("`name = \"…\"`".to_owned());
            return Err(syn::Error::new(word.span(), format!("expected {}", known.join(" or "))));
        }
        Ok(())
    }
}

/// Submits a static of type `ty`, made by its function `made`, before the plugin starts. `.init_array` is
/// where ELF keeps what runs when a library is loaded.
pub(crate) fn submit(ty: &TokenStream, made: &TokenStream) -> TokenStream {
    quote! {
        const _: () = {
            static NODE: ::denizen::__private::Node<#ty> = ::denizen::__private::Node::new(#ty::#made);
            extern "C" fn submit() {
                NODE.submit();
            }
            #[used]
            #[cfg_attr(any(target_os = "linux", target_os = "freebsd"), unsafe(link_section = ".init_array"))]
            #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
            static SUBMIT: extern "C" fn() = submit;
        };
    }
}

/// Whether this can stand in an address: the rule for names of functions.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "increment", "v1.2", "_x", "a-b", &"n".repeat(128)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "é", "a\0", &"n".repeat(129)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
