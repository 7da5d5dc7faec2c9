//! Where the command stands: in a package, in a checkout of Denizen, or elsewhere; and which directory a node has there.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// The examples, in the order in which they are built.
pub(crate) const EXAMPLES: [&str; 3] = ["counter", "search", "thumbnail"];

/// What the working directory is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A package that makes an image.
    Package(PathBuf),
    /// A checkout of Denizen.
    Checkout(PathBuf),
    /// Neither.
    Elsewhere(PathBuf),
}

impl Place {
    /// Of the working directory.
    pub(crate) fn here() -> Result<Place, Failure> {
        let here = env::current_dir().map_err(|error| {
            Failure::host("the working directory cannot be found")
                .because(&error)
                .remedy("cd to one that exists")
        })?;
        Ok(Place::of(&here))
    }

    /// Of `start`: the nearest package or checkout upwards.
    pub(crate) fn of(start: &Path) -> Place {
        for dir in start.ancestors() {
            if is_package(dir) {
                return Place::Package(dir.to_owned());
            }
            if is_checkout(dir) {
                return Place::Checkout(dir.to_owned());
            }
        }
        Place::Elsewhere(start.to_owned())
    }

    /// The directory that belongs to it.
    pub(crate) fn root(&self) -> &Path {
        match self {
            Place::Package(root) | Place::Checkout(root) | Place::Elsewhere(root) => root,
        }
    }
}

/// The checkout around `start`, if any, else the one that this program was built in.
pub(crate) fn checkout_around(start: &Path) -> Option<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    let mut candidates = start.ancestors().chain(program.ancestors());
    candidates.find(|dir| is_checkout(dir)).map(Path::to_owned)
}

/// A package that can become an image: it says so with `denizen.toml`, or its library is a `cdylib`.
pub(crate) fn is_package(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join("Cargo.toml")) else { return false };
    if dir.join("denizen.toml").is_file() {
        return true;
    }
    let Ok(manifest) = text.parse::<toml::Table>() else { return false };
    let kinds = manifest.get("lib").and_then(|lib| lib.get("crate-type")).and_then(toml::Value::as_array);
    kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind.as_str() == Some("cdylib")))
}

fn is_checkout(dir: &Path) -> bool {
    dir.join("fn-abi/sdk/Cargo.toml").is_file() && example(dir, EXAMPLES[0]).join("Cargo.toml").is_file()
}

/// Where an example of a checkout is.
pub(crate) fn example(checkout: &Path, name: &str) -> PathBuf {
    checkout.join("images/examples").join(name)
}

/// How to type this program's name so that it is found from here: `denizen` where that is on the `PATH`, else its path.
pub(crate) fn this_command() -> String {
    let Ok(program) = env::current_exe() else { return "denizen".to_owned() };
    let path = env::var_os("PATH").unwrap_or_default();
    let first = env::split_paths(&path).map(|dir| dir.join("denizen")).find(|file| file.is_file());
    if first.and_then(|file| file.canonicalize().ok()) == program.canonicalize().ok() {
        return "denizen".to_owned();
    }
    let here = env::current_dir().unwrap_or_default();
    as_typed(program.strip_prefix(&here).unwrap_or(&program))
}

/// [`this_command`] with what another terminal needs to find the same node: its directory, if that was named.
pub(crate) fn this_command_on(named_dir: Option<&Path>) -> String {
    let me = this_command();
    named_dir.map_or_else(|| me.clone(), |dir| format!("{me} --dir {}", as_typed(dir)))
}

/// The directory that `path` lies in, or would.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A path as a shell takes it for one word.
pub(crate) fn as_typed(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The directory of the node that a command talks to: the one named, or the nearest `.denizen` upwards that a node runs on.
pub(crate) fn node_directory(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = named {
        return Ok(dir.to_owned());
    }
    let place = Place::here()?;
    let here = env::current_dir().unwrap_or_else(|_| place.root().to_owned());
    let mut candidates = here.ancestors().map(|dir| dir.join(".denizen"));
    // A package keeps the SDK in its .denizen whether or not a node was ever there, so the endpoint decides.
    Ok(candidates.find(|dir| dir.join("endpoint").is_file()).unwrap_or_else(|| place.root().join(".denizen")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Place, as_typed, checkout_around};

    #[test]
    fn a_path_can_be_typed_as_it_is_shown() {
        for (path, typed) in [
            ("/srv/a-b/c_1.d", "/srv/a-b/c_1.d"),
            ("/häuser/x", "/häuser/x"),
            ("/my dir", "'/my dir'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
        ] {
            assert_eq!(as_typed(Path::new(path)), typed);
        }
    }

    #[test]
    fn this_repository_is_a_checkout() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.join("../..").canonicalize().unwrap();
        assert_eq!(Place::of(here), Place::Checkout(root.clone()));
        assert_eq!(checkout_around(Path::new("/")), Some(root.clone()));
        let counter = root.join("images/examples/counter");
        assert_eq!(Place::of(&counter.join("src")), Place::Package(counter));
        assert_eq!(Place::of(Path::new("/")), Place::Elsewhere("/".into()));
    }
}
