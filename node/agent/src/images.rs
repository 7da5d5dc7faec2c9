//! Which images of the store may go, and their removal.
//!
//! **A removal and a deployment never meet.** Images come into the store and leave it on one side thread, one at a time. What has come in
//! is [`Held`] until a record names it or its deployment is given up, and what is held or named is not removed. The records are asked on
//! that same thread: an image that none names can be named again only after it has come in again.
//!
//! The store takes an image out of sight before it removes it, so a crash leaves no half of one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use denizen_image::{ImageId, ImageStore, StoreError};
use denizen_sched::{ImageUse, SchedulerHandle};
use futures_lite::future::block_on;

use crate::node::Node;
use crate::problem::{Kind, Problem, of_io};
use crate::process::refused_claim;

/// The images that deployments are busy with, and how many are with each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(Arc<Mutex<HashMap<ImageId, usize>>>);

/// An image stays in the store for as long as this, or a clone of it, lives.
#[derive(Debug)]
pub(crate) struct Held {
    image: ImageId,
    holds: Holds,
}

impl Holds {
    /// To be called on the thread on which the image came in.
    pub(crate) fn hold(&self, image: ImageId) -> Held {
        *self.lock().entry(image).or_default() += 1;
        Held { image, holds: self.clone() }
    }

    fn has(&self, image: &ImageId) -> bool {
        self.lock().contains_key(image)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ImageId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Held {
    fn clone(&self) -> Held {
        self.holds.hold(self.image)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holds = self.holds.lock();
        if let Some(count) = holds.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                holds.remove(&self.image);
            }
        }
    }
}

/// The store, and everything that knows of images in use.
struct Room {
    store: ImageStore,
    holds: Holds,
    scheduler: SchedulerHandle,
}

/// An image that was removed.
#[derive(Debug)]
pub(crate) struct Removed {
    pub(crate) image: ImageId,
    /// Of its files; 0 where it was damaged.
    pub(crate) bytes: u64,
}

/// Removes one image, though a record of something that rests may name it.
///
/// # Errors
/// `unknown-image`, `image-in-use`.
pub(crate) async fn remove(node: &Node, image: ImageId) -> Result<(), Problem> {
    on_side(node, move |room| room.remove(&image)).await
}

/// Removes every image that no record names: no application runs it, none ran it just before, and no process's last claim was with it.
/// With `only`, that one at most.
///
/// # Errors
/// Where the records or the store cannot be read. What cannot be removed is left, and logged.
pub(crate) async fn prune(node: &Node, only: Option<ImageId>) -> Result<Vec<Removed>, Problem> {
    on_side(node, move |room| room.prune(only)).await
}

async fn on_side<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce(&Room) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let (store, holds) = (node.images.clone(), node.held_images.clone());
    let room = Room { store, holds, scheduler: node.scheduler.clone() };
    let done = node.importing.run(move || work(&room)).await;
    done.unwrap_or_else(|error| Err(Problem::new(Kind::ShuttingDown, error.to_string())))
}

impl Room {
    fn remove(&self, image: &ImageId) -> Result<(), Problem> {
        let in_use = |by: String| Problem::new(Kind::ImageInUse, format!("image {} {by}", image.short()));
        if self.holds.has(image) {
            return Err(in_use("is being deployed".to_owned()));
        }
        match self.uses()?.iter().find(|used| used.image == *image).filter(|used| used.is_in_use()) {
            Some(used) => Err(in_use(whose(used))),
            None => self.store.remove(image).map_err(|error| store_problem(&error)),
        }
    }

    fn prune(&self, only: Option<ImageId>) -> Result<Vec<Removed>, Problem> {
        self.prune_but(only, || self.uses())
    }

    /// What is held is looked at before the records are. Whoever is named by then lets its hold go, so the other way round there is an
    /// instant at which a new image is in neither.
    fn prune_but(
        &self,
        only: Option<ImageId>,
        uses: impl FnOnce() -> Result<Vec<ImageUse>, Problem>,
    ) -> Result<Vec<Removed>, Problem> {
        let mut ids = self.store.ids().map_err(|error| store_problem(&error))?;
        ids.retain(|id| only.is_none_or(|only| only == *id) && !self.holds.has(id));
        let uses = uses()?;
        ids.retain(|id| uses.iter().all(|used| used.image != *id));
        Ok(ids.into_iter().filter_map(|id| self.drop_one(id)).collect())
    }

    fn drop_one(&self, image: ImageId) -> Option<Removed> {
        let bytes = self.store.get(&image).map_or(0, |image| image.bytes);
        match self.store.remove(&image) {
            Ok(()) => Some(Removed { image, bytes }),
            Err(error) => {
                tracing::warn!("image {} stays in the store: {error}", image.short());
                None
            }
        }
    }

    fn uses(&self) -> Result<Vec<ImageUse>, Problem> {
        block_on(self.scheduler.images()).map_err(|error| refused_claim(&error))
    }
}

