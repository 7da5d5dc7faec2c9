//! Which sources changed. Changes that come together (an editor's save, a checkout of another branch) are told together.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _, event::ModifyKind};

/// A change is told when nothing more came for this long.
const QUIET: Duration = Duration::from_millis(120);
/// And at the latest so long after the first: something that never stops writing must not hold it up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Watches some packages, their build products left out.
pub(crate) struct Watcher {
    notify: RecommendedWatcher,
    events: mpsc::Receiver<notify::Result<Event>>,
    roots: Vec<PathBuf>,
}

impl Watcher {
    /// Watches `roots`, which must be absolute.
    pub(crate) fn new(roots: Vec<PathBuf>) -> Result<Watcher, String> {
        let (tell, events) = mpsc::channel();
        let notify = notify::recommended_watcher(tell).map_err(|error| in_words(&error))?;
        let mut watcher = Watcher { notify, events, roots };
        for root in watcher.roots.clone() {
            watcher.add(&root).map_err(|error| in_words(&error))?;
        }
        Ok(watcher)
    }

    /// Watches files and directories beside the packages too: what they are built from and lies elsewhere. What cannot be watched
    /// is left out; a package does not stop being one because a library that it uses is out of reach.
    pub(crate) fn watch_also(&mut self, paths: &[PathBuf]) {
        for path in paths {
            if self.roots.iter().any(|root| path.starts_with(root)) {
                continue;
            }
            self.roots.push(path.clone());
            // Editors replace a file by another, and a watch on the old one would go with it.
            let watched = match path.parent() {
                Some(parent) if path.is_file() => self.notify.watch(parent, RecursiveMode::NonRecursive),
                _ => self.add(path),
            };
            let _ = watched;
        }
    }

    /// One directory at a time: a recursive watch would put a watch on every directory under `target/` as well.
    fn add(&mut self, dir: &Path) -> notify::Result<()> {
        self.notify.watch(dir, RecursiveMode::NonRecursive)?;
        let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
        for entry in entries.flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && !is_ignored(&entry.path(), &self.roots) {
                self.add(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Waits for changes; `None` when there can be none any more.
    pub(crate) fn next_changes(&mut self) -> Option<BTreeSet<PathBuf>> {
        let mut changed = BTreeSet::new();
        while changed.is_empty() {
            let event = self.events.recv().ok()?;
            self.take(event, &mut changed);
        }
        let latest = Instant::now() + PATIENCE;
        while Instant::now() < latest {
            match self.events.recv_timeout(QUIET) {
                Ok(event) => self.take(event, &mut changed),
                Err(_) => break,
            }
        }
        Some(changed)
    }

    fn take(&mut self, event: notify::Result<Event>, changed: &mut BTreeSet<PathBuf>) {
        let Ok(event) = event else { return };
        if event.need_rescan() {
            changed.extend(self.roots.iter().cloned());
        }
        if !is_change(event.kind) {
            return;
        }
        for path in event.paths {
            if is_ignored(&path, &self.roots) {
                continue;
            }
            if matches!(event.kind, EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)))
                && path.is_dir()
            {
                // It may be gone again; then there is nothing to watch.
                let _ = self.add(&path);
            }
            changed.insert(path);
        }
    }
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Create(_) | EventKind::Remove(_) => true,
        EventKind::Modify(what) => !matches!(what, ModifyKind::Metadata(_)),
        _ => false,
    }
}

/// Build products (cargo writes `Cargo.lock` while it builds), hidden things (git, editors' swap files, the node's directory)
/// and editors' backups.
fn is_ignored(path: &Path, roots: &[PathBuf]) -> bool {
    let below = roots.iter().find_map(|root| path.strip_prefix(root).ok()).unwrap_or(path);
    let mut parts = below.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let first = parts.clone().next();
    // It makes `target` under a name like `targetXyZ` and then renames it.
    let is_targets = first.is_some_and(|name| name.as_encoded_bytes().starts_with(b"target"));
    let is_cargos = is_targets || below == Path::new("Cargo.lock");
    is_cargos || parts.any(|name| is_ignored_name(&name.to_string_lossy()))
}

fn is_ignored_name(name: &str) -> bool {
    // 4913 is the file with which vim tries whether it may write.
    name.starts_with('.')
        || name.ends_with('~')
        || name.ends_with(".dzi")
        || name == "4913"
        || name.starts_with("#")
}

fn in_words(error: &notify::Error) -> String {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the system's limit of watched files is reached; raise fs.inotify.max_user_watches".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Watcher, is_ignored};

    #[test]
    fn sources_count_and_products_do_not() {
        let roots = ["/srv/.config/pkg".into()];
        for path in ["src/lib.rs", "Cargo.toml", "files/target/x", "src", ""] {
            assert!(!is_ignored(&Path::new("/srv/.config/pkg").join(path), &roots), "{path}");
        }
        for path in [
            "target",
            "target/debug/x",
            ".denizen/state/a",
            ".git/HEAD",
            "src/.lib.rs.swp",
            "src/lib.rs~",
            "src/4913",
        ] {
            assert!(is_ignored(&Path::new("/srv/.config/pkg").join(path), &roots), "{path}");
        }
    }

    #[test]
    fn a_save_is_told_once_and_new_directories_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("package");
        fs::create_dir_all(root.join("src")).unwrap();
        fs::create_dir_all(root.join("target")).unwrap();
        let mut watcher = Watcher::new(vec![root.clone()]).unwrap();
        fs::write(root.join("target/product"), "x").unwrap();
        fs::write(root.join("src/lib.rs"), "one").unwrap();
        fs::write(root.join("src/lib.rs"), "two").unwrap();
        let changed = watcher.next_changes().unwrap();
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), [root.join("src/lib.rs")]);

        fs::create_dir(root.join("src/deep")).unwrap();
        assert!(watcher.next_changes().unwrap().contains(&root.join("src/deep")));
        fs::write(root.join("src/deep/mod.rs"), "x").unwrap();
        assert!(watcher.next_changes().unwrap().contains(&root.join("src/deep/mod.rs")));
    }
}
