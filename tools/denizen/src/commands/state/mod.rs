//! `denizen state`: the objects that a process keeps, looked at and changed from outside, through the node where one runs and in its
//! directory where none does. Values are JSON where their type is known (`types`), and bytes where not.

mod files;
mod key;
mod object;
mod progress;
mod source;
mod transfer;
mod types;

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use denizen_client::{Object, ObjectInfo};
use denizen_layout::Writing;
use serde_json::{Value, json};

use self::{
    key::Key,
    source::{Put, Source},
    types::Types,
};
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    target::ProcessTarget,
    terminal::{Cell, Escaped, Paint, Table, Terminal},
    units,
};

pub(crate) fn run(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::State) -> Result<(), Failure> {
    match typed {
        cli::State::Ls(typed) => ls(terminal, everywhere, typed),
        cli::State::Get(typed) => get(terminal, everywhere, typed),
        cli::State::Put(typed) => put(terminal, everywhere, typed),
        cli::State::Rm(typed) => rm(terminal, everywhere, typed),
        cli::State::Export(typed) => transfer::export(terminal, everywhere, typed),
        cli::State::Import(typed) => transfer::import(terminal, everywhere, typed),
        cli::State::Files(typed) => files::files(terminal, everywhere, typed),
    }
}

fn ls(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::StateLs) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let prefix = typed.prefix.as_deref().map(Key::parse).unwrap_or_default();
    let source = Source::open(terminal, everywhere, target, typed.salvage)?;
    let types = source.types()?;
    let (found, commit) = source.list(prefix.bytes())?;
    source.close()?;
    if terminal.json {
        let keys: Vec<Value> = found.iter().map(|info| object::described(&types, info)).collect();
        return terminal.document(&json!({ "keys": keys, "commit": commit }));
    }
    if found.is_empty() {
        terminal.say("no objects");
        return Ok(());
    }
    terminal.raw(table(&types, &found).render(terminal.out).as_bytes())
}

fn table(types: &Types, found: &[ObjectInfo]) -> Table {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
    let mut table = Table::with_head(&["KEY", "TYPE", "SIZE", "VERSION", "AGE"]);
    for info in found {
        let age = Duration::from_millis(now_ms.saturating_sub(info.time_ms));
        table.row(vec![
            Cell::plain(Key::of(&info.key).to_string()).painted(Paint::bold),
            Cell::plain(types.shown(info.fingerprint)),
            Cell::number(units::bytes(info.bytes)),
            Cell::number(info.version.to_string()),
            Cell::number(units::duration(age)),
        ]);
    }
    table
}

fn get(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::StateGet) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let key = Key::parse(&typed.key);
    let source = Source::open(terminal, everywhere, target.clone(), typed.salvage)?;
    let types = source.types()?;
    let found = source.get(key.bytes())?;
    source.close()?;
    let object = found.ok_or_else(|| no_such_object(&target, &key))?;
    if typed.raw {
        return terminal.raw(&object.value);
    }
    if terminal.json {
        return terminal.document(&object::whole(&types, &object));
    }
    match types.find(object.info.fingerprint) {
        Some(known) => {
            let value = known.read(&object.value).map_err(|error| {
                Failure::host(format!("the object {key} is no {}", known.name))
                    .because(&error)
                    .remedy("--raw writes its bytes; `denizen state export --salvage` keeps what is left")
            })?;
            show_json(terminal, &value)
        }
        None if object.info.fingerprint == 0 => show_bytes(terminal, &object),
        None => {
            terminal.say(format!(
                "the image declares no type with the fingerprint {}; here are the bytes",
                object.info.fingerprint
            ));
            terminal.document(&object::whole(&types, &object))
        }
    }
}

fn show_json(terminal: &Terminal, value: &Value) -> Result<(), Failure> {
    let text = if terminal.is_watched() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    let text = text.map_err(|error| Failure::host("the object cannot be put into JSON").because(&error))?;
    // What a tenant keeps must not steer the terminal; JSON has escapes for some control characters, not for all.
    if terminal.is_watched() { show_text(terminal, text.as_bytes()) } else { terminal.answer(text) }
}

