//! Calls of functions: from a request to a process, and from a reply to an answer.

use std::rc::Rc;
use std::time::Duration;

use denizen_sched::{Create, ProcessName};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};

use super::body::FrontBody;
use super::routes::{self, Name};
use super::{Answer, problem_answer};
use crate::home::{App, Home};
use crate::problem::{Kind, Problem};
use crate::process::{self, Asked, Parts, Process, RemoteBody, Replied};

const PROCESS: HeaderName = HeaderName::from_static("denizen-process");
const PROCESS_ALIAS: HeaderName = HeaderName::from_static("x-process-id");
const CREATE: HeaderName = HeaderName::from_static("denizen-create");
const DEADLINE: HeaderName = HeaderName::from_static("denizen-deadline-ms");
const INVOCATION: HeaderName = HeaderName::from_static("denizen-invocation");
const DURABILITY: HeaderName = HeaderName::from_static("denizen-durability");
const COMMIT: HeaderName = HeaderName::from_static("denizen-commit");
const EPOCH: HeaderName = HeaderName::from_static("denizen-epoch");

/// Names that are tried for a new process before its home is left to chance.
const NAME_TRIES: usize = 64;

/// What the headers of a call say.
struct Wishes<'a> {
    create: Option<Create>,
    deadline: Option<Duration>,
    /// Empty where there is none.
    content_type: &'a str,
}

/// Answers a call.
pub(super) async fn call(
    home: &Rc<Home>,
    app: &str,
    process: Option<Name<'_>>,
    function: &str,
    request: Request<Incoming>,
) -> Result<Answer, Problem> {
    let (head, body) = request.into_parts();
    let app = home.app(app)?;
    let image = app.image();
    // What cannot be is refused before anything is created for it.
    image.function(app.name.as_str(), function)?;
    let wishes = wishes(&head.headers)?;
    let named = named(process, &head.headers)?;
    let explicit = image.creates_explicitly();
    let create = wishes.create.unwrap_or(if explicit { Create::Never } else { Create::IfMissing });
    let create = if explicit { Create::Never } else { create };
    drop(image);
    let asked =
        Asked { function, content_type: wishes.content_type, deadline: wishes.deadline, create, body };
    match named {
        Some(name) => at(home, &app, &name, asked).await,
        None => anywhere(home, &app, asked).await,
    }
}

/// Calls a process that has a name.
async fn at(home: &Rc<Home>, app: &Rc<App>, name: &str, asked: Asked<'_>) -> Result<Answer, Problem> {
    let executor = home.node.home_of(app.name.as_str(), name);
    if executor == home.index {
        let process = home.process(app, name)?;
        return Ok(here(home, &process, asked).await);
    }
    let (app, name) = (app.name.as_str().to_owned(), name.to_owned());
    let Asked { function, content_type, deadline, create, body } = asked;
    let (function, content_type) = (function.to_owned(), content_type.to_owned());
    let work = move |home: Rc<Home>| async move {
        let asked = Asked { function: &function, content_type: &content_type, deadline, create, body };
        across(&home, &app, &name, asked).await
    };
    let crossing = home.on(executor, work).await??;
    Ok(crossing.map(|body| match body {
        Crossing::Whole(bytes) => FrontBody::whole(bytes),
        Crossing::Streamed(body) => FrontBody::Remote(body),
    }))
}

/// A body on its way to the executor of the caller's connection.
enum Crossing {
    Whole(Bytes),
    Streamed(RemoteBody),
}

async fn across(
    home: &Rc<Home>,
    app: &str,
    name: &str,
    asked: Asked<'_>,
) -> Result<Response<Crossing>, Problem> {
    let app = home.app(app)?;
    let process = home.process(&app, name)?;
    let answer = here(home, &process, asked).await;
    Ok(answer.map(|body| match body {
        FrontBody::Reply(reply) => Crossing::Streamed(reply.cross()),
        FrontBody::Whole(bytes) => Crossing::Whole(bytes.unwrap_or_default()),
        // No call answers with these.
        FrontBody::Remote(_) | FrontBody::Log(_) => Crossing::Whole(Bytes::new()),
    }))
}

