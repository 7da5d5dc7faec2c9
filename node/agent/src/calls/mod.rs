//! Calls of functions, on their way to a process wherever it lives and back: what the HTTP front and the data port share.

mod anywhere;

use std::borrow::Borrow;
use std::rc::Rc;

use denizen_sched::Epoch;
use hyper::body::Bytes;
use hyper::header::HeaderValue;

use crate::home::{App, Home};
use crate::problem::{Kind, Problem};
use crate::process::{self, Asked, Parts, Process, RemoteBody, Replied};

/// How a call ended, and at which process.
#[derive(Debug)]
pub(crate) struct Ended<B = Parts> {
    /// The name of the process, as a header carries it.
    pub(crate) process: HeaderValue,
    pub(crate) result: Result<Replied<B>, Failed>,
}

/// Why a call failed, and how its process stands.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) problem: Problem,
    /// `None` where no sandbox serves it.
    pub(crate) standing: Option<Standing>,
}

/// The term of a process, and its last commit.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) epoch: Epoch,
    pub(crate) epoch_header: HeaderValue,
    pub(crate) commit: u64,
}

/// A body on its way to the executor of the caller's connection.
enum Crossing {
    Whole(Bytes),
    Streamed(RemoteBody),
}

/// Calls the process of this name, or where there is none, one of the application that is free.
///
/// # Errors
/// What kept the call from every process. What happened at one is in [`Ended`].
pub(crate) async fn call(
    home: &Rc<Home>,
    app: &Rc<App>,
    process: Option<&str>,
    asked: Asked<'_>,
) -> Result<Ended, Problem> {
    match process {
        Some(name) => at(home, app, name, asked).await,
        // The next call would go to another process, which knows nothing of it.
        None if asked.key.is_some() => {
            Err(Problem::new(Kind::ProcessNeeded, "a call with an idempotency key must name its process"))
        }
        // Apart, as what crosses to another executor is: calls that need it not are not to carry room for it.
        None => Box::pin(anywhere::anywhere(home, app, asked)).await,
    }
}

/// Calls a process that has a name.
async fn at(home: &Rc<Home>, app: &Rc<App>, name: &str, asked: Asked<'_>) -> Result<Ended, Problem> {
    let executor = home.node.home_of(app.name.as_str(), name);
    if executor == home.index {
        let process = home.process(app, name)?;
        return Ok(here(home, &process, asked).await);
    }
    let name = name.to_owned();
    let choose = move |home: &Rc<Home>, app: &Rc<App>| home.process(app, &name).map(Some);
    match Box::pin(there(home, executor, app.name.as_str(), asked, choose)).await? {
        Ok(ended) => Ok(ended),
        Err(_) => Err(Problem::new(Kind::HostFault, "a process that has a name was not found by it")),
    }
}

/// Calls a process of another executor, whichever `choose` finds there. Gives the call back where it finds none.
async fn there<'a, C: Borrow<Rc<Process>>>(
    home: &Rc<Home>,
    executor: usize,
    app: &str,
    asked: Asked<'a>,
    choose: impl FnOnce(&Rc<Home>, &Rc<App>) -> Result<Option<C>, Problem> + Send + 'static,
) -> Result<Result<Ended, Asked<'a>>, Problem> {
    let Asked { function, content_type, deadline, durability, key, trace, create, body } = asked;
    let words = (function.to_owned(), content_type.to_owned(), key.map(str::to_owned));
    let app = app.to_owned();
    let work = move |home: Rc<Home>| async move {
        let app = home.app(&app)?;
        let Some(chosen) = choose(&home, &app)? else { return Ok(Err(body)) };
        let (function, content_type, key) = (&words.0, &words.1, words.2.as_deref());
        let asked = Asked { function, content_type, deadline, durability, key, trace, create, body };
        Ok(Ok(here(&home, chosen.borrow(), asked).await.map(Crossing::of)))
    };
    Ok(match home.on(executor, work).await?? {
        Ok(ended) => Ok(ended.map(Crossing::arrived)),
        Err(body) => Err(Asked { function, content_type, deadline, durability, key, trace, create, body }),
    })
}

/// Calls a process that lives on this executor.
async fn here(home: &Rc<Home>, process: &Rc<Process>, asked: Asked<'_>) -> Ended {
    let replied = process::call(home, process, asked).await;
    process.app.maybe_free(process);
    if replied.as_ref().is_err_and(|problem| {
        matches!(problem.kind(), Kind::UnknownProcess | Kind::TooManyProcesses | Kind::NodeFull)
    }) {
        home.let_go(process);
    }
    let result = replied.map_err(|problem| Failed::at(process, problem));
    Ended { process: process.header.clone(), result }
}

impl<B> Ended<B> {
    fn map<C>(self, body: impl FnOnce(B) -> C) -> Ended<C> {
        Ended { process: self.process, result: self.result.map(|replied| replied.map(body)) }
    }
}

impl Failed {
    /// What went wrong at `process`.
    pub(crate) fn at(process: &Process, problem: Problem) -> Failed {
        let problem = if problem.has_process() { problem } else { problem.process(process.name.as_str()) };
        let standing = process.serving().map(|serving| Standing {
            epoch: serving.epoch,
            epoch_header: serving.epoch_header.clone(),
            commit: serving.commit(),
        });
        Failed { problem, standing }
    }
}

impl Crossing {
    fn of(body: Parts) -> Crossing {
        match body {
            Parts::Whole(bytes) => Crossing::Whole(bytes),
            Parts::Streamed(body) => Crossing::Streamed(body.cross()),
            Parts::Remote(body) => Crossing::Streamed(body),
        }
    }

    fn arrived(self) -> Parts {
        match self {
            Crossing::Whole(bytes) => Parts::Whole(bytes),
            Crossing::Streamed(body) => Parts::Remote(body),
        }
    }
}
