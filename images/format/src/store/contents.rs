//! `image.json`: the list of everything in an image. Its digest is the image's name, so whoever knows the
//! name knows every byte.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ImportLimits, StoreError};
use crate::id::{hex, unhex};
use crate::manifest;

/// The list itself, first in every archive.
pub(crate) const CONTENTS: &str = "image.json";
/// The plugin.
pub(crate) const PLUGIN: &str = "plugin.so";
/// The longest list, in bytes: room for 10,000 files with long names.
pub(crate) const MAX_CONTENTS_BYTES: u64 = 8 << 20;

const FORMAT: u32 = 1;
const MAX_PATH_BYTES: usize = 1024;
const MAX_COMPONENT_BYTES: usize = 255;
const MAX_DEPTH: usize = 32;

/// The content of `image.json`. Unknown fields are refused: they would be part of the name and of nothing
/// else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contents {
    /// The version of this format.
    pub(crate) format: u32,
    /// As in the manifest.
    pub(crate) name: String,
    /// Paths of the libraries to load before the plugin, dependencies first.
    pub(crate) libraries: Vec<String>,
    /// Every other file of the image, ordered by path.
    pub(crate) files: Vec<FileRecord>,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileRecord {
    /// Below the image's directory, `/` between components.
    pub(crate) path: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// Whether it may be executed.
    pub(crate) mode: Mode,
    /// Of its content.
    pub(crate) sha256: Sha256Hex,
}

/// The permissions of a file in an image: never writable, by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    #[serde(rename = "0444")]
    Plain,
    #[serde(rename = "0555")]
    Executable,
}

impl Mode {
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Plain => 0o444,
            Self::Executable => 0o555,
        }
    }
}

/// A SHA-256, as 64 hexadecimal digits in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sha256Hex(pub(crate) [u8; 32]);

impl Serialize for Sha256Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Sha256Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        unhex(&text).map(Self).ok_or_else(|| serde::de::Error::custom("a sha256 is 64 digits 0-9 a-f"))
    }
}

impl Contents {
    /// The list of a new image.
    pub(crate) fn new(name: &str, libraries: Vec<String>, mut files: Vec<FileRecord>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { format: FORMAT, name: name.to_owned(), libraries, files }
    }

    /// Reads and checks a list that may come from anyone.
    ///
    /// # Errors
    /// [`StoreError::Contents`], [`StoreError::Refused`] for a path, [`StoreError::TooLarge`].
    pub(crate) fn read(bytes: &[u8], limits: &ImportLimits) -> Result<Self, StoreError> {
        let contents: Self = serde_json::from_slice(bytes).map_err(|error| bad(&error.to_string()))?;
        if contents.format != FORMAT {
            return Err(bad(&format!(
                "its format is {}, and this host knows {FORMAT}; update the host",
                contents.format
            )));
        }
        contents.check_sizes(limits)?;
        contents.check_paths()?;
        contents.check_libraries()?;
        Ok(contents)
    }

    /// As it is stored and hashed.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| bad(&error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The sum of the lengths. It cannot overflow once checked.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    fn check_sizes(&self, limits: &ImportLimits) -> Result<(), StoreError> {
        if self.files.len() > limits.files {
            return Err(StoreError::TooLarge { what: "files", limit: limits.files.to_string() });
        }
        if self.bytes() > limits.bytes {
            return Err(StoreError::TooLarge { what: "bytes", limit: limits.bytes.to_string() });
        }
        Ok(())
    }

    fn check_paths(&self) -> Result<(), StoreError> {
        for file in &self.files {
            check_path(&file.path).map_err(|why| StoreError::refused(&file.path, why))?;
        }
        if let Some(pair) = self.files.windows(2).find(|pair| pair[0].path >= pair[1].path) {
            return Err(StoreError::refused(&pair[1].path, "it is listed twice or out of order"));
        }
        let paths: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        for path in &paths {
            let mut parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            if parents.any(|parent| paths.contains(parent)) {
                return Err(StoreError::refused(path, "one of its directories is listed as a file"));
            }
        }
        match [manifest::FILE_NAME, PLUGIN].into_iter().find(|needed| !paths.contains(needed)) {
            Some(missing) => Err(bad(&format!("it lists no {missing}"))),
            None => Ok(()),
        }
    }

    fn check_libraries(&self) -> Result<(), StoreError> {
        let mut packed: Vec<&str> = self
            .files
            .iter()
            .map(|file| file.path.as_str())
            .filter(|path| path.starts_with("lib/"))
            .collect();
        let mut listed: Vec<&str> = self.libraries.iter().map(String::as_str).collect();
        packed.sort_unstable();
        listed.sort_unstable();
        if packed != listed {
            return Err(bad("`libraries` does not name each file of lib/ once"));
        }
        Ok(())
    }
}

fn bad(why: &str) -> StoreError {
    StoreError::Contents { why: why.to_owned() }
}

