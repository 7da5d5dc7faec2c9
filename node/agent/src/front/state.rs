//! State through the control interface: objects listed, read, put and deleted, whole states exported and imported, captured files read,
//! and waiting for a commit to be durable.

use std::rc::Rc;

use denizen_wire::{Durability, ListAsk, Listing, ValueHead};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::Answer;
use super::body::FrontBody;
use super::calls::{self, COMMIT, DURABILITY, PROCESS};
use super::routes::{self, Object};
use crate::home::Home;
use crate::problem::{Kind, Problem};
use crate::process::{Ask, AtRestBody, AtRestReply, Process, Told, refused_claim};

const FINGERPRINT: HeaderName = HeaderName::from_static("denizen-fingerprint");
const VERSION: HeaderName = HeaderName::from_static("denizen-version");
const TIME: HeaderName = HeaderName::from_static("denizen-time-ms");

/// What an answer is, whoever gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Json,
    Value,
    Archive,
    File,
    Tar,
    Nothing,
}

impl Shape {
    fn of(ask: &Ask) -> Shape {
        match ask {
            Ask::List(_) | Ask::Import | Ask::Files => Shape::Json,
            Ask::Get(_) => Shape::Value,
            Ask::Export => Shape::Archive,
            Ask::File(_) => Shape::File,
            Ask::FilesArchive => Shape::Tar,
            Ask::Put(..) | Ask::Delete(_) => Shape::Nothing,
        }
    }
}

/// What a query asks a listing for.
///
/// # Errors
/// `bad-request`.
pub(super) fn list(query: Option<&str>) -> Result<Ask, Problem> {
    let [prefix, after, limit] = routes::query_bytes(query, ["prefix", "after", "limit"])?;
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok().filter(|limit| *limit > 0);
    let limit = match limit {
        None => Listing::MAX_KEYS as u64,
        Some(limit) => number(&limit).ok_or_else(|| {
            Problem::new(Kind::BadRequest, "the query's limit must be a whole number, at least 1")
        })?,
    };
    Ok(Ask::List(ListAsk { prefix: prefix.unwrap_or_default(), after, limit }))
}

/// What is to be put, with the fingerprint that a header gives.
///
/// # Errors
/// `bad-header`.
pub(super) fn put(key: Vec<u8>, headers: &HeaderMap) -> Result<Ask, Problem> {
    let fingerprint = match headers.get(FINGERPRINT) {
        None => 0,
        Some(value) => value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Problem::new(Kind::BadHeader, "Denizen-Fingerprint must be a decimal number of 64 bits")
        })?,
    };
    Ok(Ask::Put(key, fingerprint))
}

