//! The SDK's sources, carried in this program. A package made by `denizen new` has them under `.denizen/sdk`, out of git's sight,
//! and they are put there again whenever they are missing or of another version than this program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

include!(concat!(env!("OUT_DIR"), "/sdk_files.rs"));

/// The lock file of the workspace that this program was built from.
pub(crate) const LOCK_FILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/Cargo.lock"));

const PLACE: &str = ".denizen/sdk";

/// What happened to a package's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unpacked {
    /// The package takes its SDK from elsewhere.
    NotWanted,
    /// It is there, and of this version.
    Already,
    /// It was missing.
    New,
    /// It was of another version.
    Renewed,
}

/// Unpacks the SDK into `package` if its `Cargo.toml` looks for it there and this version is not there yet.
pub(crate) fn ensure(package: &Path) -> Result<Unpacked, Failure> {
    if !wants(package) {
        return Ok(Unpacked::NotWanted);
    }
    let place = package.join(PLACE);
    let found = match fs::read_to_string(place.join("STAMP")) {
        Ok(stamp) if stamp.trim() == STAMP => return Ok(Unpacked::Already),
        Ok(_) => Unpacked::Renewed,
        Err(_) => Unpacked::New,
    };
    unpack(&place).map_err(|error| {
        Failure::host(format!("the SDK cannot be unpacked into {}", place.display()))
            .because(&error)
            .remedy("make room there, and let this user write to it")
    })?;
    Ok(found)
}

fn wants(package: &Path) -> bool {
    let Ok(text) = fs::read_to_string(package.join("Cargo.toml")) else { return false };
    let Ok(manifest) = text.parse::<toml::Table>() else { return false };
    let path =
        manifest.get("dependencies").and_then(|all| all.get("denizen")).and_then(|one| one.get("path"));
    path.and_then(toml::Value::as_str).is_some_and(|path| Path::new(path).starts_with(PLACE))
}

/// Unpacks beside the place and then changes over, so that a half-written copy is never taken for a whole one.
fn unpack(place: &Path) -> io::Result<()> {
    let fresh = sibling(place, "new");
    let old = sibling(place, "old");
    remove(&fresh)?;
    remove(&old)?;
    for (path, content) in FILES {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    // `cargo fmt` in the package reaches its path dependencies too; the SDK is to stay as it is.
    fs::write(fresh.join("rustfmt.toml"), "disable_all_formatting = true\n")?;
    fs::write(fresh.join("STAMP"), STAMP)?;
    match fs::rename(place, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(&fresh, place)?;
    remove(&old)
}

fn sibling(place: &Path, suffix: &str) -> PathBuf {
    place.with_file_name(format!("sdk.{suffix}.{}", std::process::id()))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::FILES;

    #[test]
    fn the_packed_crates_stand_alone() {
        for name in ["denizen", "denizen-abi", "denizen-macros"] {
            let path = format!("{name}/Cargo.toml");
            let (_, manifest) = FILES.iter().find(|(file, _)| *file == path).expect("each crate is packed");
            let manifest = std::str::from_utf8(manifest).unwrap();
            assert!(!manifest.contains("workspace"), "{path} still leans on the workspace:\n{manifest}");
            assert!(
                FILES.iter().any(|(file, _)| *file == format!("{name}/src/lib.rs")),
                "{name} has sources"
            );
        }
    }
}
