//! `denizen state export` and `import`: all objects at once, as lines of JSON or as an archive.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use denizen_client::{Object, ObjectInfo};
use denizen_layout::Writing;
use denizen_wire::archive::{Decoder, Encoder, Event, MAGIC, RecordHead};
use serde_json::{Value, json};

use super::{
    key::Key,
    object,
    progress::Progress,
    source::{Next, Put, Source},
    types::Types,
};
use crate::{
    cli::{self, Everywhere, StateFormat},
    failure::Failure,
    place,
    target::ProcessTarget,
    terminal::{Terminal, printable},
    units,
};

/// Read and written at once.
const PIECE: usize = 256 << 10;

pub(super) fn export(
    terminal: &Terminal,
    everywhere: &Everywhere,
    typed: &cli::StateExport,
) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let source = Source::open(terminal, everywhere, target.clone(), typed.salvage)?;
    let types = source.types()?;
    let mut out = Output::open(typed.output.as_deref())?;
    let mut progress = Progress::begin("exporting");
    let mut left_out: Vec<String> = source.damage();
    let mut writer = Writer::begin(typed.format, &mut out)?;
    source.each(
        |object| {
            progress.add(object.value.len());
            writer.write(&types, &object, &mut out)
        },
        |failure| {
            if !typed.salvage {
                return Err(failure);
            }
            left_out.push(failure.in_short().to_owned());
            Ok(())
        },
    )?;
    writer.end(&mut out)?;
    out.finish()?;
    let files = source.files_seen();
    source.close()?;
    let (objects, bytes) = (progress.objects, progress.bytes);
    drop(progress);
    told(terminal, typed, objects, bytes)?;
    if files > 0 {
        let files = units::count(files, "file or directory", "files and directories");
        terminal
            .say(format!("{files} in /state: not in the export; `denizen state files {target}` shows them"));
    }
    if left_out.is_empty() {
        return Ok(());
    }
    for what in &left_out {
        terminal.say(printable(what));
    }
    let damaged = units::count(left_out.len() as u64, "damage", "damages");
    Err(Failure::host(format!(
        "{damaged} of {target} met; every other object is in the export, and no export has files of /state"
    ))
    .remedy(
        "import it into a process of another name; delete this one only if it has no files in /state, or a copy of its folder is kept",
    ))
}

/// What was written, unless that is what stdout is for.
fn told(terminal: &Terminal, typed: &cli::StateExport, objects: u64, bytes: u64) -> Result<(), Failure> {
    let Some(path) = &typed.output else { return Ok(()) };
    if terminal.json {
        return terminal.document(&json!({ "file": path, "keys": objects, "bytes": bytes }));
    }
    let (objects, bytes) = (units::count(objects, "object", "objects"), units::bytes(bytes));
    terminal.answer(format!("{objects}, {bytes}, are in {}", path.display()))
}

/// Where an export goes. A file gets its name when it is whole.
pub(super) enum Output {
    Stdout(BufWriter<io::Stdout>),
    File {
        path: PathBuf,
        file: BufWriter<tempfile::NamedTempFile>,
    },
    /// What is there and is no plain file: a device, a pipe. It is not replaced.
    There {
        path: PathBuf,
        file: BufWriter<File>,
    },
}

impl Output {
    pub(super) fn open(path: Option<&Path>) -> Result<Output, Failure> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return Ok(Output::Stdout(BufWriter::with_capacity(PIECE, io::stdout())));
        };
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            let file = File::options().write(true).open(path).map_err(|error| cannot_write(path, &error))?;
            return Ok(Output::There { path: path.to_owned(), file: BufWriter::with_capacity(PIECE, file) });
        }
        let file = tempfile::NamedTempFile::new_in(place::folder_of(path));
        let file = file.map_err(|error| cannot_write(path, &error))?;
        Ok(Output::File { path: path.to_owned(), file: BufWriter::with_capacity(PIECE, file) })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Output::Stdout(stdout) => stdout.write_all(bytes).map_err(|error| Failure::output(&error)),
            Output::File { path, file } => file.write_all(bytes).map_err(|error| cannot_write(path, &error)),
            Output::There { path, file } => file.write_all(bytes).map_err(|error| cannot_write(path, &error)),
        }
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Output::Stdout(mut stdout) => stdout.flush().map_err(|error| Failure::output(&error)),
            Output::There { path, mut file } => file.flush().map_err(|error| cannot_write(&path, &error)),
            Output::File { path, file } => {
                let failed = |error: io::Error| cannot_write(&path, &error);
                let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
                file.as_file().sync_all().map_err(failed)?;
                file.persist(&path).map_err(|error| failed(error.error)).map(drop)
            }
        }
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::host(format!("{} cannot be written", path.display()))
        .because(error)
        .remedy("name another file with -o")
}

