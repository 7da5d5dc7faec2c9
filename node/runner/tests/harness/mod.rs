//! A runner as a plain process, and the agent's end of its socket.
//!
//! The runner is this test binary, started again: its standard input is the socket, and [`runner_process`] serves.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod direct;
pub(crate) mod state;

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use denizen_wire::{
    Assignment, Builtin, CallHead, Declarations, Durability, Failure, FrameReader, Header, Kind, LoadFailure,
    MAX_FRAME_PAYLOAD, ReplyHead, RunnerLimits, Sender, WINDOW,
};
pub(crate) use state::{Files, State};

/// Set for the process that is to be a runner.
const ROLE: &str = "DENIZEN_TEST_RUNNER";
const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const BODY_LIMIT: u64 = 8 << 20;
pub(crate) const REPLY_LIMIT: u64 = 8 << 20;
/// How long replies are remembered.
pub(crate) const DAY_MS: u64 = 24 * 3600 * 1000;
/// Of the smallest segments.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;

/// Not a test: what the others start as a process of its own.
#[test]
fn runner_process() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let code = denizen_runner::serve_unconfined(control, direct::inherited());
    std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { 1 });
}

/// This program again, as a runner whose end of the control connection is `control`.
fn runner_command(control: UnixStream) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "harness::runner_process", "--nocapture", "--test-threads=1"])
        .env(ROLE, "1")
        .stdin(OwnedFd::from(control))
        .stdout(Stdio::null());
    command
}

/// Builds the C plugin with more flags for the compiler.
pub(crate) fn build_plugin(to: &Path, flags: &[&str]) {
    compile("plugin.c", to, flags);
}

/// Builds a C file of this folder as a shared library.
fn compile(source: &str, to: &Path, flags: &[&str]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-pthread"])
        .arg("-I")
        .arg(here.join("../../fn-abi/include"))
        .arg(here.join("tests/plugin").join(source))
        .arg("-o")
        .arg(to)
        .args(flags)
        .status()
        .unwrap();
    assert!(status.success(), "{source} does not compile");
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

/// A frame of the runner's.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Reply { content_type: String, body: Vec<u8>, commit: u64, level: Durability, replayed: bool },
    Failed { failure: Failure, part: Vec<u8>, commit: u64 },
}

impl Ended {
    pub(crate) fn body(self) -> String {
        match self {
            Ended::Reply { body, .. } => String::from_utf8(body).unwrap(),
            Ended::Failed { failure, .. } => panic!("{failure:?}"),
        }
    }

    pub(crate) fn level(&self) -> Durability {
        match self {
            Ended::Reply { level, .. } => *level,
            Ended::Failed { failure, .. } => panic!("{failure:?}"),
        }
    }

