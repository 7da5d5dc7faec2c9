//! From something on disk — a package, a plugin, an archive — to an image archive that can be sent.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use denizen_client::{DeployOptions, Deployed, Node};
use denizen_image::{
    ImageStore, ImportLimits, Manifest, StoreError,
    build::{self, BuildError, PackageOptions, PluginOptions, Profile},
};

use crate::{cli, failure::Failure, place, sdk, terminal::Terminal};

/// The folder of the workspace that a package belongs to: the nearest that says it is one.
fn workspace_of(dir: &Path) -> Option<&Path> {
    let says_so = |text: String| text.lines().any(|line| line.trim_start().starts_with("[workspace"));
    dir.ancestors().find(|dir| std::fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(says_so))
}

/// An image as an archive, whole and checked.
#[derive(Debug)]
pub(crate) struct Packed {
    /// 64 hex digits.
    pub(crate) image: String,
    pub(crate) manifest: Manifest,
    /// Bytes of its files together.
    pub(crate) bytes: u64,
    /// What to look at for changes.
    pub(crate) watch: Vec<PathBuf>,
    archive: File,
}

impl Packed {
    /// Makes one of whatever `source` names.
    pub(crate) fn from_source(terminal: &Terminal, source: &cli::ImageSource) -> Result<Packed, Failure> {
        let path = &source.path;
        if let Some(plugin) = &source.plugin {
            return Packed::from_plugin(plugin, source);
        }
        if path.is_dir() {
            let profile = if source.debug { Profile::Dev } else { Profile::Release };
            return Packed::from_package(terminal, path, profile);
        }
        if !path.exists() {
            return Err(Failure::usage(format!("{} is not there", path.display()))
                .remedy("name a package directory or an archive (.dzi), or a plugin with --plugin FILE.so"));
        }
        // A plugin in the place of an archive is an easy slip, and there is no doubt what is meant.
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("so") => Packed::from_plugin(path, source),
            _ => Packed::from_archive(path),
        }
    }

    /// Builds a cargo package.
    pub(crate) fn from_package(terminal: &Terminal, dir: &Path, profile: Profile) -> Result<Packed, Failure> {
        if !dir.join("Cargo.toml").is_file() {
            return Err(Failure::usage(format!("{} is no package: it has no Cargo.toml", dir.display()))
                .remedy("name a package directory, or make one with `denizen new NAME`"));
        }
        if sdk::ensure(dir)? == sdk::Unpacked::Renewed {
            terminal.say(
                terminal.err.dim("the SDK in .denizen/sdk was of another version, and is now of this one"),
            );
        }
        let options = PackageOptions {
            dir: dir.to_owned(),
            profile,
            // Only the checkout's own lock file is a promise; a package's is its author's business.
            locked: workspace_of(dir).is_some_and(|root| place::example(root, place::EXAMPLES[0]).is_dir()),
            target_dir: None,
            color: terminal.err.is_on(),
        };
        let built = build::from_package(&options, &mut |line| relay(terminal, line))?;
        Packed::from_built(&built)
    }

    fn from_plugin(plugin: &Path, source: &cli::ImageSource) -> Result<Packed, Failure> {
        let beside = plugin.with_file_name(denizen_image::manifest::FILE_NAME);
        let manifest =
            source.manifest.clone().or_else(|| (source.name.is_none() && beside.is_file()).then_some(beside));
        let options = PluginOptions { plugin: plugin.to_owned(), manifest, name: source.name.clone() };
        Packed::from_built(&build::from_plugin(&options)?)
    }

    fn from_built(built: &build::Built) -> Result<Packed, Failure> {
        let mut archive = temporary_file()?;
        built.write_archive(&mut archive)?;
        Ok(Packed {
            image: built.id.to_string(),
            manifest: built.manifest.clone(),
            bytes: built.bytes,
            watch: built.watch.clone(),
            archive,
        })
    }

    /// Takes an archive that may come from anyone, and checks every byte of it.
    pub(crate) fn from_archive(path: &Path) -> Result<Packed, Failure> {
        let archive = File::open(path).map_err(|error| {
            Failure::usage(format!("{} cannot be read", path.display()))
                .because(&error)
                .remedy("name an image archive (.dzi)")
        })?;
        let scratch = tempfile::tempdir().map_err(|error| no_room(&error))?;
        let image = ImageStore::open(scratch.path())?.import_archive(&archive, &ImportLimits::default())?;
        Ok(Packed {
            image: image.id.to_string(),
            manifest: image.manifest.clone(),
            bytes: image.bytes,
            watch: Vec::new(),
            archive,
        })
    }

    /// Writes the archive to `path`, whole or not at all.
    pub(crate) fn save(&mut self, path: &Path) -> Result<(), Failure> {
        let unwritable = |error: &std::io::Error| {
            Failure::host(format!("{} cannot be written", path.display()))
                .because(error)
                .remedy("choose another place with --output")
        };
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(place::folder_of(path))
            .map_err(|error| unwritable(&error))?;
        self.rewind()?;
        std::io::copy(&mut self.archive, &mut file).map_err(|error| unwritable(&error))?;
        file.persist(path).map_err(|error| unwritable(&error.error))?;
        Ok(())
    }

    /// Sends it to `node` as the image of `app`.
    pub(crate) fn deploy(
        &mut self,
        node: &Node,
        app: &str,
        options: DeployOptions,
    ) -> Result<Deployed, Failure> {
        self.rewind()?;
        let len_bytes = self.archive.metadata().map_err(|error| no_room(&error))?.len();
        Ok(node.deploy(app, &mut self.archive, len_bytes, options)?)
    }

    fn rewind(&mut self) -> Result<(), Failure> {
        self.archive.seek(SeekFrom::Start(0)).map(drop).map_err(|error| no_room(&error))
    }
}

/// What cargo says, but for its last line, which the answer makes superfluous.
fn relay(terminal: &Terminal, line: &str) {
    if !line.contains("Finished") || !line.contains("target(s) in") {
        terminal.say(line);
    }
}

fn temporary_file() -> Result<File, Failure> {
    tempfile::tempfile().map_err(|error| no_room(&error))
}

fn no_room(error: &std::io::Error) -> Failure {
    Failure::host("a temporary file cannot be made")
        .because(error)
        .remedy("make room in /tmp, or set TMPDIR to a directory that has some")
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Failure {
        // Cargo has explained itself at length.
        if let BuildError::Cargo { what, .. } = &error {
            return Failure::function(format!("{what} does not build; cargo says above why"));
        }
        let what = "the image cannot be built";
        let failure = match &error {
            BuildError::NoCargo { .. } | BuildError::CargoAnswer { .. } => Failure::host(what),
            BuildError::Store(StoreError::Io { .. }) => Failure::host(what),
            _ => Failure::usage(what),
        };
        failure.detail(crate::failure::chain(&error))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let failure = match &error {
            StoreError::Io { .. } | StoreError::Corrupt { .. } => Failure::host("the image cannot be read"),
            _ => Failure::usage("the image is refused"),
        };
        failure.detail(crate::failure::chain(&error))
    }
}
