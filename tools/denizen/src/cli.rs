//! The command line: what can be typed, and the one place where flags and `DENIZEN_*` variables are named.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const AFTER_HELP: &str = "\
Begin with `denizen demo` (in a checkout), or `denizen new hello && cd hello && denizen dev`.

Answers go to stdout, everything else to stderr. Exit status: 0 done, 1 the function failed,
2 the request is wrong, 3 the host failed.";

/// Stateful functions in processes of their own.
#[derive(Debug, Parser)]
#[command(name = "denizen", version, after_help = AFTER_HELP)]
#[command(max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) everywhere: Everywhere,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Everywhere {
    /// The node's directory [default: .denizen here, or the nearest upwards]
    #[arg(long, value_name = "DIR", env = "DENIZEN_DIR", hide_env_values = true, global = true)]
    #[arg(display_order = 900)]
    pub(crate) dir: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true, display_order = 901)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a node, build and deploy, rebuild on every change
    Dev(Dev),
    /// Make a package with a first stateful function
    New(New),
    /// Show the whole of it: a node, a deployed example, a call, its answer
    Demo(Demo),
    /// Tell whether this machine can run Denizen, and how well isolated
    Doctor,
    /// Call a function
    Invoke(Invoke),
    /// Call a function many times, and measure
    Load(Load),
    /// List processes
    Ps(Ps),
    /// Show what functions print
    Logs(Logs),
    /// Build, deploy, look into and remove images
    #[command(subcommand)]
    Image(Image),
    /// Create a process, and start it, without a call
    Create(NewProcess),
    /// Move a process's state out to the swap store, or back in
    #[command(subcommand)]
    Swap(Swap),
    /// Look at and change the objects that a process keeps, whether or not its node runs
    #[command(subcommand)]
    State(State),
    /// Delete processes and their state, for good
    Rm(Rm),
    /// Issue tokens for the data port, and look after the keys that sign them
    #[command(subcommand)]
    Token(Token),
    /// Print a completion script for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// What to build and deploy: package directories or names of examples [default: the package here, or all examples]
    #[arg(value_name = "PACKAGE")]
    pub(crate) packages: Vec<PathBuf>,
    /// Address to serve on [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR", env = "DENIZEN_HTTP", hide_env_values = true)]
    pub(crate) http: Option<String>,
    /// Address for the framed protocol, or `none` [default: 127.0.0.1:7071, or any free port there]
    #[arg(long, value_name = "ADDR", env = "DENIZEN_DATA", hide_env_values = true)]
    pub(crate) data: Option<String>,
    /// Executor threads [default: one per core, at most 4]
    #[arg(long, value_name = "N", env = "DENIZEN_EXECUTORS", hide_env_values = true)]
    pub(crate) executors: Option<usize>,
    /// Sandboxes that wait ready for a process [default: 2]
    #[arg(long, value_name = "N", env = "DENIZEN_POOL", hide_env_values = true)]
    pub(crate) pool: Option<usize>,
    /// Swap a process out after this long without a call: 500ms, 30s, 5m [default: its image's own]
    #[arg(long, value_name = "TIME", env = "DENIZEN_IDLE", hide_env_values = true)]
    #[arg(value_parser = crate::units::parse_duration)]
    pub(crate) idle: Option<std::time::Duration>,
    /// Processes that may have a sandbox at once [default: one for each 8 MiB of memory]
    #[arg(long, value_name = "N", env = "DENIZEN_MAX_ACTIVE", hide_env_values = true)]
    pub(crate) max_active: Option<usize>,
    /// How callers of the framed protocol reach processes at least: `ring`, or `relay`, whatever an image says [default: ring]
    #[arg(long, value_name = "MODE", env = "DENIZEN_ISOLATION", hide_env_values = true)]
    pub(crate) isolation: Option<denizen_image::Isolation>,
    /// TCP congestion control of callers' connections: cubic, bbr, … [default: the system's]
    #[arg(long, value_name = "NAME", env = "DENIZEN_CONGESTION", hide_env_values = true)]
    pub(crate) congestion: Option<String>,
    /// Refuse to start where a layer of isolation is missing
    #[arg(long, env = "DENIZEN_REQUIRE_ISOLATION", hide_env_values = true)]
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) require_isolation: Option<bool>,
    /// Build with the release profile
    #[arg(long, env = "DENIZEN_RELEASE", hide_env_values = true)]
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) release: Option<bool>,
    /// Do not rebuild when a source changes
    #[arg(long, env = "DENIZEN_NO_WATCH", hide_env_values = true)]
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) no_watch: Option<bool>,
    /// A host name under which requests may reach this node; may be given again
    #[arg(long = "allow-host", value_name = "HOST", env = "DENIZEN_ALLOW_HOST", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    pub(crate) allow_hosts: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct New {
    /// Name of the package, of its directory and of the application
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep the node's directory, and say where it is
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// app/process, or an application alone for any process of it
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// The function
    pub(crate) function: String,
    /// The input: text as it stands, @FILE, or - for stdin [default: empty]
    #[arg(value_name = "DATA", allow_hyphen_values = true)]
    pub(crate) data: Option<String>,
    /// Content type of the input [default: guessed]
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    /// Give up after this long: 500ms, 30s, 5m [default: the image's own]
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration)]
    pub(crate) deadline: Option<std::time::Duration>,
    /// Whether to create the process if it does not exist [default: the image decides]
    #[arg(long, value_name = "WHEN")]
    pub(crate) create: Option<Create>,
    /// Idempotency key: the same call with the same key runs once, and its reply is remembered
    #[arg(long, value_name = "KEY", value_parser = crate::units::parse_key)]
    pub(crate) key: Option<String>,
    /// What the commit must survive before the reply is sent: process or node [default: the image's choice]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<Durability>,
    /// The W3C trace that the call belongs to: 00-TRACE-PARENT-FLAGS; one that is none is ignored
    #[arg(long, value_name = "TRACE", env = "TRACEPARENT", hide_env_values = true)]
    pub(crate) traceparent: Option<String>,
    /// Over HTTP, to the node here or to the one at URL [default: in frames, where the node has a data port]
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "", require_equals = true)]
    pub(crate) http: Option<String>,
    /// Write the reply to a terminal as it is, control characters and all
    #[arg(long)]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Load {
    /// app/process, or an application alone for any process of it
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// The function
    pub(crate) function: String,
    /// Over HTTP; this is the default
    #[arg(long, conflicts_with = "framed")]
    pub(crate) http: bool,
    /// In frames, over the data port
    #[arg(long)]
    pub(crate) framed: bool,
    /// Connections; over HTTP each has a thread of its own
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) connections: u32,
    /// Threads that share the connections, with --framed [default: one per core, at most one per connection]
    #[arg(long, value_name = "N", requires = "framed")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) threads: Option<u32>,
    /// Look for answers again and again instead of sleeping, with --framed: a core for each thread, and some microseconds less
    #[arg(long, requires = "framed")]
    pub(crate) busy: bool,
    /// Calls in flight on each connection, with --framed
    #[arg(long, visible_alias = "pipeline", value_name = "N", default_value_t = 1, requires = "framed")]
    #[arg(value_parser = crate::units::parse_depth)]
    pub(crate) depth: usize,
    /// Calls per second in all, due at fixed times (open loop) [default: each when the last is answered (closed loop)]
    #[arg(short, long, value_name = "R", value_parser = crate::units::parse_rate)]
    pub(crate) rate: Option<f64>,
    /// How long: 500ms, 30s, 5m
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = crate::units::parse_duration)]
    pub(crate) duration: std::time::Duration,
    /// The input of each call: text as it stands, or @FILE [default: empty]
    #[arg(long, value_name = "DATA", allow_hyphen_values = true)]
    pub(crate) body: Option<String>,
    /// Content type of the input
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    /// Give a call up after this long [default: the image's own]
    #[arg(long, value_name = "TIME", value_parser = crate::units::parse_duration)]
    pub(crate) deadline: Option<std::time::Duration>,
    /// A token for the data port [default: one signed with the node's keys]
    #[arg(long, value_name = "TOKEN", env = "DENIZEN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durability {
    /// The end of its sandbox and of the node's program
    Process,
    /// The loss of the node's power
    Node,
}

