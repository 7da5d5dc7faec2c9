//! State looked at and changed from outside, whatever its process is doing.
//!
//! Where a sandbox serves, its runner's own functions do it, between the calls of the process. Where none does, it is done here, on side
//! threads, by plain reads and without code of the tenant; nothing is started for it. The process keeps its turn meanwhile, so that no
//! sandbox begins to write under a reader; only the bytes of an export leave later, out of files that nobody writes any more.
//!
//! A change at rest is a swap-out that changes something on the way ([`super::files`]): the process is `swapped` afterwards, wherever it
//! lay before.

use std::fs::File;
use std::io::{self, Read as _, Seek, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use denizen_engine::offline::{Edit, Offline};
use denizen_engine::{FileEntry, FileKind, KeyInfo, StateError, Table};
use denizen_sched::Home as Place;
use denizen_wire::archive::{Decoder, Encoder, Event, RecordHead};
use denizen_wire::{
    Builtin, Durability, FileListing, Imported, ListAsk, ListedFile, ListedFileKind, ListedKey, Listing,
    MAX_FRAME_PAYLOAD, ValueHead, encode_put, tar,
};
use futures_channel::mpsc;
use futures_lite::future;
use hyper::body::{Bytes, Incoming};

use crate::home::Home;
use crate::problem::{Kind, Problem, Retry};
use crate::process::files::{AtRest, Edits, Lies, io_problem, no_such_object, state_problem};
use crate::process::input::{Input, gather, next};
use crate::process::invocation::Limit;
use crate::process::reply::RemoteBody;
use crate::process::serve::{Order, Replied, attempt, durable, not_begun};
use crate::process::start::{Tell, bury, refused_claim};
use crate::process::stop::move_resting;
use crate::process::{Process, Stage};

/// How long the sender of a body may pause while it is being kept.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are gathered before they are written.
const WRITE_TOGETHER: usize = 256 << 10;
/// Bytes that are read at once.
const READ_TOGETHER: usize = 256 << 10;
/// Parts of an export on their way between threads.
const PARTS_BETWEEN: usize = 2;

/// What is asked of a state.
#[derive(Debug)]
pub(crate) enum Ask {
    List(ListAsk),
    /// By key.
    Get(Vec<u8>),
    /// Key and fingerprint; the body is the value.
    Put(Vec<u8>, u64),
    /// By key.
    Delete(Vec<u8>),
    Export,
    /// The body is an archive.
    Import,
    /// The captured files.
    Files,
    /// One of them, by its path.
    File(Vec<u8>),
    FilesArchive,
}

/// The answer.
#[derive(Debug)]
pub(crate) enum Told {
    /// By the sandbox.
    Online(Replied),
    AtRest(AtRestReply),
}

/// An answer without a sandbox.
#[derive(Debug)]
pub(crate) struct AtRestReply {
    pub(crate) commit: u64,
    pub(crate) durability: Durability,
    /// Of a value.
    pub(crate) head: Option<ValueHead>,
    pub(crate) body: AtRestBody,
}

#[derive(Debug)]
pub(crate) enum AtRestBody {
    Whole(Bytes),
    Streamed(RemoteBody),
}

impl Ask {
    fn builtin(&self) -> Builtin {
        match self {
            Ask::List(_) => Builtin::StateList,
            Ask::Get(_) => Builtin::StateGet,
            Ask::Put(..) => Builtin::StatePut,
            Ask::Delete(_) => Builtin::StateDelete,
            Ask::Export => Builtin::StateExport,
            Ask::Import => Builtin::StateImport,
            Ask::Files => Builtin::FilesList,
            Ask::File(_) => Builtin::FilesGet,
            Ask::FilesArchive => Builtin::FilesExport,
        }
    }

    /// What stands before the body.
    fn prefix(&self) -> Result<Vec<u8>, Problem> {
        Ok(match self {
            Ask::List(ask) => serde_json::to_vec(ask).unwrap_or_default(),
            Ask::Get(key) | Ask::Delete(key) | Ask::File(key) => key.clone(),
            Ask::Put(key, fingerprint) => {
                let mut prefix = Vec::new();
                encode_put(&mut prefix, key, *fingerprint)
                    .map_err(|error| Problem::new(Kind::BadRequest, error.to_string()))?;
                prefix
            }
            Ask::Export | Ask::Import | Ask::Files | Ask::FilesArchive => Vec::new(),
        })
    }

    /// What the sandbox answers, in the words for what was asked.
    fn told(&self, problem: Problem) -> Problem {
        if matches!(self, Ask::File(_)) && problem.kind() == Kind::UnknownKey {
            no_such_file()
        } else {
            problem
        }
    }

    fn takes_body(&self) -> bool {
        matches!(self, Ask::Put(..) | Ask::Import)
    }
}

impl Process {
    /// Looks at the state or changes it.
    ///
    /// # Errors
    /// Whatever went wrong, as the caller is to hear it.
    pub(crate) async fn state(
        self: &Rc<Process>,
        home: &Rc<Home>,
        ask: Ask,
        body: Incoming,
        limit: Option<Duration>,
        durability: Durability,
    ) -> Result<Told, Problem> {
        let begun = Instant::now();
        let policy = self.app.image().builtin(ask.builtin());
        let whose = Limit { image: policy.deadline, caller: limit };
        let limit = whose.time();
        let prefix = ask.prefix()?;
        let mut input =
            if ask.takes_body() { gather(body, policy.body_bytes, limit).await? } else { Input::whole("") };
        let mut ask = ask;
        let deadline = begun + limit;
        loop {
            if Instant::now() >= deadline {
                return Err(not_begun());
            }
            if let Some(active) = self.serving() {
                let rest = input.rest.take();
                let mut online = Input { first: input.first.clone(), rest, declared: input.declared };
                online = online.behind(&prefix);
                let order = Order {
                    index: policy.index,
                    content_type: "",
                    body_bytes: policy.body_bytes,
                    durability,
                    key: None,
                    trace: None,
                    deadline,
                    limit: whose,
                };
                match attempt(home, &active, order, &mut online).await.map_err(|problem| ask.told(problem))? {
                    Some(replied) => return Ok(Told::Online(replied)),
                    None => continue,
                }
            }
            let at_rest = move |home: Rc<Home>, process: Rc<Process>| async move {
                if is_serving(&home, &process).await? {
                    return Ok(Err((ask, input)));
                }
                process.state_at_rest(&home, ask, input, policy.body_bytes, deadline).await.map(Ok)
            };
            match self.transition(home, at_rest).await? {
                Ok(reply) => return Ok(Told::AtRest(reply)),
                Err(back) => (ask, input) = back,
            }
        }
    }

    /// Waits until a commit has reached a level; up to which commit that is so, then.
    ///
    /// # Errors
    /// `unknown-commit`, `deadline-exceeded`, and why it cannot be synced.
    pub(crate) async fn commit_reached(
        self: &Rc<Process>,
        home: &Rc<Home>,
        commit: u64,
        level: Durability,
        limit: Option<Duration>,
    ) -> Result<u64, Problem> {
        let begun = Instant::now();
        let deadline = begun + self.app.image().manifest.limits.deadline.min(limit.unwrap_or(Duration::MAX));
        while Instant::now() < deadline {
            if let Some(active) = self.serving() {
                let last = active.commit();
                let reached = if level == Durability::Process { last } else { active.durable() };
                if reached >= commit {
                    return Ok(reached);
                }
                // One that was not heard of may have been made by a call that still runs: its sandbox knows.
                match durable(home, &active, commit, deadline).await {
                    // It ended meanwhile: what it has left is synced by whoever comes next.
                    Err(_) if !self.is_same(&active) => continue,
                    Err(problem) if problem.kind() == Kind::UnknownKey => {
                        return Err(no_such_commit(commit, active.commit()));
                    }
                    answered => return answered,
                }
            }
            let at_rest = move |home: Rc<Home>, process: Rc<Process>| async move {
                if is_serving(&home, &process).await? {
                    return Ok(None);
                }
                let synced = process.read_at_rest(&home, |state| state.sync()).await;
                if matches!(&synced, Err(problem) if matches!(problem.kind(), Kind::HostFault | Kind::NoSpace))
                {
                    // Should it not be marked yet, nothing is begun before it is.
                    process.suspect(&home).await?;
                }
                let synced = synced?;
                process.durable.set(process.durable.get().max(synced));
                Ok(Some(synced))
            };
            match self.transition(home, at_rest).await? {
                Some(synced) if synced < commit => return Err(no_such_commit(commit, synced)),
                Some(synced) => return Ok(synced),
                None => {}
            }
        }
        Err(Problem::new(Kind::DeadlineExceeded, format!("commit {commit} was not durable at the deadline")))
    }

    fn is_same(&self, active: &Rc<crate::process::Active>) -> bool {
        self.serving().is_some_and(|serving| Rc::ptr_eq(&serving, active))
    }

    async fn state_at_rest(
        self: &Rc<Process>,
        home: &Rc<Home>,
        ask: Ask,
        input: Input,
        body_bytes: u64,
        deadline: Instant,
    ) -> Result<AtRestReply, Problem> {
        match ask {
            Ask::List(ask) => self.read_at_rest(home, move |state| Ok(list(&Read::of(state)?, &ask))).await,
            Ask::Get(key) => self.read_at_rest(home, move |state| get(&Read::of(state)?, &key)).await,
            Ask::Export => self.read_at_rest(home, |state| streamed(Read::of(state)?, export_to)).await,
            Ask::Files => self.read_at_rest(home, |state| list_files(&Read::of(state)?)).await,
            Ask::File(path) => self.read_at_rest(home, move |state| get_file(Read::of(state)?, &path)).await,
            Ask::FilesArchive => {
                self.read_at_rest(home, |state| streamed(Read::of(state)?, export_files_to)).await
            }
            Ask::Put(key, fingerprint) => {
                let body = keep(home, input, body_bytes, deadline).await?;
                self.change_at_rest(home, None, move |_| {
                    let mut value = Some(body.all());
                    Ok(Box::new(move || {
                        let value = value.take().transpose()?;
                        Ok(value.map(|value| Edit { key: key.clone(), change: Some((fingerprint, value)) }))
                    }))
                })
                .await
                .map(|commit| changed(commit, Bytes::new()))
            }
            Ask::Delete(key) => {
                let must_have = Some(key.clone());
                self.change_at_rest(home, must_have, move |_| {
                    let mut edit = Some(Edit { key, change: None });
                    Ok(Box::new(move || Ok(edit.take())))
                })
                .await
                .map(|commit| changed(commit, Bytes::new()))
            }
            Ask::Import => {
                let body = keep(home, input, body_bytes, deadline).await?;
                let (tell, told) = std::sync::mpsc::channel();
                let import = move |limit| {
                    let mut archive = Archive::new(body.reader()?, limit);
                    Ok(Box::new(move || {
                        let edit = archive.next()?;
                        if edit.is_none() {
                            let _ = tell.send(archive.keys);
                        }
                        Ok(edit)
                    }) as NextEdit)
                };
                let commit = self.change_at_rest(home, None, import).await?;
                let imported = Imported { keys: told.try_recv().unwrap_or(0), commit };
                Ok(changed(commit, serde_json::to_vec(&imported).unwrap_or_default()))
            }
        }
    }

    /// Whether there is any state of it. The caller has the turn, and no sandbox runs.
    ///
    /// # Errors
    /// It cannot be told.
    pub(super) async fn has_state(self: &Rc<Process>, home: &Rc<Home>) -> Result<bool, Problem> {
        self.read_at_rest(home, |state| state.is_there()).await
    }

    /// Reads the state on a side thread. The caller has the turn, and no sandbox runs.
    async fn read_at_rest<T: Send + 'static>(
        self: &Rc<Process>,
        home: &Rc<Home>,
        work: impl FnOnce(&AtRest<'_>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (app, name) = (&self.app.name, &self.name);
        let record = home.node.scheduler.get(app.clone(), name.clone()).await;
        let record = record.map_err(|error| refused_claim(&error))?;
        let lies = match record.home {
            Place::Nowhere => Lies::Perhaps,
            Place::Local => Lies::Here,
            Place::Swapped { epoch } => Lies::Swapped(epoch),
        };
        let whose = self.whose(record.born.unwrap_or(record.epoch));
        let durable = record.durable.max(self.durable.get());
        let paths = home.node.dir.process(app.as_str(), name.as_str());
        let work = move || work(&AtRest { paths: &paths, whose: &whose, lies, durable });
        let read = home.node.reading.run(work).await;
        read.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
    }

    /// Changes the state on a side thread; the commit that it ends with. The caller has the turn, and no sandbox runs.
    async fn change_at_rest(
        self: &Rc<Process>,
        home: &Rc<Home>,
        must_have: Option<Vec<u8>>,
        edits: impl FnOnce(u64) -> Result<NextEdit, Problem> + Send + 'static,
    ) -> Result<u64, Problem> {
        let quota_bytes = self.app.image().manifest.limits.state.bytes();
        let copy = move |state: &AtRest<'_>, epoch| {
            let mut next = edits(quota_bytes)?;
            let mut edits = Edits { quota_bytes, must_have, next: &mut *next };
            Ok((state.swap_out(epoch, Some(&mut edits))?, ()))
        };
        Ok(move_resting(home, self, copy).await?.0.commit)
    }
}

