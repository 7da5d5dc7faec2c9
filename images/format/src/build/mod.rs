//! From a cargo package or a ready plugin to an image.
//!
//! What is built is staged in a temporary directory, laid out as the store will have it, and is checked as
//! the store will check it: an author learns here, not at deploy, what would be refused. Nothing of the
//! tenant's code is run, with one exception that is cargo's: building a package runs its build scripts and
//! macros with the rights of whoever builds.

mod package;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::elf::{self, ElfError};
use crate::libraries::{self, LibraryError, SearchPath};
use crate::manifest::{self, Files, ManifestError};
use crate::names::NameError;
use crate::store::{
    self, Contents, CopyError, FileRecord, ImportLimits, MAX_MANIFEST_BYTES, Mode, PLUGIN, Staging,
    StoreError,
};
use crate::{ImageId, Manifest};

pub use package::{PackageOptions, Profile, from_package};

/// A ready plugin to make an image of.
#[derive(Debug, Clone, Default)]
pub struct PluginOptions {
    /// The shared library.
    pub plugin: PathBuf,
    /// Its manifest. A manifest that says `files = "image"` takes the directory `files` beside it; `files = "state"` takes it
    /// if it is there.
    pub manifest: Option<PathBuf>,
    /// The image's name where there is no manifest. Without either, the file's name less `lib` and `.so`.
    pub name: Option<String>,
}

/// A built image. It lies in a temporary directory that goes away with this value.
#[derive(Debug)]
pub struct Built {
    /// Its name in every store.
    pub id: ImageId,
    /// Its manifest.
    pub manifest: Manifest,
    /// Paths in the image of the libraries that were packed, dependencies first.
    pub libraries: Vec<String>,
    /// The size of its files together, in bytes.
    pub bytes: u64,
    /// Files and directories (with all below) that it was made from: a change in one calls for a new build.
    pub watch: Vec<PathBuf>,
    contents: Contents,
    staging: Staging,
}

impl Built {
    /// Writes the tar archive that [`crate::ImageStore::import_archive`] takes. The bytes depend on the image
    /// only.
    ///
    /// # Errors
    /// [`StoreError::Io`] from `out` or the temporary directory.
    pub fn write_archive(&self, out: impl Write) -> Result<(), BuildError> {
        Ok(store::pack(self.staging.path(), &self.contents, out)?)
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The directory is no cargo package.
    #[error(
        "there is no Cargo.toml in {}; go into a package, make one with `denizen new NAME`, or name a ready plugin (.so)",
        dir.display()
    )]
    NoPackage {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds a workspace and no package of its own.
    #[error("{} is a workspace without a package of its own; go into one of its members: {}", dir.display(), members.join(", "))]
    Workspace {
        /// The directory.
        dir: PathBuf,
        /// Names of its packages.
        members: Vec<String>,
    },
    /// The package does not make a shared library.
    #[error(
        "the package `{package}` makes no shared library; add these lines to {}:\n\n[lib]\ncrate-type = [\"cdylib\"]\n{}",
        manifest.display(),
        lib_hint(*has_lib)
    )]
    NoCdylib {
        /// The package.
        package: String,
        /// Its Cargo.toml.
        manifest: PathBuf,
        /// Whether it has a library at all.
        has_lib: bool,
    },
    /// There is no cargo to build with.
    #[error(
        "cargo cannot be started ({source}); install Rust from https://rustup.rs, or name a ready plugin (.so)"
    )]
    NoCargo {
        /// Why.
        source: io::Error,
    },
    /// Cargo ended with an error, which it has explained.
    #[error("cargo could not build {what}; its messages above say why")]
    Cargo {
        /// The package, or its directory.
        what: String,
        /// The last of its messages, at most 64 KiB.
        messages: String,
    },
    /// Cargo said something that this program does not understand.
    #[error("cargo's answer is not understood: {why}; is it older than 1.90?")]
    CargoAnswer {
        /// What was found.
        why: String,
    },
    /// The manifest is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A name that was given or derived is not one.
    #[error("{source} (the image's name; give another with --name, or in denizen.toml)")]
    Name {
        /// Why.
        source: NameError,
    },
    /// The plugin cannot be one.
    #[error("{}: {source}", plugin.display())]
    Plugin {
        /// The file.
        plugin: PathBuf,
        /// Why.
        source: ElfError,
    },
    /// Its libraries cannot be packed.
    #[error(transparent)]
    Libraries(#[from] LibraryError),
    /// The manifest asks for files that are not there.
    #[error("the manifest says files = \"image\", but there is no directory {}; make it, or remove that line", dir.display())]
    NoFiles {
        /// The directory.
        dir: PathBuf,
    },
    /// Something in the directory of files cannot be packed.
    #[error("{} cannot be packed: {why}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image would be refused by a store, or could not be staged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn lib_hint(has_lib: bool) -> &'static str {
    if has_lib { "" } else { "\nand put the functions into src/lib.rs" }
}

