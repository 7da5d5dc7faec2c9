//! What a shared object says about itself, read without running a byte of it.
//!
//! The constructors of a plugin are a tenant's code, so the questions "is it for this machine" and "is it for
//! this ABI" are answered from the file. The bytes may come from anyone: every offset is checked (by
//! `object`), nothing is looked up in time proportional to what a header merely claims, and the worst answer
//! is [`ElfError::Damaged`], never a panic.

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::{LittleEndian, SectionIndex};

/// The data symbol that tells a plugin's ABI version.
pub const ABI_SYMBOL: &str = "denizen_plugin_abi";
/// The function that a plugin is entered by.
pub const INIT_SYMBOL: &str = "denizen_plugin_init";

/// More entries than any real library has; a bound on work.
const MAX_NEEDED: usize = 512;
const MAX_NAME_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 4096;

type Header = FileHeader64<LittleEndian>;
type Sections<'d> = SectionTable<'d, Header>;
type Segments<'d> = &'d [<Header as FileHeader>::ProgramHeader];

/// What a shared object says about itself. It says so itself: the loader may find otherwise, and then only
/// its own load fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfInfo {
    /// The architecture, spelled as in [`std::env::consts::ARCH`].
    pub machine: String,
    /// Names of the shared libraries that it needs (`DT_NEEDED`), in its order.
    pub needed: Vec<String>,
    /// Its own name (`DT_SONAME`).
    pub soname: Option<String>,
    /// Directories of `DT_RPATH`, unexpanded.
    pub rpath: Vec<String>,
    /// Directories of `DT_RUNPATH`, unexpanded.
    pub runpath: Vec<String>,
    /// The value of the data symbol `denizen_plugin_abi`, if it is exported.
    pub abi_version: Option<u32>,
    /// Whether the function `denizen_plugin_init` is exported.
    pub has_init: bool,
    /// The program interpreter, which executables ask for.
    pub interpreter: Option<String>,
    /// Whether it is a position-independent program rather than a library.
    pub is_program: bool,
}

/// Why a file cannot be a plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It does not begin like an ELF file.
    #[error("it is not an ELF file ({found}); a plugin is a shared library (.so) built for Linux")]
    NotElf {
        /// What it looks like.
        found: &'static str,
    },
    /// It begins like one, and then contradicts itself.
    #[error("the ELF file is damaged or cut off: {why}; build or copy it again")]
    Damaged {
        /// What was found.
        why: String,
    },
    /// It is for another machine.
    #[error("it is built for {found}, and this machine is {host}; build it for {host}-unknown-linux-gnu")]
    WrongArchitecture {
        /// What it is built for.
        found: String,
        /// What this machine is.
        host: String,
    },
    /// It is an ELF file of another kind.
    #[error(
        "it is {found}, not a shared library; link it with `cc -shared -fPIC`, or with crate-type = [\"cdylib\"] in Cargo.toml"
    )]
    NotShared {
        /// What it is.
        found: &'static str,
    },
    /// A symbol that every plugin exports is not there.
    #[error(
        "it does not export `{symbol}`, so it is not a plugin; in Rust, name the functions in `denizen::export!(...)`; in C, \
         define what denizen.h asks for and do not hide it"
    )]
    MissingSymbol {
        /// The symbol.
        symbol: &'static str,
    },
    /// It was built against another version of the ABI.
    #[error(
        "it is built for version {found} of the plugin ABI, and this host knows version {supported}; rebuild it against {hint}"
    )]
    AbiVersion {
        /// The plugin's.
        found: u32,
        /// This host's.
        supported: u32,
        /// What to rebuild it against.
        hint: &'static str,
    },
}

impl ElfInfo {
    /// Checks that a plugin can be loaded here: architecture, kind, the two exported symbols, and the ABI
    /// version.
    ///
    /// # Errors
    /// The first that does not hold, in that order.
    pub fn check_plugin(&self) -> Result<(), ElfError> {
        self.check_library()?;
        if self.is_program {
            return Err(ElfError::NotShared { found: "a program" });
        }
        let found = self.abi_version.ok_or(ElfError::MissingSymbol { symbol: ABI_SYMBOL })?;
        let supported = denizen_abi::ABI_VERSION;
        if found != supported {
            let hint = if found > supported {
                "this host's release, or update the host"
            } else {
                "this host's release"
            };
            return Err(ElfError::AbiVersion { found, supported, hint });
        }
        if !self.has_init {
            return Err(ElfError::MissingSymbol { symbol: INIT_SYMBOL });
        }
        Ok(())
    }