/// `is run by the applications a, b and by 2 processes`.
fn whose(used: &ImageUse) -> String {
    let apps: Vec<_> = used.apps.iter().map(denizen_sched::AppName::as_str).collect();
    let apps = match apps.len() {
        0 => None,
        1 => Some(format!("by the application {}", apps.join(", "))),
        _ => Some(format!("by the applications {}", apps.join(", "))),
    };
    let processes = match used.running {
        0 => None,
        1 => Some("by a process".to_owned()),
        many => Some(format!("by {many} processes")),
    };
    let all: Vec<_> = apps.into_iter().chain(processes).collect();
    format!("is run {}", all.join(" and "))
}

/// What the image store says, as callers hear it.
pub(crate) fn store_problem(error: &StoreError) -> Problem {
    let kind = match error {
        StoreError::UnknownImage(_) => Kind::UnknownImage,
        StoreError::Binary { source, .. } => binary_kind(source),
        StoreError::Libraries(_) => Kind::MissingLibrary,
        StoreError::Io { source, .. } => of_io(source),
        error if error.is_input() => Kind::BadImage,
        _ => Kind::HostFault,
    };
    Problem::new(kind, error.to_string())
}

fn binary_kind(error: &denizen_image::elf::ElfError) -> Kind {
    use denizen_image::elf::ElfError;
    match error {
        ElfError::WrongArchitecture { .. } => Kind::WrongArchitecture,
        ElfError::MissingSymbol { .. } => Kind::MissingSymbol,
        ElfError::AbiVersion { .. } => Kind::AbiVersion,
        _ => Kind::PluginUnreadable,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use denizen_image::Manifest;
    use denizen_sched::{AppName, Config, Create, ImageRecord, ProcessName, Scheduler, Settled};

    use super::*;

    /// A store with directories in place of images: what is removed is not looked into.
    fn room(dir: &Path) -> Room {
        let store = ImageStore::open(&dir.join("images")).unwrap();
        let scheduler = Scheduler::open(&dir.join("sched.redb"), Config::default()).unwrap();
        Room { store, holds: Holds::default(), scheduler }
    }

    fn store(room: &Room, tag: &str) -> ImageId {
        let id = ImageId::of(tag.as_bytes());
        std::fs::create_dir_all(room.store.dir().join(id.to_string())).unwrap();
        id
    }

    fn deploy(room: &Room, image: ImageId) {
        let manifest = serde_json::to_value(Manifest::default_for("a")).unwrap();
        let record = ImageRecord { image, manifest, declarations: serde_json::Value::Null, created_at_ms: 0 };
        block_on(room.scheduler.deploy(AppName::new("a").unwrap(), record)).unwrap();
    }

    fn left(room: &Room) -> Vec<ImageId> {
        room.store.ids().unwrap()
    }

    #[test]
    fn an_image_that_is_named_while_the_records_are_read_stays() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        let image = store(&room, "new");
        let held = room.holds.hold(image);
        let removed = room.prune_but(None, || {
            let before = room.uses();
            deploy(&room, image);
            drop(held);
            before
        });
        assert_eq!(removed.unwrap().len(), 0);
        assert_eq!(left(&room), [image]);
    }

    #[test]
    fn only_what_nobody_names_or_holds_is_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        let [oldest, older, present, coming, refused] =
            ["1", "2", "3", "4", "5"].map(|tag| store(&room, tag));
        for image in [oldest, older, present] {
            deploy(&room, image);
        }
        let held = room.holds.hold(coming);
        let also_held = held.clone();
        drop(held);
        assert_eq!(room.prune(Some(present)).unwrap().len(), 0);
        assert_eq!(room.prune(Some(refused)).unwrap()[0].image, refused);
        assert_eq!(room.prune(None).unwrap().len(), 1, "the oldest goes");
        let mut expected = [older, present, coming];
        expected.sort();
        assert_eq!(left(&room), expected);
        drop(also_held);
        assert_eq!(
            room.prune(None).unwrap()[0].image,
            coming,
            "a deployment that was given up leaves nothing"
        );
    }

    #[test]
    fn what_something_runs_or_will_run_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        let [first, second] = ["1", "2"].map(|tag| store(&room, tag));
        let names = || (AppName::new("a").unwrap(), ProcessName::new("p").unwrap());
        deploy(&room, first);
        let (app, process) = names();
        let epoch = block_on(room.scheduler.claim(app, process, Create::Must)).unwrap().epoch;
        let said = room.remove(&first).unwrap_err();
        assert_eq!(said.kind(), Kind::ImageInUse);
        assert!(said.to_string().contains("by the application a and by a process"), "{said}");
        let held = room.holds.hold(second);
        assert!(room.remove(&second).unwrap_err().to_string().contains("is being deployed"));
        deploy(&room, second);
        drop(held);
        assert_eq!(room.remove(&second).unwrap_err().kind(), Kind::ImageInUse);
        assert_eq!(room.remove(&first).unwrap_err().kind(), Kind::ImageInUse, "a sandbox still runs it");
        let (app, process) = names();
        let stopped = Settled::Stopped { bytes: 0, commit: 0, durable: 0 };
        block_on(room.scheduler.settled(app, process, epoch, stopped)).unwrap();
        room.remove(&first).unwrap();
        assert_eq!(room.remove(&first).unwrap_err().kind(), Kind::UnknownImage);
        assert_eq!(left(&room), [second]);
    }
}
