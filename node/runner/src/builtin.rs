//! Functions of our own: looking at the state and changing it, without code of the tenant.
//!
//! They use an invocation's services as a plugin does, and so its transaction, its credit and its deadline.

use std::ops::ControlFlow;

use denizen_abi as abi;
use denizen_engine::{FileEntry, FileKind, KeyInfo, Snapshot, StateError};
use denizen_wire::archive::{Decoder, Encoder, Event, RecordHead};
use denizen_wire::{
    Builtin, FailKind, FileListing, Imported, ListAsk, ListedFile, ListedFileKind, ListedKey, Listing,
    ValueHead, decode_put, tar,
};

use crate::call::Active;

/// Replies up to this many bytes go out whole.
const WHOLE: usize = 32 << 10;
/// Bytes that an import puts into one commit, about.
const BATCH: usize = 1 << 20;
/// Bytes of keys and heads that an export gathers before it sends them.
const GATHERED: usize = 16 << 10;
/// Input is taken in pieces of this many bytes.
const PIECE: usize = 64 << 10;

/// Why one ends early: a status, and what to say where the invocation does not know.
struct Refused(i32, Option<(FailKind, String)>);

impl From<i32> for Refused {
    fn from(status: i32) -> Refused {
        Refused(status, None)
    }
}

fn bad(message: impl std::fmt::Display) -> Refused {
    Refused(abi::DZ_E_INVALID, Some((FailKind::BadInput, message.to_string())))
}

fn absent() -> Refused {
    Refused(abi::DZ_E_NOT_FOUND, Some((FailKind::NotFound, "there is no object under this key".into())))
}

/// Runs a built-in function as the invocation; the status is as a plugin's.
pub(crate) fn run(builtin: Builtin, call: &mut Active) -> i32 {
    let result = match builtin {
        Builtin::StateList => list(call),
        Builtin::StateGet => get(call),
        Builtin::StatePut => put(call),
        Builtin::StateDelete => delete(call),
        Builtin::StateExport => export(call),
        Builtin::StateImport => import(call),
        Builtin::FilesKeep => keep_files(call),
        Builtin::FilesList => list_files(call),
        Builtin::FilesGet => get_file(call),
        Builtin::FilesExport => export_files(call),
    };
    match result {
        Ok(()) => abi::DZ_OK,
        Err(Refused(status, said)) => {
            if let Some((kind, message)) = said {
                call.fail(kind, message);
            }
            status
        }
    }
}

fn list(call: &mut Active) -> Result<(), Refused> {
    let ask: ListAsk = serde_json::from_slice(call.input()?).map_err(bad)?;
    let mut listing = Listing { commit: call.commit_number(), ..Listing::default() };
    call.keys(&ask.prefix, ask.after.as_deref(), |key, info| {
        let KeyInfo { len: bytes, fingerprint, version, time_ms } = info;
        listing.take(&ask, ListedKey { key: key.to_vec(), bytes, fingerprint, version, time_ms })
    });
    reply_json(call, &listing)
}

fn reply_json(call: &mut Active, document: &impl serde::Serialize) -> Result<(), Refused> {
    let text = serde_json::to_vec(document)
        .map_err(|error| Refused(abi::DZ_E_IO, Some((FailKind::Internal, error.to_string()))))?;
    call.reply_content_type("application/json")?;
    reply(call, &text)
}

/// Not bound by the reply limit of the image, which is for its own functions.
fn reply(call: &mut Active, bytes: &[u8]) -> Result<(), Refused> {
    if bytes.len() > WHOLE {
        return Ok(call.reply_write(bytes)?);
    }
    call.reply_copy(bytes)?;
    Ok(())
}

fn get(call: &mut Active) -> Result<(), Refused> {
    let key = call.input()?.to_vec();
    let value = call.value(&key)?.ok_or_else(absent)?;
    let head = ValueHead { fingerprint: value.fingerprint, version: value.version, time_ms: value.time_ms };
    call.reply_content_type(&head.content_type())?;
    call.reply_value(&key, WHOLE)?;
    Ok(())
}

