//! Packs the SDK's sources for the program to carry, so that `denizen new` works where there is no checkout and no registry copy.
//!
//! The three crates of `fn-abi/` are read as they stand; their `Cargo.toml` is rewritten to stand alone: what they inherit from the
//! workspace is filled in, their dependencies on one another become relative paths, lints and tests stay behind. The output is
//! `$OUT_DIR/sdk_files.rs`: a list of (path, bytes), and a stamp over all of it.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

/// Where each crate is, and what it is called (its directory in the package, too).
const CRATES: [(&str, &str); 3] =
    [("fn-abi/sdk", "denizen"), ("fn-abi/abi", "denizen-abi"), ("fn-abi/macros", "denizen-macros")];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let workspace_path = root.join("Cargo.toml");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", workspace_path.display());
    let workspace: Table = fs::read_to_string(&workspace_path)?.parse()?;

    // Relative path in the unpacked SDK → content.
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (dir, name) in CRATES {
        let dir = root.join(dir);
        println!("cargo::rerun-if-changed={}", dir.join("Cargo.toml").display());
        println!("cargo::rerun-if-changed={}", dir.join("src").display());
        let manifest: Table = fs::read_to_string(dir.join("Cargo.toml"))?.parse()?;
        let alone = stand_alone(manifest, &workspace)
            .map_err(|what| format!("{}/Cargo.toml: {what}", dir.display()))?;
        files.insert(format!("{name}/Cargo.toml"), toml::to_string(&alone)?.into_bytes());
        collect(&dir.join("src"), &format!("{name}/src"), &mut files)?;
    }
    // The versions that the SDK was tested with. Cargo drops the entries that a package does not need.
    let lock_path = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock_path.display());
    let lock = fs::read(&lock_path).unwrap_or_default();

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let packed = out.join("sdk");
    match fs::remove_dir_all(&packed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut list = String::new();
    for (index, (path, content)) in files.iter().enumerate() {
        // Copies, not the sources themselves: the stamp and the bytes then always belong together.
        fs::create_dir_all(&packed)?;
        fs::write(packed.join(index.to_string()), content)?;
        list.push_str(&format!(
            "    ({path:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/sdk/{index}\"))),\n"
        ));
    }
    fs::write(out.join("Cargo.lock"), &lock)?;
    let stamp = stamp(&files);
    let code =
        format!("const STAMP: &str = \"{stamp:016x}\";\nconst FILES: &[(&str, &[u8])] = &[\n{list}];\n");
    fs::write(out.join("sdk_files.rs"), code)?;
    Ok(())
}

fn collect(dir: &Path, name: &str, files: &mut BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file_name =
            entry.file_name().into_string().map_err(|_| io::Error::other("a file name that is not UTF-8"))?;
        let name = format!("{name}/{file_name}");
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &name, files)?;
        } else if file_name.ends_with(".rs") {
            files.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// `manifest` without inheritance.
fn stand_alone(mut manifest: Table, workspace: &Table) -> Result<Table, String> {
    let workspace = table(workspace, "workspace")?;
    let package_defaults = table(workspace, "package")?;
    let dependency_defaults = table(workspace, "dependencies")?;

    for gone in ["lints", "dev-dependencies", "test", "bench", "example"] {
        manifest.remove(gone);
    }
    let package = manifest.get_mut("package").and_then(Value::as_table_mut).ok_or("no [package]")?;
    for (key, value) in package.iter_mut() {
        if inherits(value) {
            *value =
                package_defaults.get(key).ok_or_else(|| format!("{key} is inherited from nowhere"))?.clone();
        }
    }
    for section in ["dependencies", "build-dependencies"] {
        let Some(dependencies) = manifest.get_mut(section).and_then(Value::as_table_mut) else { continue };
        for (name, dependency) in dependencies.iter_mut() {
            if inherits(dependency) {
                let base = dependency_defaults
                    .get(name)
                    .ok_or_else(|| format!("{name} is inherited from nowhere"))?;
                *dependency = merged(base, dependency);
            }
            if let Some(path) = dependency.get_mut("path") {
                *path = Value::String(format!("../{name}"));
            }
        }
    }
    Ok(manifest)
}

fn table<'a>(of: &'a Table, key: &str) -> Result<&'a Table, String> {
    of.get(key).and_then(Value::as_table).ok_or_else(|| format!("the workspace has no {key}"))
}

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

/// The workspace's idea of a dependency with the member's features added.
fn merged(base: &Value, member: &Value) -> Value {
    let mut whole = match base {
        Value::String(version) => Table::from_iter([("version".to_owned(), Value::String(version.clone()))]),
        Value::Table(table) => table.clone(),
        other => return other.clone(),
    };
    let Some(member) = member.as_table() else { return Value::Table(whole) };
    for (key, value) in member {
        match (key.as_str(), whole.get_mut(key), value) {
            ("workspace", _, _) => {}
            ("features", Some(Value::Array(features)), Value::Array(more)) => {
                features.extend(more.iter().cloned())
            }
            _ => {
                whole.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Table(whole)
}

/// FNV-1a over every path and content: enough to tell two versions apart.
fn stamp(files: &BTreeMap<String, Vec<u8>>) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for (path, content) in files {
        for byte in path.bytes().chain([0]).chain(content.iter().copied()).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}
