//! Cargo packages: which library they make, and making it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use serde::Deserialize;

use super::{BuildError, Built, Source, stage};
use crate::libraries::SearchPath;
use crate::manifest;

/// How much of cargo's talk a failure keeps.
const KEPT_MESSAGES_BYTES: usize = 64 << 10;

/// The cargo profile to build with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Quick to build.
    #[default]
    Dev,
    /// Quick to run.
    Release,
}

/// A cargo package to make an image of.
#[derive(Debug, Clone, Default)]
pub struct PackageOptions {
    /// The directory of its `Cargo.toml`. Beside it may lie `denizen.toml`; without one the image has the
    /// package's name and defaults.
    pub dir: PathBuf,
    /// How to build.
    pub profile: Profile,
    /// Whether a `Cargo.lock` that is missing or out of date is an error (`--locked`).
    pub locked: bool,
    /// Where cargo puts what it makes; otherwise it decides.
    pub target_dir: Option<PathBuf>,
    /// Whether cargo's messages come with colours.
    pub color: bool,
}

/// Builds a cargo package and makes an image of its shared library. `progress` gets each line that cargo
/// says, compile errors included, while it says it; without the line's end.
///
/// # Errors
/// See [`BuildError`]. After [`BuildError::Cargo`] the cause was among the lines of `progress`.
pub fn from_package(options: &PackageOptions, progress: &mut dyn FnMut(&str)) -> Result<Built, BuildError> {
    let cargo_toml = options.dir.join("Cargo.toml");
    if !cargo_toml.is_file() {
        return Err(BuildError::NoPackage { dir: options.dir.clone() });
    }
    let package = find_package(options, &cargo_toml, progress)?;
    // The manifest comes first: its mistakes should not cost a build.
    let manifest_path = options.dir.join(manifest::FILE_NAME);
    let source = if manifest_path.exists() {
        Source::read(&manifest_path)?
    } else {
        Source::default_for(&package.name)?
    };

    let made = compile(options, &package, progress)?;
    let plugin = made.plugin.ok_or_else(|| answer_error("it names no shared library among what it made"))?;
    let mut search = SearchPath::of_host();
    search.first.extend(made.linked);
    let mut watch = made.sources;
    watch.extend([manifest_path, options.dir.join("files")].into_iter().filter(|path| path.exists()));
    stage(&plugin, source, &search, watch.into_iter().collect())
}

fn answer_error(why: &str) -> BuildError {
    BuildError::CargoAnswer { why: why.to_owned() }
}

/// What this program reads of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    crate_types: Vec<String>,
    src_path: PathBuf,
}

impl Target {
    fn is_cdylib(&self) -> bool {
        self.crate_types.iter().any(|kind| kind == "cdylib")
            && !self.kind.iter().any(|kind| kind == "example")
    }

    fn is_lib(&self) -> bool {
        self.kind.iter().any(|kind| kind.ends_with("lib"))
    }
}

fn find_package(
    options: &PackageOptions,
    cargo_toml: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Package, BuildError> {
    let mut command = cargo(options);
    command.args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"]).arg(cargo_toml);
    let mut text = String::new();
    run(command, &options.dir.display().to_string(), progress, |stdout| {
        let mut stdout = stdout;
        stdout.read_to_string(&mut text).map(drop)
    })?;
    let metadata: Metadata = serde_json::from_str(&text).map_err(|error| answer_error(&error.to_string()))?;
    let wanted = fs::canonicalize(cargo_toml).ok();
    let members: Vec<String> = metadata.packages.iter().map(|package| package.name.clone()).collect();
    let package =
        metadata.packages.into_iter().find(|package| fs::canonicalize(&package.manifest_path).ok() == wanted);
    let package = package.ok_or(BuildError::Workspace { dir: options.dir.clone(), members })?;
    if package.targets.iter().any(Target::is_cdylib) {
        return Ok(package);
    }
    let has_lib = package.targets.iter().any(Target::is_lib);
    Err(BuildError::NoCdylib { package: package.name, manifest: cargo_toml.to_owned(), has_lib })
}

/// What this program reads of the messages of `cargo build`, each a line of JSON.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact {
        package_id: String,
        manifest_path: PathBuf,
        target: Target,
        filenames: Vec<PathBuf>,
    },
    BuildScriptExecuted {
        linked_paths: Vec<String>,
    },
    #[serde(other)]
    Other,
}

/// What a build made, and from what.
#[derive(Default)]
struct Made {
    plugin: Option<PathBuf>,
    /// Directories that build scripts had the linker look into.
    linked: Vec<PathBuf>,
    /// Of every package on this machine that took part.
    sources: BTreeSet<PathBuf>,
}

