//! The state of processes on a node that does not run: read and changed by a tool that holds the directory's lock meanwhile, in the very
//! way in which a running agent does it for a process that rests. No sandbox, and no code of a tenant.

use denizen_engine::Salvage;
use denizen_engine::offline::{Edit, Offline};
use denizen_image::Manifest;
use denizen_sandbox::SandboxError;
use denizen_sched::{
    AppName, Claim, Create, Epoch, Home, ImageRecord, Origin, ProcessName, SchedError, SchedulerHandle,
    Settled,
};
use futures_lite::future::block_on;

use crate::NodeDir;
use crate::dir::{Dir, ProcessPaths};
use crate::problem::{Kind, Problem};
use crate::process::files::{self, AtRest, Edits, Lies};
use crate::process::lineage::Whose;
use crate::process::start::refused_claim;

/// What is refused, as the document that a running node would answer with (`application/problem+json`).
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.get("detail").and_then(|detail| detail.as_str()).unwrap_or("the request is refused"))]
pub struct Refusal(pub serde_json::Value);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        Refusal(problem.to_json())
    }
}

impl From<SchedError> for Refusal {
    fn from(error: SchedError) -> Refusal {
        refused_claim(&error).into()
    }
}

/// The next change, or the end. An error, in words, gives all of them up.
pub type NextEdit<'a> = dyn FnMut() -> Result<Option<Edit>, String> + 'a;

/// A node's directory that no agent runs on, and none can start on while this lives.
#[derive(Debug)]
pub struct NodeAtRest {
    dir: Dir,
    scheduler: SchedulerHandle,
}

impl NodeAtRest {
    /// Takes the directory and its scheduler. Sandboxes that a dead agent may have left are ended first: what they could still write is
    /// not read.
    ///
    /// # Errors
    /// [`SandboxError::PredecessorStays`].
    pub fn open(dir: NodeDir, scheduler: SchedulerHandle) -> Result<NodeAtRest, SandboxError> {
        let NodeDir(dir) = dir;
        denizen_sandbox::end_predecessor(dir.root())?;
        Ok(NodeAtRest { dir, scheduler })
    }

    /// The image of an application, with what its plugin declared.
    ///
    /// # Errors
    /// `unknown-app`, and those of the scheduler's store.
    pub fn image_of(&self, app: &str) -> Result<ImageRecord, Refusal> {
        Ok(block_on(self.scheduler.image_of(name(AppName::new(app))?))?)
    }

    /// Reads the log of a process.
    ///
    /// # Errors
    /// `unknown-app`, `unknown-process`, `state-lost`, `state-corrupt`, `host-fault`.
    pub fn read(&self, app: &str, process: &str) -> Result<Offline, Refusal> {
        self.at_rest(app, process, |at_rest| at_rest.read())
    }

    /// Reads what can still be read of a damaged log.
    ///
    /// # Errors
    /// As [`NodeAtRest::read`], but for damage.
    pub fn salvage(&self, app: &str, process: &str) -> Result<Salvage, Refusal> {
        self.at_rest(app, process, |at_rest| at_rest.salvage())
    }

