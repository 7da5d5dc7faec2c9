//! A runner as a plain process, and the agent's end of its socket.
//!
//! The runner is this test binary, started again: its standard input is the socket, and the test named `runner_process` serves.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use denizen_state::{Engine, Lineage};
use denizen_wire::{
    Assignment, CallHead, Declarations, Failure, FrameReader, Header, Kind, LoadFailure, MAX_FRAME_PAYLOAD,
    ReplyHead, RunnerLimits, Sender, WINDOW,
};

/// Set for the process that is to be a runner.
pub(crate) const ROLE: &str = "DENIZEN_TEST_RUNNER";
const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const BODY_LIMIT: u64 = 8 << 20;
pub(crate) const REPLY_LIMIT: u64 = 8 << 20;

/// Builds the C plugin with more flags for the compiler.
pub(crate) fn build_plugin(to: &Path, flags: &[&str]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-pthread"])
        .arg("-I")
        .arg(here.join("../../fn-abi/include"))
        .arg(here.join("tests/plugin/plugin.c"))
        .arg("-o")
        .arg(to)
        .args(flags)
        .status()
        .unwrap();
    assert!(status.success(), "the C plugin does not compile");
}

/// The plugin that most tests use, built once.
pub(crate) fn plugin() -> PathBuf {
    static BUILT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        build_plugin(&dir.path().join("plugin.so"), &[]);
        dir
    });
    dir.path().join("plugin.so")
}

/// A state file that outlives its runners.
pub(crate) struct State {
    dir: tempfile::TempDir,
}

impl State {
    pub(crate) fn new() -> State {
        let state = State { dir: tempfile::tempdir().unwrap() };
        let file =
            File::options().create(true).truncate(true).read(true).write(true).open(state.path()).unwrap();
        Engine::format(&file, Lineage([5; 16])).unwrap();
        state
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn descriptors(&self) -> (File, File) {
        let writable = File::options().read(true).write(true).open(self.path()).unwrap();
        (writable, File::open(self.path()).unwrap())
    }
}

/// A frame of the runner's.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Reply { content_type: String, body: Vec<u8>, commit: u64 },
    Failed { failure: Failure, part: Vec<u8>, commit: u64 },
}

impl Ended {
    pub(crate) fn body(self) -> String {
        match self {
            Ended::Reply { body, .. } => String::from_utf8(body).unwrap(),
            Ended::Failed { failure, .. } => panic!("{failure:?}"),
        }
    }

    pub(crate) fn commit(&self) -> u64 {
        match self {
            Ended::Reply { commit, .. } | Ended::Failed { commit, .. } => *commit,
        }
    }

    pub(crate) fn failure(self) -> Failure {
        match self {
            Ended::Failed { failure, .. } => failure,
            Ended::Reply { body, .. } => panic!("replied {:?}", String::from_utf8_lossy(&body)),
        }
    }
}