/// Calls a process that lives on this executor.
async fn here(home: &Rc<Home>, process: &Rc<Process>, asked: Asked<'_>) -> Answer {
    let replied = process::call(home, process, asked).await;
    process.app.maybe_free(process);
    if replied
        .as_ref()
        .is_err_and(|problem| matches!(problem.kind(), Kind::UnknownProcess | Kind::TooManyProcesses))
    {
        home.let_go(process);
    }
    match replied {
        Ok(replied) => reply_answer(process, replied),
        Err(problem) => failure_answer(process, problem),
    }
}

fn reply_answer(process: &Process, replied: Replied) -> Answer {
    let Replied { invocation, content_type, commit, epoch, body } = replied;
    let body = match body {
        Parts::Whole(bytes) => FrontBody::whole(bytes),
        Parts::Streamed(body) => FrontBody::Reply(body),
    };
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.reserve(8);
    if let Some(content_type) = content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }
    headers.insert(PROCESS, process.header.clone());
    headers.insert(INVOCATION, header_value(&invocation));
    headers.insert(DURABILITY, HeaderValue::from_static("process"));
    headers.insert(COMMIT, HeaderValue::from(commit));
    headers.insert(EPOCH, epoch);
    answer
}

fn failure_answer(process: &Process, problem: Problem) -> Answer {
    let problem = if problem.has_process() { problem } else { problem.process(process.name.as_str()) };
    let mut answer = problem_answer(&problem);
    let headers = answer.headers_mut();
    headers.insert(PROCESS, process.header.clone());
    if let Some(invocation) = problem.invocation_name() {
        headers.insert(INVOCATION, header_value(invocation));
    }
    if let Some(serving) = process.serving() {
        headers.insert(EPOCH, serving.epoch_header.clone());
        headers.insert(COMMIT, HeaderValue::from(serving.commit()));
    }
    answer
}

/// Invocation names are visible ASCII; we make them.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Calls any process that is free, or a new one; where there may be no more, the one with the fewest calls.
async fn anywhere(home: &Rc<Home>, app: &Rc<App>, asked: Asked<'_>) -> Result<Answer, Problem> {
    if let Some(process) = app.take_free() {
        return Ok(here(home, &process, asked).await);
    }
    if asked.create == Create::Never {
        let name = existing(home, app).await?;
        return at(home, app, &name, asked).await;
    }
    let name = fresh_name(home, app)?;
    let process = home.process(app, &name)?;
    // Whether it may be created is known before the body is touched, which can be read only once.
    match process.active(home, Create::IfMissing).await {
        Ok(_) => Ok(here(home, &process, asked).await),
        Err(problem) if problem.kind() == Kind::TooManyProcesses => {
            home.let_go(&process);
            let name = existing(home, app).await.map_err(|_| problem)?;
            at(home, app, &name, asked).await
        }
        Err(problem) => Ok(failure_answer(&process, problem)),
    }
}