/// How objects are written.
enum Writer {
    Ndjson,
    Archive(Box<Encoder>),
}

impl Writer {
    fn begin(format: StateFormat, out: &mut Output) -> Result<Writer, Failure> {
        match format {
            StateFormat::Ndjson => Ok(Writer::Ndjson),
            StateFormat::Archive => {
                let mut bytes = Vec::new();
                let encoder = Encoder::begin(&mut bytes);
                out.write(&bytes)?;
                Ok(Writer::Archive(Box::new(encoder)))
            }
        }
    }

    fn write(&mut self, types: &Types, object: &Object, out: &mut Output) -> Result<(), Failure> {
        match self {
            Writer::Ndjson => out.write(format!("{}\n", object::whole(types, object)).as_bytes()),
            Writer::Archive(encoder) => {
                let mut head = Vec::new();
                let ObjectInfo { key, fingerprint, version, time_ms, .. } = &object.info;
                begin_record(encoder, &mut head, key, (*fingerprint, *version, *time_ms), &object.value);
                out.write(&head)?;
                out.write(&object.value)
            }
        }
    }

    fn end(self, out: &mut Output) -> Result<(), Failure> {
        let Writer::Archive(encoder) = self else { return Ok(()) };
        let mut bytes = Vec::new();
        encoder.end(&mut bytes);
        out.write(&bytes)
    }
}

fn begin_record(
    encoder: &mut Encoder,
    head: &mut Vec<u8>,
    key: &[u8],
    (fingerprint, version, time_ms): (u64, u64, u64),
    value: &[u8],
) {
    let value_len = value.len() as u64;
    encoder.record(head, key, RecordHead { value_len, fingerprint, version, time_ms });
    encoder.value(value);
}

pub(super) fn import(
    terminal: &Terminal,
    everywhere: &Everywhere,
    typed: &cli::StateImport,
) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    let mut input = Input::open(&typed.input)?;
    let source = Source::open(terminal, everywhere, target.clone(), false)?;
    let types = source.types()?;
    let writing = Writing { derived_order: typed.derived_keys };
    let mut progress = Progress::begin("importing");
    let imported = source.import(&mut || {
        let next = input.next(&types, writing)?;
        if let Some(put) = &next {
            progress.add(put.value.len());
        }
        Ok(next)
    })?;
    drop(progress);
    source.close()?;
    if terminal.json {
        return terminal.document(&json!({ "keys": imported.keys, "commit": imported.commit }));
    }
    let objects = units::count(imported.keys, "object is", "objects are");
    terminal.answer(format!("{objects} put into {target}: commit {}", imported.commit))
}

/// What is imported.
struct Input {
    name: String,
    reader: BufReader<Box<dyn Read>>,
    format: Format,
}

enum Format {
    /// And how many lines were read.
    Ndjson(u64),
    Archive(Box<Reading>),
}

impl Input {
    fn open(path: &Path) -> Result<Input, Failure> {
        let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let cannot = |error: &io::Error| {
            Failure::usage(format!("{name} cannot be read"))
                .because(error)
                .remedy("name a file, or - for stdin")
        };
        let mut from: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path).map_err(|error| cannot(&error))?)
        };
        let mut first = Vec::new();
        from.by_ref().take(MAGIC.len() as u64).read_to_end(&mut first).map_err(|error| cannot(&error))?;
        let is_archive = first == MAGIC;
        let reader =
            BufReader::with_capacity(PIECE, Box::new(io::Cursor::new(first).chain(from)) as Box<dyn Read>);
        let format = if is_archive { Format::Archive(Box::new(Reading::new())) } else { Format::Ndjson(0) };
        Ok(Input { name, reader, format })
    }

    fn next(&mut self, types: &Types, writing: Writing) -> Result<Option<Put>, Failure> {
        match &mut self.format {
            Format::Archive(reading) => {
                let next = reading.next(&mut self.reader, &self.name)?;
                Ok(next.map(|Object { info, value }| Put {
                    key: info.key,
                    fingerprint: info.fingerprint,
                    value,
                }))
            }
            Format::Ndjson(lines) => {
                let name = &self.name;
                loop {
                    let mut line = String::new();
                    let read = self.reader.read_line(&mut line);
                    let read = read.map_err(|error| {
                        Failure::usage(format!("{name} cannot be read to its end")).because(&error)
                    })?;
                    if read == 0 {
                        return Ok(None);
                    }
                    *lines += 1;
                    if line.trim().is_empty() {
                        continue;
                    }
                    let place = PathBuf::from(format!("{name}:{lines}"));
                    let json: Value = serde_json::from_str(&line).map_err(|error| {
                        Failure::usage("this line is no JSON")
                            .because(&error)
                            .remedy("an export has one object on each line")
                            .within(&place)
                    })?;
                    return object::parse(types, &json, writing)
                        .map(Some)
                        .map_err(|failure| failure.within(&place));
                }
            }
        }
    }
}

