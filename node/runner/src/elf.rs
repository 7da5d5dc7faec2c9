//! Looks at a plugin's file before any of its code runs: is it loadable here, and built for this function ABI.
//!
//! It reads the file as data, through a map: copies on the heap would stay with the process for its life. A damaged or hostile file is at
//! worst refused.

use std::fs::File;
use std::path::Path;

use denizen_abi::{ABI_SYMBOL, ABI_VERSION, INIT_SYMBOL};
use denizen_wire::{LoadFailure, LoadFailureKind};
use memmap2::Mmap;
use object::read::elf::ElfFile64;
use object::{Architecture, Object, ObjectKind, ObjectSegment, ObjectSymbol};

#[cfg(target_arch = "x86_64")]
const HERE: (Architecture, &str) = (Architecture::X86_64, "x86_64");
#[cfg(target_arch = "aarch64")]
const HERE: (Architecture, &str) = (Architecture::Aarch64, "aarch64");

/// Refuses a file that is no plugin for this host.
pub(crate) fn check(path: &Path) -> Result<(), LoadFailure> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    // SAFETY: files of an image are on a read-only mount, and nothing changes them once the image is in the store; the loader maps this
    // very file next.
    let bytes = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(path, &error))?;
    // The fifth byte is the class; 2 is 64-bit.
    if bytes.starts_with(b"\x7fELF") && bytes.get(4).is_some_and(|class| *class != 2) {
        return Err(wrong_architecture("32-bit code"));
    }
    let elf = ElfFile64::<object::Endianness>::parse(&bytes[..]).map_err(|error| unreadable(path, &error))?;
    if elf.architecture() != HERE.0 {
        return Err(wrong_architecture(&format!("code for {:?}", elf.architecture())));
    }
    if elf.kind() != ObjectKind::Dynamic {
        return Err(unreadable(path, &"it is no shared library"));
    }
    check_version(&elf)?;
    if find(&elf, text(INIT_SYMBOL)).is_none() {
        return Err(missing_symbol(text(INIT_SYMBOL)));
    }
    Ok(())
}

fn check_version(elf: &ElfFile64<'_, object::Endianness>) -> Result<(), LoadFailure> {
    let address = find(elf, text(ABI_SYMBOL)).ok_or_else(|| missing_symbol(text(ABI_SYMBOL)))?;
    let found = elf.segments().find_map(|segment| segment.data_range(address, 4).ok().flatten());
    let found = found.and_then(|bytes| bytes.first_chunk::<4>()).map(|bytes| u32::from_le_bytes(*bytes));
    match found {
        Some(ABI_VERSION) => Ok(()),
        Some(other) => Err(LoadFailure {
            kind: LoadFailureKind::AbiVersion,
            message: format!("the plugin is built for function ABI {other}, this host has {ABI_VERSION}"),
            remedy: "Build it with the SDK (or denizen.h) of this host's version.".into(),
        }),
        None => Err(LoadFailure {
            kind: LoadFailureKind::AbiVersion,
            message: format!("`{}` has no value in the file", text(ABI_SYMBOL)),
            remedy: "Define it as an initialised constant, not in zeroed memory.".into(),
        }),
    }
}

/// Address of a symbol that the file defines for others.
fn find(elf: &ElfFile64<'_, object::Endianness>, name: &str) -> Option<u64> {
    let mut symbols = elf.dynamic_symbols();
    symbols.find(|symbol| symbol.is_definition() && symbol.name() == Ok(name)).map(|symbol| symbol.address())
}

fn text(name: &'static std::ffi::CStr) -> &'static str {
    name.to_str().unwrap_or("?")
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> LoadFailure {
    LoadFailure {
        kind: LoadFailureKind::Unreadable,
        message: format!("{} cannot be loaded: {why}", path.display()),
        remedy: "Build the image again; the plugin must be a whole ELF shared library.".into(),
    }
}

fn wrong_architecture(what: &str) -> LoadFailure {
    LoadFailure {
        kind: LoadFailureKind::WrongArchitecture,
        message: format!("the plugin is {what}, this host runs {}", HERE.1),
        remedy: format!("Build it for {}.", HERE.1),
    }
}

fn missing_symbol(name: &str) -> LoadFailure {
    LoadFailure {
        kind: LoadFailureKind::MissingSymbol,
        message: format!("the plugin does not export `{name}`"),
        remedy:
            "In Rust, call `denizen::export!`; in C, define what denizen.h asks for, with default visibility."
                .into(),
    }
}
