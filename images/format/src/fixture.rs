//! What the tests of this crate share: real libraries made by the C compiler, and packages of files.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The smallest plugin: it declares nothing.
pub(crate) const PLUGIN: &str = "
const unsigned denizen_plugin_abi = 1;
int denizen_plugin_init(const void *host, const void *init) { return 0; }
";

/// The bytes of a shared library made from C source.
pub(crate) fn compile(source: &str, args: &[&str]) -> Vec<u8> {
    compile_as(source, &[&["-shared", "-fPIC"], args].concat())
}

/// The bytes of what `cc ARGS` makes from C source.
pub(crate) fn compile_as(source: &str, args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::read(compile_to(&dir.path().join("out.so"), source, args)).unwrap()
}

/// Makes `output` from C source with `cc ARGS`.
pub(crate) fn compile_to(output: &Path, source: &str, args: &[&str]) -> PathBuf {
    let input = output.with_extension("c");
    std::fs::write(&input, source).unwrap();
    // The source comes first: a linker that drops unneeded libraries looks at what was named before them.
    let made =
        Command::new("cc").arg(&input).args(args).arg("-o").arg(output).output().expect("a C compiler, `cc`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    output.to_owned()
}