/// The next of several changes.
type NextEdit = Box<dyn FnMut() -> Result<Option<Edit>, Problem>>;

/// Whether a sandbox serves; one that is dead or dying is waited for. The caller has the turn.
async fn is_serving(home: &Rc<Home>, process: &Rc<Process>) -> Result<bool, Problem> {
    match process.stage() {
        Stage::Deleted => Err(Problem::new(Kind::UnknownProcess, "the process was just deleted")),
        Stage::Active(active) if !active.is_ending() => Ok(true),
        Stage::Active(dead) | Stage::Draining(dead) => {
            bury(home, process, &dead, Tell::Always).await.map(|()| false)
        }
        Stage::Resting | Stage::Starting => process.mark_if_owed(home).await.map(|()| false),
    }
}

fn no_such_commit(commit: u64, last: u64) -> Problem {
    Problem::new(Kind::UnknownCommit, format!("commit {commit} was not made: the last one is {last}"))
}

fn changed(commit: u64, body: impl Into<Bytes>) -> AtRestReply {
    let body = AtRestBody::Whole(body.into());
    AtRestReply { commit, durability: Durability::Node, head: None, body }
}

/// A log that was read, and what is known of it.
struct Read {
    log: Offline,
    commit: u64,
    durability: Durability,
}

impl Read {
    fn of(state: &AtRest<'_>) -> Result<Read, Problem> {
        let log = state.read()?;
        let commit = log.inspect().commit;
        let durability = if commit <= state.durable { Durability::Node } else { Durability::Process };
        Ok(Read { log, commit, durability })
    }

