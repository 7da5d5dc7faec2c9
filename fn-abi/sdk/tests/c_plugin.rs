//! A plugin in plain C, built with the header alone and loaded as a node loads it: `images/examples/hello-c`.

#![allow(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use denizen::testing::Process;
use denizen::{Concurrency, FailKind};
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds hello.c with every warning as an error; `None` without a compiler.
fn build(into: &Path) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let library = into.join("hello.so");
    let output = Command::new("cc")
        .args([
            "-shared",
            "-fPIC",
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-fvisibility=hidden",
            "-I",
        ])
        .arg(root.join("fn-abi/include"))
        .arg("-o")
        .arg(&library)
        .arg(root.join("images/examples/hello-c/hello.c"))
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

fn symbol(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the library is loaded, and the name is terminated.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!found.is_null(), "the library does not export {name:?}");
    found
}

fn load(library: &Path) -> Process {
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: a terminated path of a library whose constructors do nothing.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!library.is_null(), "the library does not load");
    let version = symbol(library, denizen_abi::ABI_SYMBOL).cast::<u32>();
    // SAFETY: the contract says that this symbol is a `uint32_t`.
    assert_eq!(unsafe { *version }, denizen_abi::ABI_VERSION);
    // SAFETY: the contract says that this symbol is a function of this type.
    let init: denizen_abi::PluginInit =
        unsafe { std::mem::transmute(symbol(library, denizen_abi::INIT_SYMBOL)) };
    // SAFETY: hello.c keeps the contract, and is never unloaded.
    unsafe { Process::start(init) }.unwrap()
}

#[test]
fn a_plugin_in_plain_c_works() {
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = build(dir.path()) else {
        denizen_testing::skip("a_plugin_in_plain_c_works", "there is no C compiler `cc`");
        return;
    };
    let mut process = load(&library);
    assert_eq!(process.functions()["count"].concurrency, Concurrency::ReadOnly);

    assert_eq!(process.call("count", "").unwrap().text(), "0\n");
    assert_eq!(process.call("hello", "Ada").unwrap().text(), "Hello, Ada! This is greeting number 1.\n");
    let answer = process.call("bonjour", "Ada").unwrap();
    assert_eq!(
        (answer.text(), &*answer.content_type),
        ("Bonjour, Ada ! Salutation n° 2.\n", "text/plain; charset=utf-8")
    );
    assert_eq!(process.call("ahoj", "Ada").unwrap().text(), "Ahoj, Ada! Pozdrav číslo 3.\n");
    assert_eq!(process.call("count", "").unwrap().text(), "3\n");

    let failure = process.call("hello", "").unwrap_err();
    assert_eq!((failure.kind, &*failure.message), (FailKind::BadInput, "send a name of 1 to 200 bytes"));
    process.limit_state(4);
    assert_eq!(process.call("hello", "Ada").unwrap_err().kind, FailKind::Quota);
    assert_eq!(process.call("count", "").unwrap().text(), "3\n");
}