/// A process that exists: one that serves here, or any.
async fn existing(home: &Rc<Home>, app: &Rc<App>) -> Result<String, Problem> {
    if let Some(process) = app.least_busy() {
        return Ok(process.name.to_string());
    }
    let list = home.node.scheduler.list(Some(app.name.clone())).await;
    let first = list.unwrap_or_default().into_iter().next().map(|record| record.process.to_string());
    let none = || {
        Problem::new(
            Kind::UnknownProcess,
            format!("{} has no process, and the call may not create one", app.name),
        )
    };
    first.ok_or_else(none)
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

fn named<'a>(path: Option<Name<'a>>, headers: &'a HeaderMap) -> Result<Option<Name<'a>>, Problem> {
    let read = |header: &HeaderName| match headers.get(header) {
        None => Ok(None),
        Some(value) => {
            let text = value
                .to_str()
                .map_err(|_| Problem::new(Kind::BadName, format!("the header {header} is no name")))?;
            ProcessName::new(text).map_err(|error| Problem::new(Kind::BadName, error.to_string()))?;
            Ok(Some(text))
        }
    };
    match (read(&PROCESS)?, read(&PROCESS_ALIAS)?) {
        (Some(one), Some(other)) if one != other => {
            let text = format!(
                "Denizen-Process says {}, X-Process-Id says {}",
                routes::shown(one),
                routes::shown(other)
            );
            Err(Problem::new(Kind::BadHeader, text))
        }
        (one, other) => match (path, one.or(other)) {
            (Some(path), Some(header)) if *path != *header => {
                let text = format!(
                    "the path says {}, the header says {}",
                    routes::shown(&path),
                    routes::shown(header)
                );
                Err(Problem::new(Kind::BadHeader, text))
            }
            (path, header) => Ok(path.or_else(|| header.map(Name::from))),
        },
    }
}

fn wishes(headers: &HeaderMap) -> Result<Wishes<'_>, Problem> {
    let bad = |text: &str| Problem::new(Kind::BadHeader, text);
    let create = match headers.get(CREATE).map(HeaderValue::as_bytes) {
        None => None,
        Some(value) if value.eq_ignore_ascii_case(b"never") => Some(Create::Never),
        Some(_) => return Err(bad("Denizen-Create can only be `never`")),
    };
    let deadline = match headers.get(DEADLINE) {
        None => None,
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| text.trim().parse().ok()).filter(|ms| *ms > 0);
            let wrong = || bad("Denizen-Deadline-Ms must be a whole number of milliseconds, at least 1");
            Some(Duration::from_millis(number.ok_or_else(wrong)?))
        }
    };
    let content_type = match headers.get(CONTENT_TYPE).map(HeaderValue::to_str) {
        None => "",
        Some(Ok(text)) if denizen_wire::ReplyHead::accepts(text) => text,
        Some(_) => return Err(bad("Content-Type must be at most 1024 bytes of visible ASCII")),
    };
    Ok(Wishes { create, deadline, content_type })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn headers_that_cannot_be_are_named() {
        for (pair, word) in [
            (("denizen-deadline-ms", "soon"), "Denizen-Deadline-Ms"),
            (("denizen-deadline-ms", "0"), "Denizen-Deadline-Ms"),
            (("denizen-deadline-ms", "-5"), "Denizen-Deadline-Ms"),
            (("denizen-create", "maybe"), "Denizen-Create"),
        ] {
            let problem = wishes(&headers(&[pair])).err().expect("it is wrong");
            assert_eq!(problem.kind(), Kind::BadHeader);
            assert!(problem.to_string().contains(word), "{problem}");
        }
        let headers = headers(&[("denizen-deadline-ms", " 250"), ("denizen-create", "Never")]);
        let good = wishes(&headers).ok().unwrap();
        assert_eq!((good.deadline, good.create), (Some(Duration::from_millis(250)), Some(Create::Never)));
    }

    #[test]
    fn the_two_process_headers_must_agree() {
        let both = headers(&[("denizen-process", "a"), ("x-process-id", "b")]);
        assert_eq!(named(None, &both).err().map(|problem| problem.kind()), Some(Kind::BadHeader));
        let alias = headers(&[("x-process-id", "b")]);
        assert_eq!(named(Some("b".into()), &alias), Ok(Some("b".into())));
        assert_eq!(
            named(Some("a".into()), &alias).err().map(|problem| problem.kind()),
            Some(Kind::BadHeader)
        );
        assert_eq!(named(None, &alias), Ok(Some("b".into())));
        let bad = headers(&[("denizen-process", "../x")]);
        assert_eq!(named(None, &bad).err().map(|problem| problem.kind()), Some(Kind::BadName));
    }
}