    fn at_rest<T>(
        &self,
        app: &str,
        process: &str,
        work: impl FnOnce(&AtRest<'_>) -> Result<T, Problem>,
    ) -> Result<T, Refusal> {
        let names = (name(AppName::new(app))?, name(ProcessName::new(process))?);
        let record = block_on(self.scheduler.get(names.0, names.1))?;
        let lies = match record.home {
            Home::Nowhere => Lies::Perhaps,
            Home::Local => Lies::Here,
            Home::Swapped { epoch } => Lies::Swapped(epoch),
        };
        let whose = whose(app, process, record.born.unwrap_or(record.epoch));
        let paths = self.dir.process(app, process);
        Ok(work(&AtRest { paths: &paths, whose: &whose, lies, durable: record.durable })?)
    }

    /// Changes the objects of a process as one commit; gives the number of the last commit then. The process is `swapped` afterwards,
    /// wherever it lay before. Everything is as it was where this fails.
    ///
    /// # Errors
    /// As [`NodeAtRest::read`]; `state-quota`, `no-space`; `bad-request` for keys and values that cannot be, and for what `next` says.
    pub fn change(&self, app: &str, process: &str, next: &mut NextEdit<'_>) -> Result<u64, Refusal> {
        let names = (name(AppName::new(app))?, name(ProcessName::new(process))?);
        let scheduler = &self.scheduler;
        let record = block_on(scheduler.get(names.0.clone(), names.1.clone()))?;
        let claim = block_on(scheduler.claim(names.0.clone(), names.1.clone(), Create::Never))?;
        let paths = self.dir.process(app, process);
        let epoch = claim.epoch;
        let durable = claim.durable;
        let changed = copy_changed(&paths, &whose(app, process, claim.born), &claim, next);
        let settled = match &changed {
            Ok(summary) => {
                // The copy was synced.
                let (bytes, commit) = (summary.live_bytes, summary.commit);
                Settled::Swapped { bytes, commit, durable: commit }
            }
            // Nothing was touched.
            Err(_) => Settled::Stopped { bytes: record.state_bytes, commit: record.commit, durable },
        };
        let told = block_on(scheduler.settled(names.0, names.1, epoch, settled));
        let summary = changed?;
        told?;
        files::forget_local(&paths);
        // A leftover costs space only: the record does not point to it.
        let _ = files::remove_swapped(&paths, Some(epoch));
        Ok(summary.commit)
    }

    /// Gives the directory back: an agent may start on it when this returns.
    ///
    /// # Errors
    /// The scheduler's store cannot be closed.
    pub fn close(self) -> Result<(), Refusal> {
        Ok(block_on(self.scheduler.stop())?)
    }
}

fn copy_changed(
    paths: &ProcessPaths,
    whose: &Whose,
    claim: &Claim,
    next: &mut NextEdit<'_>,
) -> Result<files::Summary, Problem> {
    let lies = match claim.origin {
        Origin::Swapped { epoch } => Lies::Swapped(epoch),
        Origin::New { .. } => Lies::Perhaps,
        Origin::Local => Lies::Here,
    };
    let manifest: Result<Manifest, _> = serde_json::from_value(claim.image.manifest.clone());
    let manifest = manifest.map_err(|error| {
        Problem::new(Kind::HostFault, "the manifest on record cannot be read").cause(error)
    })?;
    let mut next = || next().map_err(|why| Problem::new(Kind::BadRequest, why));
    let quota_bytes = manifest.limits.state.bytes();
    let mut edits = Edits { quota_bytes, must_have: None, next: &mut next };
    let at_rest = AtRest { paths, whose, lies, durable: claim.durable };
    at_rest.swap_out(claim.epoch, Some(&mut edits))
}

fn whose(app: &str, process: &str, born: Epoch) -> Whose {
    Whose { app: app.to_owned(), process: process.to_owned(), born }
}

fn name<T, E: std::fmt::Display>(checked: Result<T, E>) -> Result<T, Refusal> {
    checked.map_err(|error| Problem::new(Kind::BadName, error.to_string()).into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use denizen_engine::storage::Directory;
    use denizen_engine::{Access, Engine, Options};
    use denizen_image::ImageId;
    use denizen_sched::{Config, Phase, Scheduler};

    use super::*;

    /// A directory as a node leaves it, with the state of `a/p`.
    fn left(root: &Path, objects: &[(&str, &str)]) -> NodeAtRest {
        let dir = NodeDir::open(root).unwrap();
        let scheduler = Scheduler::open(&dir.scheduler_store(), Config::default()).unwrap();
        let manifest = serde_json::to_value(Manifest::default_for("a")).unwrap();
        let image: ImageId = "ab".repeat(32).parse().unwrap();
        let declarations = serde_json::json!({ "types": [] });
        let record = ImageRecord { image, manifest, declarations, created_at_ms: 0 };
        let (app, process) = (AppName::new("a").unwrap(), ProcessName::new("p").unwrap());
        block_on(scheduler.deploy(app.clone(), record)).unwrap();
        let claim = block_on(scheduler.claim(app.clone(), process.clone(), Create::IfMissing)).unwrap();
        let paths = dir.0.process("a", "p");
        std::fs::create_dir_all(&paths.local).unwrap();
        let storage = Arc::new(Directory::open(&paths.local).unwrap());
        let options = Options::new(whose("a", "p", claim.born).lineage(), 1 << 30);
        let (engine, _) = Engine::open(storage, options).unwrap();
        let mut tx = engine.begin(Access::Exclusive);
        for (key, value) in objects {
            tx.put(key.as_bytes(), 7, value.as_bytes()).unwrap();
        }
        tx.commit().unwrap();
        drop(tx);
        let commit = engine.seal().unwrap();
        drop(engine);
        let settle =
            |settled| block_on(scheduler.settled(app.clone(), process.clone(), claim.epoch, settled));
        settle(Settled::Active).unwrap();
        settle(Settled::Stopped { bytes: 1, commit, durable: commit }).unwrap();
        NodeAtRest::open(dir, scheduler).unwrap()
    }

    fn contents(node: &NodeAtRest) -> Vec<(String, u64, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let log = node.read("a", "p").unwrap();
        log.objects(&[], None)
            .map(|(key, info, value)| (text(key), info.fingerprint, text(&value.unwrap())))
            .collect()
    }

    fn kind(refusal: &Refusal) -> &str {
        refusal.0["type"].as_str().unwrap().rsplit(':').next().unwrap()
    }

    fn phase(node: &NodeAtRest) -> Phase {
        let names = (AppName::new("a").unwrap(), ProcessName::new("p").unwrap());
        block_on(node.scheduler.get(names.0, names.1)).unwrap().phase
    }

    #[test]
    fn state_at_rest_is_read_and_changed_again_and_again() {
        let root = tempfile::tempdir().unwrap();
        let node = left(root.path(), &[("a", "1"), ("b", "2")]);
        assert!(NodeDir::open(root.path()).is_err(), "an agent could start meanwhile");
        assert_eq!(contents(&node), [("a".into(), 7, "1".into()), ("b".into(), 7, "2".into())]);
        let mut last = 0;
        for round in 1..4_u8 {
            let mut edits = vec![
                Edit { key: b"a".to_vec(), change: None },
                Edit { key: b"c".to_vec(), change: Some((9, vec![b'0' + round])) },
            ]
            .into_iter();
            let commit = node.change("a", "p", &mut || Ok(edits.next())).unwrap();
            assert!(commit > last);
            last = commit;
            assert_eq!(phase(&node), Phase::Swapped);
            assert_eq!(contents(&node), [("b".into(), 7, "2".into()), ("c".into(), 9, round.to_string())]);
        }
        node.close().unwrap();
        drop(node_again(root.path()));
    }

    fn node_again(root: &Path) -> NodeAtRest {
        let dir = NodeDir::open(root).unwrap();
        let scheduler = Scheduler::open(&dir.scheduler_store(), Config::default()).unwrap();
        let node = NodeAtRest::open(dir, scheduler).unwrap();
        assert_eq!(contents(&node).len(), 2);
        node
    }

    #[test]
    fn a_change_that_cannot_be_leaves_everything_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let node = left(root.path(), &[("a", "1")]);
        let before = contents(&node);
        let refused = |edits: Vec<Result<Edit, String>>| {
            let mut edits = edits.into_iter();
            node.change("a", "p", &mut || edits.next().transpose()).unwrap_err()
        };
        let put = |key: &[u8]| Edit { key: key.to_vec(), change: Some((0, b"v".to_vec())) };
        assert_eq!(kind(&refused(vec![Ok(put(b"b")), Ok(put(b""))])), "bad-request");
        let error = refused(vec![Ok(put(b"b")), Err("line 2 is no JSON".into())]);
        assert_eq!((kind(&error), error.to_string().as_str()), ("bad-request", "line 2 is no JSON"));
        assert_eq!(phase(&node), Phase::Placed);
        assert_eq!(contents(&node), before);
        let unknown = |app, process| kind(&node.read(app, process).unwrap_err()).to_owned();
        assert_eq!(unknown("a", "q"), "unknown-process");
        assert_eq!(unknown("b", "p"), "unknown-app");
        assert_eq!(unknown("../b", "p"), "bad-name");
    }

    #[test]
    fn damage_is_said_and_what_is_left_is_salvaged() {
        let root = tempfile::tempdir().unwrap();
        let node = left(root.path(), &[("a", "1"), ("b", "2")]);
        let folder = root.path().join("state/a/p.state");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            // A header that cannot be read: its first segment's number.
            bytes[32] ^= 0xff;
            std::fs::write(path, bytes).unwrap();
        }
        assert_eq!(kind(&node.read("a", "p").unwrap_err()), "state-corrupt");
        let salvaged = node.salvage("a", "p").unwrap();
        assert!(!salvaged.damage().is_empty());
        assert_eq!(salvaged.objects().filter(|(.., value)| value.is_ok()).count(), 2);
    }
}
