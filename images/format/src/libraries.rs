//! Which shared libraries travel with a plugin, and in which order they load.
//!
//! A sandbox sees its image and nothing else, so what the dynamic loader would have found on the building
//! machine must be packed. The search below is the loader's own (ld.so(8)): `DT_RPATH` of the library and of
//! those that loaded it where there is no `DT_RUNPATH`, `LD_LIBRARY_PATH`, `DT_RUNPATH`, the loader's cache,
//! the standard directories.
//!
//! At run time nothing is searched. The runner loads `lib/*` by absolute path, dependencies first; the loader
//! then finds each needed name among what is loaded already, by its `DT_SONAME`. It finds the order by trying:
//! a library whose dependencies are not loaded yet fails before any of its code runs, and is tried again. So
//! the order in the list of contents shows that there is one, and what it is changes nothing. That is why a library
//! without its own name, and a circle of libraries, are refused here with a reason instead of failing there
//! without one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::elf::{self, ElfError, ElfInfo};

/// Libraries that the runner has loaded before any plugin. Packing a second copy of the C library would break
/// both.
const HOST_PROVIDED: [&str; 11] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "ld-linux-riscv64-lp64d.so.1",
    "linux-vdso.so.1",
];

/// A bound on work: no plugin is served well by more.
const MAX_LIBRARIES: usize = 256;

/// A library to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its file name in the image's `lib/`, which is its `DT_SONAME`.
    pub name: String,
    /// Where it was found.
    pub path: PathBuf,
}

/// Why the libraries of a plugin cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// No directory of the search has it.
    #[error(
        "{needed_by} needs the shared library {name}, which was not found{}; install it, set LD_LIBRARY_PATH, or link it \
         statically",
        rejected_text(.rejected)
    )]
    NotFound {
        /// The library.
        name: String,
        /// Who needs it: a file name.
        needed_by: String,
        /// Files of that name that are of no use, each with the reason.
        rejected: Vec<(PathBuf, String)>,
    },
    /// It is needed by path, which means nothing inside a sandbox.
    #[error(
        "{needed_by} needs the library {name:?} by path; give that library a name with -Wl,-soname and link it with -l"
    )]
    ByPath {
        /// What stands in `DT_NEEDED`.
        name: String,
        /// Who needs it.
        needed_by: String,
    },
    /// Its own name is not the one that it is needed by, so the loader would not recognise it.
    #[error("{} is needed as {name}, but it {}; link it with -Wl,-soname,{name}", path.display(), soname_text(.soname))]
    OtherName {
        /// Where it is.
        path: PathBuf,
        /// The name that it is needed by.
        name: String,
        /// What it calls itself.
        soname: Option<String>,
    },
    /// Libraries that need each other in a circle cannot be loaded one by one.
    #[error("shared libraries need each other in a circle: {}; link them into one", .names.join(" -> "))]
    Circle {
        /// The circle, its first member repeated at the end.
        names: Vec<String>,
    },
    /// The libraries of an image are not all there, or in an order in which they cannot load.
    #[error(
        "{needed_by} needs the shared library {name}, which the image does not load before it; build the image again"
    )]
    Missing {
        /// The library.
        name: String,
        /// Who needs it: a file name.
        needed_by: String,
    },
    /// There are more than 256.
    #[error("the plugin needs over 256 shared libraries; link some of them statically")]
    TooMany,
}

fn rejected_text(rejected: &[(PathBuf, String)]) -> String {
    rejected.iter().map(|(path, why)| format!(" ({} cannot be used: {why})", path.display())).collect()
}

fn soname_text(soname: &Option<String>) -> String {
    soname.as_ref().map_or("has no name of its own".to_owned(), |soname| format!("calls itself {soname}"))
}

/// Where libraries are looked for beside the paths that they carry themselves.
#[derive(Debug, Clone, Default)]
pub struct SearchPath {
    /// Looked at before `DT_RUNPATH`: `LD_LIBRARY_PATH`, or where a build put what it made.
    pub first: Vec<PathBuf>,
    /// The loader's cache: names and files. A name may occur for several machines.
    pub cache: Vec<(String, PathBuf)>,
    /// Looked at last.
    pub standard: Vec<PathBuf>,
}

impl SearchPath {
    /// What the loader of this machine would use. Without `ldconfig` the cache is empty and the standard
    /// directories must do.
    pub fn of_host() -> Self {
        let first = std::env::var_os("LD_LIBRARY_PATH")
            .map(|list| std::env::split_paths(&list).filter(|dir| dir.is_absolute()).collect())
            .unwrap_or_default();
        let arch = std::env::consts::ARCH;
        let standard = ["/lib", "/usr/lib"].map(|dir| format!("{dir}/{arch}-linux-gnu"));
        let standard =
            standard.into_iter().chain(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(str::to_owned));
        Self { first, cache: loader_cache(), standard: standard.map(PathBuf::from).collect() }
    }
}

