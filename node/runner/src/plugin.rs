//! Loads the plugin into this process. One of the unsafe rooms.
//!
//! It owns every `dlopen` and `dlsym`. A loaded library is never unloaded. All of this runs tenant code (constructors, init), so it
//! happens behind the first filter. What plugins expect of the host (libm, libgcc_s) the spawner has loaded before.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use denizen_abi::{ABI_VERSION, DZ_OK, DzInit, DzSlice, INIT_SYMBOL, PluginInit};
use denizen_wire::{LoadFailure, LoadFailureKind};

use crate::declare::Declared;
use crate::{elf, host};

unsafe extern "C" {
    /// The C library's standard output stream.
    static stdout: *mut libc::FILE;
}

/// Ends this process at once. `exit` would first run what the plugin has registered for it, which may take for ever.
pub(crate) fn end_process(code: i32) -> ! {
    // SAFETY: it takes a number and does not come back.
    unsafe { libc::_exit(code) }
}

/// Gives back the pages of the heap that nothing uses: those that loading took and let go.
pub(crate) fn give_back_free_memory() {
    // SAFETY: the allocator takes its own locks, and touches only what nobody has.
    unsafe { libc::malloc_trim(0) };
}

/// Loads the plugin and the libraries beside it, and lets it declare its functions.
pub(crate) fn load(path: &Path, manifest_json: &str) -> Result<Declared, LoadFailure> {
    elf::check(path)?;
    buffer_standard_output_by_lines();
    let image_dir = path.parent().unwrap_or(Path::new("/"));
    load_libraries_beside(&image_dir.join("lib"));
    let library = open(path).map_err(|message| not_opened(&message))?;
    let init = find_init(library)?;
    initialise(init, image_dir, manifest_json)
}

/// `printf` in a plugin should appear in the logs when the line ends, and nothing may be lost when this process ends at once.
fn buffer_standard_output_by_lines() {
    // SAFETY: `stdout` is the C library's own stream, a null buffer lets it use its own, and no other thread runs yet.
    unsafe { libc::setvbuf(stdout, std::ptr::null_mut(), libc::_IOLBF, 0) };
}

/// The linker finds a library that is loaded already by its name, so each is loaded by its path first. They may need one another:
/// those that fail are tried again as long as others succeed. One that nothing needs may fail for good.
fn load_libraries_beside(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut missing: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    missing.sort();
    loop {
        let before = missing.len();
        missing.retain(|path| open(path).is_err());
        if missing.is_empty() || missing.len() == before {
            return;
        }
    }
}

fn open(path: &Path) -> Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a zero byte in its path".to_owned())?;
    // SAFETY: a terminated path. Constructors run, which are tenant code: the first filter is on.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() { Err(last_error()) } else { Ok(library) }
}

fn last_error() -> String {
    // SAFETY: the message, if there is one, is terminated and stays until the next call of this thread to the loader.
    unsafe {
        let message = libc::dlerror();
        if message.is_null() {
            "no reason given".into()
        } else {
            CStr::from_ptr(message).to_string_lossy().into_owned()
        }
    }
}

fn find_init(library: *mut c_void) -> Result<PluginInit, LoadFailure> {
    // SAFETY: a library that is open, and a terminated name.
    let symbol = unsafe { libc::dlsym(library, INIT_SYMBOL.as_ptr()) };
    if symbol.is_null() {
        return Err(not_opened(&format!("undefined symbol: {}", INIT_SYMBOL.to_string_lossy())));
    }
    // SAFETY: the ABI, whose version was checked in the file, gives this symbol this type.
    Ok(unsafe { std::mem::transmute::<*mut c_void, PluginInit>(symbol) })
}

fn initialise(init: PluginInit, image_dir: &Path, manifest_json: &str) -> Result<Declared, LoadFailure> {
    let (status, declared) = host::collect_declarations(|registry| {
        let facts = DzInit {
            size: u32::try_from(size_of::<DzInit>()).unwrap_or(0),
            abi_version: ABI_VERSION,
            registry,
            image_dir: DzSlice::new(image_dir.as_os_str().as_bytes()),
            manifest: DzSlice::new(manifest_json.as_bytes()),
        };
        // SAFETY: the table lives for ever, the facts until the call returns, as the ABI says.
        unsafe { init(&raw const host::TABLE, &raw const facts) }
    });
    let failed = |message: String| LoadFailure {
        kind: LoadFailureKind::InitFailed,
        message,
        remedy: "This is the plugin's own doing: see its logs, correct it and deploy it again.".into(),
    };
    if status != DZ_OK || declared.failure.is_some() {
        let why = declared.failure.unwrap_or_else(|| format!("init returned {status}"));
        return Err(failed(why));
    }
    if declared.functions.is_empty() {
        return Err(failed("the plugin declares no function".into()));
    }
    Ok(declared)
}

/// The loader only gives a text, but its phrases have been the same for decades.
fn not_opened(message: &str) -> LoadFailure {
    let (kind, remedy) = if message.contains("cannot open shared object file") {
        (
            LoadFailureKind::MissingLibrary,
            "Build the image where the library is installed, so that it is packed, or link it statically.",
        )
    } else if message.contains("undefined symbol") || message.contains("version `") {
        (
            LoadFailureKind::MissingSymbol,
            "A library is missing from the link, or the plugin was built for a newer C library than this host has.",
        )
    } else {
        (LoadFailureKind::Unreadable, "Build the image again; the plugin must be a whole ELF shared library.")
    };
    LoadFailure { kind, message: format!("the plugin cannot be loaded: {message}"), remedy: remedy.into() }
}