/// Makes an image of a ready plugin and the shared libraries that it needs.
///
/// # Errors
/// See [`BuildError`]; nothing is left behind.
pub fn from_plugin(options: &PluginOptions) -> Result<Built, BuildError> {
    let manifest = match &options.manifest {
        Some(path) => Source::read(path)?,
        None => Source::default_for(&plugin_name(options))?,
    };
    let watch = [Some(&options.plugin), options.manifest.as_ref()].into_iter().flatten().cloned().collect();
    stage(&options.plugin, manifest, &SearchPath::of_host(), watch)
}

fn plugin_name(options: &PluginOptions) -> String {
    options.name.clone().unwrap_or_else(|| {
        let stem = options.plugin.file_stem().unwrap_or_default().to_string_lossy();
        stem.strip_prefix("lib").filter(|rest| !rest.is_empty()).unwrap_or(&stem).to_owned()
    })
}

/// A manifest, as it was written and as it was understood, and the place that its files are taken from.
struct Source {
    text: Vec<u8>,
    manifest: Manifest,
    files: Option<PathBuf>,
}

impl Source {
    fn read(path: &Path) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Read { path: path.to_owned(), source };
        let mut text = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text))
            .map_err(failed)?;
        let manifest = Manifest::parse_bytes(&text, path)?;
        let dir = path.parent().unwrap_or(Path::new("")).join("files");
        let files = match manifest.files {
            Files::None => None,
            Files::Image => Some(dir),
            // What a process keeps is its own; what the image brings along is up to the author.
            Files::State => Some(dir).filter(|dir| dir.exists()),
        };
        Ok(Self { text, manifest, files })
    }

    fn default_for(name: &str) -> Result<Self, BuildError> {
        crate::names::check(name).map_err(|source| BuildError::Name { source })?;
        let text = format!(
            "# The package has no {}; these are the defaults.\nname = \"{name}\"\n",
            manifest::FILE_NAME
        );
        Ok(Self { text: text.into_bytes(), manifest: Manifest::default_for(name), files: None })
    }
}

fn stage(
    plugin: &Path,
    source: Source,
    search: &SearchPath,
    watch: Vec<PathBuf>,
) -> Result<Built, BuildError> {
    let bytes = fs::read(plugin).map_err(|source| BuildError::Read { path: plugin.to_owned(), source })?;
    let info = elf::inspect(&bytes)
        .and_then(|info| info.check_plugin().map(|()| info))
        .map_err(|source| BuildError::Plugin { plugin: plugin.to_owned(), source })?;
    let libraries = libraries::resolve(plugin, &info, search)?;

    let staging = Staging::create(&std::env::temp_dir())?;
    // From the bytes that were inspected: the file may be rebuilt at any moment.
    let mut files = vec![
        add(&staging, PLUGIN, Mode::Plain, &mut &bytes[..], plugin)?,
        add(&staging, manifest::FILE_NAME, Mode::Plain, &mut &source.text[..], plugin)?,
    ];
    let mut order = Vec::new();
    for library in &libraries {
        let path = format!("lib/{}", library.name);
        files.push(add_file(&staging, &path, Mode::Plain, &library.path)?);
        order.push(path);
    }
    if let Some(dir) = &source.files {
        files.extend(add_directory(&staging, dir)?);
    }
    let contents = Contents::new(&source.manifest.name, order, files);
    let list = contents.to_bytes()?;
    Contents::read(&list, &ImportLimits::default())?;
    let id = staging.add_contents(&list)?;
    let manifest = store::check(staging.path(), &contents)?;
    let (bytes, libraries) = (contents.bytes(), contents.libraries.clone());
    Ok(Built { id, manifest, libraries, bytes, watch, contents, staging })
}