fn loader_cache() -> Vec<(String, PathBuf)> {
    ["/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"]
        .into_iter()
        .find_map(|program| {
            Command::new(program).arg("-p").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
        })
        .map(|output| parse_cache(&String::from_utf8_lossy(&output.stdout)))
        .unwrap_or_default()
}

/// Lines like `libz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1`.
fn parse_cache(text: &str) -> Vec<(String, PathBuf)> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(" (")?;
            let (_, path) = rest.split_once("=> ")?;
            Some((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

/// The libraries that the plugin at `plugin` needs beside those of the host, dependencies before those who
/// need them.
///
/// # Errors
/// A library that cannot be found or would not be recognised at run time.
pub fn resolve(plugin: &Path, info: &ElfInfo, search: &SearchPath) -> Result<Vec<Library>, LibraryError> {
    let mut walk = Walk { search, found: Vec::new(), done: BTreeSet::new(), chain: Vec::new() };
    walk.needed_by(&Object::new(plugin, info), &[])?;
    Ok(walk.found)
}

/// Checks that files loaded in this order find what they need. Each comes as its file name and what it needs.
pub(crate) fn check_order<'f>(
    files: impl IntoIterator<Item = (&'f str, &'f [String])>,
) -> Result<(), LibraryError> {
    let mut loaded: BTreeSet<&str> = HOST_PROVIDED.into_iter().collect();
    for (file, needed) in files {
        if let Some(name) = needed.iter().find(|name| !loaded.contains(name.as_str())) {
            return Err(LibraryError::Missing { name: name.clone(), needed_by: file.to_owned() });
        }
        loaded.insert(file);
    }
    Ok(())
}

/// A library or the plugin, as far as the search is concerned.
struct Object<'i> {
    name: String,
    info: &'i ElfInfo,
    rpath: Vec<PathBuf>,
    runpath: Vec<PathBuf>,
}

impl<'i> Object<'i> {
    fn new(path: &Path, info: &'i ElfInfo) -> Self {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let origin = real.parent().unwrap_or(Path::new("/"));
        let rpath = if info.runpath.is_empty() { expand(&info.rpath, origin) } else { Vec::new() };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Self { name, info, rpath, runpath: expand(&info.runpath, origin) }
    }
}

/// Directories with `$ORIGIN` put in. Relative ones, and other variables, depend on who runs the program:
/// they are left out.
fn expand(dirs: &[String], origin: &Path) -> Vec<PathBuf> {
    let origin = origin.to_string_lossy();
    dirs.iter()
        .map(|dir| dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
        .filter(|dir| dir.starts_with('/') && !dir.contains('$'))
        .map(PathBuf::from)
        .collect()
}

struct Walk<'s> {
    search: &'s SearchPath,
    found: Vec<Library>,
    done: BTreeSet<String>,
    /// The libraries that are being resolved, outermost first.
    chain: Vec<String>,
}