    fn reply(&self, head: Option<ValueHead>, body: AtRestBody) -> AtRestReply {
        AtRestReply { commit: self.commit, durability: self.durability, head, body }
    }
}

fn list(read: &Read, ask: &ListAsk) -> AtRestReply {
    let mut listing = Listing { commit: read.commit, ..Listing::default() };
    read.log.keys(Table::Objects, &ask.prefix, ask.after.as_deref(), |key, info| {
        let KeyInfo { len: bytes, fingerprint, version, time_ms } = info;
        listing.take(ask, ListedKey { key: key.to_vec(), bytes, fingerprint, version, time_ms })
    });
    let json = serde_json::to_vec(&listing).unwrap_or_default();
    read.reply(None, AtRestBody::Whole(json.into()))
}

fn get(read: &Read, key: &[u8]) -> Result<AtRestReply, Problem> {
    let log = &read.log;
    let info = log.info(key).ok_or_else(no_such_object)?;
    let value = log.get(key).map_err(|error| object_problem(&error))?.ok_or_else(no_such_object)?;
    let head = ValueHead { fingerprint: info.fingerprint, version: info.version, time_ms: info.time_ms };
    Ok(read.reply(Some(head), AtRestBody::Whole(value.into())))
}

/// What is wrong with one object.
fn object_problem(error: &StateError) -> Problem {
    match error {
        StateError::Corrupt(damage) => Problem::new(Kind::ObjectDamaged, damage.to_string()),
        error => state_problem(error, std::path::Path::new("(open segments)")),
    }
}