fn add(
    staging: &Staging,
    path: &str,
    mode: Mode,
    content: &mut dyn Read,
    origin: &Path,
) -> Result<FileRecord, BuildError> {
    staging.add(path, mode, content, u64::MAX).map_err(|error| match error {
        CopyError::Source(source) => BuildError::Read { path: origin.to_owned(), source },
        CopyError::Target(error) => error.into(),
    })
}

fn add_file(staging: &Staging, path: &str, mode: Mode, origin: &Path) -> Result<FileRecord, BuildError> {
    let mut file =
        fs::File::open(origin).map_err(|source| BuildError::Read { path: origin.to_owned(), source })?;
    add(staging, path, mode, &mut file, origin)
}

/// Packs everything below `dir` as `files/**`.
fn add_directory(staging: &Staging, dir: &Path) -> Result<Vec<FileRecord>, BuildError> {
    if !dir.is_dir() {
        return Err(BuildError::NoFiles { dir: dir.to_owned() });
    }
    let mut files = Vec::new();
    let mut pending = vec![(dir.to_owned(), "files".to_owned())];
    while let Some((dir, prefix)) = pending.pop() {
        let failed = |source| BuildError::Read { path: dir.clone(), source };
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let refuse = |why| BuildError::BadFile { path: path.clone(), why };
            let name =
                path.file_name().and_then(|name| name.to_str()).ok_or(refuse("its name is not UTF-8"))?;
            let inside = format!("{prefix}/{name}");
            store::check_path(&inside).map_err(refuse)?;
            let metadata = fs::symlink_metadata(&path)
                .map_err(|source| BuildError::Read { path: path.clone(), source })?;
            if metadata.is_dir() {
                pending.push((path, inside));
            } else if metadata.is_file() {
                let executable = metadata.permissions().mode() & 0o111 != 0;
                let mode = if executable { Mode::Executable } else { Mode::Plain };
                files.push(add_file(staging, &inside, mode, &path)?);
            } else {
                return Err(refuse("it is a link or a device; put a plain file there"));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageStore;
    use crate::fixture::{self, compile_to};

    fn store(dir: &Path) -> ImageStore {
        ImageStore::open(&dir.join("images")).unwrap()
    }

    fn archive(built: &Built) -> Vec<u8> {
        let mut bytes = Vec::new();
        built.write_archive(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_plugin_becomes_an_image_named_after_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = compile_to(&dir.path().join("libhello.so"), fixture::PLUGIN, &["-shared", "-fPIC"]);
        let built = from_plugin(&PluginOptions { plugin: plugin.clone(), ..Default::default() }).unwrap();
        assert_eq!(built.manifest, Manifest::default_for("hello"));
        let image = store(dir.path()).import_archive(&archive(&built)[..], &ImportLimits::default()).unwrap();
        assert_eq!((image.id, image.bytes), (built.id, built.bytes));
        assert_eq!(fs::read(image.dir.join("plugin.so")).unwrap(), fs::read(&plugin).unwrap());
        let again =
            from_plugin(&PluginOptions { plugin, name: Some("other".to_owned()), manifest: None }).unwrap();
        assert_ne!(again.id, built.id);
    }

    #[test]
    fn the_stage_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = compile_to(&dir.path().join("a.so"), fixture::PLUGIN, &["-shared", "-fPIC"]);
        let built = from_plugin(&PluginOptions { plugin, ..Default::default() }).unwrap();
        let stage = built.staging.path().to_owned();
        assert!(stage.exists());
        drop(built);
        assert!(!stage.exists());
    }

    #[test]
    fn files_are_packed_when_the_manifest_asks() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = compile_to(&dir.path().join("a.so"), fixture::PLUGIN, &["-shared", "-fPIC"]);
        let manifest = dir.path().join("denizen.toml");
        fs::write(&manifest, "name = \"a\"\nfiles = \"image\"\n").unwrap();
        let options = PluginOptions { plugin, manifest: Some(manifest), name: None };
        assert!(matches!(from_plugin(&options), Err(BuildError::NoFiles { .. })));
        let own = dir.path().join("own.toml");
        fs::write(&own, "name = \"a\"\nfiles = \"state\"\n").unwrap();
        let own = PluginOptions { manifest: Some(own), ..options.clone() };
        assert!(
            !store(dir.path())
                .import_archive(&archive(&from_plugin(&own).unwrap())[..], &ImportLimits::default())
                .unwrap()
                .dir
                .join("files")
                .exists()
        );

        fs::create_dir_all(dir.path().join("files/deep")).unwrap();
        fs::write(dir.path().join("files/deep/x.txt"), "x").unwrap();
        let built = from_plugin(&options).unwrap();
        let image = store(dir.path()).import_archive(&archive(&built)[..], &ImportLimits::default()).unwrap();
        assert_eq!(fs::read(image.dir.join("files/deep/x.txt")).unwrap(), b"x");
        let built = from_plugin(&own).unwrap();
        let image = store(dir.path()).import_archive(&archive(&built)[..], &ImportLimits::default()).unwrap();
        assert_eq!(fs::read(image.dir.join("files/deep/x.txt")).unwrap(), b"x");

        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("files/link")).unwrap();
        assert!(from_plugin(&options).unwrap_err().to_string().contains("it is a link or a device"));
    }

    #[test]
    fn what_cannot_be_a_plugin_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("x.so");
        let error = |plugin: &Path| {
            from_plugin(&PluginOptions { plugin: plugin.to_owned(), ..Default::default() })
                .unwrap_err()
                .to_string()
        };
        assert!(error(&plugin).contains("cannot read"));
        fs::write(&plugin, "hello").unwrap();
        assert!(error(&plugin).contains("x.so: it is not an ELF file"));
        let plugin = compile_to(&dir.path().join("-x.so"), fixture::PLUGIN, &["-shared", "-fPIC"]);
        assert!(error(&plugin).contains("give another with --name"));
    }

    const LOADER: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **files) {
    void *last = 0;
    for (int i = 1; i < count; i++)
        if (!(last = dlopen(files[i], RTLD_NOW | RTLD_LOCAL))) { puts(dlerror()); return 1; }
    int (*answer)(void) = (int (*)(void))dlsym(last, "answer");
    return answer && answer() == 42 ? 0 : 2;
}
"#;

    /// The whole way of a library: found by rpath, packed, and at run time recognised by its name although it
    /// lies elsewhere, the path that the plugin carries leads nowhere, and the libraries are loaded one by
    /// one as the runner does.
    #[test]
    fn packed_libraries_load_in_the_order_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        fs::create_dir(&made).unwrap();
        let here = format!("-L{}", made.display());
        let make = |name: &str, source: &str, args: &[&str]| {
            compile_to(&made.join(name), source, &[&["-shared", "-fPIC", &here], args].concat())
        };
        make("libbar.so", "int bar(void) { return 41; }", &["-Wl,-soname,libbar.so"]);
        make(
            "libfoo.so",
            "int bar(void); int foo(void) { return bar() + 1; }",
            &["-Wl,-soname,libfoo.so", "-lbar"],
        );
        let source = format!("{}int foo(void); int answer(void) {{ return foo(); }}", fixture::PLUGIN);
        let plugin = make("plugin.so", &source, &["-lfoo", "-Wl,-rpath,$ORIGIN", "-Wl,--disable-new-dtags"]);

        let built = from_plugin(&PluginOptions { plugin, ..Default::default() }).unwrap();
        assert_eq!(built.libraries, ["lib/libbar.so", "lib/libfoo.so"]);
        let image = store(dir.path()).import_archive(&archive(&built)[..], &ImportLimits::default()).unwrap();
        fs::remove_dir_all(&made).unwrap();

        let loader = compile_to(&dir.path().join("loader"), LOADER, &["-ldl"]);
        let load = |files: Vec<PathBuf>| std::process::Command::new(&loader).args(files).output().unwrap();
        let plugin = image.dir.join("plugin.so");
        let in_order =
            image.libraries.iter().map(|library| image.dir.join(library)).chain([plugin.clone()]).collect();
        let output = load(in_order);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(
            !load(vec![plugin]).status.success(),
            "the plugin loads by itself, so this test shows nothing"
        );
    }
}