impl Walk<'_> {
    /// `inherited`: the `DT_RPATH` of those who load `object`, nearest first.
    fn needed_by(&mut self, object: &Object<'_>, inherited: &[PathBuf]) -> Result<(), LibraryError> {
        // DT_RUNPATH switches off the DT_RPATH of the whole chain, for what this object itself needs.
        let rpath =
            if object.info.runpath.is_empty() { [&object.rpath, inherited].concat() } else { Vec::new() };
        for name in &object.info.needed {
            if !HOST_PROVIDED.contains(&name.as_str()) && !self.done.contains(name) {
                self.library(name, object, &rpath)?;
            }
        }
        Ok(())
    }

    fn library(&mut self, name: &str, needed_by: &Object<'_>, rpath: &[PathBuf]) -> Result<(), LibraryError> {
        if name.contains('/') || crate::store::check_component(name).is_err() {
            return Err(LibraryError::ByPath { name: name.to_owned(), needed_by: needed_by.name.clone() });
        }
        if let Some(start) = self.chain.iter().position(|other| other == name) {
            let names = self.chain[start..].iter().cloned().chain([name.to_owned()]).collect();
            return Err(LibraryError::Circle { names });
        }
        let (path, info) = self.find(name, needed_by, rpath)?;
        if info.soname.as_deref() != Some(name) {
            return Err(LibraryError::OtherName { path, name: name.to_owned(), soname: info.soname });
        }
        self.chain.push(name.to_owned());
        self.needed_by(&Object::new(&path, &info), rpath)?;
        self.chain.pop();
        if self.found.len() == MAX_LIBRARIES {
            return Err(LibraryError::TooMany);
        }
        self.done.insert(name.to_owned());
        self.found.push(Library { name: name.to_owned(), path });
        Ok(())
    }

    /// The first file of that name that is a library for this machine, as the loader passes over others.
    fn find(
        &self,
        name: &str,
        needed_by: &Object<'_>,
        rpath: &[PathBuf],
    ) -> Result<(PathBuf, ElfInfo), LibraryError> {
        let mut rejected = BTreeMap::new();
        for path in self.candidates(name, needed_by, rpath) {
            match usable(&path) {
                Ok(Some(info)) => return Ok((path, info)),
                Ok(None) => {}
                Err(why) => drop(rejected.insert(path, why)),
            }
        }
        Err(LibraryError::NotFound {
            name: name.to_owned(),
            needed_by: needed_by.name.clone(),
            rejected: rejected.into_iter().collect(),
        })
    }

    fn candidates(&self, name: &str, needed_by: &Object<'_>, rpath: &[PathBuf]) -> Vec<PathBuf> {
        let cached =
            self.search.cache.iter().filter(|(cached, _)| cached == name).map(|(_, path)| path.clone());
        let before =
            rpath.iter().chain(&self.search.first).chain(&needed_by.runpath).map(|dir| dir.join(name));
        before.chain(cached).chain(self.search.standard.iter().map(|dir| dir.join(name))).collect()
    }
}