fn put(call: &mut Active) -> Result<(), Refused> {
    let input = call.take_whole_input()?;
    let put = decode_put(input.bytes()).map_err(bad)?;
    let status = call.put(put.0, put.1, put.2);
    call.give_back(input);
    done(call, status)
}

fn delete(call: &mut Active) -> Result<(), Refused> {
    let key = call.input()?.to_vec();
    match call.delete(&key) {
        abi::DZ_E_NOT_FOUND => Err(absent()),
        status => done(call, status),
    }
}

/// A key against the rules is the caller's doing; of everything else the invocation knows the reason.
fn done(call: &mut Active, status: i32) -> Result<(), Refused> {
    match status {
        abi::DZ_OK => Ok(()),
        abi::DZ_E_INVALID | abi::DZ_E_TOO_LARGE => Err(bad(call.reason().unwrap_or_default())),
        _ => Err(status.into()),
    }
}

fn export(call: &mut Active) -> Result<(), Refused> {
    call.reply_content_type("application/vnd.denizen.state")?;
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out);
    let mut after: Option<Vec<u8>> = None;
    while let Some(key) = next_key(call, after.as_deref()) {
        let value = call.value(&key)?.ok_or_else(absent)?;
        let (fingerprint, version, time_ms) = (value.fingerprint, value.version, value.time_ms);
        let head = RecordHead { value_len: value.bytes.len() as u64, fingerprint, version, time_ms };
        encoder.record(&mut out, &key, head);
        encoder.value(value.bytes);
        let small = value.bytes.len() <= GATHERED;
        if small {
            out.extend_from_slice(value.bytes);
        }
        if !small || out.len() >= GATHERED {
            call.reply_write(&out)?;
            out.clear();
        }
        if !small {
            call.write_value(&key)?;
        }
        after = Some(key);
    }
    encoder.end(&mut out);
    Ok(call.reply_write(&out)?)
}

fn next_key(call: &Active, after: Option<&[u8]>) -> Option<Vec<u8>> {
    let mut found = None;
    call.keys(&[], after, |key, _| {
        found = Some(key.to_vec());
        ControlFlow::Break(())
    });
    found
}

/// Puts what it reads, and commits from time to time: an import can be larger than one record.
fn import(call: &mut Active) -> Result<(), Refused> {
    let mut import = Import { imported: Imported::default(), pending: 0, record: None };
    let mut decoder = Decoder::new(call.runner.limits().state_bytes);
    let mut piece = vec![0; PIECE];
    loop {
        let count = call.input_read(&mut piece)?;
        if count == 0 {
            break;
        }
        let mut bytes = &piece[..count];
        while let Some(event) = decoder.next(&mut bytes).map_err(bad)? {
            import.take(call, event)?;
        }
    }
    decoder.finish().map_err(bad)?;
    import.imported.commit = call.commit()?;
    reply_json(call, &import.imported)
}

/// How far an import is.
struct Import {
    imported: Imported,
    /// Bytes that are not committed yet.
    pending: usize,
    /// The object that is being read.
    record: Option<(Vec<u8>, RecordHead, Vec<u8>)>,
}

impl Import {
    fn take(&mut self, call: &mut Active, event: Event<'_, '_>) -> Result<(), Refused> {
        match event {
            Event::Record { key, head } => self.record = Some((key.to_vec(), head, Vec::new())),
            Event::Value(bytes) => {
                let Some((_, _, value)) = &mut self.record else { return Ok(()) };
                // Only for what has come: a length is a claim.
                value.try_reserve(bytes.len()).map_err(|_| Refused(abi::DZ_E_TOO_LARGE, None))?;
                value.extend_from_slice(bytes);
            }
            Event::End { .. } => return Ok(()),
        }
        let whole = self.record.take_if(|(_, head, value)| head.value_len == value.len() as u64);
        let Some((key, head, value)) = whole else { return Ok(()) };
        let status = call.put(&key, head.fingerprint, &value);
        done(call, status)?;
        self.imported.keys += 1;
        self.pending += key.len() + value.len();
        if self.pending >= BATCH {
            call.commit_and_let_go()?;
            self.pending = 0;
        }
        Ok(())
    }
}