impl Durability {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Durability::Process => "process",
            Durability::Node => "node",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Create {
    /// Fail if the process does not exist
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Only this application
    pub(crate) app: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Only this application, or only this process of it
    #[arg(value_name = "APP[/PROCESS]")]
    pub(crate) target: Option<String>,
    /// Stay, and show lines as they are written
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// At most so many of the lines that are there already
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) tail: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Make an image of a cargo package or of a plugin (.so)
    Build(ImageBuild),
    /// Make an image the one that an application uses
    Deploy(ImageDeploy),
    /// List the node's images
    Ls,
    /// Show what is in an image
    Inspect(ImageInspect),
    /// Check every byte of an image against its digest
    Verify(ImageVerify),
    /// Remove images that nothing runs
    Rm(ImageRm),
    /// Remove every image that nothing runs, ran just before, or was last started with
    Prune,
}

/// Where an image comes from.
#[derive(Debug, Args)]
pub(crate) struct ImageSource {
    /// A package directory, an archive (.dzi), or a plugin (.so)
    #[arg(value_name = "PACKAGE", default_value = ".")]
    pub(crate) path: PathBuf,
    /// Build with the dev profile: quicker to build, slower to run
    #[arg(long)]
    pub(crate) debug: bool,
    /// Take a ready plugin (.so) in place of a package
    #[arg(long, value_name = "FILE", conflicts_with_all = ["path", "debug"])]
    pub(crate) plugin: Option<PathBuf>,
    /// The manifest of a plugin [default: denizen.toml beside it, if there]
    #[arg(long, value_name = "FILE", requires = "plugin")]
    pub(crate) manifest: Option<PathBuf>,
    /// The name of a plugin that has no manifest [default: its file name]
    #[arg(long, value_name = "NAME", requires = "plugin", conflicts_with = "manifest")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageBuild {
    #[command(flatten)]
    pub(crate) source: ImageSource,
    /// Where to write the archive [default: NAME.dzi]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageDeploy {
    #[command(flatten)]
    pub(crate) source: ImageSource,
    /// The application [default: the image's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Accept changed state layouts: records of the old layout answer `state-type-changed` until they are overwritten
    #[arg(long, value_name = "HOW")]
    pub(crate) layout: Option<Layout>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// Put the new layouts in the place of the old ones
    Replace,
}

