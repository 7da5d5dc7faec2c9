//! Calls that name no process: which one they get.
//!
//! The first of: one that serves and has no call, on this executor, then on another; one that rests, since that is what idle ones come
//! to; a new one; and where there may be no more of them, the one with the fewest calls. A process that was chosen is not chosen again
//! before its call is over, so that calls that come together do not queue up behind one another while others are free.

use std::rc::Rc;

use denizen_sched::{Create, ProcessName};

use super::{Ended, at, here, there};
use crate::home::{App, Chosen, Home};
use crate::problem::{Kind, Problem};
use crate::process::Asked;

/// Names that are tried for a new process before its home is left to chance.
const NAME_TRIES: usize = 64;
/// Processes at rest that are looked at: more than that are only taken when as many calls come at once.
const RESTING_LOOKED_AT: usize = 16;

/// Calls a process that nobody named.
pub(super) async fn anywhere(home: &Rc<Home>, app: &Rc<App>, asked: Asked<'_>) -> Result<Ended, Problem> {
    if let Some(chosen) = app.choose_free() {
        return Ok(here(home, &chosen.process, asked).await);
    }
    let asked = match elsewhere(home, app, asked).await? {
        Ok(ended) => return Ok(ended),
        Err(asked) => asked,
    };
    let asked = match resting(home, app, asked).await? {
        Ok(ended) => return Ok(ended),
        Err(asked) => asked,
    };
    if asked.create == Create::Never {
        let none = || format!("{} has no process, and the call may not create one", app.name);
        let name = least_busy(home, app).await?.ok_or_else(|| Problem::new(Kind::UnknownProcess, none()))?;
        return at(home, app, &name, asked).await;
    }
    new_one(home, app, asked).await
}

/// One that serves on another executor. Gives the call back where none is free.
async fn elsewhere<'a>(
    home: &Rc<Home>,
    app: &Rc<App>,
    mut asked: Asked<'a>,
) -> Result<Result<Ended, Asked<'a>>, Problem> {
    let executors = home.node.executors();
    for executor in (1..executors).map(|distance| (home.index + distance) % executors) {
        let choose = |_: &Rc<Home>, app: &Rc<App>| Ok(app.choose_free());
        match there(home, executor, app.name.as_str(), asked, choose).await? {
            Ok(ended) => return Ok(Ok(ended)),
            Err(back) => asked = back,
        }
    }
    Ok(Err(asked))
}

/// One that no sandbox runs. Gives the call back where there is none.
async fn resting<'a>(
    home: &Rc<Home>,
    app: &Rc<App>,
    mut asked: Asked<'a>,
) -> Result<Result<Ended, Asked<'a>>, Problem> {
    // Where the records cannot be read, the call's own claim says so.
    let names = home.node.scheduler.resting(app.name.clone(), RESTING_LOOKED_AT).await.unwrap_or_default();
    for name in names {
        let executor = home.node.home_of(app.name.as_str(), name.as_str());
        let choose = move |home: &Rc<Home>, app: &Rc<App>| choose_resting(home, app, &name);
        if executor == home.index {
            if let Some(chosen) = choose(home, app)? {
                return Ok(Ok(here(home, &chosen.process, asked).await));
            }
            continue;
        }
        match there(home, executor, app.name.as_str(), asked, choose).await? {
            Ok(ended) => return Ok(Ok(ended)),
            Err(back) => asked = back,
        }
    }
    Ok(Err(asked))
}

fn choose_resting(home: &Rc<Home>, app: &Rc<App>, name: &ProcessName) -> Result<Option<Chosen>, Problem> {
    let process = home.process(app, name.as_str())?;
    Ok(if process.is_at_rest() { Chosen::new(&process) } else { None })
}

async fn new_one(home: &Rc<Home>, app: &Rc<App>, asked: Asked<'_>) -> Result<Ended, Problem> {
    let name = fresh_name(home, app)?;
    let process = home.process(app, &name)?;
    let Some(chosen) = Chosen::new(&process) else { return at(home, app, &name, asked).await };
    // Whether it may be created is known before the body is touched, which can be read only once.
    match process.active_soon(home, Create::IfMissing).await {
        Ok(_) => Ok(here(home, &chosen.process, asked).await),
        Err(problem) if matches!(problem.kind(), Kind::TooManyProcesses | Kind::NodeFull) => {
            drop(chosen);
            home.let_go(&process);
            match least_busy(home, app).await? {
                Some(name) => at(home, app, &name, asked).await,
                None => Err(problem),
            }
        }
        Err(problem) => Err(problem.process(&name)),
    }
}

/// The process with the fewest calls, on whichever executor; where none serves, any that exists.
async fn least_busy(home: &Rc<Home>, app: &Rc<App>) -> Result<Option<String>, Problem> {
    let name = app.name.clone();
    let look = move |home: Rc<Home>| async move {
        let process = home.app(name.as_str()).ok()?.least_busy()?;
        Some((process.serving()?.in_flight(), process.name.to_string()))
    };
    let serving = home.everywhere(look).await?.into_iter().flatten();
    if let Some((_, name)) = serving.min_by_key(|(calls, _)| *calls) {
        return Ok(Some(name));
    }
    let all = home.node.scheduler.list(Some(app.name.clone())).await.unwrap_or_default();
    Ok(all.into_iter().next().map(|record| record.process.to_string()))
}

/// A name for a new process whose home is this executor, so that nothing need be forwarded.
fn fresh_name(home: &Home, app: &App) -> Result<String, Problem> {
    let mut name = String::new();
    for _ in 0..NAME_TRIES {
        let random = crate::token::random_hex::<8>();
        name = format!(
            "p-{}",
            random.map_err(|error| Problem::new(Kind::HostFault, "no random numbers").cause(error))?
        );
        if home.node.home_of(app.name.as_str(), &name) == home.index {
            break;
        }
    }
    Ok(name)
}
