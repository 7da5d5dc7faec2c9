//! What lives on one executor: the applications as it knows them, and the processes whose home it is.

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use denizen_sched::{AppName, ProcessName};
use futures_channel::oneshot;
use futures_lite::future;

use crate::data;
use crate::deployed::Deployed;
use crate::executor;
use crate::local::Turns;
use crate::node::Node;
use crate::problem::{Kind, Problem};
use crate::process::Process;

/// Work for another executor.
pub(crate) type Job = Box<dyn FnOnce(Rc<Home>) + Send>;

/// One executor's part of the node.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) node: Arc<Node>,
    pub(crate) index: usize,
    apps: RefCell<HashMap<Box<str>, Rc<App>>>,
    invocations: Cell<u64>,
    /// Connections of the data port.
    pub(crate) callers: data::Callers,
}

/// An application on one executor.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) name: AppName,
    image: RefCell<Arc<Deployed>>,
    processes: RefCell<HashMap<Box<str>, Rc<Process>>>,
    /// Processes that had no call a moment ago, for calls that name none.
    free: RefCell<Vec<Weak<Process>>>,
    /// One deployment at a time; used on the application's own home only.
    pub(crate) deployments: Rc<Turns>,
    /// What connections of the data port take here.
    pub(crate) callers: Rc<data::Share>,
}

impl Home {
    pub(crate) fn new(node: Arc<Node>, index: usize) -> Rc<Home> {
        let callers = data::Callers::new(node.executors());
        Rc::new(Home { node, index, apps: RefCell::default(), invocations: Cell::new(0), callers })
    }

    /// # Errors
    /// `unknown-app`.
    pub(crate) fn app(&self, name: &str) -> Result<Rc<App>, Problem> {
        let unknown =
            || Problem::new(Kind::UnknownApp, format!("no image is deployed to the application {name}"));
        self.apps.borrow().get(name).map(Rc::clone).ok_or_else(unknown)
    }

    pub(crate) fn apps(&self) -> Vec<Rc<App>> {
        self.apps.borrow().values().map(Rc::clone).collect()
    }

    /// From now on `image` is what calls to the application are checked against and new sandboxes of it run.
    pub(crate) fn deploy(&self, name: &AppName, image: Arc<Deployed>) -> Rc<App> {
        let mut apps = self.apps.borrow_mut();
        if let Some(app) = apps.get(name.as_str()) {
            *app.image.borrow_mut() = image;
            return Rc::clone(app);
        }
        let app = App::new(name.clone(), image);
        apps.insert(name.as_str().into(), Rc::clone(&app));
        app
    }

    /// A process whose home this is, known to the scheduler or not.
    pub(crate) fn process(&self, app: &Rc<App>, name: &str) -> Result<Rc<Process>, Problem> {
        debug_assert_eq!(self.node.home_of(app.name.as_str(), name), self.index);
        if let Some(process) = app.processes.borrow().get(name) {
            return Ok(Rc::clone(process));
        }
        let name = ProcessName::new(name).map_err(|error| Problem::new(Kind::BadName, error.to_string()))?;
        let log = self.node.logs.of(app.name.as_str(), name.as_str());
        let process = Process::new(app, name, log);
        app.list(&process);
        Ok(process)
    }

    /// Lets go of what the memory has of a process that is swapped out, unless somebody else uses it: its record, its files and the lines
    /// of its log are all that there is to know of it.
    pub(crate) fn release(&self, process: Rc<Process>) {
        let (app, name) = (Rc::clone(&process.app), process.name.clone());
        if app.release(process) {
            self.node.logs.pack(app.name.as_str(), name.as_str());
        }
    }

    /// Forgets a process that does not exist, unless somebody else is about to use it: names that strangers make up take no memory.
    pub(crate) fn let_go(&self, process: &Rc<Process>) {
        // The table's and the caller's.
        if Rc::strong_count(process) <= 2 && process.is_at_rest() {
            process.app.forget(process);
            self.node.logs.forget(process.app.name.as_str(), process.name.as_str());
        }
    }

    /// A name for an invocation that no other has, nor had before the node was last started.
    pub(crate) fn next_invocation(&self) -> Arc<str> {
        let number = self.invocations.replace(self.invocations.get() + 1);
        format!("{}-{:x}-{number:x}", self.node.boot, self.index).into()
    }

    /// Runs `work` on an executor and waits for its outcome. When the caller goes away before that, the work is dropped.
    ///
    /// # Errors
    /// `shutting-down` where that executor is gone.
    pub(crate) async fn on<T, F, R>(self: &Rc<Home>, executor: usize, work: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Home>) -> R + Send + 'static,
        R: Future<Output = T>,
    {
        if executor == self.index {
            return Ok(work(Rc::clone(self)).await);
        }
        let (tell, told) = oneshot::channel();
        let job = move |home: Rc<Home>| {
            executor::spawn(async move {
                let mut tell = tell;
                let gone = async {
                    tell.cancellation().await;
                    None
                };
                let outcome = future::or(async { Some(work(home).await) }, gone).await;
                if let Some(outcome) = outcome {
                    let _ = tell.send(outcome);
                }
            });
        };
        let stopping = || Problem::new(Kind::ShuttingDown, "the node is shutting down");
        self.node.send_job(executor, Box::new(job)).map_err(|()| stopping())?;
        told.await.map_err(|_| stopping())
    }