impl Made {
    fn note(&mut self, message: Message, wanted: &str) {
        match message {
            Message::BuildScriptExecuted { linked_paths } => {
                // They come as `native=/path` or as the path alone.
                let path = |text: &String| {
                    PathBuf::from(text.split_once('=').map_or(text.as_str(), |(_, path)| path))
                };
                self.linked.extend(linked_paths.iter().map(path).filter(|path| path.is_absolute()));
            }
            Message::CompilerArtifact { package_id, manifest_path, target, filenames } => {
                if package_id.starts_with("path+") {
                    self.sources.insert(sources_of(&target.src_path, &manifest_path));
                    self.sources.insert(manifest_path);
                }
                if package_id == wanted && target.is_cdylib() {
                    self.plugin =
                        filenames.into_iter().find(|file| file.extension().is_some_and(|end| end == "so"));
                }
            }
            Message::Other => {}
        }
    }
}

/// The directory of a crate's root file; the file alone where that directory is the package's own, which also
/// holds `target`.
fn sources_of(src_path: &Path, manifest_path: &Path) -> PathBuf {
    match src_path.parent() {
        Some(dir) if Some(dir) != manifest_path.parent() => dir.to_owned(),
        _ => src_path.to_owned(),
    }
}

fn compile(
    options: &PackageOptions,
    package: &Package,
    progress: &mut dyn FnMut(&str),
) -> Result<Made, BuildError> {
    let mut command = cargo(options);
    command.args(["build", "--lib", "--message-format=json-render-diagnostics", "--package", &package.id]);
    command.arg("--manifest-path").arg(options.dir.join("Cargo.toml"));
    if options.profile == Profile::Release {
        command.arg("--release");
    }
    if options.locked {
        command.arg("--locked");
    }
    if let Some(dir) = &options.target_dir {
        command.arg("--target-dir").arg(dir);
    }
    let mut made = Made::default();
    run(command, &format!("`{}`", package.name), progress, |stdout| {
        for line in stdout.lines() {
            // Macros may print to the same stream; such a line is not a message.
            if let Ok(message) = serde_json::from_str(&line?) {
                made.note(message, &package.id);
            }
        }
        Ok(())
    })?;
    Ok(made)
}

