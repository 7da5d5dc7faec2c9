//! Where the objects are: at a node that runs, or in a directory that no node runs on, which then belongs to this command until it ends.

use std::{
    io::{self, IsTerminal as _, Read},
    path::Path,
};

use denizen_agent::{DirError, NodeAtRest, NodeDir, Refusal};
use denizen_client::{Captured, CapturedFile, ClientError, Imported, Node, Object, ObjectInfo, Problem};
use denizen_engine::{
    FileEntry, FileKind, KeyInfo, Salvage, StateError, Table,
    offline::{Edit, Offline},
};
use denizen_sched::{Config, Scheduler};
use denizen_wire::tar;

use super::{key::Key, transfer, types::Types};
use crate::{cli::Everywhere, failure::Failure, place, target::ProcessTarget, terminal::Terminal};

/// The objects of a process.
pub(super) struct Source {
    target: ProcessTarget,
    place: Place,
}

enum Place {
    Online(Node),
    AtRest(Box<NodeAtRest>, Log),
}

/// A log that was read.
enum Log {
    Whole(Box<Offline>),
    /// What is left of it.
    Salvaged(Box<Salvage>),
}

/// Read of an answer at once, in bytes.
const PIECE: usize = 256 << 10;

/// An object that is to be put.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) key: Vec<u8>,
    pub(super) fingerprint: u64,
    pub(super) value: Vec<u8>,
}

/// The next object of an import, or the end.
pub(super) type Next<'a> = dyn FnMut() -> Result<Option<Put>, Failure> + 'a;

impl Source {
    /// Finds the process. `salvage`: what is left of it if its log is damaged, which only works where no node runs.
    pub(super) fn open(
        terminal: &Terminal,
        everywhere: &Everywhere,
        target: ProcessTarget,
        salvage: bool,
    ) -> Result<Source, Failure> {
        let dir = place::node_directory(everywhere.dir.as_deref())?;
        if let Some(node) = running(&dir)? {
            if salvage {
                return Err(Failure::usage(format!("a node runs on {}", dir.display()))
                    .remedy("end it first: only state at rest is salvaged"));
            }
            return Ok(Source { target, place: Place::Online(node) });
        }
        let node = take(&dir)?;
        if io::stderr().is_terminal() {
            terminal.say(terminal.err.dim(&format!("no node runs on {}: its files are used", dir.display())));
        }
        let ProcessTarget { app, process } = &target;
        let log = if salvage {
            Log::Salvaged(Box::new(node.salvage(app, process).map_err(refused)?))
        } else {
            Log::Whole(Box::new(node.read(app, process).map_err(refused)?))
        };
        Ok(Source { target, place: Place::AtRest(Box::new(node), log) })
    }

    /// Gives the directory back.
    pub(super) fn close(self) -> Result<(), Failure> {
        match self.place {
            Place::Online(_) => Ok(()),
            Place::AtRest(node, _) => node.close().map_err(refused),
        }
    }

    /// The types that the process's image declares.
    pub(super) fn types(&self) -> Result<Types, Failure> {
        let app = &self.target.app;
        match &self.place {
            Place::Online(node) => Ok(Types::of(&node.image_of(app)?.types)),
            Place::AtRest(node, _) => {
                let declared = node.image_of(app).map_err(refused)?.declarations;
                let types = declared.get("types").cloned().unwrap_or_default();
                // What cannot be read declares nothing, and its objects are bytes.
                Ok(Types::of(&serde_json::from_value::<Vec<_>>(types).unwrap_or_default()))
            }
        }
    }