#[derive(Debug, Args)]
pub(crate) struct ImageInspect {
    /// An archive (.dzi), an image id (or its beginning), or an application
    pub(crate) image: String,
}

#[derive(Debug, Args)]
pub(crate) struct ImageVerify {
    /// Archives (.dzi), applications of a node that runs, or image ids (or their beginnings) [default: all of the node's images]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImageRm {
    /// Image ids, or their beginnings
    #[arg(value_name = "ID", required = true)]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NewProcess {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Swap {
    /// Move the state to the swap store and free the sandbox
    Out(SwapTarget),
    /// Bring it back
    In(SwapTarget),
}

#[derive(Debug, Args)]
pub(crate) struct SwapTarget {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum State {
    /// List keys, with the size, type, version and time of each object
    Ls(StateLs),
    /// Show an object: as JSON where its type is known
    Get(StateGet),
    /// Put an object, from JSON where its type is known
    Put(StatePut),
    /// Delete objects, for good
    Rm(StateRm),
    /// Write all objects to a file or to stdout
    Export(StateExport),
    /// Put all objects of an export; what else there is stays
    Import(StateImport),
    /// List the captured files of /state, or write out one or all of them. An export has none of them
    Files(StateFiles),
}

#[derive(Debug, Args)]
pub(crate) struct StateFiles {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// Write out this file, below /state
    #[arg(conflicts_with = "tar")]
    pub(crate) path: Option<String>,
    /// Write out all of them as a tar archive
    #[arg(long)]
    pub(crate) tar: bool,
    /// Where to write a file or the archive [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StateLs {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// Only keys that begin with this
    pub(crate) prefix: Option<String>,
    /// Read what is left of a damaged log; only while no node runs
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StateGet {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// The key: text, or 0x and hexadecimal digits
    pub(crate) key: String,
    /// Write the stored bytes as they are
    #[arg(long)]
    pub(crate) raw: bool,
    /// Read what is left of a damaged log; only while no node runs
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatePut {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// The key: text, or 0x and hexadecimal digits
    pub(crate) key: String,
    /// The value: as it stands, @FILE, or - for stdin
    #[arg(value_name = "DATA", allow_hyphen_values = true)]
    pub(crate) data: String,
    /// Store the bytes as they are, without a type
    #[arg(long, conflicts_with_all = ["of_type", "derived_keys"])]
    pub(crate) raw: bool,
    /// The type: one that the image declares, or a layout such as `Vec<u32>` [default: that of the object there is]
    #[arg(long = "type", value_name = "NAME")]
    pub(crate) of_type: Option<String>,
    /// Types that are keys of maps or items of sets derive Ord and Hash
    #[arg(long)]
    pub(crate) derived_keys: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StateRm {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// The keys: text, or 0x and hexadecimal digits
    #[arg(value_name = "KEY", required = true)]
    pub(crate) keys: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StateExport {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// Where to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How to write
    #[arg(long, value_name = "FORMAT", default_value = "ndjson")]
    pub(crate) format: StateFormat,
    /// Leave damaged objects out, and say which, instead of failing at the first; while no node runs, also of a damaged log
    #[arg(long)]
    pub(crate) salvage: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StateFormat {
    /// A line of JSON for each object, typed
    Ndjson,
    /// The stored bytes and their checksum
    Archive,
}

#[derive(Debug, Args)]
pub(crate) struct StateImport {
    /// The process
    #[arg(value_name = "APP/PROCESS")]
    pub(crate) target: String,
    /// What was exported, in either format; - for stdin
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) input: PathBuf,
    /// Types that are keys of maps or items of sets derive Ord and Hash
    #[arg(long)]
    pub(crate) derived_keys: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The processes
    #[arg(value_name = "APP/PROCESS", required = true)]
    pub(crate) targets: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Sign a token that lets its bearer call functions over the data port
    Issue(TokenIssue),
    /// List the keys that the node believes, and which of them signs
    Keys,
    /// Sign with a new key from now on
    Rotate(TokenRotate),
}

#[derive(Debug, Args)]
pub(crate) struct TokenIssue {
    /// The application
    #[arg(long, value_name = "NAME")]
    pub(crate) app: String,
    /// Only this process of it [default: any]
    #[arg(long, value_name = "NAME")]
    pub(crate) process: Option<String>,
    /// Only these functions [default: any]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub(crate) functions: Vec<String>,
    /// How long it holds: 30s, 5m, 24h
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = crate::units::parse_duration)]
    pub(crate) ttl: std::time::Duration,
}

#[derive(Debug, Args)]
pub(crate) struct TokenRotate {
    /// Believe the older keys no longer: their tokens open no connection any more
    #[arg(long)]
    pub(crate) revoke: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        super::Cli::command().debug_assert();
    }
}