    /// Runs `work` on every executor, one after the other, and collects what comes out.
    pub(crate) async fn everywhere<T, F, R>(self: &Rc<Home>, work: F) -> Result<Vec<T>, Problem>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Home>) -> R + Clone + Send + 'static,
        R: Future<Output = T>,
    {
        let mut outcomes = Vec::new();
        for executor in 0..self.node.executors() {
            outcomes.push(self.on(executor, work.clone()).await?);
        }
        Ok(outcomes)
    }
}

impl App {
    pub(crate) fn new(name: AppName, image: Arc<Deployed>) -> Rc<App> {
        Rc::new(App {
            name,
            image: RefCell::new(image),
            processes: RefCell::default(),
            free: RefCell::default(),
            deployments: Rc::default(),
            callers: Rc::default(),
        })
    }

    pub(crate) fn list(&self, process: &Rc<Process>) {
        self.processes.borrow_mut().insert(process.name.as_str().into(), Rc::clone(process));
    }

    /// Takes a process off the table that the caller alone uses, if a new object for it would be as good. True if that is so.
    pub(crate) fn release(&self, process: Rc<Process>) -> bool {
        // The table's and the caller's.
        let goes = Rc::strong_count(&process) <= 2 && process.is_as_recorded();
        if goes {
            self.forget(&process);
        }
        goes
    }

    pub(crate) fn image(&self) -> Arc<Deployed> {
        Arc::clone(&self.image.borrow())
    }

    pub(crate) fn processes(&self) -> Vec<Rc<Process>> {
        self.processes.borrow().values().map(Rc::clone).collect()
    }

    /// A process of this executor, if it has been used since the node started.
    pub(crate) fn known(&self, name: &str) -> Option<Rc<Process>> {
        self.processes.borrow().get(name).map(Rc::clone)
    }

    /// Takes a process off the table.
    pub(crate) fn forget(&self, process: &Rc<Process>) {
        // Its memory would stay for as long as it is on the list.
        if process.listed_free.take() {
            self.free.borrow_mut().retain(|other| !std::ptr::eq(other.as_ptr(), Rc::as_ptr(process)));
        }
        let mut processes = self.processes.borrow_mut();
        if processes.get(process.name.as_str()).is_some_and(|current| Rc::ptr_eq(current, process)) {
            processes.remove(process.name.as_str());
        }
    }

    /// A process that serves and has no call.
    pub(crate) fn choose_free(&self) -> Option<Chosen> {
        loop {
            let Some(process) = self.free.borrow_mut().pop() else { break };
            let Some(process) = process.upgrade() else { continue };
            process.listed_free.set(false);
            if let Some(chosen) = choose_if_free(&process) {
                return Some(chosen);
            }
        }
        // The list has those whose last call ended when its head came: not one that streams on, nor one that was never called.
        self.processes.borrow().values().find_map(choose_if_free)
    }

    /// The process that serves with the fewest calls.
    pub(crate) fn least_busy(&self) -> Option<Rc<Process>> {
        let processes = self.processes.borrow();
        let serving =
            processes.values().filter_map(|process| Some((process.serving()?.in_flight(), process)));
        serving.min_by_key(|(calls, _)| *calls).map(|(_, process)| Rc::clone(process))
    }

    /// A call of `process` is over.
    pub(crate) fn maybe_free(&self, process: &Rc<Process>) {
        if process.serving().is_some() && !process.listed_free.replace(true) {
            self.free.borrow_mut().push(Rc::downgrade(process));
        }
    }
}

fn choose_if_free(process: &Rc<Process>) -> Option<Chosen> {
    let is_free = process.serving().is_some_and(|active| active.in_flight() == 0);
    if is_free { Chosen::new(process) } else { None }
}

/// A process that a call which named none is on its way to; until this is dropped, no other such call gets it.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) process: Rc<Process>,
}

impl Chosen {
    /// `None` where it is another's already.
    pub(crate) fn new(process: &Rc<Process>) -> Option<Chosen> {
        let free = !process.chosen.replace(true);
        free.then(|| Chosen { process: Rc::clone(process) })
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.process.chosen.set(false);
    }
}

impl Borrow<Rc<Process>> for Chosen {
    fn borrow(&self) -> &Rc<Process> {
        &self.process
    }
}

/// The executor, of `count`, that a process lives on.
pub(crate) fn home_of(app: &str, process: &str, count: usize) -> usize {
    if count <= 1 {
        return 0;
    }
    // The same in every thread, and need not be the same tomorrow.
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((app, process));
    usize::try_from(hash % count as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_spread_and_stay_where_they_are() {
        let homes: Vec<_> = (0..64).map(|number| home_of("app", &number.to_string(), 4)).collect();
        assert_eq!(homes, (0..64).map(|number| home_of("app", &number.to_string(), 4)).collect::<Vec<_>>());
        assert!((0..4).all(|home| homes.contains(&home)), "{homes:?}");
        assert_ne!(home_of("ab", "c", 1 << 20), home_of("a", "bc", 1 << 20));
    }
}