    /// All keys that begin with `prefix`, and the commit that this is the state of (of several, while calls go on, the last).
    pub(super) fn list(&self, prefix: &[u8]) -> Result<(Vec<ObjectInfo>, u64), Failure> {
        let mut found: Vec<ObjectInfo> = Vec::new();
        match &self.place {
            Place::Online(node) => loop {
                let after = found.last().map(|last| last.key.clone());
                let ProcessTarget { app, process } = &self.target;
                let list = node.objects(app, process, prefix, after.as_deref())?;
                let ended = !list.more || list.objects.is_empty();
                found.extend(list.objects);
                if ended {
                    return Ok((found, list.commit));
                }
            },
            Place::AtRest(_, Log::Whole(log)) => {
                log.keys(Table::Objects, prefix, None, |key, info| {
                    found.push(as_told(key, info));
                    std::ops::ControlFlow::Continue(())
                });
                Ok((found, log.inspect().commit))
            }
            Place::AtRest(_, Log::Salvaged(log)) => {
                let keys = log.keys().filter(|(key, _)| key.starts_with(prefix));
                Ok((keys.map(|(key, info)| as_told(key, info)).collect(), log.gap()))
            }
        }
    }

    /// What is known of an object.
    pub(super) fn info(&self, key: &[u8]) -> Result<Option<ObjectInfo>, Failure> {
        match &self.place {
            Place::Online(node) => {
                let ProcessTarget { app, process } = &self.target;
                // The key itself, if it is there, is the first that begins with it.
                let first = node.objects(app, process, key, None)?.objects.into_iter().next();
                Ok(first.filter(|info| info.key == key))
            }
            Place::AtRest(_, Log::Whole(log)) => Ok(log.info(key).map(|info| as_told(key, info))),
            Place::AtRest(_, Log::Salvaged(log)) => {
                Ok(log.keys().find(|(known, _)| *known == key).map(|(key, info)| as_told(key, info)))
            }
        }
    }

