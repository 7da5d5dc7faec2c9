//! Keeps `include/denizen.h` and the Rust types the same contract: writes a C file of static assertions from
//! the Rust side (sizes, offsets, types of fields and of functions, numbers) and has the C compiler judge it.
//! The other direction, something that only the header has, shows as a difference in size or in the number of
//! `DZ_` names.

#![allow(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use denizen_abi::*;
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a Rust type of the contract is spelled in C.
trait CType {
    fn c() -> String;
}

macro_rules! c_types {
    ($($rust:ty => $c:literal,)*) => { $(impl CType for $rust { fn c() -> String { $c.to_owned() } })* };
}

c_types! {
    u8 => "uint8_t", u32 => "uint32_t", u64 => "uint64_t", i32 => "int32_t", usize => "size_t", () => "void",
    c_void => "void", DzSlice => "dz_slice", DzFunction => "dz_function", DzType => "dz_type", DzValue => "dz_value",
    DzCallInfo => "dz_call_info", DzInit => "dz_init", DzHost => "dz_host", DzCall => "dz_call",
    DzRegistry => "dz_registry", DzKeyInfo => "dz_key_info",
}

impl<T: CType> CType for *const T {
    fn c() -> String {
        format!("const {} *", T::c())
    }
}

impl<T: CType> CType for *mut T {
    fn c() -> String {
        format!("{} *", T::c())
    }
}

macro_rules! c_functions {
    ($(($($arg:ident),*))*) => { $(
        impl<R: CType, $($arg: CType),*> CType for unsafe extern "C" fn($($arg),*) -> R {
            fn c() -> String {
                // In a parameter list C drops the outer array and function forms only, so a function pointer
                // stays one.
                format!("__typeof__({} (*)({}))", R::c(), [$($arg::c()),*].join(", "))
            }
        }
    )* };
}

c_functions!((A)(A, B)(A, B, C)(A, B, C, D)(A, B, C, D, E));

/// The C spelling of the type of a field.
fn type_of<S, F: CType>(_: fn(&S) -> &F) -> String {
    F::c()
}

const SAME: &str = "include/denizen.h differs from fn-abi/abi/src/lib.rs: make them say the same";

/// Assertions for one struct. Naming a field that Rust lacks, or leaving one out, does not compile.
macro_rules! assert_struct {
    ($out:ident, $rust:ident as $c:literal { $($field:ident,)* }) => {
        let _: fn($rust) = |value| { let $rust { $($field: _,)* } = value; };
        writeln!($out, "_Static_assert(sizeof({0}) == {1}, \"{0}: {SAME}\");", $c, size_of::<$rust>()).unwrap();
        $(
            let name = stringify!($field);
            writeln!($out, "_Static_assert(offsetof({0}, {name}) == {1}, \"{0}.{name}: {SAME}\");", $c,
                std::mem::offset_of!($rust, $field)).unwrap();
            let field_type = type_of(|value: &$rust| &value.$field);
            writeln!($out, "_Static_assert(__builtin_types_compatible_p(__typeof__((({0} *)0)->{name}), {field_type}), \
                \"{0}.{name}: {SAME}\");", $c).unwrap();
        )*
    };
}

fn assertions(header: &str) -> String {
    let mut out = format!("{header}\n");
    assert_struct!(out, DzSlice as "dz_slice" { ptr, len, });
    assert_struct!(out, DzFunction as "dz_function" {
        size, concurrency, input, output, name, input_layout, output_layout, doc, data, entry,
    });
    assert_struct!(out, DzType as "dz_type" {
        size, _pad, fingerprint, name, layout, migrates_from, migrates_from_len,
    });
    assert_struct!(out, DzKeyInfo as "dz_key_info" { size, _pad, len, fingerprint, version, time_ms, });
    assert_struct!(out, DzValue as "dz_value" { ptr, len, fingerprint, version, validated, });
    assert_struct!(out, DzCallInfo as "dz_call_info" {
        size, concurrency, process, app, invocation, content_type, function, epoch, deadline_ms, traceparent,
    });
    assert_struct!(out, DzInit as "dz_init" { size, abi_version, registry, image_dir, manifest, });
    assert_struct!(out, DzHost as "dz_host" {
        size, abi_version, declare_function, declare_type, init_failed, call_info, cancelled, log, input, input_read,
        reply_content_type, reply_alloc, reply_write, fail, state_get, state_put, state_delete, state_scan, commit,
        state_get_range, state_info, state_keys, state_update, state_watch, savepoint, rollback, release, commit_at,
        wait_commit, sync_files, reply_bytes,
    });
    writeln!(
        out,
        "_Static_assert(__builtin_types_compatible_p(__typeof__(&denizen_plugin_init), {}), \"denizen_plugin_init: {SAME}\");",
        <PluginInit as CType>::c()
    )
    .unwrap();
    for (name, number) in numbers() {
        writeln!(out, "_Static_assert({name} == {number}, \"{name}: {SAME}\");").unwrap();
    }
    out
}