/// Streams what `work` sends from a thread of its own, at the caller's pace.
fn streamed(
    read: Read,
    work: impl FnOnce(&Offline, &mut mpsc::Sender<Part>) -> Result<(), Option<Problem>> + Send + 'static,
) -> Result<AtRestReply, Problem> {
    let (mut to, parts) = mpsc::channel(PARTS_BETWEEN);
    let reply = read.reply(None, AtRestBody::Streamed(RemoteBody::from(parts)));
    let work = move || {
        let sent = work(&read.log, &mut to);
        if let Err(Some(problem)) = sent {
            let _ = send(&mut to, Err(problem));
        }
    };
    let thread = std::thread::Builder::new().name("exporting".to_owned()).spawn(work);
    let none = |error| Problem::new(Kind::HostFault, "no thread for an export can be had").cause(error);
    thread.map(|_| reply).map_err(none)
}

type Part = Result<Bytes, Problem>;

/// # Errors
/// What is wrong, or `None` where nobody takes it any more.
fn export_to(log: &Offline, to: &mut mpsc::Sender<Part>) -> Result<(), Option<Problem>> {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out);
    for (key, info, value) in log.objects(&[], None) {
        let value = value.map_err(|error| Some(object_problem(&error)))?;
        let head = RecordHead {
            value_len: value.len() as u64,
            fingerprint: info.fingerprint,
            version: info.version,
            time_ms: info.time_ms,
        };
        encoder.record(&mut out, key, head);
        encoder.value(&value);
        if out.len() + value.len() < MAX_FRAME_PAYLOAD {
            out.extend_from_slice(&value);
            continue;
        }
        send(to, Ok(std::mem::take(&mut out).into()))?;
        send_whole(to, value)?;
    }
    encoder.end(&mut out);
    send(to, Ok(out.into()))
}