    pub(crate) fn is_replayed(&self) -> bool {
        match self {
            Ended::Reply { replayed, .. } => *replayed,
            Ended::Failed { failure, .. } => failure.replayed,
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

/// What the agent does when a spare is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Giving {
    Spares,
    Refusals(u16),
    /// Nothing, until [`Agent::give`].
    Nothing,
}

pub(crate) struct Agent {
    pub(crate) socket: UnixStream,
    /// The runner, where it is a process of the test's own.
    /// Where the runner answers.
    answers: UnixStream,
    child: Option<Child>,
    frames: FrameReader,
    pub(crate) declarations: Option<Declarations>,
    next_id: u64,
    /// Frames that came while another was waited for.
    kept: Vec<Said>,
    /// Log lines, in their order.
    pub(crate) log: Vec<(u64, String)>,
    files: Option<Arc<Files>>,
    pub(crate) giving: Giving,
    /// Bytes of the spares that were asked for and not given.
    pub(crate) wanted: Vec<u64>,
    pub(crate) retired: Vec<u64>,
    /// What the runner said last of its live bytes.
    pub(crate) live: Option<u64>,
    /// How durable replies are to be.
    pub(crate) level: Durability,
    /// The idempotency key of the calls from now on.
    pub(crate) key: Option<String>,
    /// The trace that calls belong to.
    pub(crate) trace: Option<[u8; 25]>,
    pub(crate) content_type: String,
    /// Lets the runner write to segments as long as this, where it is in a sandbox.
    pub(crate) reach: Option<Box<dyn Fn(u64)>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Agent {
    /// A runner that waits for its assignment.
    pub(crate) fn spawn() -> Agent {
        Agent::spawn_with(&[])
    }

    /// The same with more in its environment.
    pub(crate) fn spawn_with(environment: &[(&str, &Path)]) -> Agent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = runner_command(theirs);
        command.envs(environment.iter().copied());
        Agent::of(ours, command.spawn().unwrap())
    }

    fn of(socket: UnixStream, child: Child) -> Agent {
        let answers = socket.try_clone().unwrap();
        let mut agent = Agent::over(socket, answers);
        agent.child = Some(child);
        agent
    }

    /// The agent's ends of the sockets whose other ends somebody else has given to a runner.
    pub(crate) fn over(socket: UnixStream, answers: UnixStream) -> Agent {
        answers.set_read_timeout(Some(PATIENCE)).unwrap();
        let frames = FrameReader::new(Sender::Runner);
        Agent {
            socket,
            answers,
            child: None,
            frames,
            declarations: None,
            next_id: 1,
            kept: Vec::new(),
            log: Vec::new(),
            files: None,
            giving: Giving::Spares,
            wanted: Vec::new(),
            retired: Vec::new(),
            live: None,
            level: Durability::Process,
            key: None,
            trace: None,
            content_type: "text/x-test".to_owned(),
            reach: None,
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
        Agent::spawn().serve(state)
    }

    pub(crate) fn serve(self, state: &State) -> Agent {
        let mut agent = self;
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
        let mut assignment = assignment.clone();
        let present = state.map(|state| state.files.all()).unwrap_or_default();
        assignment.segments = u32::try_from(present.len()).unwrap();
        assignment.spares = u32::from(state.is_some());
        self.send_with(&assignment.frame().unwrap(), &[]);
        for (id, files) in present {
            self.send_segment(0, id, files);
        }
        if let Some(state) = state {
            self.files = Some(state.files.clone());
            self.give_spare(assignment.segment_min_bytes);
        }
    }

    fn send_with(&mut self, frame: &[u8], descriptors: &[std::os::fd::BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(descriptors)));
        }
        let pieces = [IoSlice::new(frame)];
        let flags = rustix::net::SendFlags::NOSIGNAL;
        match rustix::net::sendmsg(&self.socket, &pieces, &mut ancillary, flags) {
            Ok(sent) => assert_eq!(sent, frame.len()),
            // It wanted a spare, and has ended meanwhile.
            Err(rustix::io::Errno::PIPE) => {}
            Err(error) => panic!("the runner takes nothing: {error}"),
        }
    }

    fn send_segment(&mut self, what_for: u32, id: u64, (writable, read_only): state::Pair) {
        let frame = Header { a: what_for, c: id, ..Header::new(Kind::Segment, 0) }.encode();
        self.send_with(&frame, &[writable.as_fd(), read_only.as_fd()]);
    }

    fn give_spare(&mut self, bytes: u64) {
        let (id, files) = self.files.as_ref().expect("a process with state").make(bytes);
        if let Some(reach) = &self.reach {
            reach(files.0.metadata().unwrap().len());
        }
        self.send_segment(1, id, files);
    }

    /// Answers what was not answered, in the order of asking.
    pub(crate) fn give(&mut self, giving: Giving) {
        for bytes in std::mem::take(&mut self.wanted) {
            match giving {
                Giving::Spares => self.give_spare(bytes),
                Giving::Refusals(code) => {
                    self.send(Header { code, ..Header::new(Kind::SpareRefused, 0) }, &[]);
                }
                Giving::Nothing => panic!("nothing is not an answer"),
            }
        }
    }

    /// Gives a spare that cannot be written to.
    pub(crate) fn give_unwritable(&mut self) {
        let bytes = self.wanted.remove(0);
        let (id, (_, read_only)) = self.files.as_ref().unwrap().make(bytes);
        let twice = read_only.try_clone().unwrap();
        self.send_segment(1, id, (twice, read_only));
    }

    /// Whether the agent deals with this frame by itself.
    fn is_business(&mut self, header: &Header) -> bool {
        match header.kind {
            Kind::WantSpare => {
                self.wanted.push(header.c);
                if self.giving != Giving::Nothing {
                    self.give(self.giving);
                }
            }
            Kind::Retired => {
                self.files.as_ref().unwrap().delete(header.c);
                self.retired.push(header.c);
            }
            Kind::StateNews => self.live = Some(header.c),
            _ => return false,
        }
        true
    }

    /// Waits until so many spares are wanted and not given.
    pub(crate) fn wait_until_wanted(&mut self, count: usize) {
        while self.wanted.len() < count {
            let said = self.any_frame().expect("the runner closed the socket");
            if !self.is_business(&said.header) {
                self.kept.push(said);
            }
        }
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
        let id = self.new_id();
        let mut payload = Vec::new();
        let invocation = format!("call-{id}");
        CallHead {
            content_type: &self.content_type,
            invocation: &invocation,
            key: self.key.as_deref(),
            trace: self.trace,
        }
        .encode(&mut payload)
        .unwrap();
        payload.extend_from_slice(first);
        let header = Header::invoke(id, index, deadline_ms, declared).with_end(end);
        self.send(Header { code: self.level.code(), ..header }, &payload);
        id
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Calls a function of the runner's own.
    pub(crate) fn builtin(&mut self, builtin: Builtin, input: &[u8]) -> Ended {
        let id = self.begin_index(builtin.index(), input.len() as u64, 0, b"", false);
        if input.is_empty() {
            self.send(Header::new(Kind::Data, id).with_end(true), &[]);
        }
        self.feed(id, input)
    }

    /// Asks when a commit is durable.
    pub(crate) fn sync(&mut self, commit: u64, level: u16) -> u64 {
        let id = self.new_id();
        self.send(Header { c: commit, code: level, ..Header::new(Kind::Sync, id) }, &[]);
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
                reply.replayed = said.header.is_replayed();
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
                level: Durability::reached(said.header.b),
                replayed: reply.replayed,
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
            let said = self.any_frame()?;
            if !self.is_business(&said.header) {
                return Some(said);
            }
        }
    }

    fn any_frame(&mut self) -> Option<Said> {
        loop {
            if let Some(frame) = self.frames.frame().unwrap() {
                return Some(Said { header: frame.header, payload: frame.payload.to_vec() });
            }
            match self.answers.read(self.frames.space()) {
                Ok(0) => return None,
                Ok(count) => self.frames.filled(count),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                // Work that the kernel does for a ring interrupts reads with a time limit.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing from the runner: {error}"),
            }
        }
    }
}

#[derive(Default)]
struct Partial {
    content_type: Option<String>,
    body: Vec<u8>,
    replayed: bool,
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
        prepare: false,
        lineage: "05".repeat(16),
        segments: 0,
        spares: 0,
        segment_min_bytes: SEGMENT_BYTES,
        segment_max_bytes: 1 << 20,
        durable_at_least: 0,
        files_bytes: 0,
        ring: false,
        remember_ms: DAY_MS,
    }
}

/// Bytes whose place can be told.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}
