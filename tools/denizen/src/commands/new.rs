//! `denizen new`: a package that stands alone, SDK included, with a first function that explains itself.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{cli, failure::Failure, sdk, terminal::Terminal};

/// Path in the package, and what is written there with `{{name}}` filled in. Kept as files of their own so that they read as what
/// they are; the manifest is not called `Cargo.toml` here, or cargo would take the folder for a package.
const TEMPLATE: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("../../template/Cargo.toml.in")),
    ("denizen.toml", include_str!("../../template/denizen.toml.in")),
    ("src/lib.rs", include_str!("../../template/lib.rs.in")),
    ("README.md", include_str!("../../template/README.md.in")),
    (".gitignore", include_str!("../../template/gitignore.in")),
];

pub(crate) fn run(terminal: &Terminal, typed: &cli::New) -> Result<(), Failure> {
    let name = typed.name.as_str();
    check_name(name)?;
    let here = env::current_dir()
        .map_err(|error| Failure::host("the working directory cannot be found").because(&error))?;
    create(&here, name)?;
    if terminal.json {
        return terminal.document(&json!({ "name": name, "path": here.join(name) }));
    }
    terminal.answer(format!("made {name}/"))?;
    terminal.say(format!(
        "\n  {name}/src/lib.rs     the functions and the state they keep\n  \
         {name}/denizen.toml   limits and policy\n\nNext:\n\n  {}\n",
        terminal.err.bold(&format!("cd {name} && denizen dev"))
    ));
    Ok(())
}

/// Writes the package `name` into `parent`, whole or not at all.
pub(crate) fn create(parent: &Path, name: &str) -> Result<PathBuf, Failure> {
    let package = parent.join(name);
    if fs::symlink_metadata(&package).is_ok() {
        return Err(Failure::usage(format!("`{name}` is there already"))
            .detail(format!("{}", package.display()))
            .remedy("choose another name, or move that away"));
    }
    let unfinished = parent.join(format!(".{name}.new.{}", std::process::id()));
    let written = write(&unfinished, name).and_then(|()| fs::rename(&unfinished, &package));
    written.map_err(|error| {
        // Whatever is left of it is of no use, and nothing can be done if it cannot be removed either.
        let _ = fs::remove_dir_all(&unfinished);
        Failure::host(format!("the package cannot be written to {}", parent.display()))
            .because(&error)
            .remedy("make room there, and let this user write to it")
    })?;
    sdk::ensure(&package)?;
    Ok(package)
}

fn write(package: &Path, name: &str) -> io::Result<()> {
    fs::create_dir_all(package.join("src"))?;
    for (path, template) in TEMPLATE {
        let text = template.replace("{{name}}", name).replace("{{crate}}", &name.replace('-', "_"));
        fs::write(package.join(path), text)?;
    }
    fs::write(package.join("Cargo.lock"), sdk::LOCK_FILE)
}

/// The rules of cargo for a package and of Rust for a crate, and the crates that a package of this name would hide.
fn check_name(name: &str) -> Result<(), Failure> {
    let what = if name.is_empty() {
        "a name has at least one letter"
    } else if name.contains(['/', '\\']) {
        "a name is one word, not a path: go to the directory that it shall be in first"
    } else if name.len() > 64 {
        "a name has at most 64 characters"
    } else if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))) {
        return Err(bad_name(
            name,
            &format!("`{}` cannot be in a name: letters, digits, - and _ can", bad.escape_debug()),
        ));
    } else if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        "a name begins with a letter"
    } else if KEYWORDS.contains(&name.replace('-', "_").as_str()) {
        "that is a word of the Rust language"
    } else if TAKEN.contains(&name.replace('-', "_").as_str()) {
        "a crate of that name is part of every package"
    } else if RESERVED.contains(&name) {
        "cargo keeps that name for itself"
    } else {
        return Ok(());
    };
    Err(bad_name(name, what))
}

fn bad_name(name: &str, what: &str) -> Failure {
    let shown: String = name.escape_debug().take(60).collect();
    Failure::usage(format!("`{shown}` cannot be the name of a package"))
        .detail(what)
        .remedy("take a name like hello or shopping-cart")
}

/// The Rust Reference, "Keywords": strict and reserved ones.
const KEYWORDS: [&str; 53] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop",
    "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "Self",
    "static", "struct", "super", "trait", "true", "try", "type", "typeof", "unsafe", "unsized", "use",
    "virtual", "where", "while", "yield", "_",
];
/// What the SDK brings, and what the compiler does.
const TAKEN: [&str; 12] = [
    "denizen",
    "denizen_abi",
    "denizen_macros",
    "serde",
    "serde_json",
    "rkyv",
    "core",
    "std",
    "alloc",
    "proc_macro",
    "test",
    "syn",
];
/// Folders that cargo makes in its target directory.
const RESERVED: [&str; 4] = ["build", "deps", "examples", "incremental"];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{check_name, create};
    use crate::terminal::Paint;

    #[test]
    fn names_that_cannot_be() {
        let long = "a".repeat(65);
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "/tmp/x",
            "-x",
            "1st",
            "fn",
            "self",
            "std",
            "denizen",
            "serde-json",
            "deps",
            "ä",
            "a b",
            "a\0b",
            &long,
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["hello", "shopping-cart", "a_1", "Hello"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_package_is_whole_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let package = create(dir.path(), "shopping-cart").unwrap();
        for file in [
            "Cargo.toml",
            "Cargo.lock",
            "denizen.toml",
            "README.md",
            ".gitignore",
            ".denizen/sdk/denizen/src/lib.rs",
        ] {
            assert!(package.join(file).is_file(), "{file}");
        }
        for file in ["Cargo.toml", "denizen.toml", "README.md", "src/lib.rs"] {
            let text = fs::read_to_string(package.join(file)).unwrap();
            assert!(
                !text.contains("{{name}}") && !text.contains("{{crate}}"),
                "{file} has something left to fill in"
            );
        }
        fs::remove_file(package.join("README.md")).unwrap();
        let text = create(dir.path(), "shopping-cart").unwrap_err().to_text(Paint::PLAIN);
        assert!(text.contains("is there already"), "{text}");
        assert!(!package.join("README.md").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no leftovers");
    }
}