/// Captures the files, with the quota that is wanted from now on.
fn keep_files(call: &mut Active) -> Result<(), Refused> {
    let quota = <[u8; 8]>::try_from(call.input()?).map(u64::from_le_bytes).map_err(bad)?;
    call.runner.engine().raise_quota(quota);
    match call.sync_files() {
        abi::DZ_OK => Ok(()),
        status => Err(status.into()),
    }
}

fn list_files(call: &mut Active) -> Result<(), Refused> {
    let snapshot = call.runner.engine().snapshot();
    let listed = |(path, entry): (&[u8], Result<FileEntry, StateError>)| ListedFile {
        path: path.to_vec(),
        kind: match entry {
            Ok(entry) => listed_as(&entry),
            Err(error) => ListedFileKind::Damaged { why: error.to_string() },
        },
    };
    let files = snapshot.files().map_err(|error| damaged(call, &error))?;
    let files = files.into_iter().map(listed).collect();
    reply_json(call, &FileListing { files, commit: snapshot.commit_number() })
}

fn listed_as(entry: &FileEntry) -> ListedFileKind {
    let (mode, modified_s) = (entry.mode, entry.modified.0);
    match entry.kind {
        FileKind::Directory => ListedFileKind::Directory { mode },
        FileKind::File { len, .. } => ListedFileKind::File { mode, bytes: len, modified_s },
    }
}

fn damaged(call: &mut Active, error: &StateError) -> Refused {
    Refused(call.trouble.of_state(call.runner, error), None)
}

fn get_file(call: &mut Active) -> Result<(), Refused> {
    let none = || {
        Refused(abi::DZ_E_NOT_FOUND, Some((FailKind::NotFound, "no file of this path was captured".into())))
    };
    let snapshot = call.runner.engine().snapshot();
    let entry = snapshot.file_entry(call.input()?);
    let entry = entry.map_err(|error| damaged(call, &error))?.ok_or_else(none)?;
    if entry.kind == FileKind::Directory {
        return Err(none());
    }
    call.reply_content_type("application/octet-stream")?;
    send_file(call, &snapshot, &entry)
}

/// Sends the bytes of a file as they lie in the log, zeros for its holes.
fn send_file(call: &mut Active, snapshot: &Snapshot, entry: &FileEntry) -> Result<(), Refused> {
    for piece in entry.pieces() {
        match snapshot.file_piece(piece).map_err(|error| damaged(call, &error))? {
            Some(bytes) => call.reply_write(bytes)?,
            None => call.reply_write(&vec![0; piece.1])?,
        }
    }
    Ok(())
}

fn export_files(call: &mut Active) -> Result<(), Refused> {
    call.reply_content_type("application/x-tar")?;
    let snapshot = call.runner.engine().snapshot();
    let files = snapshot.files().map_err(|error| damaged(call, &error))?;
    let mut out = Vec::new();
    for (path, entry) in files {
        let entry = entry.map_err(|error| damaged(call, &error))?;
        let kind = match entry.kind {
            FileKind::Directory => tar::Entry::Directory,
            FileKind::File { len, .. } => tar::Entry::File(len),
        };
        tar::head(&mut out, path, entry.mode, entry.modified.0, kind);
        call.reply_write(&out)?;
        out.clear();
        send_file(call, &snapshot, &entry)?;
        out.resize(tar::padding(entry.len()), 0);
    }
    tar::end(&mut out);
    Ok(call.reply_write(&out)?)
}
