//! The HTTP front: connections, who may speak, what they ask for, and problems as answers.
//!
//! One task for each connection. Whatever goes wrong in it is an answer or the end of that connection.

mod body;
mod calls;
mod connections;
mod control;
mod deploy;
mod logs;
mod origin;
mod processes;
pub(crate) mod routes;
mod state;

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{
    ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};

use crate::executor::{self, HttpStream, Listener};
use crate::home::Home;
use crate::problem::{Kind, Problem, is_out_of_descriptors};
use body::FrontBody;
use connections::{Connection, Connections, Reserve};
use routes::Route;

pub(crate) use origin::Hosts;

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Headers of one request.
const MAX_HEADERS: usize = 64;

/// An answer.
pub(crate) type Answer = Response<FrontBody>;

/// Accepts connections for as long as the executor runs.
pub(crate) async fn accept(home: Rc<Home>, listener: Listener) {
    let (connections, most) = (Connections::new(), connections::most(home.node.executors()));
    let mut reserve = Reserve::new();
    loop {
        if connections.count() >= most {
            executor::sleep(ACCEPT_PAUSE).await;
            continue;
        }
        match listener.accept().await {
            Ok(stream) => {
                let connection = connections.add(stream.closer());
                executor::spawn(converse(Rc::clone(&home), stream, connection));
            }
            Err(error) => {
                tracing::warn!("no connection can be accepted: {error}");
                if is_out_of_descriptors(&error) {
                    reserve.turn_away(&listener, &no_descriptors());
                }
                executor::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A whole answer for who cannot be served, as it goes over the wire.
fn no_descriptors() -> Vec<u8> {
    let problem =
        Problem::new(Kind::OutOfDescriptors, "this connection could not be accepted").retry_after_s(1);
    let body = problem.to_json().to_string();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\nconnection: close";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn converse(home: Rc<Home>, stream: HttpStream, connection: Connection) {
    let service = service_fn(|request| {
        let (home, busy) = (&home, connection.busy());
        // A request is in progress until the last of its answer was taken.
        async move { Ok::<_, Infallible>(answer(home, request).await.map(|body| busy.until_sent(body))) }
    });
    let connection = http1::Builder::new().max_headers(MAX_HEADERS).serve_connection(stream, service);
    if let Err(error) = connection.await {
        // A caller that goes away, or sends what is no HTTP. hyper has answered where that was possible.
        tracing::debug!("a connection ended: {error}");
    }
}

async fn answer(home: &Rc<Home>, request: Request<Incoming>) -> Answer {
    route(home, request).await.unwrap_or_else(|problem| problem_answer(&problem))
}

async fn route(home: &Rc<Home>, request: Request<Incoming>) -> Result<Answer, Problem> {
    check_site(home, &request)?;
    // The path outlives the request, whose body moves on.
    let uri = request.uri().clone();
    let route = routes::parse(uri.path())?;
    if !route.has(request.method()) {
        let text = format!("{} is not one of {}", request.method(), route.methods());
        return Ok(with_header(problem_answer(&Problem::new(Kind::BadMethod, text)), ALLOW, route.methods()));
    }
    match route {
        Route::Call { app, process, function } => calls::call(home, &app, process, &function, request).await,
        // Apart: the task of each call would otherwise have room for all of that, and be moved with it.
        route => Box::pin(control::control(home, route, uri.query(), request)).await,
    }
}

fn check_site<B>(home: &Home, request: &Request<B>) -> Result<(), Problem> {
    let headers = request.headers();
    // An absolute target names the host itself, and comes before the header (RFC 9112).
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => headers.get(HOST).map(HeaderValue::as_bytes),
    };
    home.node.hosts.check(host, headers.get(ORIGIN).map(HeaderValue::as_bytes))
}

/// # Errors
/// `bad-token` for a changing request without the node's token.
fn check_token(home: &Home, headers: &HeaderMap) -> Result<(), Problem> {
    if home.node.token.is_in(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes)) {
        return Ok(());
    }
    Err(Problem::new(Kind::BadToken, format!("this needs the token in {}", home.node.dir.token().display())))
}

/// A problem as an answer.
pub(crate) fn problem_answer(problem: &Problem) -> Answer {
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut answer = Response::new(FrontBody::whole(body));
    *answer.status_mut() =
        StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = problem.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.kind() == Kind::BadToken {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// A JSON document as an answer.
fn json_answer(status: StatusCode, document: &serde_json::Value) -> Answer {
    let mut answer = Response::new(FrontBody::whole(document.to_string().into_bytes()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn with_header(mut answer: Answer, name: hyper::header::HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}
