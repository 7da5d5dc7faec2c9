//! `GET /v1/logs`.

use std::rc::Rc;

use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use super::Answer;
use super::body::{FrontBody, LogBody, ndjson};
use super::routes;
use crate::home::Home;
use crate::logs::Wanted;
use crate::problem::{Kind, Problem};

/// Lines that are sent where nobody says how many.
const DEFAULT_TAIL: usize = 1000;

/// Lines as NDJSON; with `follow` the answer stays open.
pub(super) fn read(home: &Rc<Home>, query: Option<&str>) -> Result<Answer, Problem> {
    let [app, process, follow, tail] = routes::query(query, ["app", "process", "follow", "tail"])?;
    let wrong = |_| Problem::new(Kind::BadRequest, "the query's tail is not a number");
    let tail = tail.map(|tail| tail.parse().map_err(wrong)).transpose()?.unwrap_or(DEFAULT_TAIL);
    let wanted = Wanted { app, process };
    let follows = follow.is_some_and(|follow| !matches!(follow.as_str(), "" | "0" | "false"));
    let logs = &home.node.logs;
    let body = if follows {
        let (lines, later) = logs.follow(&wanted, tail);
        let first: Vec<u8> = lines.iter().flat_map(|line| ndjson(line)).collect();
        let last = lines.last().map(|line| line.sequence);
        // An empty part would end a body.
        FrontBody::Log(LogBody { first: (!first.is_empty()).then(|| first.into()), last, later })
    } else {
        FrontBody::whole(logs.tail(&wanted, tail).iter().flat_map(|line| ndjson(line)).collect::<Vec<u8>>())
    };
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(answer)
}