fn no_such_file() -> Problem {
    Problem::new(Kind::UnknownFile, "no file of this path was captured of /state")
}

fn list_files(read: &Read) -> Result<AtRestReply, Problem> {
    let files = read.log.files().map_err(|error| object_problem(&error))?;
    let listed = |(path, entry): (&[u8], Result<FileEntry, StateError>)| ListedFile {
        path: path.to_vec(),
        kind: match entry {
            Ok(FileEntry { mode, kind: FileKind::Directory, .. }) => ListedFileKind::Directory { mode },
            Ok(entry) => {
                ListedFileKind::File { mode: entry.mode, bytes: entry.len(), modified_s: entry.modified.0 }
            }
            Err(error) => ListedFileKind::Damaged { why: error.to_string() },
        },
    };
    let files = files.into_iter().map(listed).collect();
    let json = serde_json::to_vec(&FileListing { files, commit: read.commit }).unwrap_or_default();
    Ok(read.reply(None, AtRestBody::Whole(json.into())))
}

fn get_file(read: Read, path: &[u8]) -> Result<AtRestReply, Problem> {
    let entry = read.log.file_entry(path).map_err(|error| object_problem(&error))?;
    let entry = entry.filter(|entry| entry.kind != FileKind::Directory).ok_or_else(no_such_file)?;
    streamed(read, move |log, to| send_file(log, &entry, to))
}

fn send_file(log: &Offline, entry: &FileEntry, to: &mut mpsc::Sender<Part>) -> Result<(), Option<Problem>> {
    entry.pieces().try_for_each(|piece| {
        let bytes = log.file_piece(piece).map_err(|error| Some(object_problem(&error)))?;
        send_whole(to, bytes.unwrap_or_else(|| vec![0; piece.1]))
    })
}

fn export_files_to(log: &Offline, to: &mut mpsc::Sender<Part>) -> Result<(), Option<Problem>> {
    let damaged = |error: StateError| Some(object_problem(&error));
    let mut out = Vec::new();
    for (path, entry) in log.files().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let kind = match entry.kind {
            FileKind::Directory => tar::Entry::Directory,
            FileKind::File { len, .. } => tar::Entry::File(len),
        };
        tar::head(&mut out, path, entry.mode, entry.modified.0, kind);
        send(to, Ok(std::mem::take(&mut out).into()))?;
        send_file(log, &entry, to)?;
        out.resize(tar::padding(entry.len()), 0);
    }
    tar::end(&mut out);
    send(to, Ok(out.into()))
}

/// In parts as they come from a sandbox.
fn send_whole(to: &mut mpsc::Sender<Part>, bytes: Vec<u8>) -> Result<(), Option<Problem>> {
    let mut bytes = Bytes::from(bytes);
    while !bytes.is_empty() {
        send(to, Ok(bytes.split_to(bytes.len().min(MAX_FRAME_PAYLOAD))))?;
    }
    Ok(())
}

fn send(to: &mut mpsc::Sender<Part>, part: Part) -> Result<(), Option<Problem>> {
    future::block_on(std::future::poll_fn(|cx| to.poll_ready(cx))).map_err(|_| None)?;
    to.start_send(part).map_err(|_| None)
}

/// A body that was received.
#[derive(Debug)]
enum Kept {
    Here(Bytes),
    /// In a file without a name.
    File(File),
}

