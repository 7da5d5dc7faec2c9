//! Calls of functions: from a request to a process, and from a reply to an answer.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use denizen_protocol::TraceParent;
use denizen_sched::{Create, ProcessName};
use denizen_wire::{Durability, MAX_IDEMPOTENCY_KEY};
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
/// As the draft of the IETF has it (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// W3C Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REPLAYED: HeaderName = HeaderName::from_static("denizen-replayed");
const EPOCH: HeaderName = HeaderName::from_static("denizen-epoch");

/// What the headers of a call say.
struct Wishes<'a> {
    create: Option<Create>,
    deadline: Option<Duration>,
    durability: Durability,
    /// Empty where there is none.
    content_type: &'a str,
    key: Option<Cow<'a, str>>,
    trace: Option<TraceParent>,
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
        key: wishes.key.as_deref(),
        trace: wishes.trace,
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
    let Replied { invocation, content_type, commit, durability, epoch_header, replayed, body, .. } = replied;
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
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    answer
}

pub(super) fn failure_answer(process: &Process, problem: Problem) -> Answer {
    failure_to(process.header.clone(), Failed::at(process, problem))
}

fn failure_to(process: HeaderValue, failed: Failed) -> Answer {
    let Failed { problem, standing } = failed;
    let mut answer = problem_answer(&problem);
    let headers = answer.headers_mut();
    if problem.is_replayed() {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
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
    Ok(Wishes { create, deadline, durability, content_type, key: key(headers)?, trace: trace(headers) })
}

/// What is no trace, or is there twice, is none: the standard has whoever gets it go on without.
fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    TraceParent::from_text(value.to_str().ok()?.trim())
}

/// The idempotency key: a string of RFC 9651, as the draft wants it, or the bare text that many clients send.
///
/// # Errors
/// `bad-header`.
fn key(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bad = |why: &str| Problem::new(Kind::BadHeader, format!("Idempotency-Key {why}"));
    if values.next().is_some() {
        return Err(bad("is there twice"));
    }
    let text = value.to_str().map_err(|_| bad("has a byte that is no visible ASCII"))?.trim();
    let key = match text.strip_prefix('"') {
        Some(rest) => quoted(rest).map_err(bad)?,
        None if text.bytes().any(|byte| matches!(byte, b' ' | b'\t' | b'"' | b'\\' | b',' | b';')) => {
            return Err(bad("with blanks, quotes, commas or semicolons must be a string in double quotes"));
        }
        None => Cow::Borrowed(text),
    };
    if key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY {
        return Err(bad("must have 1 to 128 bytes"));
    }
    Ok(Some(key))
}

/// The string of a header behind its first quote. Parameters have no meaning here, and are passed over.
fn quoted(rest: &str) -> Result<Cow<'_, str>, &'static str> {
    let mut escaped = false;
    let is_end = |character| {
        let ends = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        ends
    };
    let (inside, behind) =
        rest.find(is_end).map(|end| rest.split_at(end)).ok_or("is a string without its closing quote")?;
    let behind = behind.get(1..).unwrap_or_default().trim_start();
    if !behind.is_empty() && !behind.starts_with(';') {
        return Err("has something behind its closing quote");
    }
    if !inside.contains('\\') {
        return Ok(Cow::Borrowed(inside));
    }
    let mut text = String::with_capacity(inside.len());
    let mut characters = inside.chars();
    while let Some(character) = characters.next() {
        match (character, characters.clone().next()) {
            ('\\', Some(next @ ('"' | '\\'))) => {
                text.push(next);
                characters.next();
            }
            ('\\', _) => return Err("has a backslash before something else than a quote or a backslash"),
            (other, _) => text.push(other),
        }
    }
    Ok(Cow::Owned(text))
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
    fn keys_are_strings_or_bare_and_nothing_else() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_str(text).unwrap());
            key(&headers).map(|key| key.unwrap().into_owned()).map_err(|problem| {
                assert_eq!(problem.kind(), Kind::BadHeader);
                problem.to_string()
            })
        };
        let long = "k".repeat(MAX_IDEMPOTENCY_KEY);
        for (text, key) in [
            ("\"8e03978e-40d5\"", "8e03978e-40d5"),
            (" \"a b\" ", "a b"),
            ("8e03978e-40d5", "8e03978e-40d5"),
            ("aGVsbG8+/w==", "aGVsbG8+/w=="),
            ("\"say \\\"hi\\\" \\\\\"", "say \"hi\" \\"),
            ("\"a\";version=2", "a"),
            ("\"a;b\" ; c", "a;b"),
            (long.as_str(), long.as_str()),
        ] {
            assert_eq!(read(text).as_deref(), Ok(key), "{text}");
        }
        let longer = format!("{long}k");
        for text in [
            "",
            "\"\"",
            "\"a",
            "\"a\\\"",
            "\"a\" b",
            "\"a\", \"b\"",
            "a,b",
            "a b",
            "a\"b",
            "\"a\\b\"",
            longer.as_str(),
        ] {
            assert!(read(text).is_err_and(|why| why.contains("Idempotency-Key")), "{text}");
        }
        let twice = headers(&[("idempotency-key", "a"), ("idempotency-key", "a")]);
        assert!(key(&twice).is_err());
        assert_eq!(key(&HeaderMap::new()), Ok(None));
        assert_eq!(MAX_IDEMPOTENCY_KEY, denizen_protocol::limits::MAX_IDEMPOTENCY_KEY);
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