    /// An object.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Object>, Failure> {
        let value = match &self.place {
            Place::Online(node) => {
                let ProcessTarget { app, process } = &self.target;
                return match node.object(app, process, key) {
                    Ok(object) => Ok(Some(object)),
                    Err(error) if error.problem().is_some_and(|problem| problem.name() == "unknown-key") => {
                        Ok(None)
                    }
                    Err(error) => Err(error.into()),
                };
            }
            Place::AtRest(_, Log::Whole(log)) => log.get(key),
            Place::AtRest(_, Log::Salvaged(log)) => log.get(key),
        };
        let value = value.map_err(|error| unreadable(&error))?;
        let info = self.info(key)?;
        Ok(info.zip(value).map(|(info, value)| Object { info, value }))
    }

    /// Puts an object; gives the commit.
    pub(super) fn put(&self, put: Put) -> Result<u64, Failure> {
        let ProcessTarget { app, process } = &self.target;
        let Put { key, fingerprint, value } = put;
        match &self.place {
            Place::Online(node) => Ok(node.put_object(app, process, &key, fingerprint, &value)?),
            Place::AtRest(node, _) => {
                let mut edit = Some(Edit { key, change: Some((fingerprint, value)) });
                node.change(app, process, &mut || Ok(edit.take())).map_err(refused)
            }
        }
    }

    /// Deletes objects, at rest as one commit; gives the last commit.
    pub(super) fn delete(&self, keys: &[Key<'_>]) -> Result<u64, Failure> {
        let ProcessTarget { app, process } = &self.target;
        match &self.place {
            Place::Online(node) => {
                let mut commit = 0;
                for key in keys {
                    commit = node.delete_object(app, process, key.bytes())?;
                }
                Ok(commit)
            }
            Place::AtRest(node, _) => {
                let mut edits = keys.iter().map(|key| Edit { key: key.bytes().to_vec(), change: None });
                node.change(app, process, &mut || Ok(edits.next())).map_err(refused)
            }
        }
    }

    /// Shows all objects in order. `damaged` decides about one that cannot be read.
    pub(super) fn each(
        &self,
        mut take: impl FnMut(Object) -> Result<(), Failure>,
        mut damaged: impl FnMut(Failure) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut one = |key: &[u8], info: KeyInfo, value: Result<Vec<u8>, StateError>| match value {
            Ok(value) => take(Object { info: as_told(key, info), value }),
            Err(error) => damaged(unreadable(&error)),
        };
        match &self.place {
            Place::Online(node) => {
                let mut archive = node.export(&self.target.app, &self.target.process)?;
                transfer::read_archive(&mut archive, &mut take)
            }
            Place::AtRest(_, Log::Whole(log)) => {
                log.objects(&[], None).try_for_each(|(key, info, value)| one(key, info, value))
            }
            Place::AtRest(_, Log::Salvaged(log)) => {
                log.objects().try_for_each(|(key, info, value)| one(key, info, value))
            }
        }
    }

    /// The captured files, in the order of their paths.
    pub(super) fn files(&self) -> Result<Vec<CapturedFile>, Failure> {
        let ProcessTarget { app, process } = &self.target;
        match &self.place {
            Place::Online(node) => Ok(node.files(app, process)?),
            Place::AtRest(_, Log::Whole(log)) => {
                let found = log.files().map_err(|error| unreadable_file(&error))?;
                Ok(found.into_iter().map(|(path, entry)| captured(path, entry)).collect())
            }
            Place::AtRest(_, Log::Salvaged(_)) => Err(not_salvaged()),
        }
    }

    /// Shows the bytes of a captured file piece by piece; false if there is no file of this path.
    pub(super) fn file(
        &self,
        path: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let ProcessTarget { app, process } = &self.target;
        let log = match &self.place {
            Place::Online(node) => match node.file(app, process, path) {
                Ok(file) => return self.pass_on(node, file, take).map(|()| true),
                Err(error) if error.problem().is_some_and(|problem| problem.name() == "unknown-file") => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            },
            Place::AtRest(_, Log::Whole(log)) => log,
            Place::AtRest(_, Log::Salvaged(_)) => return Err(not_salvaged()),
        };
        let entry = log.file_entry(path).map_err(|error| unreadable_file(&error))?;
        let Some(entry) = entry.filter(|entry| entry.kind != FileKind::Directory) else { return Ok(false) };
        each_piece(log, &entry, &mut take).map(|()| true)
    }

    /// Shows a tar archive of all captured files piece by piece.
    pub(super) fn files_archive(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let ProcessTarget { app, process } = &self.target;
        let log = match &self.place {
            Place::Online(node) => return self.pass_on(node, node.files_archive(app, process)?, take),
            Place::AtRest(_, Log::Whole(log)) => log,
            Place::AtRest(_, Log::Salvaged(_)) => return Err(not_salvaged()),
        };
        let mut out = Vec::new();
        for (path, entry) in log.files().map_err(|error| unreadable_file(&error))? {
            let entry = entry.map_err(|error| unreadable_file(&error))?;
            let kind = match entry.kind {
                FileKind::Directory => tar::Entry::Directory,
                FileKind::File { len, .. } => tar::Entry::File(len),
            };
            tar::head(&mut out, path, entry.mode, entry.modified.0, kind);
            take(&out)?;
            out.clear();
            each_piece(log, &entry, &mut take)?;
            out.resize(tar::padding(entry.len()), 0);
        }
        tar::end(&mut out);
        take(&out)
    }

    fn pass_on(
        &self,
        node: &Node,
        mut from: impl Read,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(count) => take(&piece[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was wrong is in its log: the answer had begun.
                Err(error) => {
                    let target = &self.target;
                    return Err(Failure::from(node.broke_off("reading files", error)).remedy(format!(
                        "`denizen logs {target}` may say why; the other files can be had one by one"
                    )));
                }
            }
        }
    }

    /// How many files and directories are captured; 0 where that cannot be seen from here.
    pub(super) fn files_seen(&self) -> u64 {
        self.files().map_or(0, |found| found.len() as u64)
    }

    /// What of the log itself cannot be read, in words.
    pub(super) fn damage(&self) -> Vec<String> {
        match &self.place {
            Place::AtRest(_, Log::Salvaged(log)) => log.damage().iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        }
    }

    /// Puts many objects, at rest as one commit.
    pub(super) fn import(&self, next: &mut Next<'_>) -> Result<Imported, Failure> {
        let ProcessTarget { app, process } = &self.target;
        // What went wrong here is told in its own words, and not as what the transport or the node makes of it.
        let mut failed = None;
        let outcome = match &self.place {
            Place::Online(node) => {
                let mut archive = transfer::WritingArchive::of(next, &mut failed);
                node.import(app, process, &mut archive as &mut dyn Read).map_err(Failure::from)
            }
            Place::AtRest(node, _) => {
                let mut keys = 0;
                let mut next = || match next() {
                    Ok(None) => Ok(None),
                    Ok(Some(Put { key, fingerprint, value })) => {
                        keys += 1;
                        Ok(Some(Edit { key, change: Some((fingerprint, value)) }))
                    }
                    Err(failure) => {
                        let what = failure.in_short().to_owned();
                        failed = Some(failure);
                        Err(what)
                    }
                };
                let commit = node.change(app, process, &mut next).map_err(refused);
                commit.map(|commit| Imported { keys, commit })
            }
        };
        match failed {
            Some(failure) => Err(failure),
            None => outcome,
        }
    }
}

