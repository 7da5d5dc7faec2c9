//! A node under test: the built binary in a directory of its own, driven as its users drive it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The built `denizen`.
pub(crate) const DENIZEN: &str = env!("CARGO_BIN_EXE_denizen");

/// How long anything may take before a test gives up. Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running node. It is killed when this value goes.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
    /// What it printed so far, both streams.
    said: Arc<Mutex<String>>,
    _own: Option<tempfile::TempDir>,
}

/// How a node is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    command: Vec<String>,
    arguments: Vec<String>,
    dir: Option<PathBuf>,
    seen_at: Option<PathBuf>,
    cwd: Option<PathBuf>,
}

impl Start {
    pub(crate) fn new() -> Self {
        Self { command: vec![DENIZEN.to_owned()], arguments: vec![], dir: None, seen_at: None, cwd: None }
    }
    /// More arguments of `denizen dev`.
    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&word| word.to_owned()));
        self
    }
    /// In this directory, which outlives the node.
    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }
    /// The directory lies in another mount namespace; this is its path from here.
    pub(crate) fn seen_at(mut self, path: &Path) -> Self {
        self.seen_at = Some(path.to_owned());
        self
    }
    /// Standing in this folder.
    pub(crate) fn cwd(mut self, cwd: &Path) -> Self {
        self.cwd = Some(cwd.to_owned());
        self
    }
    /// Run by another program: `setpriv …`, `prlimit …`. The path of the binary is the last word.
    pub(crate) fn by(mut self, words: &[&str], denizen: &Path) -> Self {
        self.command = words.iter().map(|&word| word.to_owned()).collect();
        self.command.push(denizen.display().to_string());
        self
    }

    /// The command line as it stands, on `dir`.
    fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg("dev").arg("--dir").arg(dir).args(["--http", "127.0.0.1:0"]);
        command.args(&self.arguments);
        command.current_dir(self.cwd.as_deref().unwrap_or(dir));
        command.env_remove("DENIZEN_DIR").env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it answers.
    pub(crate) fn node(self) -> Node {
        let own = self.dir.is_none().then(|| tempfile::tempdir().expect("a temporary directory"));
        let named = self.dir.clone().unwrap_or_else(|| own.as_ref().expect("made above").path().to_owned());
        let dir = self.seen_at.clone().unwrap_or_else(|| named.clone());
        let _ = std::fs::remove_file(dir.join("endpoint"));
        let mut child = self
            .command(&named)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the node's program starts");
        let said = Arc::new(Mutex::new(String::new()));
        listen(child.stdout.take().expect("piped"), &said);
        listen(child.stderr.take().expect("piped"), &said);
        let address = await_endpoint(&mut child, &dir, &said);
        Node { child, address, dir, said, _own: own }
    }

    /// Starts it and waits for its end: for starts that must be refused.
    pub(crate) fn refused(self, dir: &Path) -> Output {
        let mut child =
            self.command(dir).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let until = Instant::now() + PATIENCE;
        while child.try_wait().expect("a child").is_none() {
            if Instant::now() > until {
                let _ = child.kill();
                panic!("the node started where it should have refused to");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().expect("its output")
    }
}

fn listen(stream: impl Read + Send + 'static, said: &Arc<Mutex<String>>) {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut all = said.lock().expect("no panic while held");
            all.push_str(&line);
            all.push('\n');
        }
    });
}

