//! Builds and deploys, first everything, then whatever changed. A build that fails, or an image that the node refuses, changes nothing:
//! what is deployed keeps serving.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use denizen_client::{DeployOptions, Deployed, Node};
use denizen_image::build::Profile;
use serde_json::json;

use super::{banner, watcher};
use crate::{commands::image, failure::Failure, layout, packing::Packed, place, terminal::Terminal, units};

/// A package, and how it stands on the node.
#[derive(Debug, Clone)]
pub(crate) struct Deployment {
    pub(crate) package: PathBuf,
    /// What serves now.
    pub(crate) deployed: Option<Deployed>,
    /// What to look at for changes.
    watch: Vec<PathBuf>,
}

/// A Ctrl-C goes to cargo as well, which may end of it before this program has heard it.
const HEARD: Duration = Duration::from_millis(100);

/// What the thread needs.
pub(crate) struct Builder {
    pub(crate) terminal: Terminal,
    pub(crate) node: Node,
    /// The node's directory, if it was named: then other commands must name it too.
    pub(crate) named_dir: Option<PathBuf>,
    pub(crate) profile: Profile,
    /// Whether to go on when everything is built once.
    pub(crate) watches: bool,
    /// Set when the node is to end: then nothing is built, and a build that broke off is nobody's fault.
    pub(crate) stopping: Arc<AtomicBool>,
}

impl Builder {
    /// Starts the thread.
    pub(crate) fn start(self, packages: Vec<PathBuf>) {
        let terminal = self.terminal;
        if let Err(error) =
            thread::Builder::new().name("builder".to_owned()).spawn(move || self.run(packages))
        {
            terminal.say(format!("nothing can be built: {error}"));
        }
    }

    fn run(&self, packages: Vec<PathBuf>) {
        let mut deployments: Vec<Deployment> = packages
            .into_iter()
            .map(|package| Deployment { watch: vec![package.clone()], package, deployed: None })
            .collect();
        // Before the first build: a change during it must not be lost.
        let roots = deployments.iter().map(|deployment| deployment.package.clone()).collect();
        let mut watcher = if self.watches && !deployments.is_empty() { self.watch(roots) } else { None };
        for deployment in &mut deployments {
            self.build(deployment);
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            if let Some(watcher) = &mut watcher {
                watcher.watch_also(&deployment.watch);
            }
        }
        banner::show_next(
            &self.terminal,
            &self.node,
            self.named_dir.as_deref(),
            watcher.is_some(),
            &deployments,
        );
        let Some(mut watcher) = watcher else { return };
        while let Some(changed) = watcher.next_changes() {
            for deployment in &mut deployments {
                if changed.iter().any(|path| deployment.watch.iter().any(|root| path.starts_with(root))) {
                    self.build(deployment);
                    watcher.watch_also(&deployment.watch);
                }
            }
        }
    }

    fn watch(&self, roots: Vec<PathBuf>) -> Option<watcher::Watcher> {
        match watcher::Watcher::new(roots) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                self.terminal
                    .say(format!("{} sources are not watched: {error}", self.terminal.err.yellow("!")));
                None
            }
        }
    }

    /// Brings one package to the node, or says why not.
    fn build(&self, deployment: &mut Deployment) {
        let name = name_of(&deployment.package);
        let started = Instant::now();
        self.terminal.say(format!("  {} {name}", self.terminal.err.dim("building")));
        match self.try_build(deployment) {
            Ok(Some(deployed)) => {
                self.tell_deployed(&deployed, started);
                self.remove_old_images();
                deployment.deployed = Some(deployed);
            }
            Ok(None) => self
                .terminal
                .say(format!("  {} {name}: the image is the same", self.terminal.err.dim("unchanged"))),
            Err(_) if self.is_stopping() => {}
            Err(failure) => {
                // From an earlier run, perhaps.
                if deployment.deployed.is_none() {
                    deployment.deployed = self.node.image_of(&name).ok().map(Deployed::from);
                }
                self.tell_failed(&name, deployment, &failure);
            }
        }
    }

    /// Each change makes an image of some megabytes: the last one and the one before it stay, as do those that processes still have.
    fn remove_old_images(&self) {
        if let Err(error) = self.node.prune_images()
            && !self.is_stopping()
        {
            self.terminal.say(format!("{} old images stay: {error}", self.terminal.err.yellow("!")));
        }
    }

    /// Asked when something failed.
    fn is_stopping(&self) -> bool {
        thread::sleep(HEARD);
        self.stopping.load(Ordering::Relaxed)
    }

    /// `None`: the image is the one that serves already.
    fn try_build(&self, deployment: &mut Deployment) -> Result<Option<Deployed>, Failure> {
        let mut packed = Packed::from_package(&self.terminal, &deployment.package, self.profile)?;
        // All of the package, whatever it was built from so far: a file that is new may be what the next build needs.
        deployment.watch.clone_from(&packed.watch);
        deployment.watch.push(deployment.package.clone());
        if deployment.deployed.as_ref().is_some_and(|deployed| deployed.image == packed.image) {
            return Ok(None);
        }
        let app = packed.manifest.name.clone();
        packed.deploy(&self.node, &app, DeployOptions::default()).map(Some)
    }

    fn tell_deployed(&self, deployed: &Deployed, started: Instant) {
        if self.terminal.json {
            let _ = self.terminal.document(&json!({ "event": "deployed", "deployed": deployed }));
            return;
        }
        let took = units::duration(started.elapsed());
        let paint = self.terminal.err;
        self.terminal.say(format!(
            "  {} {} {}",
            paint.green("deployed"),
            image::in_words(deployed),
            paint.dim(&format!("({took})"))
        ));
    }

    fn tell_failed(&self, name: &str, deployment: &Deployment, failure: &Failure) {
        if self.terminal.json {
            let _ = self
                .terminal
                .document(&json!({ "event": "failed", "package": name, "failure": failure.to_json() }));
            return;
        }
        match failure.problem().filter(|problem| problem.name() == "layout-changed") {
            Some(problem) => {
                let app = deployment.deployed.as_ref().map_or(name, |deployed| deployed.app.as_str());
                let denizen = place::this_command_on(self.named_dir.as_deref());
                let words = layout::explain(problem, app, &deployment.package, &denizen, self.terminal.err);
                self.terminal.say(words);
            }
            None => self.terminal.explain(failure),
        }
        if let Some(deployed) = &deployment.deployed {
            let serving = format!("{name} goes on with image {}", units::short_id(&deployed.image));
            self.terminal.say(format!("  {}\n", self.terminal.err.yellow(&serving)));
        }
    }
}

/// The last part of its path.
fn name_of(package: &Path) -> String {
    package
        .file_name()
        .map_or_else(|| package.display().to_string(), |name| name.to_string_lossy().into_owned())
}