    /// Checks that a library is for this machine.
    ///
    /// # Errors
    /// [`ElfError::WrongArchitecture`].
    pub fn check_library(&self) -> Result<(), ElfError> {
        let host = std::env::consts::ARCH;
        if self.machine == host {
            return Ok(());
        }
        Err(ElfError::WrongArchitecture { found: self.machine.clone(), host: host.to_owned() })
    }
}

/// Reads the headers, the dynamic section and the exported symbols of a shared object.
///
/// # Errors
/// [`ElfError::NotElf`], [`ElfError::Damaged`], [`ElfError::NotShared`], and [`ElfError::WrongArchitecture`]
/// where it is not even a 64-bit little-endian file, so that the rest cannot be read. Another 64-bit
/// architecture is for [`ElfInfo::check_library`] to refuse.
pub fn inspect(bytes: &[u8]) -> Result<ElfInfo, ElfError> {
    check_identity(bytes)?;
    let header = Header::parse(bytes).map_err(damaged)?;
    check_kind(header.e_type(LittleEndian))?;
    let segments = header.program_headers(LittleEndian, bytes).map_err(damaged)?;
    let sections = header.sections(LittleEndian, bytes).map_err(damaged)?;
    let mut info = ElfInfo {
        machine: machine_name(header.e_machine(LittleEndian).0),
        needed: Vec::new(),
        soname: None,
        rpath: Vec::new(),
        runpath: Vec::new(),
        abi_version: None,
        has_init: false,
        interpreter: interpreter(segments, bytes)?,
        is_program: false,
    };
    read_dynamic(&sections, bytes, &mut info)?;
    read_symbols(&sections, segments, bytes, &mut info)?;
    Ok(info)
}

fn damaged(error: object::read::Error) -> ElfError {
    ElfError::Damaged { why: error.to_string() }
}

fn broken(why: &str) -> ElfError {
    ElfError::Damaged { why: why.to_owned() }
}

/// Magic, class and byte order: what tells how to read the rest.
fn check_identity(bytes: &[u8]) -> Result<(), ElfError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ElfError::NotElf { found: looks_like(bytes) });
    }
    let (Some(class), Some(order)) = (bytes.get(4), bytes.get(5)) else {
        return Err(broken("it ends in its first header"));
    };
    let found = match (class, order) {
        (2, 1) => return Ok(()),
        (1, _) => "a 32-bit machine",
        (2, 2) => "a big-endian machine",
        _ => return Err(broken("it names neither its word size nor its byte order")),
    };
    Err(ElfError::WrongArchitecture { found: found.to_owned(), host: std::env::consts::ARCH.to_owned() })
}

fn looks_like(bytes: &[u8]) -> &'static str {
    const KINDS: [(&[u8], &str); 7] = [
        (b"#!", "a script"),
        (b"MZ", "a Windows binary"),
        (b"\xcf\xfa\xed\xfe", "a macOS binary"),
        (b"!<arch>", "a static library"),
        (b"\0asm", "a WebAssembly module"),
        (b"\x1f\x8b", "a gzip file"),
        (b"INPUT", "a linker script"),
    ];
    let known = KINDS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind);
    match known {
        Some(kind) => kind,
        None if bytes.is_empty() => "it is empty",
        None => "its first four bytes are others",
    }
}

fn check_kind(kind: elf::FileType) -> Result<(), ElfError> {
    let found = match kind {
        elf::ET_DYN => return Ok(()),
        elf::ET_EXEC => "a program",
        elf::ET_REL => "an object file",
        elf::ET_CORE => "a core dump",
        _ => "of an unknown kind",
    };
    Err(ElfError::NotShared { found })
}

fn machine_name(machine: u16) -> String {
    match machine {
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        21 => "powerpc64".to_owned(),
        22 => "s390x".to_owned(),
        258 => "loongarch64".to_owned(),
        other => format!("machine {other}"),
    }
}

fn interpreter(segments: Segments<'_>, bytes: &[u8]) -> Result<Option<String>, ElfError> {
    for segment in segments {
        if let Some(path) = segment.interpreter(LittleEndian, bytes).map_err(damaged)? {
            return text(path, MAX_PATH_BYTES).map(Some);
        }
    }
    Ok(None)
}