/// `None`: there is no such file.
fn usable(path: &Path) -> Result<Option<ElfInfo>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let check = |info: ElfInfo| info.check_library().map(|()| info);
    elf::inspect(&bytes).and_then(check).map(Some).map_err(|error: ElfError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{PLUGIN, compile_to};

    struct Room {
        dir: tempfile::TempDir,
    }

    impl Room {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("other")).unwrap();
            Self { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn library(&self, name: &str, source: &str, args: &[&str]) -> PathBuf {
            let here = format!("-L{}", self.dir.path().display());
            let there = format!("-L{}/other", self.dir.path().display());
            compile_to(&self.path(name), source, &[&["-shared", "-fPIC", &here, &there], args].concat())
        }

        fn resolve(&self, plugin: &Path, search: &SearchPath) -> Result<Vec<String>, LibraryError> {
            let info = elf::inspect(&fs::read(plugin).unwrap()).unwrap();
            let libraries = resolve(plugin, &info, search)?;
            assert!(libraries.iter().all(|library| library.path.is_file()));
            Ok(libraries.into_iter().map(|library| library.name).collect())
        }
    }

    const USES_FOO: &str = "int foo(void); int use_foo(void) { return foo(); }";

    /// plugin -> foo -> bar, plugin -> bar: bar, foo.
    fn chain(room: &Room, flag: &str) -> PathBuf {
        room.library("libbar.so", "int bar(void) { return 1; }", &["-Wl,-soname,libbar.so"]);
        room.library(
            "libfoo.so",
            "int bar(void); int foo(void) { return bar(); }",
            &["-Wl,-soname,libfoo.so", "-lbar"],
        );
        let source = format!("{PLUGIN}{USES_FOO} int bar(void); int use_bar(void) {{ return bar(); }}");
        room.library("plugin.so", &source, &["-lfoo", "-lbar", "-Wl,-rpath,$ORIGIN", flag])
    }

    #[test]
    fn dependencies_come_first_and_rpath_is_inherited() {
        let room = Room::new();
        let plugin = chain(&room, "-Wl,--disable-new-dtags");
        assert_eq!(room.resolve(&plugin, &SearchPath::default()).unwrap(), ["libbar.so", "libfoo.so"]);
    }

    #[test]
    fn runpath_holds_for_the_object_itself_only() {
        let room = Room::new();
        room.library("libbar.so", "int bar(void) { return 1; }", &["-Wl,-soname,libbar.so"]);
        room.library(
            "libfoo.so",
            "int bar(void); int foo(void) { return bar(); }",
            &["-Wl,-soname,libfoo.so", "-lbar"],
        );
        let args = ["-lfoo", "-Wl,-rpath,$ORIGIN", "-Wl,--enable-new-dtags"];
        let plugin = room.library("plugin.so", &format!("{PLUGIN}{USES_FOO}"), &args);
        let error = room.resolve(&plugin, &SearchPath::default()).unwrap_err().to_string();
        assert!(
            error.starts_with("libfoo.so needs the shared library libbar.so, which was not found"),
            "{error}"
        );
        let search = SearchPath { first: vec![room.dir.path().to_owned()], ..SearchPath::default() };
        assert_eq!(room.resolve(&plugin, &search).unwrap(), ["libbar.so", "libfoo.so"]);
    }

    #[test]
    fn a_runpath_switches_off_what_was_inherited() {
        let room = Room::new();
        let plugin = chain(&room, "-Wl,--disable-new-dtags");
        let foo = "int bar(void); int foo(void) { return bar(); }";
        let args = ["-Wl,-soname,libfoo.so", "-lbar", "-Wl,-rpath,/nowhere", "-Wl,--enable-new-dtags"];
        room.library("libfoo.so", foo, &args);
        let error = room.resolve(&plugin, &SearchPath::default()).unwrap_err().to_string();
        assert!(error.starts_with("libfoo.so needs the shared library libbar.so"), "{error}");
    }

    #[test]
    fn a_file_for_another_machine_is_passed_over() {
        let room = Room::new();
        let plugin = chain(&room, "-Wl,--disable-new-dtags");
        let mut foreign = fs::read(room.path("libfoo.so")).unwrap();
        foreign[18..20].copy_from_slice(&183_u16.to_le_bytes());
        fs::copy(room.path("libfoo.so"), room.path("other/libfoo.so")).unwrap();
        fs::write(room.path("libfoo.so"), foreign).unwrap();
        let error = room.resolve(&plugin, &SearchPath::default()).unwrap_err().to_string();
        assert!(error.contains("libfoo.so cannot be used: it is built for aarch64"), "{error}");
        let cache = vec![("libfoo.so".to_owned(), room.path("other/libfoo.so"))];
        let search = SearchPath { cache, ..SearchPath::default() };
        assert_eq!(room.resolve(&plugin, &search).unwrap(), ["libbar.so", "libfoo.so"]);
    }

    #[test]
    fn what_the_loader_would_not_recognise_is_refused() {
        let room = Room::new();
        let args = ["-lfoo", "-Wl,-rpath,$ORIGIN"];
        room.library("libfoo.so", "int foo(void) { return 1; }", &[]);
        let plugin = room.library("plugin.so", &format!("{PLUGIN}{USES_FOO}"), &args);
        let error = room.resolve(&plugin, &SearchPath::default()).unwrap_err().to_string();
        assert!(
            error.contains(
                "libfoo.so is needed as libfoo.so, but it has no name of its own; link it with -Wl,-soname"
            ),
            "{error}"
        );

        let nameless = room.path("libfoo.so");
        let plugin =
            room.library("by_path.so", &format!("{PLUGIN}{USES_FOO}"), &[nameless.to_str().unwrap()]);
        assert!(matches!(room.resolve(&plugin, &SearchPath::default()), Err(LibraryError::ByPath { .. })));
    }

    #[test]
    fn a_circle_is_named() {
        let room = Room::new();
        let foo = "int bar(void); int foo(void) { return bar(); }";
        room.library("libfoo.so", "int foo(void) { return 1; }", &["-Wl,-soname,libfoo.so"]);
        room.library(
            "libbar.so",
            "int foo(void); int bar(void) { return foo(); }",
            &["-Wl,-soname,libbar.so", "-lfoo"],
        );
        room.library("libfoo.so", foo, &["-Wl,-soname,libfoo.so", "-lbar"]);
        let plugin = room.library("plugin.so", &format!("{PLUGIN}{USES_FOO}"), &["-lfoo"]);
        let search = SearchPath { first: vec![room.dir.path().to_owned()], ..SearchPath::default() };
        let error = room.resolve(&plugin, &search).unwrap_err().to_string();
        assert!(error.contains("libfoo.so -> libbar.so -> libfoo.so"), "{error}");
    }

    #[test]
    fn the_hosts_own_libraries_are_not_packed() {
        let room = Room::new();
        let plugin =
            room.library("plugin.so", PLUGIN, &["-Wl,--no-as-needed", "-lm", "-lgcc_s", "-lpthread", "-ldl"]);
        assert_eq!(room.resolve(&plugin, &SearchPath::of_host()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn the_cache_is_read() {
        let text = "2 libs found in cache `/etc/ld.so.cache'\n\tlibz.so.1 (libc6,x86-64) => /lib/libz.so.1\n\tbroken\n";
        assert_eq!(parse_cache(text), [("libz.so.1".to_owned(), PathBuf::from("/lib/libz.so.1"))]);
    }
}
