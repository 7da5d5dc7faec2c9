//! Images as tar archives.
//!
//! The list of contents is the first entry. Everything after it is compared with that list while it streams
//! past: a path that is not listed, comes twice, or has another length is refused at its header, so an
//! archive can make the host neither write outside of the image nor store, or even read, more than the list
//! admits to. Only plain files are taken. The `tar` crate is used in its raw mode, in which it interprets no
//! extension: a sparse map, a link, or a second size in a PAX header is refused, not followed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use tar::{Archive, Builder, Entry, EntryType, Header};

use super::contents::{CONTENTS, Contents, FileRecord, MAX_CONTENTS_BYTES};
use super::staging::{CopyError, Staging};
use super::{ImportLimits, StoreError, io_error};
use crate::ImageId;

/// The longest name that a GNU long-name entry may bring, its NUL included.
const MAX_LONG_NAME_BYTES: u64 = 1025;

/// Reads an archive into `staging`. What comes back is complete and matches its list byte for byte.
pub(crate) fn unpack(
    archive: impl Read,
    limits: &ImportLimits,
    staging: &Staging,
) -> Result<(ImageId, Contents), StoreError> {
    let mut archive = Archive::new(archive);
    let mut entries = Entries { entries: archive.entries().map_err(broken)?.raw(true) };

    let (id, contents) = unpack_contents(&mut entries, limits, staging)?;
    let mut missing: BTreeMap<&str, &FileRecord> =
        contents.files.iter().map(|file| (file.path.as_str(), file)).collect();
    while let Some((path, mut entry)) = entries.next()? {
        let Some(expected) = missing.remove(path.as_str()) else {
            return Err(StoreError::refused(&path, "it is not listed in image.json, or it comes twice"));
        };
        unpack_file(&mut entry, expected, staging)?;
    }
    if let Some(path) = missing.into_keys().next() {
        return Err(StoreError::refused(path, "it is listed in image.json, but the archive ends without it"));
    }
    Ok((id, contents))
}

fn unpack_contents<R: Read>(
    entries: &mut Entries<'_, R>,
    limits: &ImportLimits,
    staging: &Staging,
) -> Result<(ImageId, Contents), StoreError> {
    let Some((path, mut entry)) = entries.next()? else {
        return Err(StoreError::Archive { why: "it is empty".to_owned() });
    };
    if path != CONTENTS {
        return Err(StoreError::refused(
            &path,
            "the first entry of an image is image.json; make it with `denizen image`",
        ));
    }
    if entry.size() > MAX_CONTENTS_BYTES {
        return Err(StoreError::TooLarge {
            what: "bytes of image.json",
            limit: MAX_CONTENTS_BYTES.to_string(),
        });
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() as u64 != entry.size() {
        return Err(truncated());
    }
    let contents = Contents::read(&bytes, limits)?;
    Ok((staging.add_contents(&bytes)?, contents))
}

fn unpack_file(entry: &mut impl Read, expected: &FileRecord, staging: &Staging) -> Result<(), StoreError> {
    let found = match staging.add(&expected.path, expected.mode, entry, expected.bytes) {
        Ok(found) => found,
        Err(CopyError::Target(error)) => return Err(error),
        Err(CopyError::Source(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(StoreError::refused(&expected.path, "it is longer than image.json says"));
        }
        Err(CopyError::Source(error)) => return Err(broken(error)),
    };
    if found.bytes < expected.bytes {
        return Err(StoreError::refused(
            &expected.path,
            "it is shorter than image.json says, or the archive is cut off",
        ));
    }
    if found.sha256 != expected.sha256 {
        return Err(StoreError::refused(
            &expected.path,
            "its content is not what image.json says; send it again",
        ));
    }
    Ok(())
}

/// The plain files of an archive with their names.
struct Entries<'a, R: Read> {
    entries: tar::Entries<'a, R>,
}

impl<'a, R: Read> Entries<'a, R> {
    fn next(&mut self) -> Result<Option<(String, Entry<'a, R>)>, StoreError> {
        let Some(mut entry) = self.next_raw()? else { return Ok(None) };
        let mut name = entry.path_bytes().into_owned();
        if entry.header().entry_type() == EntryType::GNULongName {
            name = long_name(&mut entry)?;
            entry = self.next_raw()?.ok_or_else(truncated)?;
        }
        let path = String::from_utf8(name).map_err(|error| {
            StoreError::refused(&String::from_utf8_lossy(error.as_bytes()), "its path is not UTF-8")
        })?;
        match entry.header().entry_type() {
            EntryType::Regular => Ok(Some((path, entry))),
            other => Err(StoreError::refused(&path, refusal(other))),
        }
    }

    fn next_raw(&mut self) -> Result<Option<Entry<'a, R>>, StoreError> {
        self.entries.next().transpose().map_err(broken)
    }
}

fn long_name(entry: &mut impl Read) -> Result<Vec<u8>, StoreError> {
    let mut name = Vec::new();
    entry.take(MAX_LONG_NAME_BYTES + 1).read_to_end(&mut name).map_err(broken)?;
    if name.len() as u64 > MAX_LONG_NAME_BYTES {
        return Err(StoreError::refused(
            &String::from_utf8_lossy(&name[..80]),
            "its path is over 1024 bytes long",
        ));
    }
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn refusal(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Symlink | EntryType::Link => "it is a link; an image holds plain files only",
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            "it is a device or a pipe; an image holds plain files only"
        }
        EntryType::Directory => "it is a directory; an image lists files only",
        EntryType::GNUSparse => "it is a sparse file; write it out in full",
        EntryType::XHeader | EntryType::XGlobalHeader => {
            "it is a PAX header; make the archive with `denizen image`, or with tar --format=ustar"
        }
        _ => "it is of a kind that an image does not hold; an image holds plain files only",
    }
}

fn broken(error: io::Error) -> StoreError {
    // The system's errors say what they mean; the tar reader's quote the bytes that it stumbled over.
    let why = match error.raw_os_error() {
        Some(_) => error.to_string(),
        None => "it is no tar archive, or it is damaged or cut off".to_owned(),
    };
    StoreError::Archive { why }
}

fn truncated() -> StoreError {
    StoreError::Archive { why: "it is cut off".to_owned() }
}

/// Writes the image in `dir` as an archive: the same bytes for the same image, whoever makes it and whenever.
pub(crate) fn pack(dir: &Path, contents: &Contents, out: impl Write) -> Result<(), StoreError> {
    let sending = |error| StoreError::Io { doing: "write the archive", path: None, source: error };
    let mut builder = Builder::new(out);
    append(&mut builder, dir, CONTENTS, None)?;
    for file in &contents.files {
        append(&mut builder, dir, &file.path, Some(file))?;
    }
    builder.into_inner().and_then(|mut out| out.flush()).map_err(sending)
}

fn append(
    builder: &mut Builder<impl Write>,
    dir: &Path,
    name: &str,
    expected: Option<&FileRecord>,
) -> Result<(), StoreError> {
    let path = dir.join(name);
    let file = File::open(&path).map_err(io_error("open", &path))?;
    let bytes = file.metadata().map_err(io_error("read", &path))?.len();
    if expected.is_some_and(|expected| expected.bytes != bytes) {
        return Err(StoreError::Corrupt { path, why: "its length has changed" });
    }
    let mut header = Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(expected.map_or(0o444, |expected| expected.mode.bits()));
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let sending = |error| StoreError::Io { doing: "write the archive", path: None, source: error };
    builder.append_data(&mut header, name, file.take(bytes)).map_err(sending)
}