fn await_endpoint(child: &mut Child, dir: &Path, said: &Mutex<String>) -> SocketAddr {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(dir.join("endpoint"))
            && let Ok(address) = text.trim().trim_start_matches("http://").parse()
        {
            return address;
        }
        let ended = child.try_wait().expect("a child");
        if ended.is_some() || Instant::now() > until {
            std::thread::sleep(Duration::from_millis(100));
            panic!("the node did not come up ({ended:?}):\n{}", said.lock().expect("unpoisoned"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Node {
    /// A node with the faulty plugin deployed.
    pub(crate) fn with_faulty() -> Self {
        let node = Start::new().node();
        node.deploy(faulty_image());
        node
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
    pub(crate) fn said(&self) -> String {
        self.said.lock().expect("unpoisoned").clone()
    }
    /// Waits until it has said each of these: what it prints comes after it can be reached.
    pub(crate) fn await_said(&self, words: &[&str]) {
        let all_said = || words.iter().all(|word| self.said().contains(word));
        await_within(PATIENCE * 2, all_said, || format!("{words:?} was not said:\n{}", self.said()));
    }
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.dir.join("token")).expect("the node's token").trim().to_owned()
    }
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// `denizen WORDS…` against this node.
    pub(crate) fn denizen(&self, words: &[&str]) -> Output {
        Command::new(DENIZEN)
            .args(words)
            .env("DENIZEN_DIR", &self.dir)
            .env("NO_COLOR", "1")
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .expect("denizen runs")
    }

    /// The same, expected to succeed; its stdout.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.denizen(words);
        assert!(output.status.success(), "denizen {words:?}: {}\n{}", text(&output), self.said());
        String::from_utf8(output.stdout).expect("UTF-8 on stdout")
    }

    /// Deploys an image archive.
    pub(crate) fn deploy(&self, archive: &Path) {
        self.ok(&["image", "deploy", archive.to_str().expect("a UTF-8 path")]);
    }

    /// Calls a function and returns status and body.
    pub(crate) fn call(&self, app: &str, process: &str, function: &str, body: &[u8]) -> Reply {
        self.post(&format!("/v1/apps/{app}/processes/{process}/functions/{function}"), &[], body)
    }

    /// A POST with these headers.
    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut request = agent().post(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::of(request.send(body).expect("the node answers"))
    }

    /// A GET.
    pub(crate) fn get(&self, path: &str) -> Reply {
        Reply::of(agent().get(self.url(path)).call().expect("the node answers"))
    }

    /// A request with the node's token and no body.
    pub(crate) fn control(&self, method: &str, path: &str) -> Reply {
        let bearer = format!("Bearer {}", self.token());
        let answer = match method {
            "POST" => agent().post(self.url(path)).header("Authorization", &bearer).send_empty(),
            "DELETE" => agent().delete(self.url(path)).header("Authorization", &bearer).call(),
            other => panic!("no such method here: {other}"),
        };
        Reply::of(answer.expect("the node answers"))
    }

    /// The process as the node tells of it.
    pub(crate) fn process(&self, app: &str, process: &str) -> serde_json::Value {
        self.get(&format!("/v1/apps/{app}/processes/{process}")).json()
    }

    /// Waits until the process is in this phase.
    pub(crate) fn await_phase(&self, app: &str, process: &str, phase: &str) -> serde_json::Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.process(app, process);
            if now["phase"] == phase {
                return now;
            }
            assert!(Instant::now() < until, "{app}/{process} is not {phase}: {now}\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asserts that the node is well: another process of the application answers.
    pub(crate) fn assert_others_work(&self, app: &str) {
        let reply = self.call(app, "bystander", "count", b"");
        assert_eq!(reply.status, 200, "another process: {}\n{}", reply.body(), self.said());
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.stop_by(rustix::process::Signal::TERM)
    }

    /// This signal, and the exit code.
    pub(crate) fn stop_by(&mut self, how: rustix::process::Signal) -> Option<i32> {
        signal(self.pid(), how);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(Instant::now() < until, "the node does not stop:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sets its flag when it goes, so that threads which run until it is set also end where their test fails.
pub(crate) struct Until<'a>(pub(crate) &'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until it `is_so`, and fails with what `otherwise` says if it is not within this time.
pub(crate) fn await_within(patience: Duration, is_so: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let until = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < until, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal to a process of the host.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}

/// Whether a process of the host is alive (a zombie is not).
pub(crate) fn is_alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

/// What a program printed, for a failed assertion.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// An HTTP reply, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    bytes: Vec<u8>,
}

impl Reply {
    pub(crate) fn of(mut response: ureq::http::Response<ureq::Body>) -> Self {
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
            .collect();
        let status = response.status().as_u16();
        let bytes = response.body_mut().with_config().limit(1 << 30).read_to_vec().expect("the whole body");
        Self { status, headers, bytes }
    }
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    pub(crate) fn body(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error} in {}", self.body()))
    }
    /// Asserts that this is the problem `kind`, blamed on `blame`, and returns it.
    pub(crate) fn problem(&self, status: u16, kind: &str, blame: &str) -> serde_json::Value {
        let json = self.json();
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{json}");
        assert_eq!(json["type"], format!("urn:denizen:problem:{kind}"), "{json}");
        assert_eq!((self.status, &json["status"]), (status, &serde_json::json!(status)), "{json}");
        assert_eq!(json["blame"], blame, "{json}");
        for field in ["title", "detail", "remedy"] {
            assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "no {field} in {json}");
        }
        assert!(["never", "safe", "unknown"].contains(&json["retry"].as_str().unwrap_or("")), "{json}");
        json
    }
}

/// An HTTP client that reports every status as a reply.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .new_agent()
}

/// The image of the faulty plugin, built once for all tests.
pub(crate) fn faulty_image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| build_image(&repository().join("tools/denizen/tests/faulty"), "faulty"))
}

