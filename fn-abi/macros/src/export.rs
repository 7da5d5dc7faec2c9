//! `export!`: the two symbols that make a library a plugin.

use crate::function::hidden;
use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Ident, Path, Result, Token};

/// The functions that are named, by their hidden types, and the function that runs at the start.
struct Exports {
    functions: Vec<Path>,
    init: Option<Path>,
}

impl Parse for Exports {
    fn parse(input: ParseStream<'_>) -> Result<Exports> {
        let mut exports = Exports { functions: Vec::new(), init: None };
        while !input.is_empty() {
            exports.parse_one(input)?;
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(exports)
    }
}

impl Exports {
    fn parse_one(&mut self, input: ParseStream<'_>) -> Result<()> {
        if input.peek(Ident) && input.peek2(Token![=]) {
            let key: Ident = input.parse()?;
            input.parse::<Token![=]>()?;
            if key != "init" {
                return Err(Error::new(key.span(), "expected the name of a function, or `init = f`"));
            }
            self.init = Some(input.parse()?);
            return Ok(());
        }
        let mut path: Path = input.call(Path::parse_mod_style)?;
        if let Some(last) = path.segments.last_mut() {
            last.ident = hidden(&last.ident);
        }
        self.functions.push(path);
        Ok(())
    }
}

pub(crate) fn expand(tokens: TokenStream) -> Result<TokenStream> {
    let Exports { functions, init } = syn::parse2(tokens)?;
    if functions.is_empty() && init.is_none() {
        return Err(Error::new(
            proc_macro2::Span::call_site(),
            "name the functions of the plugin: `denizen::export!(increment)`; each is marked with #[function]",
        ));
    }
    let init = match init {
        Some(path) => quote!(::core::option::Option::Some(#path)),
        None => quote!(::core::option::Option::None),
    };
    Ok(quote! {
        const _: () = {
            const FUNCTIONS: &[::denizen::__private::FunctionDef] =
                &[#(<#functions as ::denizen::__private::Exported>::FUNCTION),*];
            const _: () = ::denizen::__private::assert_distinct(FUNCTIONS);

            #[unsafe(no_mangle)]
            #[used]
            static denizen_plugin_abi: u32 = ::denizen::__private::ABI_VERSION;

            #[unsafe(no_mangle)]
            unsafe extern "C" fn denizen_plugin_init(
                host: *const ::denizen::__private::DzHost,
                init: *const ::denizen::__private::DzInit,
            ) -> i32 {
                // SAFETY: the host calls this with what the contract of the symbol says.
                unsafe { ::denizen::__private::init(host, init, FUNCTIONS, #init) }
            }
        };
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_segment_of_a_path_is_replaced() {
        let exports: Exports = syn::parse_quote!(increment, orders::place, init = scripts::load);
        let [increment, place] = &exports.functions[..] else { panic!("two functions are named") };
        assert_eq!(quote!(#increment).to_string(), "__denizen_function_increment");
        assert_eq!(quote!(#place).to_string(), "orders :: __denizen_function_place");
        assert!(exports.init.is_some());
    }

    #[test]
    fn an_empty_export_and_an_unknown_key_are_refused() {
        assert!(expand(TokenStream::new()).is_err());
        assert!(expand(quote!(increment, state = Counter)).is_err());
    }
}