/// Bytes without a type: as they are, but not onto a terminal that they could steer.
fn show_bytes(terminal: &Terminal, object: &Object) -> Result<(), Failure> {
    if !terminal.is_watched() {
        return terminal.raw(&object.value);
    }
    if !object::is_readable(&object.value) {
        return Err(Failure::usage("the object is bytes that a terminal cannot show")
            .remedy("send them to a file: add `> FILE`, or use --json; --raw writes them as they are"));
    }
    show_text(terminal, &object.value)
}

fn show_text(terminal: &Terminal, text: &[u8]) -> Result<(), Failure> {
    let mut escaped = Escaped::default();
    let shown = escaped.add(text);
    terminal.answer(format!("{shown}{}", escaped.end()).trim_end_matches('\n'))
}

fn no_such_object(target: &ProcessTarget, key: &Key<'_>) -> Failure {
    Failure::usage(format!("{target} has no object {key}"))
        .remedy(format!("`denizen state ls {target}` lists its keys"))
}

fn put(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::StatePut) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let key = Key::parse(&typed.key);
    let data = data(&typed.data)?;
    let source = Source::open(terminal, everywhere, target.clone(), false)?;
    let (name, fingerprint, value) =
        if typed.raw { (None, 0, data) } else { made(&source, typed, &key, &data)? };
    let bytes = value.len() as u64;
    let commit = source.put(Put { key: key.bytes().to_vec(), fingerprint, value })?;
    source.close()?;
    if terminal.json {
        let (key, fingerprint) = (key.to_string(), fingerprint.to_string());
        return terminal.document(
            &json!({ "key": key, "type": name, "fingerprint": fingerprint, "bytes": bytes, "commit": commit }),
        );
    }
    let name = name.unwrap_or_else(|| "bytes".to_owned());
    terminal.answer(format!("{key} is put: {name}, {}, commit {commit}", units::bytes(bytes)))
}

/// The archive of a typed value: its type's name, fingerprint and bytes.
fn made(
    source: &Source,
    typed: &cli::StatePut,
    key: &Key<'_>,
    data: &[u8],
) -> Result<(Option<String>, u64, Vec<u8>), Failure> {
    let types = source.types()?;
    let of = match &typed.of_type {
        Some(name) => types.named(name)?,
        None => {
            let there = source.info(key.bytes())?;
            types.of_existing(key, there.map(|info| info.fingerprint))?
        }
    };
    let value: Value = serde_json::from_slice(data).map_err(|error| {
        Failure::usage("the value is no JSON")
            .because(&error)
            .remedy("correct it, or store plain bytes with --raw")
    })?;
    let bytes = of.write(&value, Writing { derived_order: typed.derived_keys })?;
    Ok((Some(of.name.clone()), of.fingerprint, bytes))
}

/// What was typed: as it stands, a file, or stdin.
fn data(typed: &str) -> Result<Vec<u8>, Failure> {
    let read = match (typed, typed.strip_prefix('@')) {
        ("-", _) => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
        }
        (_, Some(path)) => fs::read(Path::new(path)),
        (text, None) => Ok(text.as_bytes().to_vec()),
    };
    read.map_err(|error| {
        Failure::usage(format!("the input {typed} cannot be read"))
            .because(&error)
            .remedy("name a file after @, or - for stdin")
    })
}

fn rm(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::StateRm) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let keys: Vec<Key<'_>> = typed.keys.iter().map(|text| Key::parse(text)).collect();
    let source = Source::open(terminal, everywhere, target.clone(), false)?;
    // All are looked up first: a slip in the third name does not leave two deleted.
    for key in &keys {
        if source.info(key.bytes())?.is_none() {
            return Err(no_such_object(&target, key));
        }
    }
    let commit = source.delete(&keys)?;
    source.close()?;
    for key in &keys {
        if terminal.json {
            terminal.document(&json!({ "key": key.to_string(), "deleted": true, "commit": commit }))?;
        } else {
            terminal.answer(format!("{key} is deleted: commit {commit}"))?;
        }
    }
    Ok(())
}
