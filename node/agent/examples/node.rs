//! A bare node for trying the agent by hand: `cargo run -p denizen-agent --example node -- DIR 127.0.0.1:7070 [idle-ms] [executors]`.
//! It ends on `POST /v1/shutdown`.

use std::process::ExitCode;
use std::time::Duration;

use denizen_agent::{Agent, AgentConfig, NodeDir};
use denizen_sched::{Config, Scheduler};

fn main() -> ExitCode {
    denizen_sandbox::run_if_spawner(denizen_runner::serve);
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [dir, http, rest @ ..] = arguments.as_slice() else {
        return Err("usage: node DIR ADDRESS [idle-ms] [executors]".into());
    };
    let mut config = AgentConfig::new(dir.into(), http.parse()?);
    if let Some(idle) = rest.first() {
        config.idle_override = Some(Duration::from_millis(idle.parse()?));
    }
    if let Some(executors) = rest.get(1) {
        config.executors = executors.parse()?;
    }
    let dir = NodeDir::open(&config.dir)?;
    let scheduler = Scheduler::open(&dir.scheduler_store(), Config::default())?;
    let agent = Agent::start_in(dir, config, scheduler)?;
    println!("http://{}", agent.http_addr());
    while !agent.wait_for_shutdown(Duration::from_secs(3600)) {}
    println!("stopped in order: {}", agent.stop());
    Ok(())
}