/// Every `DZ_` number of the contract, by its C name.
fn numbers() -> Vec<(String, String)> {
    fn family<T: std::fmt::Debug + Copy>(
        prefix: &str,
        all: &[T],
        number: fn(T) -> u32,
    ) -> Vec<(String, String)> {
        let name = |value: &T| format!("{prefix}{}", screaming(&format!("{value:?}")));
        all.iter().map(|value| (name(value), number(*value).to_string())).collect()
    }
    macro_rules! statuses {
        ($($name:ident),*) => { [$((stringify!($name).to_owned(), $name.to_string())),*] };
    }
    let mut all = vec![
        ("DZ_ABI_VERSION".to_owned(), ABI_VERSION.to_string()),
        ("DZ_BUFFER_ALIGN".to_owned(), BUFFER_ALIGN.to_string()),
        ("DZ_NO_DEADLINE".to_owned(), format!("{DZ_NO_DEADLINE}u")),
    ];
    all.extend(statuses!(
        DZ_OK,
        DZ_E_NOT_FOUND,
        DZ_E_TYPE_CHANGED,
        DZ_E_QUOTA,
        DZ_E_READ_ONLY,
        DZ_E_TOO_LARGE,
        DZ_E_INVALID,
        DZ_E_CANCELLED,
        DZ_E_IO,
        DZ_E_CLOSED,
        DZ_E_BUSY,
        DZ_E_CONFLICT,
        DZ_E_NO_SPACE,
        DZ_E_CORRUPT
    ));
    all.extend(family("DZ_", Concurrency::ALL, Concurrency::as_u32));
    all.extend(family("DZ_", Payload::ALL, Payload::as_u32));
    all.extend(family("DZ_BLAME_", Blame::ALL, Blame::as_u32));
    all.extend(family("DZ_RETRY_", Retry::ALL, Retry::as_u32));
    all.extend(family("DZ_DURABILITY_", Durability::ALL, Durability::as_u32));
    all.extend(family("DZ_LOG_", LogLevel::ALL, LogLevel::as_u32));
    all.extend(family("DZ_FAIL_", FailKind::ALL, FailKind::as_u32));
    all
}

/// `BadInput` as `BAD_INPUT`.
fn screaming(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(letter.to_uppercase());
    }
    out
}

fn header() -> String {
    std::fs::read_to_string(header_path()).expect("include/denizen.h is in the repository")
}

fn header_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/denizen.h")
}

/// The compiler's complaints about `source`, empty if there are none; `None` without a compiler.
fn compile(language: &str, standard: &str, source: &str) -> Option<String> {
    let mut child = Command::new("cc")
        .args(["-x", language, standard, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || !complaints.is_empty(), "cc failed without a word");
    Some(complaints)
}

#[test]
fn the_header_says_what_the_rust_types_say() {
    let Some(complaints) = compile("c", "-std=gnu11", &assertions(&header())) else {
        denizen_testing::skip("the_header_says_what_the_rust_types_say", "there is no C compiler `cc`");
        return;
    };
    assert!(complaints.is_empty(), "{complaints}");
}

#[test]
fn a_header_that_differs_is_caught() {
    let changes = [
        ("DZ_E_QUOTA = -3", "DZ_E_QUOTA = -4"),
        ("DZ_FAIL_QUOTA = 4", "DZ_FAIL_QUOTA = 14"),
        ("    uint64_t epoch; ", "    int64_t epoch; "),
        ("(*commit)(dz_call *call, uint64_t *seq)", "(*commit)(dz_call *call, int64_t *seq)"),
        ("dz_slice input_layout; ", "dz_slice input_layouts;"),
    ];
    for (from, to) in changes {
        let changed = header().replacen(from, to, 1);
        assert_ne!(changed, header(), "`{from}` is not in the header any more: choose another change to try");
        let Some(complaints) = compile("c", "-std=gnu11", &assertions(&changed)) else {
            denizen_testing::skip("a_header_that_differs_is_caught", "there is no C compiler `cc`");
            return;
        };
        assert!(
            complaints.contains("differs from") || complaints.contains("no member"),
            "{from}: {complaints}"
        );
    }
}

#[test]
fn the_header_has_no_number_that_rust_lacks() {
    let known: BTreeSet<String> = numbers().into_iter().map(|(name, _)| name).collect();
    let header = header();
    let defined =
        header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("DZ_"));
    let unknown: BTreeSet<&str> =
        defined.filter(|word| !known.contains(*word) && !["DZ_EXPORT"].contains(word)).collect();
    assert!(unknown.is_empty(), "only the header knows {unknown:?}; {SAME}");
}

#[test]
fn strict_compilers_take_the_header() {
    for (language, standard) in [("c", "-std=c99"), ("c++", "-std=c++11")] {
        let pedantic = format!("#pragma GCC diagnostic error \"-Wpedantic\"\n{}", header());
        let Some(complaints) = compile(language, standard, &pedantic) else {
            denizen_testing::skip("strict_compilers_take_the_header", "there is no C compiler `cc`");
            return;
        };
        // A machine with C alone has no C++ front end; that is no fault of the header.
        if !complaints.contains("cc1plus") {
            assert!(complaints.is_empty(), "{language}: {complaints}");
        }
    }
}

#[test]
fn a_slice_without_a_pointer_has_no_bytes() {
    // SAFETY: a null pointer is allowed.
    assert_eq!(unsafe { DzSlice::EMPTY.as_bytes() }, b"");
    let odd = DzSlice { ptr: std::ptr::null(), len: 7 };
    // SAFETY: a null pointer is allowed, whatever the length.
    assert_eq!(unsafe { odd.as_bytes() }, b"");
}

#[test]
fn unknown_numbers_are_refused() {
    assert_eq!(Concurrency::from_u32(2), Some(Concurrency::Concurrent));
    assert_eq!(Concurrency::from_u32(3), None);
    assert_eq!(FailKind::from_u32(u32::MAX), None);
}