fn read_dynamic(sections: &Sections<'_>, bytes: &[u8], info: &mut ElfInfo) -> Result<(), ElfError> {
    let Some((entries, strings)) = sections.dynamic(LittleEndian, bytes).map_err(damaged)? else {
        return Err(broken("it has no dynamic section; do not strip the section headers"));
    };
    let strings = section_data(sections, strings, bytes)?;
    for entry in entries.iter().take_while(|entry| entry.tag(LittleEndian) != elf::DT_NULL) {
        let value = entry.val(LittleEndian);
        match entry.tag(LittleEndian) {
            elf::DT_NEEDED if info.needed.len() == MAX_NEEDED => {
                return Err(broken("it needs over 512 libraries"));
            }
            elf::DT_NEEDED => info.needed.push(string_at(strings, value, MAX_NAME_BYTES)?),
            elf::DT_SONAME => info.soname = Some(string_at(strings, value, MAX_NAME_BYTES)?),
            elf::DT_RPATH => info.rpath = directories(&string_at(strings, value, MAX_PATH_BYTES)?),
            elf::DT_RUNPATH => info.runpath = directories(&string_at(strings, value, MAX_PATH_BYTES)?),
            elf::DT_FLAGS_1 => info.is_program = value & DF_1_PIE != 0,
            _ => {}
        }
    }
    Ok(())
}

/// Set by the linker on programs that are laid out like libraries.
const DF_1_PIE: u64 = 0x0800_0000;

fn directories(path: &str) -> Vec<String> {
    path.split(':').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn section_data<'d>(
    sections: &Sections<'d>,
    index: SectionIndex,
    bytes: &'d [u8],
) -> Result<&'d [u8], ElfError> {
    sections.section(index).and_then(|section| section.data(LittleEndian, bytes)).map_err(damaged)
}

/// The NUL-terminated string at `offset`, looked for in at most `limit` bytes.
fn string_at(strings: &[u8], offset: u64, limit: usize) -> Result<String, ElfError> {
    let rest = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..));
    let rest = rest.ok_or_else(|| broken("a name lies outside of its string table"))?;
    let window = &rest[..rest.len().min(limit + 1)];
    let end = window.iter().position(|byte| *byte == 0).ok_or_else(|| broken("a name has no end"))?;
    text(&window[..end], limit)
}

fn text(bytes: &[u8], limit: usize) -> Result<String, ElfError> {
    match str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= limit && !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => Err(broken("a name is too long or holds strange characters")),
    }
}

fn read_symbols(
    sections: &Sections<'_>,
    segments: Segments<'_>,
    bytes: &[u8],
    info: &mut ElfInfo,
) -> Result<(), ElfError> {
    let table = sections.symbols(LittleEndian, bytes, elf::SHT_DYNSYM).map_err(damaged)?;
    if table.is_empty() {
        return Ok(());
    }
    let strings = section_data(sections, table.string_section(), bytes)?;
    for symbol in table.iter().filter(|symbol| exported(*symbol)) {
        if named(strings, symbol.st_name(LittleEndian), INIT_SYMBOL) {
            info.has_init |= symbol.st_type() == elf::STT_FUNC;
        } else if named(strings, symbol.st_name(LittleEndian), ABI_SYMBOL)
            && symbol.st_type() == elf::STT_OBJECT
        {
            info.abi_version = Some(word_at(segments, bytes, symbol.st_value(LittleEndian))?);
        }
    }
    Ok(())
}

fn exported(symbol: &impl Sym<Endian = LittleEndian>) -> bool {
    let visible = matches!(symbol.st_visibility(), elf::STV_DEFAULT | elf::STV_PROTECTED);
    visible && symbol.st_bind() != elf::STB_LOCAL && !symbol.is_undefined(LittleEndian)
}

/// Compares in place: a string table without ends must not be searched once per symbol.
fn named(strings: &[u8], offset: u32, name: &str) -> bool {
    let rest = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..));
    let after = rest.and_then(|rest| rest.strip_prefix(name.as_bytes()));
    after.is_some_and(|after| after.first() == Some(&0))
}