fn captured(path: &[u8], entry: Result<FileEntry, StateError>) -> CapturedFile {
    let kind = match entry {
        Ok(FileEntry { mode, kind: FileKind::Directory, .. }) => Captured::Directory { mode },
        Ok(entry) => Captured::File { mode: entry.mode, bytes: entry.len(), modified_s: entry.modified.0 },
        Err(error) => Captured::Damaged { why: error.to_string() },
    };
    CapturedFile { path: path.to_vec(), kind }
}

fn each_piece(
    log: &Offline,
    entry: &FileEntry,
    take: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    entry.pieces().try_for_each(|piece| {
        let bytes = log.file_piece(piece).map_err(|error| unreadable_file(&error))?;
        take(&bytes.unwrap_or_else(|| vec![0; piece.1]))
    })
}

fn not_salvaged() -> Failure {
    Failure::usage("a damaged log is salvaged for its objects, not for its files")
        .remedy("without --salvage, files of a whole log can be read")
}

fn as_told(key: &[u8], info: KeyInfo) -> ObjectInfo {
    let KeyInfo { len: bytes, fingerprint, version, time_ms } = info;
    ObjectInfo { key: key.to_vec(), bytes, fingerprint, version, time_ms }
}

/// The node that runs on a directory. One that left its address behind when it was killed does not.
fn running(dir: &Path) -> Result<Option<Node>, Failure> {
    let node = match Node::on_directory(dir) {
        Ok(node) => node,
        Err(ClientError::NoNode { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match node.info() {
        Ok(_) => Ok(Some(node)),
        Err(ClientError::Unreachable { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes a directory that no node runs on.
fn take(dir: &Path) -> Result<NodeAtRest, Failure> {
    let store = dir.join("sched.redb");
    if !store.is_file() {
        return Err(ClientError::NoNode { dir: dir.to_owned() }.into());
    }
    let cannot = |error: &dyn std::error::Error| {
        Failure::host(format!("the state in {} cannot be had", dir.display())).told_by(error)
    };
    let locked = NodeDir::open(dir).map_err(|error| match error {
        DirError::Locked { .. } => cannot(&error).remedy("wait until it serves, or has ended, and try again"),
        error => cannot(&error),
    })?;
    let scheduler = Scheduler::open(&store, Config::default()).map_err(|error| cannot(&error))?;
    NodeAtRest::open(locked, scheduler).map_err(|error| cannot(&error))
}

/// A refusal at rest reads like that of a node.
fn refused(refusal: Refusal) -> Failure {
    match serde_json::from_value::<Problem>(refusal.0) {
        Ok(problem) if problem.name() == "state-corrupt" => {
            Failure::from(ClientError::Problem(Box::new(problem)))
                .remedy("`denizen state export --salvage` writes what can still be read")
        }
        Ok(problem) => ClientError::Problem(Box::new(problem)).into(),
        Err(error) => Failure::host("the state cannot be used").because(&error),
    }
}

fn unreadable_file(error: &StateError) -> Failure {
    Failure::host("a captured file cannot be read")
        .detail(error.to_string())
        .remedy("the others can; restore this one from a copy")
}

fn unreadable(error: &StateError) -> Failure {
    Failure::host("an object cannot be read").detail(error.to_string()).remedy(
        "`denizen state export --salvage` writes the others; putting it anew, or deleting it, heals it",
    )
}