/// Looks at a state or changes it.
pub(super) async fn state(
    home: &Rc<Home>,
    object: Object<'_>,
    ask: Ask,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer, Problem> {
    let (deadline, durability) = (calls::deadline(headers)?, calls::durability(headers)?);
    let work = move |home: Rc<Home>, process: Rc<Process>| async move {
        let shape = Shape::of(&ask);
        let told = process.state(&home, ask, body, deadline, durability).await;
        match told.and_then(|told| answer(&process, told, shape)) {
            Ok(answer) => answer,
            Err(problem) => calls::failure_answer(&process, problem),
        }
    };
    on_home(home, object, work).await
}

/// Waits until a commit has reached a level.
pub(super) async fn commit(
    home: &Rc<Home>,
    object: Object<'_>,
    commit: u64,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Answer, Problem> {
    let deadline = calls::deadline(headers)?;
    let [level] = routes::query(query, ["level"])?;
    let level = match level {
        None => Durability::Node,
        Some(level) => calls::level(level.as_bytes())
            .map_err(|why| Problem::new(Kind::BadRequest, format!("the query's level {why}")))?,
    };
    let work = move |home: Rc<Home>, process: Rc<Process>| async move {
        match process.commit_reached(&home, commit, level, deadline).await {
            Ok(durable) => {
                let document = json!({"commit": commit, "durable": durable, "level": level});
                super::json_answer(StatusCode::OK, &document)
            }
            Err(problem) => calls::failure_answer(&process, problem),
        }
    };
    on_home(home, object, work).await
}

/// Does something with a process that exists, where it lives.
async fn on_home<F, R>(home: &Rc<Home>, object: Object<'_>, work: F) -> Result<Answer, Problem>
where
    F: FnOnce(Rc<Home>, Rc<Process>) -> R + Send + 'static,
    R: Future<Output = Answer>,
{
    let (app, name) = object;
    let known = home.app(&app)?;
    let process = denizen_sched::ProcessName::new(&name)
        .map_err(|error| Problem::new(Kind::BadName, error.to_string()))?;
    let record = home.node.scheduler.get(known.name.clone(), process).await;
    record.map_err(|error| refused_claim(&error).process(&name))?;
    let executor = home.node.home_of(&app, &name);
    let (app, name) = (app.into_owned(), name.into_owned());
    let work = move |home: Rc<Home>| async move {
        let process = home.process(&home.app(&app)?, &name)?;
        Ok(work(home, process).await)
    };
    calls::cross(home, executor, work).await
}

fn answer(process: &Process, told: Told, shape: Shape) -> Result<Answer, Problem> {
    let (mut answer, head) = match told {
        Told::Online(replied) => {
            let answer = calls::reply_answer(process, replied);
            let head = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let head = head.and_then(ValueHead::parse);
            (answer, head)
        }
        Told::AtRest(reply) => at_rest_answer(process, reply),
    };
    let headers = answer.headers_mut();
    let content_type = match shape {
        Shape::Json => Some("application/json"),
        Shape::Value | Shape::File => Some("application/octet-stream"),
        Shape::Archive => Some("application/vnd.denizen.state-archive"),
        Shape::Tar => Some("application/x-tar"),
        Shape::Nothing => None,
    };
    match content_type {
        Some(text) => drop(headers.insert(CONTENT_TYPE, HeaderValue::from_static(text))),
        None => drop(headers.remove(CONTENT_TYPE)),
    }
    if shape == Shape::Value {
        let told = "the runner did not say what it knows of the object";
        let head = head.ok_or_else(|| Problem::new(Kind::SandboxMisbehaved, told))?;
        headers.insert(FINGERPRINT, HeaderValue::from(head.fingerprint));
        headers.insert(VERSION, HeaderValue::from(head.version));
        headers.insert(TIME, HeaderValue::from(head.time_ms));
    }
    if shape == Shape::Nothing {
        *answer.status_mut() = StatusCode::NO_CONTENT;
        *answer.body_mut() = FrontBody::empty();
    }
    Ok(answer)
}

fn at_rest_answer(process: &Process, reply: AtRestReply) -> (Answer, Option<ValueHead>) {
    let AtRestReply { commit, durability, head, body } = reply;
    let mut answer = Response::new(match body {
        AtRestBody::Whole(bytes) => FrontBody::whole(bytes),
        AtRestBody::Streamed(body) => FrontBody::Remote(body),
    });
    let headers = answer.headers_mut();
    headers.insert(PROCESS, process.header.clone());
    headers.insert(COMMIT, HeaderValue::from(commit));
    headers.insert(DURABILITY, calls::level_header(durability));
    (answer, head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_asked_for_in_bytes() {
        let Ok(Ask::List(ask)) = list(Some("prefix=a%2F&after=a%00%FF&limit=5")) else { panic!() };
        assert_eq!(ask, ListAsk { prefix: b"a/".to_vec(), after: Some(b"a\0\xFF".to_vec()), limit: 5 });
        let Ok(Ask::List(all)) = list(None) else { panic!() };
        assert_eq!(all, ListAsk { limit: Listing::MAX_KEYS as u64, ..ListAsk::default() });
        for bad in ["limit=0", "limit=-1", "limit=%FF", "prefix=%"] {
            assert_eq!(list(Some(bad)).err().map(|problem| problem.kind()), Some(Kind::BadRequest), "{bad}");
        }
    }

    #[test]
    fn a_fingerprint_is_a_number_of_64_bits() {
        let put = |text: &'static str| {
            let headers = [(FINGERPRINT, HeaderValue::from_static(text))].into_iter().collect();
            put(b"k".to_vec(), &headers)
        };
        assert!(matches!(put("18446744073709551615"), Ok(Ask::Put(_, u64::MAX))));
        for bad in ["18446744073709551616", "0x1", "-1", ""] {
            assert_eq!(put(bad).err().map(|problem| problem.kind()), Some(Kind::BadHeader), "{bad}");
        }
    }
}