pub(crate) struct Agent {
    pub(crate) socket: UnixStream,
    /// The runner, where it is a process of the test's own.
    child: Option<Child>,
    frames: FrameReader,
    pub(crate) declarations: Option<Declarations>,
    next_id: u64,
    /// Frames that came while another was waited for.
    kept: Vec<Said>,
    /// Log lines, in their order.
    pub(crate) log: Vec<(u64, String)>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Agent {
    /// A runner that waits for its assignment.
    pub(crate) fn spawn() -> Agent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "runner_process", "--nocapture", "--test-threads=1"])
            .env(ROLE, "1")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut agent = Agent::over(ours);
        agent.child = Some(child);
        agent
    }

    /// The agent's end of a socket whose other end somebody else has given to a runner.
    pub(crate) fn over(socket: UnixStream) -> Agent {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let frames = FrameReader::new(Sender::Runner);
        Agent {
            socket,
            child: None,
            frames,
            declarations: None,
            next_id: 1,
            kept: Vec::new(),
            log: Vec::new(),
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// A runner that serves the C plugin.
    pub(crate) fn serving(state: &State) -> Agent {
        let mut agent = Agent::spawn();
        agent.assign(&assignment(&plugin()), Some(state));
        agent.ready();
        agent
    }

    /// Waits for the declarations.
    pub(crate) fn ready(&mut self) {
        let said = self.next_of(|said| matches!(said.header.kind, Kind::Ready | Kind::Refused));
        assert_eq!(said.header.kind, Kind::Ready, "{}", String::from_utf8_lossy(&said.payload));
        self.declarations = Some(serde_json::from_slice(&said.payload).unwrap());
    }

    pub(crate) fn assign(&mut self, assignment: &Assignment, state: Option<&State>) {
        let frame = assignment.frame().unwrap();
        let files = state.map(State::descriptors);
        let descriptors: Vec<_> = files.iter().flat_map(|(rw, ro)| [rw.as_fd(), ro.as_fd()]).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let pieces = [IoSlice::new(&frame)];
        let sent =
            rustix::net::sendmsg(&self.socket, &pieces, &mut ancillary, rustix::net::SendFlags::empty())
                .unwrap();
        assert_eq!(sent, frame.len());
    }

    /// What a runner says that cannot serve.
    pub(crate) fn refused(&mut self) -> LoadFailure {
        let said = self.next_of(|said| matches!(said.header.kind, Kind::Ready | Kind::Refused));
        assert_eq!(said.header.kind, Kind::Refused, "{}", String::from_utf8_lossy(&said.payload));
        assert_eq!(self.exit().code(), Some(1));
        serde_json::from_slice(&said.payload).unwrap()
    }

    pub(crate) fn exit(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the runner does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        let mut frame = header.with_payload(payload.len()).encode().to_vec();
        frame.extend_from_slice(payload);
        self.socket.write_all(&frame).unwrap();
    }

    fn index_of(&self, function: &str) -> u32 {
        let functions = &self.declarations.as_ref().unwrap().functions;
        u32::try_from(functions.iter().position(|decl| decl.name == function).unwrap()).unwrap()
    }

    /// Begins a call; `end` says that `first` is all of its input.
    pub(crate) fn begin(
        &mut self,
        function: &str,
        declared: u64,
        deadline_ms: u32,
        first: &[u8],
        end: bool,
    ) -> u64 {
        let index = self.index_of(function);
        self.begin_index(index, declared, deadline_ms, first, end)
    }

    pub(crate) fn begin_index(
        &mut self,
        index: u32,
        declared: u64,
        deadline_ms: u32,
        first: &[u8],
        end: bool,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut payload = Vec::new();
        CallHead { content_type: "text/x-test", invocation: &format!("call-{id}") }
            .encode(&mut payload)
            .unwrap();
        payload.extend_from_slice(first);
        self.send(Header::invoke(id, index, deadline_ms, declared).with_end(end), &payload);
        id
    }

    /// Begins a call with a small input.
    pub(crate) fn start(&mut self, function: &str, input: &str) -> u64 {
        self.begin(function, input.len() as u64, 0, input.as_bytes(), true)
    }

    pub(crate) fn call(&mut self, function: &str, input: &str) -> Ended {
        let id = self.start(function, input);
        self.finish(id)
    }

    pub(crate) fn cancel(&mut self, id: u64, code: u16) {
        self.send(Header { code, ..Header::new(Kind::Cancel, id) }, &[]);
    }

    /// Sends a body as the window allows, taking replies meanwhile, and returns how the call ended.
    pub(crate) fn feed(&mut self, id: u64, body: &[u8]) -> Ended {
        let mut credit = WINDOW;
        let mut sent = 0;
        let mut reply = Partial::default();
        while sent < body.len() {
            let count = (body.len() - sent).min(MAX_FRAME_PAYLOAD).min(credit);
            if count > 0 {
                let end = sent + count == body.len();
                self.send(Header::new(Kind::Data, id).with_end(end), &body[sent..sent + count]);
                sent += count;
                credit -= count;
                continue;
            }
            let said = self.next_of(|said| said.header.id == id && said.header.kind != Kind::LogLine);
            match said.header.kind {
                Kind::Credit => credit += said.header.a as usize,
                _ => {
                    if let Some(ended) = self.take(&mut reply, said) {
                        return ended;
                    }
                }
            }
        }
        self.finish_with(id, reply)
    }

    /// Waits for the end of a call, and returns credit for its reply.
    pub(crate) fn finish(&mut self, id: u64) -> Ended {
        self.finish_with(id, Partial::default())
    }

    fn finish_with(&mut self, id: u64, mut reply: Partial) -> Ended {
        loop {
            let uninteresting = [Kind::Credit, Kind::LogLine];
            let said =
                self.next_of(|said| said.header.id == id && !uninteresting.contains(&said.header.kind));
            if let Some(ended) = self.take(&mut reply, said) {
                return ended;
            }
        }
    }

    fn take(&mut self, reply: &mut Partial, said: Said) -> Option<Ended> {
        let id = said.header.id;
        let before = reply.body.len();
        match said.header.kind {
            Kind::Reply => {
                let (head, body) = ReplyHead::decode(&said.payload).unwrap();
                assert!(reply.content_type.is_none(), "two heads");
                reply.content_type = Some(head.content_type.to_owned());
                reply.body.extend_from_slice(body);
            }
            Kind::ReplyData => reply.body.extend_from_slice(&said.payload),
            Kind::Fail => {
                let failure = serde_json::from_slice(&said.payload).unwrap();
                let part = std::mem::take(&mut reply.body);
                return Some(Ended::Failed { failure, part, commit: said.header.c });
            }
            other => panic!("{other:?} for a call"),
        }
        if said.header.is_end() {
            let content_type = reply.content_type.take().expect("a reply begins with its head");
            return Some(Ended::Reply {
                content_type,
                body: std::mem::take(&mut reply.body),
                commit: said.header.c,
            });
        }
        let count = u32::try_from(reply.body.len() - before).unwrap();
        self.send(Header { a: count, ..Header::new(Kind::Credit, id) }, &[]);
        None
    }

    /// The first frame like this, now or later; others are kept.
    pub(crate) fn next_of(&mut self, is_it: impl Fn(&Said) -> bool) -> Said {
        if let Some(at) = self.kept.iter().position(&is_it) {
            return self.kept.remove(at);
        }
        loop {
            let said = self.next_frame().expect("the runner closed the socket");
            if said.header.kind == Kind::LogLine {
                self.log.push((said.header.id, String::from_utf8(said.payload.clone()).unwrap()));
            }
            if is_it(&said) {
                return said;
            }
            self.kept.push(said);
        }
    }

    /// `None` at the end of the stream.
    pub(crate) fn next_frame(&mut self) -> Option<Said> {
        loop {
            if let Some(frame) = self.frames.frame().unwrap() {
                return Some(Said { header: frame.header, payload: frame.payload.to_vec() });
            }
            match self.socket.read(self.frames.space()) {
                Ok(0) => return None,
                Ok(count) => self.frames.filled(count),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing from the runner: {error}"),
            }
        }
    }
}

#[derive(Default)]
struct Partial {
    content_type: Option<String>,
    body: Vec<u8>,
}

pub(crate) fn assignment(plugin: &Path) -> Assignment {
    Assignment {
        app: "app".into(),
        process: "process".into(),
        epoch: 42,
        image: "0".repeat(64),
        manifest: serde_json::json!({"name": "app"}),
        plugin: plugin.to_str().unwrap().into(),
        limits: RunnerLimits {
            memory_bytes: 256 << 20,
            state_bytes: 1 << 20,
            body_bytes: BODY_LIMIT,
            reply_bytes: REPLY_LIMIT,
            threads: 16,
        },
        probe: false,
    }
}

/// Bytes whose place can be told.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}
