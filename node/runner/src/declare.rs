//! What a plugin declares while it is initialised, checked as it comes.
//!
//! Pure: the pointers were turned into text before (in `host`).

use std::ffi::c_void;

use denizen_abi::FunctionEntry;
use denizen_wire::{Builtin, Concurrency, FunctionDecl, PayloadKind, RunnerLimits, TypeDecl};

/// How a call goes beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Alone among its like, in their order.
    Exclusive,
    /// Beside all others, on the state as it is when it begins.
    ReadOnly,
    /// Beside all others, with writes of its own.
    Concurrent,
}

/// More than what goes before the value in the input of a built-in.
const BUILTIN_HEAD: u64 = 4096;
/// The most functions, and the most types, of a plugin.
pub(crate) const MAX_DECLARED: usize = 4096;
/// Longest name in bytes.
const MAX_NAME: usize = 128;

/// A function as the host runs it.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) decl: FunctionDecl,
    pub(crate) code: Code,
}

/// What runs when a function is called.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Code {
    /// The plugin's.
    Plugin { entry: FunctionEntry, data: Data },
    /// Ours.
    Builtin(Builtin),
}

/// The plugin's own pointer, never looked at here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Data(pub(crate) *mut c_void);

// SAFETY: an opaque number to us; the ABI obliges the plugin to keep it good on every thread of the host.
unsafe impl Send for Data {}
// SAFETY: as above.
unsafe impl Sync for Data {}

impl Function {
    pub(crate) fn mode(&self) -> Mode {
        match self.decl.concurrency {
            Concurrency::ReadOnly => Mode::ReadOnly,
            Concurrency::Concurrent => Mode::Concurrent,
            Concurrency::Exclusive => Mode::Exclusive,
        }
    }

    /// A function of our own.
    pub(crate) fn builtin(builtin: Builtin) -> Function {
        let streams = builtin == Builtin::StateImport;
        let decl = FunctionDecl {
            name: builtin.name().into(),
            concurrency: if builtin.writes() { Concurrency::Exclusive } else { Concurrency::ReadOnly },
            input: if streams { PayloadKind::Stream } else { PayloadKind::Bytes },
            output: PayloadKind::Bytes,
            doc: String::new(),
            input_layout: String::new(),
            output_layout: String::new(),
        };
        Function { decl, code: Code::Builtin(builtin) }
    }

    pub(crate) fn is_builtin(&self, builtin: Builtin) -> bool {
        matches!(self.code, Code::Builtin(this) if this == builtin)
    }

    /// The longest input in bytes. Limits of the image are for its own functions: ours take whatever the state can hold.
    pub(crate) fn body_limit(&self, limits: &RunnerLimits) -> u64 {
        match self.code {
            Code::Plugin { .. } => limits.body_bytes,
            Code::Builtin(Builtin::StateImport) => u64::MAX,
            Code::Builtin(_) => limits.state_bytes.saturating_add(BUILTIN_HEAD),
        }
    }

    pub(crate) fn streams_input(&self) -> bool {
        self.decl.input == PayloadKind::Stream
    }
}

/// What has been declared so far.
#[derive(Debug, Default)]
pub(crate) struct Declared {
    pub(crate) functions: Vec<Function>,
    pub(crate) types: Vec<TypeDecl>,
    /// Why the plugin says that it cannot start.
    pub(crate) failure: Option<String>,
}

impl Declared {
    /// False for a name against the rules or declared before, and when there are too many.
    pub(crate) fn add_function(&mut self, function: Function) -> bool {
        let name = &function.decl.name;
        let fits = is_name(name)
            && self.functions.len() < MAX_DECLARED
            && self.functions.iter().all(|other| other.decl.name != *name);
        if fits {
            self.functions.push(function);
        }
        fits
    }

    /// False for fingerprint 0, an empty name, or one declared before with another fingerprint.
    pub(crate) fn add_type(&mut self, ty: TypeDecl) -> bool {
        if let Some(known) = self.types.iter().find(|known| known.name == ty.name) {
            return known.fingerprint == ty.fingerprint;
        }
        let fits = ty.fingerprint != 0 && !ty.name.is_empty() && self.types.len() < MAX_DECLARED;
        if fits {
            self.types.push(ty);
        }
        fits
    }
}

/// 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn nothing(_: *mut c_void, _: *mut denizen_abi::DzCall) -> i32 {
        0
    }

    fn function(name: &str) -> Function {
        Function {
            decl: FunctionDecl {
                name: name.into(),
                concurrency: Concurrency::Concurrent,
                input: PayloadKind::Bytes,
                output: PayloadKind::Bytes,
                doc: String::new(),
                input_layout: String::new(),
                output_layout: String::new(),
            },
            code: Code::Plugin { entry: nothing, data: Data(std::ptr::null_mut()) },
        }
    }

    #[test]
    fn names_follow_the_rules_and_come_once() {
        let mut declared = Declared::default();
        for good in ["a", "A.b_c-9", &"x".repeat(128)] {
            assert!(declared.add_function(function(good)), "{good}");
        }
        for bad in ["a", "", ".a", "-a", "a b", "a/b", "\u{e9}", "a\0", &"x".repeat(129)] {
            assert!(!declared.add_function(function(bad)), "{bad}");
        }
        assert_eq!(declared.functions.len(), 3);
        assert_eq!(declared.functions[0].mode(), Mode::Concurrent);
    }

    #[test]
    fn a_type_has_one_fingerprint() {
        let ty = |name: &str, fingerprint| TypeDecl {
            name: name.into(),
            fingerprint,
            layout: String::new(),
            migrates_from: Vec::new(),
        };
        let mut declared = Declared::default();
        assert!(declared.add_type(ty("A", 1)));
        assert!(declared.add_type(ty("A", 1)));
        assert!(!declared.add_type(ty("A", 2)));
        assert!(!declared.add_type(ty("B", 0)));
        assert!(!declared.add_type(ty("", 3)));
        assert_eq!(declared.types.len(), 1);
    }
}