impl Kept {
    fn reader(self) -> Result<Box<dyn io::Read>, Problem> {
        match self {
            Kept::Here(bytes) => Ok(Box::new(io::Cursor::new(bytes))),
            Kept::File(mut file) => {
                file.rewind().map_err(|error| unreadable(&error))?;
                Ok(Box::new(file))
            }
        }
    }

    fn all(self) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        self.reader()?.read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
        Ok(bytes)
    }
}

fn unreadable(error: &io::Error) -> Problem {
    io_problem("what was received cannot be read back", std::path::Path::new("incoming"), error)
}

/// Receives the rest of a body, into a file if it is long. The process waits meanwhile, so its sender has no more time than the call has.
async fn keep(home: &Rc<Home>, input: Input, limit: u64, deadline: Instant) -> Result<Kept, Problem> {
    let Input { first, rest, .. } = input;
    let Some(mut rest) = rest else { return Ok(Kept::Here(first)) };
    let node = &home.node;
    let root = node.dir.root().to_owned();
    let failed = move |error| io_problem("a body cannot be received", &root, &error);
    let mut file = node.dir.incoming().map_err(failed.clone())?;
    let (mut total, mut pieces) = (0, vec![first]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let stalled = || stalled(left);
        let part = crate::executor::within(PATIENCE.min(left), next(&mut rest)).await.ok_or_else(stalled)?;
        let ended = part.is_none();
        pieces.extend(part.transpose()?);
        if pieces.iter().map(Bytes::len).sum::<usize>() >= WRITE_TOGETHER || ended {
            let now = std::mem::take(&mut pieces);
            total += now.iter().map(|piece| piece.len() as u64).sum::<u64>();
            if total > limit {
                return Err(crate::process::input::too_large(limit));
            }
            let write = move || now.iter().try_for_each(|piece| file.write_all(piece)).map(|()| file);
            let written = node.reading.run(write).await;
            let written = written.map_err(|error| Problem::new(Kind::ShuttingDown, error.to_string()))?;
            file = written.map_err(failed.clone())?;
        }
        if ended {
            return Ok(Kept::File(file));
        }
    }
}

/// What is said to the sender of a body that does not come, with so much time `left` when the last piece of it was awaited.
fn stalled(left: Duration) -> Problem {
    if left <= PATIENCE {
        let text = "the body did not arrive before the call's deadline; nothing was changed";
        return Problem::new(Kind::DeadlineExceeded, text).retry(Retry::Safe);
    }
    Problem::new(Kind::BadRequest, format!("nothing came of the body for {PATIENCE:?}"))
}

/// The objects of an archive as changes.
struct Archive {
    from: Box<dyn io::Read>,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// What of the buffer is not decoded.
    at: usize,
    object: Option<Edit>,
    keys: u64,
}

impl Archive {
    fn new(from: Box<dyn io::Read>, value_limit: u64) -> Archive {
        Archive { from, decoder: Decoder::new(value_limit), buffer: Vec::new(), at: 0, object: None, keys: 0 }
    }

    /// The next object, once it is whole; `None` at the end of a good archive.
    fn next(&mut self) -> Result<Option<Edit>, Problem> {
        let bad =
            |error: denizen_wire::archive::ArchiveError| Problem::new(Kind::BadRequest, error.to_string());
        loop {
            let mut input = self.buffer.get(self.at..).unwrap_or_default();
            let event = self.decoder.next(&mut input).map_err(bad)?;
            self.at = self.buffer.len() - input.len();
            match event {
                Some(Event::Record { key, head }) => {
                    let edit = Edit { key: key.to_vec(), change: Some((head.fingerprint, Vec::new())) };
                    self.keys += 1;
                    if let Some(whole) = self.object.replace(edit) {
                        return Ok(Some(whole));
                    }
                }
                Some(Event::Value(bytes)) => {
                    if let Some((_, value)) = self.object.as_mut().and_then(|edit| edit.change.as_mut()) {
                        value.extend_from_slice(bytes);
                    }
                }
                Some(Event::End { .. }) => {}
                None => {
                    self.buffer.resize(READ_TOGETHER, 0);
                    let count = self.from.read(&mut self.buffer).map_err(|error| unreadable(&error))?;
                    self.buffer.truncate(count);
                    self.at = 0;
                    if count == 0 {
                        self.decoder.finish().map_err(bad)?;
                        return Ok(self.object.take());
                    }
                }
            }
        }
    }
}