/// Which paths an image may have: the manifest, the plugin, `lib/NAME`, `files/...`.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > MAX_PATH_BYTES {
        return Err("its path is over 1024 bytes long");
    }
    if path.starts_with('/') {
        return Err("its path is absolute");
    }
    let components: Vec<&str> = path.split('/').collect();
    if components.len() > MAX_DEPTH {
        return Err("its path is over 32 directories deep");
    }
    components.iter().try_for_each(|component| check_component(component))?;
    match components.as_slice() {
        [manifest::FILE_NAME | PLUGIN] | ["lib", _] | ["files", _, ..] => Ok(()),
        _ => Err("an image holds only denizen.toml, plugin.so, lib/NAME and files/..."),
    }
}

/// What one component of a path may be.
pub(crate) fn check_component(component: &str) -> Result<(), &'static str> {
    match component {
        "" => Err("its path has an empty component"),
        "." | ".." => Err("its path has a component `.` or `..`"),
        _ if component.len() > MAX_COMPONENT_BYTES => Err("its path has a component of over 255 bytes"),
        _ if component.contains(|c: char| c == '/' || c == '\\' || c.is_control()) => {
            Err("its path holds a control character or a backslash")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &str, bytes: u64) -> FileRecord {
        FileRecord { path: path.to_owned(), bytes, mode: Mode::Plain, sha256: Sha256Hex([7; 32]) }
    }

    fn read(paths: &[&str], libraries: &[&str]) -> Result<Contents, StoreError> {
        let files = paths.iter().map(|path| record(path, 1)).collect();
        let libraries = libraries.iter().map(|path| (*path).to_owned()).collect();
        let contents = Contents { format: 1, name: "a".to_owned(), libraries, files };
        Contents::read(&contents.to_bytes().unwrap(), &ImportLimits::default())
    }

    #[test]
    fn a_good_list_survives_the_trip() {
        let contents =
            read(&["denizen.toml", "files/a/b c.txt", "lib/libx.so.1", "plugin.so"], &["lib/libx.so.1"])
                .unwrap();
        assert_eq!(
            Contents::read(&contents.to_bytes().unwrap(), &ImportLimits::default()).unwrap(),
            contents
        );
        assert_eq!(contents.bytes(), 4);
    }

    #[test]
    fn paths_that_climb_or_deceive_are_refused() {
        for path in [
            "/etc/passwd",
            "../x",
            "files/../x",
            "files/./x",
            "files//x",
            "files/",
            "files",
            "lib",
            "lib/a/b",
            "x",
            "files/a\0b",
            "files/a\nb",
            "files/a\\b",
            "image.json",
            "plugin.so/x",
            "",
        ] {
            let mut paths = vec!["denizen.toml", "plugin.so", path];
            paths.sort_unstable();
            assert!(read(&paths, &[]).is_err(), "{path:?}");
        }
        assert!(check_path(&format!("files/{}", "x".repeat(256))).is_err());
        assert!(check_path(&format!("files/{}", "xxxx/".repeat(300))).is_err());
        assert!(check_path(&format!("files/{}x", "x/".repeat(40))).is_err());
    }

    #[test]
    fn lists_that_contradict_themselves_are_refused() {
        assert!(read(&["denizen.toml", "files/a", "files/a", "plugin.so"], &[]).is_err());
        assert!(read(&["denizen.toml", "files/a", "files/a/b", "plugin.so"], &[]).is_err());
        assert!(read(&["plugin.so", "denizen.toml"], &[]).is_err());
        assert!(read(&["denizen.toml"], &[]).is_err());
        assert!(read(&["denizen.toml", "plugin.so"], &["lib/x"]).is_err());
        assert!(read(&["denizen.toml", "lib/x", "plugin.so"], &[]).is_err());
        assert!(read(&["denizen.toml", "lib/x", "plugin.so"], &["lib/x", "lib/x"]).is_err());
    }

    #[test]
    fn sizes_are_bounded_and_cannot_overflow() {
        let mut contents = read(&["denizen.toml", "plugin.so"], &[]).unwrap();
        contents.files[0].bytes = u64::MAX;
        contents.files[1].bytes = u64::MAX;
        let bytes = contents.to_bytes().unwrap();
        assert!(matches!(
            Contents::read(&bytes, &ImportLimits::default()),
            Err(StoreError::TooLarge { what: "bytes", .. })
        ));
        let limits = ImportLimits { bytes: u64::MAX, files: 1 };
        assert!(matches!(Contents::read(&bytes, &limits), Err(StoreError::TooLarge { what: "files", .. })));
    }

    #[test]
    fn other_formats_and_fields_are_refused() {
        let good = String::from_utf8(read(&["denizen.toml", "plugin.so"], &[]).unwrap().to_bytes().unwrap())
            .unwrap();
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("\"0444\"", "\"0777\""),
            ("\"name\"", "\"extra\": 1, \"name\""),
            ("0707", "07"),
            ("{", ""),
        ] {
            assert!(good.contains(from));
            let text = good.replacen(from, to, 1);
            assert!(
                matches!(
                    Contents::read(text.as_bytes(), &ImportLimits::default()),
                    Err(StoreError::Contents { .. })
                ),
                "{text}"
            );
        }
    }
}
