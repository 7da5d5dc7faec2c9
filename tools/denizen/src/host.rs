//! A node inside this process: the scheduler and the agent, started in the right order and stopped again.

use std::{error::Error, path::Path, time::Duration};

use denizen_agent::{Agent, AgentConfig, AgentError, NodeDir};
use denizen_client::Node;
use denizen_sched::{Config, Scheduler};
use tracing_subscriber::{EnvFilter, fmt::time::uptime};

use crate::{failure::Failure, settings::Settings, terminal::Terminal};

/// A running node.
pub(crate) struct Host {
    agent: Agent,
}

/// The node's own warnings go to stderr; `DENIZEN_LOG=debug` (or a list of `crate=level`) shows more.
fn say_what_the_node_says() {
    let wanted = EnvFilter::try_from_env("DENIZEN_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(wanted).with_writer(std::io::stderr).with_timer(uptime());
    // A second node in this process speaks through the first one's.
    let _ = subscriber.with_ansi(Terminal::new(false).err.is_on()).try_init();
}

impl Host {
    /// Starts a node on `dir`, which is made if it is not there.
    pub(crate) fn start(dir: &Path, settings: &Settings) -> Result<Host, Failure> {
        say_what_the_node_says();
        // The lock comes before everything that is in the directory.
        let locked = NodeDir::open(dir).map_err(|error| refused(&error))?;
        let scheduler =
            Scheduler::open(&locked.scheduler_store(), Config::default()).map_err(|error| refused(&error))?;
        let config = AgentConfig {
            executors: settings.executors,
            require_isolation: settings.require_isolation,
            pool: settings.pool,
            allow_hosts: settings.allow_hosts.clone(),
            idle_override: settings.idle,
            max_active: settings.max_active,
            isolation: settings.isolation,
            congestion: settings.congestion.clone(),
            data: settings.data,
            data_elsewhere: settings.data_elsewhere,
            ..AgentConfig::new(dir.to_owned(), settings.http)
        };
        match Agent::start_in(locked, config, scheduler) {
            Ok(agent) => Ok(Host { agent }),
            Err(error @ AgentError::Sandbox(_)) if settings.require_isolation => Err(refused(&error)
                .remedy("`denizen doctor` shows every layer; without --require-isolation the node starts")),
            Err(error) => Err(refused(&error)),
        }
    }

    /// A client of it, with its token.
    pub(crate) fn node(&self) -> Result<Node, Failure> {
        Ok(Node::on_directory(self.agent.dir())?)
    }

    /// Waits until somebody asks the node to end.
    pub(crate) fn wait_for_shutdown(&self) {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        while !self.agent.wait_for_shutdown(DAY) {}
    }

    /// Drains and ends it. State stays in its directory. False where a call had to be broken off.
    pub(crate) fn stop(self) -> bool {
        self.agent.stop()
    }
}

fn refused(error: &dyn Error) -> Failure {
    Failure::host("the node cannot start").told_by(error)
}
