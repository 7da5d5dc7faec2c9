//! The same runner inside a real sandbox: every system call that serving makes must be one that the filters allow.
//!
//! As root and as an ordinary user alike; where no sandbox can be made, the test says so and passes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use denizen_protocol::client::Call;
use denizen_sandbox::{Isolation, Spawner, SpawnerConfig};
use denizen_wire::{Assignment, FailKind, Header, Kind, LENGTH_UNKNOWN, WINDOW};
use harness::direct::Node;
use harness::{Agent, Ended, State, assignment, build_plugin, pattern};

fn main() -> ExitCode {
    denizen_sandbox::run_if_spawner(denizen_runner::serve);
    // This program has no list of tests; it is one.
    if std::env::args().any(|argument| argument == "--list") {
        println!("a_sandboxed_runner_serves: test");
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().unwrap();
    let digest = store_with_plugin(dir.path());
    let config = SpawnerConfig {
        image_store: dir.path().join("images"),
        lock_dir: dir.path().to_owned(),
        isolation: Isolation::default(),
        rings: true,
    };
    match Spawner::start(config) {
        Ok(spawner) => serve_in_a_sandbox(&spawner, &digest),
        Err(error) => denizen_testing::skip("a_sandboxed_runner_serves", &error.to_string()),
    }
    println!("test a_sandboxed_runner_serves ... ok");
    ExitCode::SUCCESS
}

fn store_with_plugin(dir: &Path) -> String {
    let digest = "ab".repeat(32);
    let image = dir.join("images").join(&digest);
    std::fs::create_dir_all(&image).unwrap();
    build_plugin(&image.join("plugin.so"), &[]);
    digest
}

fn serve_in_a_sandbox(spawner: &Spawner, digest: &str) {
    let state = State::new();
    let (mut agent, ring, _life) = sandboxed(spawner, digest, &state);
    // On a state that is still empty, and with a thread of the function's own.
    assert_eq!(agent.call("remember", "").body(), "remembered");
    assert_eq!(agent.call("misuse", "").body(), "fine");
    one_after_another(&mut agent);
    large_and_streamed(&mut agent);
    several_threads(&mut agent);
    let mut agent = direct_calls(agent, ring);
    agent.send(Header::new(Kind::Drain, 0), &[]);
    let commit = agent.next_of(|said| said.header.kind == Kind::Drained).header.c;
    let (mut again, _ring, _life) = sandboxed(spawner, digest, &state);
    assert_eq!(again.declarations.as_ref().unwrap().state.commit, commit);
    assert_eq!(again.call("count", "").body(), "5000");
}

fn sandboxed(
    spawner: &Spawner,
    digest: &str,
    state: &State,
) -> (Agent, Option<OwnedFd>, Arc<denizen_sandbox::Life>) {
    let denizen_sandbox::Sandbox { control, answers, stdio, ring, life } = spawner.spawn().unwrap();
    let mut stdio = UnixStream::from(stdio);
    // What the sandbox prints must be read, or printing would block.
    std::thread::spawn(move || std::io::copy(&mut stdio.by_ref(), &mut std::io::stderr()));
    let mut agent = Agent::over(UnixStream::from(control), UnixStream::from(answers));
    let life = Arc::new(life);
    let longer = Arc::clone(&life);
    agent.reach = Some(Box::new(move |bytes| longer.let_files_reach(bytes).unwrap()));
    let plugin = Path::new("/image/plugin.so");
    let assignment = Assignment { image: digest.into(), ring: true, ..assignment(plugin) };
    agent.assign(&assignment, Some(state));
    agent.ready();
    (agent, ring, life)
}

/// On the ring that the sandbox has inherited, behind both filters.
fn direct_calls(agent: Agent, ring: Option<OwnedFd>) -> Agent {
    let Some(ring) = ring else {
        eprintln!("this kernel has no rings that can be locked: direct connections are left out");
        return agent;
    };
    let mut node = Node::over(agent, ring);
    let mut clients: Vec<_> = (0..5).map(|_| node.connect()).collect();
    for client in &mut clients {
        for _ in 0..20 {
            assert_eq!(client.call("count", "").text(), "5000");
        }
    }
    let body = pattern(3 << 20);
    let id = clients[0].begin(&Call { length: Some(body.len() as u64), ..Call::new("echo") });
    clients[0].feed(id, &body, true);
    assert!(clients[0].finish(id).unwrap().body == body);
    let burning = clients[1].start("burn", "200");
    let begun = std::time::Instant::now();
    assert_eq!(clients[2].call("count", "").text(), "5000");
    assert!(begun.elapsed() < std::time::Duration::from_millis(150), "a burning function holds up nobody");
    assert_eq!(clients[1].finish(burning).unwrap().text(), "burnt");
    let gone = clients.pop().unwrap();
    gone.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(node.done(&gone), denizen_wire::CallerEnd::Closed);
    node.agent
}

/// Commits enough that the file grows.
fn one_after_another(agent: &mut Agent) {
    for number in 1..=5000 {
        assert_eq!(agent.call("add", "").body(), number.to_string());
    }
    assert_eq!(agent.call("scan", "").body(), "scanned");
    assert_eq!(agent.call("fill", "").failure().kind, FailKind::Quota);
}

fn large_and_streamed(agent: &mut Agent) {
    let body = pattern(3 << 20);
    for function in ["echo", "stream_echo"] {
        let id = agent.begin(function, LENGTH_UNKNOWN, 0, &body[..1000], false);
        let Ended::Reply { body: back, .. } = agent.feed(id, &body[1000..]) else { panic!("{function}") };
        assert!(back == body, "{function}");
    }
    let Ended::Reply { body, .. } = agent.call("large", &(3 * WINDOW).to_string()) else { panic!() };
    assert!(body == pattern(3 * WINDOW));
}

/// Threads of ours and of the function's are made behind the second filter.
fn several_threads(agent: &mut Agent) {
    let ids: Vec<u64> = (0..4).map(|_| agent.start("meet", "4")).collect();
    for id in ids {
        assert_eq!(agent.finish(id).body(), "met");
    }
    let burning = agent.start("burn", "400");
    let unknown = agent.begin_index(9999, 0, 0, b"", true);
    let first = agent.next_of(|said| [burning, unknown].contains(&said.header.id));
    assert_eq!(
        (first.header.id, first.header.kind),
        (unknown, Kind::Fail),
        "a burning function holds up nobody"
    );
    assert_eq!(agent.finish(burning).body(), "burnt");
}