/// An archive that is being read.
struct Reading {
    decoder: Decoder,
    object: Option<Object>,
}

impl Reading {
    fn new() -> Reading {
        // A value is kept in memory, whole; nothing else limits it.
        Reading { decoder: Decoder::new(denizen_engine::MAX_VALUE_LEN), object: None }
    }

    /// The next object, once it is whole; `None` at the end of a good archive.
    fn next(&mut self, from: &mut BufReader<impl Read>, name: &str) -> Result<Option<Object>, Failure> {
        let bad = |error: denizen_wire::archive::ArchiveError| {
            Failure::usage(format!("{name} is no whole archive")).detail(error.to_string())
        };
        loop {
            let buffer = from.fill_buf();
            let buffer =
                buffer.map_err(|error| Failure::host(format!("{name} broke off")).because(&error))?;
            if buffer.is_empty() {
                self.decoder.finish().map_err(bad)?;
                return Ok(self.object.take());
            }
            let mut rest = buffer;
            let event = self.decoder.next(&mut rest).map_err(bad)?;
            let whole = match event {
                Some(Event::Record { key, head }) => self.object.replace(begun(key, head)),
                Some(Event::Value(bytes)) => {
                    if let Some(object) = &mut self.object {
                        object.value.extend_from_slice(bytes);
                    }
                    None
                }
                Some(Event::End { .. }) | None => None,
            };
            let used = buffer.len() - rest.len();
            from.consume(used);
            if whole.is_some() {
                return Ok(whole);
            }
        }
    }
}

fn begun(key: &[u8], head: RecordHead) -> Object {
    let RecordHead { value_len: bytes, fingerprint, version, time_ms } = head;
    Object { info: ObjectInfo { key: key.to_vec(), bytes, fingerprint, version, time_ms }, value: Vec::new() }
}

/// Shows every object of an archive that a node sends.
pub(super) fn read_archive(
    from: &mut dyn Read,
    take: &mut dyn FnMut(Object) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut reading, mut from) = (Reading::new(), BufReader::with_capacity(PIECE, from));
    while let Some(object) = reading.next(&mut from, "the node's export")? {
        take(object)?;
    }
    Ok(())
}

/// Objects as an archive that a node reads.
pub(super) struct WritingArchive<'n, 'f, 'a> {
    next: &'n mut Next<'a>,
    failed: &'f mut Option<Failure>,
    encoder: Option<Encoder>,
    bytes: Vec<u8>,
    at: usize,
}

impl<'n, 'f, 'a> WritingArchive<'n, 'f, 'a> {
    pub(super) fn of(next: &'n mut Next<'a>, failed: &'f mut Option<Failure>) -> WritingArchive<'n, 'f, 'a> {
        let mut bytes = Vec::new();
        let encoder = Some(Encoder::begin(&mut bytes));
        WritingArchive { next, failed, encoder, bytes, at: 0 }
    }

    /// Encodes what follows; nothing after the end.
    fn more(&mut self) -> Result<(), Failure> {
        self.bytes.clear();
        self.at = 0;
        let Some(mut encoder) = self.encoder.take() else { return Ok(()) };
        match (self.next)()? {
            None => encoder.end(&mut self.bytes),
            Some(Put { key, fingerprint, value }) => {
                if key.is_empty() || key.len() > denizen_wire::archive::MAX_KEY {
                    let key = Key::of(&key).to_string();
                    return Err(Failure::usage(format!(
                        "the key `{key}` is empty or longer than 1024 bytes"
                    )));
                }
                // Which commit and time it gets is for the node to say.
                begin_record(&mut encoder, &mut self.bytes, &key, (fingerprint, 0, 0), &value);
                self.bytes.extend_from_slice(&value);
                self.encoder = Some(encoder);
            }
        }
        Ok(())
    }
}

impl Read for WritingArchive<'_, '_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.bytes.len() && self.encoder.is_some() {
            if let Err(failure) = self.more() {
                let what = failure.in_short().to_owned();
                *self.failed = Some(failure);
                return Err(io::Error::other(what));
            }
        }
        let count = buf.len().min(self.bytes.len() - self.at);
        buf[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