/// Builds the image of a package into the folder for such things, and returns its path.
pub(crate) fn build_image(package: &Path, name: &str) -> PathBuf {
    let archive = scratch().join(format!("{name}.dzi"));
    let output = Command::new(DENIZEN)
        .args(["image", "build", "--debug", "-o"])
        .arg(&archive)
        .arg(package)
        .output()
        .expect("denizen runs");
    assert!(output.status.success(), "building {name}: {}", text(&output));
    archive
}

/// Compiles C to a plugin and makes an image of it.
pub(crate) fn c_image(name: &str, source: &str) -> PathBuf {
    let output = try_c_image(name, source, &[]);
    assert!(output.status.success(), "{}", text(&output));
    scratch().join(format!("{name}.dzi"))
}

/// The same, where the image may be refused.
pub(crate) fn try_c_image(name: &str, source: &str, flags: &[&str]) -> Output {
    let plugin = compile_c(name, source, flags);
    image_of_plugin(name, &plugin)
}

/// An image of C, with `policy` in its manifest.
pub(crate) fn c_image_with(name: &str, source: &str, flags: &[&str], policy: &str) -> PathBuf {
    let output = image_with(name, &compile_c(name, source, flags), policy);
    assert!(output.status.success(), "{}", text(&output));
    scratch().join(format!("{name}.dzi"))
}

/// `denizen image build --plugin`.
pub(crate) fn image_of_plugin(name: &str, plugin: &Path) -> Output {
    image_with(name, plugin, "")
}

fn image_with(name: &str, plugin: &Path, policy: &str) -> Output {
    let manifest = scratch().join(format!("{name}.toml"));
    std::fs::write(&manifest, format!("name = \"{name}\"\n{policy}")).expect("a manifest");
    Command::new(DENIZEN)
        .args(["image", "build", "-o"])
        .arg(scratch().join(format!("{name}.dzi")))
        .arg("--plugin")
        .arg(plugin)
        .arg("--manifest")
        .arg(manifest)
        .output()
        .expect("denizen runs")
}

/// Compiles C to a shared object against the repository's header.
pub(crate) fn compile_c(name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (file, plugin) = (scratch().join(format!("{name}.c")), scratch().join(format!("{name}.so")));
    std::fs::write(&file, source).expect("a source file");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
        .arg(&plugin)
        .arg(&file)
        .arg("-I")
        .arg(repository().join("fn-abi/include"))
        .args(flags)
        .output()
        .expect("cc runs");
    assert!(output.status.success(), "{name}.c: {}", text(&output));
    plugin
}

/// A folder for what tests build, of this test program's run alone.
pub(crate) fn scratch() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("e2e-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch folder");
        dir
    })
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}
