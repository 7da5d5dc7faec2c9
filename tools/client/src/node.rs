//! A node as its caller sees it: where it is, and everything that can be asked of it besides a call and its logs.

use std::{
    fs,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use serde::de::DeserializeOwned;
use ureq::{
    Agent, Body, SendBody,
    http::{Request, Response, request::Builder},
};

use crate::{
    error::ClientError,
    path,
    problem::Problem,
    types::{
        AppSummary, Apps, DeployOptions, Deployed, ImageInUse, ImageSummary, Images, NodeInfo, Process,
        Processes, Pruned, RemovedImage,
    },
};

/// A control answer is small; one that is not comes from something else than a node.
const CONTROL_REPLY_MAX_BYTES: u64 = 64 << 20;
/// Connecting on one machine takes microseconds; this is for a machine that swaps.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A node's HTTP interface. Cheap to clone; connections are kept and shared.
#[derive(Debug, Clone)]
pub struct Node {
    address: String,
    token: Option<String>,
    http: Agent,
}

impl Node {
    /// A node at `address` (`host:port`, with or without `http://`). Nothing is sent yet.
    pub fn at(address: &str) -> Result<Node, ClientError> {
        let trimmed = address.trim();
        let host = trimmed.strip_prefix("http://").unwrap_or(trimmed).trim_end_matches('/');
        if host.is_empty()
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || "/?#@".contains(c))
        {
            return Err(ClientError::BadAddress { address: address.to_owned() });
        }
        Ok(Node { address: host.to_owned(), token: None, http: transport() })
    }

    /// The node that runs on `dir`, found by `dir/endpoint`; `dir/token` is taken along if it can be read.
    pub fn on_directory(dir: &Path) -> Result<Node, ClientError> {
        let endpoint_path = dir.join("endpoint");
        let endpoint = match fs::read_to_string(&endpoint_path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ClientError::NoNode { dir: dir.to_owned() });
            }
            Err(source) => return Err(ClientError::Directory { path: endpoint_path, source }),
        };
        let node = Node::at(&endpoint)?;
        // Without it the reading requests still work, and the node says which need it.
        Ok(match fs::read_to_string(dir.join("token")) {
            Ok(token) => node.with_token(token.trim()),
            Err(_) => node,
        })
    }

    /// The same node, with a token for changing requests.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Node {
        self.token = Some(token.to_owned()).filter(|token| !token.is_empty());
        self
    }

    /// Its address, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it is and how well it isolates.
    pub fn info(&self) -> Result<NodeInfo, ClientError> {
        self.get(&["v1", "node"])
    }

    /// Its applications.
    pub fn apps(&self) -> Result<Vec<AppSummary>, ClientError> {
        Ok(self.get::<Apps>(&["v1", "apps"])?.apps)
    }

    /// Its images.
    pub fn images(&self) -> Result<Vec<ImageSummary>, ClientError> {
        Ok(self.get::<Images>(&["v1", "images"])?.images)
    }

    /// Removes an image (64 hex digits) that nothing runs.
    pub fn remove_image(&self, image: &str) -> Result<(), ClientError> {
        self.send(self.request("DELETE", &["v1", "images", image]), SendBody::none()).map(drop)
    }

    /// Removes every image that no application uses or used just before, and that no process was last started with.
    pub fn prune_images(&self) -> Result<Vec<RemovedImage>, ClientError> {
        Ok(self.post::<Pruned>(&["v1", "images", "prune"])?.removed)
    }

    /// The image that `app` uses.
    pub fn image_of(&self, app: &str) -> Result<ImageInUse, ClientError> {
        self.get(&["v1", "apps", app, "image"])
    }

    /// Sends an image archive of `len_bytes` and makes it the image of `app`. Returns when active processes have changed over.
    pub fn deploy(
        &self,
        app: &str,
        archive: &mut dyn Read,
        len_bytes: u64,
        options: DeployOptions,
    ) -> Result<Deployed, ClientError> {
        let mut request = self
            .request("PUT", &["v1", "apps", app, "image"])
            .header("Content-Type", "application/x-tar")
            .header("Content-Length", len_bytes)
            // A node that refuses says so before megabytes are sent in vain, and the refusal is not lost under them.
            .header("Expect", "100-continue");
        if options.replace_layout {
            request = request.header("Denizen-Layout", "replace");
        }
        self.json(self.send(request, SendBody::from_reader(archive))?)
    }

    /// The processes of one application, or of all.
    pub fn processes(&self, app: Option<&str>) -> Result<Vec<Process>, ClientError> {
        let found: Processes = match app {
            Some(app) => self.get(&["v1", "apps", app, "processes"])?,
            None => self.get(&["v1", "processes"])?,
        };
        Ok(found.processes)
    }

    /// One process.
    pub fn process(&self, app: &str, process: &str) -> Result<Process, ClientError> {
        self.get(&["v1", "apps", app, "processes", process])
    }

    /// Creates and starts a process.
    pub fn create(&self, app: &str, process: &str) -> Result<Process, ClientError> {
        self.post(&["v1", "apps", app, "processes", process])
    }

    /// Moves a process's state to the swap store and frees its sandbox.
    pub fn swap_out(&self, app: &str, process: &str) -> Result<Process, ClientError> {
        self.post(&["v1", "apps", app, "processes", process, "swap-out"])
    }

    /// Brings a swapped process back.
    pub fn swap_in(&self, app: &str, process: &str) -> Result<Process, ClientError> {
        self.post(&["v1", "apps", app, "processes", process, "swap-in"])
    }

    /// Deletes a process and its state, for good.
    pub fn delete(&self, app: &str, process: &str) -> Result<(), ClientError> {
        let request = self.request("DELETE", &["v1", "apps", app, "processes", process]);
        self.send(request, SendBody::none()).map(drop)
    }

    /// Asks the node to drain and end.
    pub fn shutdown(&self) -> Result<(), ClientError> {
        let request = self.request("POST", &["v1", "shutdown"]).header("Content-Length", 0);
        self.send(request, SendBody::none()).map(drop)
    }

    fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, ClientError> {
        self.json(self.send(self.request("GET", segments), SendBody::none())?)
    }

    fn post<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, ClientError> {
        let request = self.request("POST", segments).header("Content-Length", 0);
        self.json(self.send(request, SendBody::none())?)
    }

    /// A request with address and token filled in.
    pub(crate) fn request(&self, method: &str, segments: &[&str]) -> Builder {
        self.request_with_query(method, segments, "")
    }

    /// As [`Node::request`]; `query` is empty, begins with `?`, or is a last segment of the path behind its slash, encoded.
    pub(crate) fn request_with_query(&self, method: &str, segments: &[&str], query: &str) -> Builder {
        let uri = format!("http://{}{}{query}", self.address, path::of(segments));
        let request = Request::builder().method(method).uri(uri);
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends it, and turns every answer that is not a success into a problem.
    pub(crate) fn send(&self, request: Builder, body: SendBody<'_>) -> Result<Response<Body>, ClientError> {
        let request = request
            .body(body)
            .map_err(|error| self.nonsense(format!("the request cannot be sent: {error}")))?;
        let response = self.http.run(request).map_err(|error| self.transport_error(error))?;
        if response.status().is_success() { Ok(response) } else { Err(self.problem(response)) }
    }

    fn problem(&self, response: Response<Body>) -> ClientError {
        let status = response.status().as_u16();
        match response.into_body().into_with_config().limit(CONTROL_REPLY_MAX_BYTES).read_to_vec() {
            Ok(bytes) => ClientError::Problem(Box::new(Problem::from_reply(status, &bytes))),
            Err(error) => self.broke_off("reading the error", error.into_io()),
        }
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, response: Response<Body>) -> Result<T, ClientError> {
        let body = response.into_body().into_with_config().limit(CONTROL_REPLY_MAX_BYTES);
        let bytes =
            body.read_to_vec().map_err(|error| self.broke_off("reading the answer", error.into_io()))?;
        serde_json::from_slice(&bytes).map_err(|error| self.nonsense(error.to_string()))
    }

    pub(crate) fn nonsense(&self, what: String) -> ClientError {
        ClientError::Nonsense { address: self.address.clone(), what }
    }

    /// The exchange with this node ended too early: what is to be said where a reply that it streams breaks off.
    pub fn broke_off(&self, doing: &'static str, source: io::Error) -> ClientError {
        ClientError::BrokeOff { address: self.address.clone(), doing, source }
    }

    fn transport_error(&self, error: ureq::Error) -> ClientError {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                ClientError::BadAddress { address: self.address.clone() }
            }
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => self.unreachable(error),
            ureq::Error::Timeout(ureq::Timeout::Connect) => self.unreachable(error),
            ureq::Error::Io(io) if InputFailed::is(&io) => {
                ClientError::Input { source: InputFailed::into_inner(io) }
            }
            ureq::Error::Io(ref io) if is_refusal(io) => self.unreachable(error),
            ureq::Error::Protocol(error) => self.nonsense(error.to_string()),
            other => self.broke_off("sending the request", other.into_io()),
        }
    }

    fn unreachable(&self, error: ureq::Error) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), source: error.into_io() }
    }
}

/// One connection pool. No proxy: the node is on this machine, and `http_proxy` is meant for the world. No redirects: the
/// interface has none, and one would carry the token elsewhere.
fn transport() -> Agent {
    Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .user_agent(concat!("denizen/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::AddrNotAvailable
    )
}

/// Marks an I/O error as the input's, on its way through the transport, which knows only its own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InputFailed(io::Error);

impl InputFailed {
    fn mark(error: io::Error) -> io::Error {
        io::Error::other(InputFailed(error))
    }

    fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<InputFailed>())
    }

    fn into_inner(error: io::Error) -> io::Error {
        match error.downcast::<InputFailed>() {
            Ok(InputFailed(inner)) => inner,
            Err(error) => error,
        }
    }
}

/// Tells errors of the input from those of the transport.
pub(crate) struct InputReader<'a>(pub(crate) &'a mut dyn Read);

impl Read for InputReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => InputFailed::mark(error),
        })
    }
}
