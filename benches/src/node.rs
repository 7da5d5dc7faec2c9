//! The servers that are measured, started and stopped; and the one client that both sides are called with.

use crate::framed::Framed;
use crate::machine::Programs;
use denizen_protocol::token;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A node of one executor with the echo functions deployed. It ends with this value.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    address: String,
    /// What lets a connection of the framed protocol in.
    call_token: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Node {
    /// Starts it with `pool` sandboxes waiting.
    pub(crate) fn start(programs: &Programs, pool: usize) -> Self {
        Self::start_with(programs, pool, &[])
    }

    /// The same with the agent between callers and functions.
    pub(crate) fn relay(programs: &Programs, pool: usize) -> Self {
        Self::start_with(programs, pool, &["--isolation", "relay"])
    }

    /// The same with a congestion control, or the system's.
    pub(crate) fn with_congestion(programs: &Programs, congestion: Option<&str>) -> Self {
        let more: Vec<&str> = congestion.into_iter().flat_map(|name| ["--congestion", name]).collect();
        Self::start_with(programs, 1, &more)
    }

    /// The same with processes that are not swapped out while they are measured.
    pub(crate) fn lasting(programs: &Programs) -> Self {
        Self::start_with(programs, 0, &["--idle", "10m"])
    }

    fn start_with(programs: &Programs, pool: usize, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(&programs.denizen);
        command.arg("dev").arg("--dir").arg(dir.path()).args(["--http", "127.0.0.1:0", "--no-watch"]);
        command.args(["--data", "127.0.0.1:0", "--executors", "1", "--pool", &pool.to_string()]).args(more);
        if programs.release {
            command.arg("--release");
        }
        command.arg(&programs.echo).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        let child = command.spawn().expect("denizen starts");
        let mut node = Self { child, address: String::new(), call_token: Vec::new(), dir };
        node.await_deployment();
        node.call_token = node.issue_token(programs);
        node
    }

    fn await_deployment(&mut self) {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            assert!(Instant::now() < until, "the node did not come up within 120 s");
            assert!(self.child.try_wait().expect("a child").is_none(), "the node ended at once");
            if let Ok(address) = std::fs::read_to_string(self.dir.path().join("endpoint")) {
                address.trim().trim_start_matches("http://").clone_into(&mut self.address);
                if Client::connect(&self.address).get("/v1/apps/bench-echo/image") == 200 {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn issue_token(&self, programs: &Programs) -> Vec<u8> {
        let mut command = Command::new(&programs.denizen);
        command.args(["token", "issue", "--app", "bench-echo", "--dir"]).arg(self.dir.path());
        let output = command.output().expect("denizen runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        token::from_text(&String::from_utf8_lossy(&output.stdout)).expect("a token")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address)
    }

    /// A connection of the framed protocol to this process.
    pub(crate) fn framed(&self, process: &str) -> Framed {
        self.framed_with(process, None)
    }

    /// The same with a congestion control, or the system's.
    pub(crate) fn framed_with(&self, process: &str, congestion: Option<&str>) -> Framed {
        Framed::connect(&self.data_address(), &self.call_token, process, congestion)
    }

    pub(crate) fn data_address(&self) -> String {
        let file = self.dir.path().join("data-endpoint");
        std::fs::read_to_string(file).expect("a data port").trim().to_owned()
    }

    /// A token of which one bit of the signature is wrong.
    pub(crate) fn forged_token(&self) -> Vec<u8> {
        let mut token = self.call_token.clone();
        *token.last_mut().expect("a token is not empty") ^= 1;
        token
    }

    /// Has a process swapped out.
    pub(crate) fn swap_out(&self, process: &str) {
        let token = std::fs::read_to_string(self.dir.path().join("token")).expect("the node's token");
        let mut client = self.client();
        let path = format!("/v1/apps/bench-echo/processes/{process}/swap-out");
        let header = format!("Authorization: Bearer {}\r\n", token.trim());
        let request = client.request_with(&path, &header, b"");
        assert_eq!(client.exchange(&request), 200, "{process} is not swapped out");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A program of the `rivals` crate that says its first line and then serves or waits.
#[derive(Debug)]
pub(crate) struct Rival {
    child: Child,
    /// The line that it printed once it was ready.
    pub(crate) line: String,
}

impl Rival {
    pub(crate) fn start(programs: &Programs, words: &[&str]) -> Self {
        let mut child = Command::new(&programs.rivals)
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a rival starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::with_capacity(64, stdout).read_line(&mut line).expect("its first line");
        Self { child, line: line.trim().to_owned() }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Asks a child to end, and makes it after five seconds.
fn end(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id())
        && let Some(pid) = rustix::process::Pid::from_raw(pid)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        if child.try_wait().ok().flatten().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A blocking HTTP/1.1 client on one kept connection: one write and, for small replies, one read a call, so that what
/// it adds is the same small amount on both sides.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    host: String,
    received: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        Self { stream, host: address.to_owned(), received: Vec::with_capacity(16 * 1024) }
    }

    /// The bytes of a POST with this body.
    pub(crate) fn request(&self, path: &str, body: &[u8]) -> Vec<u8> {
        self.request_with(path, "", body)
    }

    /// The same with more header lines, each with its end.
    pub(crate) fn request_with(&self, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let (host, len) = (&self.host, body.len());
        let mut bytes =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {len}\r\n\r\n")
                .into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    /// Sends a request as it is and reads the whole reply. Returns the status.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> u16 {
        self.send(request);
        self.read_reply()
    }

    /// Sends a request as it is.
    pub(crate) fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("the server reads");
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn get(&mut self, path: &str) -> u16 {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.exchange(request.as_bytes())
    }

    /// Reads the reply of a request that was sent. Returns the status.
    pub(crate) fn read_reply(&mut self) -> u16 {
        self.received.clear();
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some((status, length)) = head(&self.received)
                && self.received.len() >= length
            {
                return status;
            }
            let got = self.stream.read(&mut chunk).expect("a reply within 30 s");
            assert!(got > 0, "the server closed the connection");
            self.received.extend_from_slice(&chunk[..got]);
        }
    }
}

/// The status of a reply and the length of all of it, once its head is there. Replies with `Content-Length` only.
fn head(bytes: &[u8]) -> Option<(u16, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Some((status, end + length.unwrap_or(0)))
}
