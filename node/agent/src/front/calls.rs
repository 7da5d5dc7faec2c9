//! Calls of functions: from a request to a process, and from a reply to an answer.

use std::rc::Rc;
use std::time::Duration;

use denizen_sched::{Create, ProcessName};
use denizen_wire::Durability;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};

use super::body::FrontBody;
use super::routes::{self, Name};
use super::{Answer, problem_answer};
use crate::calls::{self, Ended, Failed};
use crate::home::Home;
use crate::problem::{Kind, Problem};
use crate::process::{Asked, Parts, Process, RemoteBody, Replied};

pub(super) const PROCESS: HeaderName = HeaderName::from_static("denizen-process");
const PROCESS_ALIAS: HeaderName = HeaderName::from_static("x-process-id");
const CREATE: HeaderName = HeaderName::from_static("denizen-create");
const DEADLINE: HeaderName = HeaderName::from_static("denizen-deadline-ms");
const INVOCATION: HeaderName = HeaderName::from_static("denizen-invocation");
pub(super) const DURABILITY: HeaderName = HeaderName::from_static("denizen-durability");
pub(super) const COMMIT: HeaderName = HeaderName::from_static("denizen-commit");
const EPOCH: HeaderName = HeaderName::from_static("denizen-epoch");

/// What the headers of a call say.
struct Wishes<'a> {
    create: Option<Create>,
    deadline: Option<Duration>,
    durability: Durability,
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
    let create = image.creates(wishes.create == Some(Create::Never));
    drop(image);
    let asked = Asked {
        function,
        content_type: wishes.content_type,
        deadline: wishes.deadline,
        durability: wishes.durability,
        create,
        body: body.into(),
    };
    calls::call(home, &app, named.as_deref(), asked).await.map(answer_of)
}

/// A body on its way to the executor of the caller's connection.
enum Crossing {
    Whole(Bytes),
    Streamed(RemoteBody),
}

impl Crossing {
    fn of(body: FrontBody) -> Crossing {
        match body {
            FrontBody::Reply(reply) => Crossing::Streamed(reply.cross()),
            FrontBody::Remote(body) => Crossing::Streamed(body),
            FrontBody::Whole(bytes) => Crossing::Whole(bytes.unwrap_or_default()),
            // No process answers with it.
            FrontBody::Log(_) => Crossing::Whole(Bytes::new()),
        }
    }

    fn arrived(self) -> FrontBody {
        match self {
            Crossing::Whole(bytes) => FrontBody::whole(bytes),
            Crossing::Streamed(body) => FrontBody::Remote(body),
        }
    }
}

/// Has another executor give the answer.
pub(super) async fn cross<F, R>(home: &Rc<Home>, executor: usize, work: F) -> Result<Answer, Problem>
where
    F: FnOnce(Rc<Home>) -> R + Send + 'static,
    R: Future<Output = Result<Answer, Problem>>,
{
    let work = move |home: Rc<Home>| async move { work(home).await.map(|answer| answer.map(Crossing::of)) };
    Ok(home.on(executor, work).await??.map(Crossing::arrived))
}

fn answer_of(ended: Ended) -> Answer {
    let Ended { process, result } = ended;
    match result {
        Ok(replied) => reply_to(process, replied),
        Err(failed) => failure_to(process, failed),
    }
}

pub(super) fn reply_answer(process: &Process, replied: Replied) -> Answer {
    reply_to(process.header.clone(), replied)
}

fn reply_to(process: HeaderValue, replied: Replied) -> Answer {
    let Replied { invocation, content_type, commit, durability, epoch_header, body, .. } = replied;
    let body = match body {
        Parts::Whole(bytes) => FrontBody::whole(bytes),
        Parts::Streamed(body) => FrontBody::Reply(body),
        Parts::Remote(body) => FrontBody::Remote(body),
    };
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.reserve(8);
    if let Some(content_type) = content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }
    headers.insert(PROCESS, process);
    headers.insert(INVOCATION, header_value(&invocation));
    headers.insert(DURABILITY, level_header(durability));
    headers.insert(COMMIT, HeaderValue::from(commit));
    headers.insert(EPOCH, epoch_header);
    answer
}

pub(super) fn failure_answer(process: &Process, problem: Problem) -> Answer {
    failure_to(process.header.clone(), Failed::at(process, problem))
}

fn failure_to(process: HeaderValue, failed: Failed) -> Answer {
    let Failed { problem, standing } = failed;
    let mut answer = problem_answer(&problem);
    let headers = answer.headers_mut();
    headers.insert(PROCESS, process);
    if let Some(invocation) = problem.invocation_name() {
        headers.insert(INVOCATION, header_value(invocation));
    }
    if let Some(standing) = standing {
        headers.insert(EPOCH, standing.epoch_header);
        headers.insert(COMMIT, HeaderValue::from(standing.commit));
    }
    answer
}

/// Invocation names are visible ASCII; we make them.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
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
    let (deadline, durability) = (deadline(headers)?, durability(headers)?);
    let content_type = match headers.get(CONTENT_TYPE).map(HeaderValue::to_str) {
        None => "",
        Some(Ok(text)) if denizen_wire::ReplyHead::accepts(text) => text,
        Some(_) => return Err(bad("Content-Type must be at most 1024 bytes of visible ASCII")),
    };
    Ok(Wishes { create, deadline, durability, content_type })
}

/// The caller's own deadline.
///
/// # Errors
/// `bad-header`.
pub(super) fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(DEADLINE) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok()).filter(|ms| *ms > 0);
    let wrong = "Denizen-Deadline-Ms must be a whole number of milliseconds, at least 1";
    number.map(|ms| Some(Duration::from_millis(ms))).ok_or_else(|| Problem::new(Kind::BadHeader, wrong))
}

/// What the caller wants its commit to survive, at least.
///
/// # Errors
/// `bad-header`.
pub(super) fn durability(headers: &HeaderMap) -> Result<Durability, Problem> {
    match headers.get(DURABILITY).map(HeaderValue::as_bytes) {
        None => Ok(Durability::Process),
        Some(value) => {
            level(value).map_err(|why| Problem::new(Kind::BadHeader, format!("Denizen-Durability {why}")))
        }
    }
}

/// A level by its name, or what is wrong with it.
pub(super) fn level(name: &[u8]) -> Result<Durability, &'static str> {
    match name {
        name if name.eq_ignore_ascii_case(b"process") => Ok(Durability::Process),
        name if name.eq_ignore_ascii_case(b"node") => Ok(Durability::Node),
        name if name.eq_ignore_ascii_case(b"store") => Err("cannot be `store` yet: use `node`"),
        _ => Err("can only be `process` or `node`"),
    }
}

/// What a reply says that its commit has survived.
pub(super) const fn level_header(level: Durability) -> HeaderValue {
    HeaderValue::from_static(match level {
        Durability::Process => "process",
        Durability::Node => "node",
    })
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
            (("denizen-durability", "disk"), "Denizen-Durability"),
            (("denizen-durability", "store"), "yet"),
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