/// The four bytes that will be at `address` once the file is mapped.
fn word_at(segments: Segments<'_>, bytes: &[u8], address: u64) -> Result<u32, ElfError> {
    let outside = || broken("`denizen_plugin_abi` lies outside of what is loaded");
    for segment in segments.iter().filter(|segment| segment.p_type(LittleEndian) == elf::PT_LOAD) {
        let Some(into) = address.checked_sub(segment.p_vaddr(LittleEndian)) else { continue };
        if into >= segment.p_memsz(LittleEndian) {
            continue;
        }
        let data = segment.data(LittleEndian, bytes).map_err(|()| outside())?;
        let Some(word) = usize::try_from(into).ok().and_then(|into| data.get(into..)?.first_chunk::<4>())
        else {
            // Memory past the file's part of a segment is zero.
            return Ok(0);
        };
        return Ok(u32::from_le_bytes(*word));
    }
    Err(outside())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, PLUGIN};

    fn plugin() -> Vec<u8> {
        fixture::compile(PLUGIN, &[])
    }

    #[test]
    fn a_plugin_is_read() {
        let info = inspect(&fixture::compile(
            PLUGIN,
            &["-Wl,-soname,libp.so.1", "-Wl,-rpath,/a:$ORIGIN/b", "-Wl,--no-as-needed", "-lm"],
        ))
        .unwrap();
        assert_eq!(info.check_plugin(), Ok(()));
        assert_eq!(info.machine, std::env::consts::ARCH);
        assert_eq!((info.abi_version, info.has_init, info.is_program), (Some(1), true, false));
        assert_eq!(info.soname.as_deref(), Some("libp.so.1"));
        let paths: Vec<&String> = info.rpath.iter().chain(&info.runpath).collect();
        assert_eq!(paths, ["/a", "$ORIGIN/b"]);
        assert!(info.needed.contains(&"libm.so.6".to_owned()), "{:?}", info.needed);
    }

    #[test]
    fn another_machine_is_refused() {
        let mut bytes = plugin();
        bytes[18..20].copy_from_slice(&183_u16.to_le_bytes());
        let error = inspect(&bytes).unwrap().check_plugin().unwrap_err();
        assert!(error.to_string().starts_with("it is built for aarch64, and this machine is"), "{error}");
        let mut bytes = plugin();
        bytes[4] = 1;
        assert!(inspect(&bytes).unwrap_err().to_string().contains("a 32-bit machine"));
        let mut bytes = plugin();
        bytes[5] = 2;
        assert!(inspect(&bytes).unwrap_err().to_string().contains("a big-endian machine"));
    }

    #[test]
    fn what_is_not_a_plugin_is_refused_by_what_it_is() {
        let error = |source: &str, args: &[&str]| {
            inspect(&fixture::compile(source, args)).unwrap().check_plugin().unwrap_err()
        };
        assert_eq!(error("int x;", &[]), ElfError::MissingSymbol { symbol: ABI_SYMBOL });
        let abi = "const unsigned denizen_plugin_abi = 1;";
        assert_eq!(error(abi, &[]), ElfError::MissingSymbol { symbol: INIT_SYMBOL });
        assert_eq!(error(PLUGIN, &["-fvisibility=hidden"]), ElfError::MissingSymbol { symbol: ABI_SYMBOL });
        let newer = error(&PLUGIN.replace("= 1", "= 7"), &[]);
        assert!(
            newer.to_string().contains("version 7 of the plugin ABI, and this host knows version 1"),
            "{newer}"
        );
        let zero = error(
            "unsigned denizen_plugin_abi; int denizen_plugin_init(void *a, void *b) { return 0; }",
            &[],
        );
        assert!(matches!(zero, ElfError::AbiVersion { found: 0, .. }), "{zero}");
        for (bytes, say) in [
            (&b"#!/bin/sh"[..], "a script"),
            (b"", "it is empty"),
            (b"\x7fEL", "others"),
            (b"MZ..", "Windows"),
        ] {
            assert!(inspect(bytes).unwrap_err().to_string().contains(say));
        }
    }

    #[test]
    fn programs_and_objects_are_told_apart() {
        let main = "int main(void) { return 0; }";
        let pie = inspect(&fixture::compile_as(main, &["-pie", "-fPIE"])).unwrap();
        assert_eq!(pie.check_plugin(), Err(ElfError::NotShared { found: "a program" }));
        assert!(pie.interpreter.is_some());
        assert_eq!(
            inspect(&fixture::compile_as(main, &["-no-pie"])),
            Err(ElfError::NotShared { found: "a program" })
        );
        assert_eq!(
            inspect(&fixture::compile_as(main, &["-c"])),
            Err(ElfError::NotShared { found: "an object file" })
        );
    }

    /// Every truncation, and many mutations that a seeded generator picks: an answer, never a panic.
    #[test]
    fn hostile_bytes_get_an_answer() {
        let good = plugin();
        for cut in (0..good.len()).step_by(7) {
            let _ = inspect(&good[..cut]).map(|info| info.check_plugin());
        }
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed >> 1).unwrap()
        };
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=random() % 8 {
                // Half of the hits go to the headers, where every byte steers the reader.
                let span = if random() % 2 == 0 { 0x400.min(bytes.len()) } else { bytes.len() };
                let at = random() % span;
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, 0x40, 0x10, 8][random() % 8];
            }
            let _ = inspect(&bytes).map(|info| info.check_plugin());
        }
    }

    #[test]
    fn an_endless_string_table_is_not_searched() {
        let strings = vec![b'a'; 10_000];
        assert!(string_at(&strings, 0, MAX_NAME_BYTES).is_err());
        assert!(string_at(&strings, u64::MAX, MAX_NAME_BYTES).is_err());
        assert!(!named(&strings, u32::MAX, "a"));
    }
}