/// The cargo that started this program, so that both see the same toolchain; or the first on the path.
fn cargo(options: &PackageOptions) -> Command {
    let program = std::env::var_os("CARGO").filter(|cargo| Path::new(cargo).is_file());
    let mut command = Command::new(program.unwrap_or_else(|| "cargo".into()));
    command.env("CARGO_TERM_COLOR", if options.color { "always" } else { "never" });
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs cargo, with its talk going to `progress` and its answers to `read`, on a thread of its own so that
/// neither pipe blocks the other.
fn run(
    mut command: Command,
    what: &str,
    progress: &mut dyn FnMut(&str),
    read: impl FnOnce(BufReader<std::process::ChildStdout>) -> std::io::Result<()> + Send,
) -> Result<(), BuildError> {
    let mut child = command.spawn().map_err(|source| BuildError::NoCargo { source })?;
    let stdout = child.stdout.take().map(BufReader::new);
    let (read, messages) = thread::scope(|scope| {
        let reader = scope.spawn(move || stdout.map_or(Ok(()), read));
        let messages = relay(&mut child, progress);
        (reader.join(), messages)
    });
    let status = child.wait().map_err(|source| BuildError::NoCargo { source })?;
    if !status.success() {
        return Err(BuildError::Cargo { what: what.to_owned(), messages });
    }
    match read {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(answer_error(&error.to_string())),
        Err(_) => Err(answer_error("reading it failed")),
    }
}

/// Passes on what cargo says, line by line, and gives the last of it.
fn relay(child: &mut Child, progress: &mut dyn FnMut(&str)) -> String {
    let mut kept = Vec::new();
    let Some(stderr) = child.stderr.take() else { return String::new() };
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        progress(&String::from_utf8_lossy(&line));
        kept.extend_from_slice(&line);
        kept.push(b'\n');
        if kept.len() > 2 * KEPT_MESSAGES_BYTES {
            kept.drain(..kept.len() - KEPT_MESSAGES_BYTES);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Manifest;

    const SOURCE: &str = "#[unsafe(no_mangle)] pub static denizen_plugin_abi: u32 = 1;
#[unsafe(no_mangle)] pub extern \"C\" fn denizen_plugin_init(_: *const u8, _: *const u8) -> i32 { 0 }\n";

    fn package(lib: &str, source: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let toml = format!("[package]\nname = \"hello\"\nedition = \"2024\"\n{lib}\n[workspace]\n");
        fs::write(dir.path().join("Cargo.toml"), toml).unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        fs::write(dir.path().join("src/lib.rs"), source).unwrap();
        dir
    }

    const CDYLIB: &str = "[lib]\ncrate-type = [\"cdylib\"]";

    fn build(dir: &Path, locked: bool) -> (Result<Built, BuildError>, String) {
        let mut said = String::new();
        let options = PackageOptions {
            dir: dir.to_owned(),
            locked,
            target_dir: Some(dir.join("t")),
            ..Default::default()
        };
        let built = from_package(&options, &mut |line| said.extend([line, "\n"]));
        (built, said)
    }

    #[test]
    fn a_package_becomes_an_image() {
        let dir = package(CDYLIB, SOURCE);
        let (built, said) = build(dir.path(), false);
        let built = built.unwrap();
        assert_eq!(built.manifest, Manifest::default_for("hello"));
        assert!(said.contains("Compiling hello"), "{said}");
        assert!(built.watch.contains(&dir.path().join("src")), "{:?}", built.watch);

        fs::write(dir.path().join("denizen.toml"), "name = \"shop\"\n").unwrap();
        let (built, _) = build(dir.path(), true);
        let built = built.unwrap();
        assert_eq!(built.manifest.name, "shop");
        assert!(built.watch.contains(&dir.path().join("denizen.toml")));

        fs::write(dir.path().join("denizen.toml"), "nam = \"shop\"\n").unwrap();
        assert!(matches!(build(dir.path(), true).0, Err(BuildError::Manifest(_))));
    }

    #[test]
    fn compile_errors_are_shown() {
        let dir = package(CDYLIB, "fn broken( {}");
        let (built, said) = build(dir.path(), false);
        let Err(BuildError::Cargo { what, messages }) = built else { panic!("{built:?}") };
        assert_eq!(what, "`hello`");
        assert!(said.contains("src/lib.rs:1") && messages.contains("src/lib.rs:1"), "{said}");
    }

    #[test]
    fn locked_needs_a_lock_file() {
        let dir = package(CDYLIB, SOURCE);
        let (built, said) = build(dir.path(), true);
        assert!(matches!(built, Err(BuildError::Cargo { .. })), "{built:?}");
        assert!(said.contains("--locked"), "{said}");
    }

    #[test]
    fn a_package_without_a_shared_library_is_told_what_to_add() {
        let dir = package("", SOURCE);
        let text = build(dir.path(), false).0.unwrap_err().to_string();
        assert!(
            text.contains("`hello` makes no shared library") && text.contains("crate-type = [\"cdylib\"]"),
            "{text}"
        );
        fs::rename(dir.path().join("src/lib.rs"), dir.path().join("src/main.rs")).unwrap();
        let text = build(dir.path(), false).0.unwrap_err().to_string();
        assert!(text.contains("src/lib.rs"), "{text}");
    }

    #[test]
    fn directories_that_are_no_package() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(build(dir.path(), false).0, Err(BuildError::NoPackage { .. })));
        fs::write(dir.path().join("Cargo.toml"), "[workspace]\nmembers = [\"one\"]\nresolver = \"3\"\n")
            .unwrap();
        fs::create_dir_all(dir.path().join("one/src")).unwrap();
        fs::write(
            dir.path().join("one/Cargo.toml"),
            format!("[package]\nname = \"one\"\nedition = \"2024\"\n{CDYLIB}\n"),
        )
        .unwrap();
        fs::write(dir.path().join("one/src/lib.rs"), SOURCE).unwrap();
        let text = build(dir.path(), false).0.unwrap_err().to_string();
        assert!(text.contains("go into one of its members: one"), "{text}");
        fs::write(dir.path().join("Cargo.toml"), "nonsense").unwrap();
        assert!(matches!(build(dir.path(), false).0, Err(BuildError::Cargo { .. })));
    }

    /// A library that a build script made is found where the script told the linker to look.
    #[test]
    fn libraries_of_build_scripts_are_packed() {
        let source = format!(
            "{SOURCE}unsafe extern \"C\" {{ safe fn foo() -> i32; }}\n#[unsafe(no_mangle)] pub extern \"C\" fn f() -> i32 {{ foo() }}\n"
        );
        let dir = package(CDYLIB, &source);
        let script = r#"fn main() {
            let out = std::env::var("OUT_DIR").unwrap();
            std::fs::write(format!("{out}/foo.c"), "int foo(void) { return 1; }").unwrap();
            let args = ["-shared", "-fPIC", "-Wl,-soname,libfoo.so", "foo.c", "-o", "libfoo.so"];
            assert!(std::process::Command::new("cc").current_dir(&out).args(args).status().unwrap().success());
            println!("cargo::rustc-link-search=native={out}");
            println!("cargo::rustc-link-lib=dylib=foo");
        }"#;
        fs::write(dir.path().join("build.rs"), script).unwrap();
        assert_eq!(build(dir.path(), false).0.unwrap().libraries, ["lib/libfoo.so"]);
    }
}
