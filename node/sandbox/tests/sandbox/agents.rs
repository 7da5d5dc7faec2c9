//! Processes that the tests start beside themselves: an agent to be killed, and all tests again as an ordinary user.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::{env, fs};

use crate::node::{Order, Talk, config_in, skip};

/// The overflow user: no files, no rights, everywhere.
const NOBODY: u32 = 65534;

/// An agent: starts a spawner in the directory, three sandboxes on it, prints all pids, and waits for its end.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let spawner = denizen_sandbox::Spawner::start(config_in(Path::new(&arguments[0]))).unwrap();
    let mut talks: Vec<_> =
        (0..2).map(|_| Talk::begin(spawner.spawn().unwrap(), &Order::sealed("idle"))).collect();
    talks.iter_mut().for_each(|talk| assert_eq!(talk.line(), "idle"));
    let waiting = spawner.spawn().unwrap();
    let pids: Vec<_> = talks.iter().map(|talk| talk.life.pid()).chain([waiting.pid()]).collect();
    println!("{} {} {} {}", spawner.pid(), pids[0], pids[1], pids[2]);
    loop {
        std::thread::park();
    }
}

/// An agent in a process of its own, killed when a test is done with it.
pub(crate) struct Agent(pub(crate) Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts such an agent and returns it with the pids of its spawner and sandboxes.
pub(crate) fn start(dir: &Path) -> (Agent, Vec<u32>) {
    let mut agent = Command::new(env::current_exe().unwrap())
        .arg("--as-agent")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(agent.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 4, "the agent did not start: {line}");
    (Agent(agent), pids)
}

/// All of it once more without privileges. The program is copied to where that user can read it.
pub(crate) fn run_as_ordinary_user(arguments: &[String]) -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let copy = env::temp_dir().join(format!("denizen-sandbox-test-{}", std::process::id()));
    fs::copy(env::current_exe().unwrap(), &copy).unwrap();
    let status = Command::new(&copy).args(arguments).uid(NOBODY).gid(NOBODY).current_dir("/").status();
    let _ = fs::remove_file(&copy);
    match status {
        Ok(status) => status.success(),
        Err(error) => {
            skip("run_as_ordinary_user", &error.to_string());
            true
        }
    }
}
