//! What a node is started with. Each value comes from the first of: its flag, its `DENIZEN_*` variable (both read by `cli`), the
//! key in `DIR/config.toml`, the default.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::Path,
    time::Duration,
};

use denizen_image::Isolation;
use serde::Deserialize;

use crate::{cli, failure::Failure, units};

const DEFAULT_HTTP: &str = "127.0.0.1:7070";
const DEFAULT_DATA: &str = "127.0.0.1:7071";
const DEFAULT_POOL: usize = 2;
/// One core of a laptop is plenty for a front that moves nothing but requests; more than this only wakes more.
const DEFAULT_EXECUTORS_MAX: usize = 4;

/// Everything that `dev` can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) http: SocketAddr,
    /// `None`: no data port.
    pub(crate) data: Option<SocketAddr>,
    /// Nobody asked for that very port: any other does where it is taken.
    pub(crate) data_elsewhere: bool,
    pub(crate) executors: usize,
    pub(crate) pool: usize,
    pub(crate) idle: Option<Duration>,
    pub(crate) max_active: Option<usize>,
    pub(crate) isolation: Isolation,
    pub(crate) congestion: Option<String>,
    pub(crate) require_isolation: bool,
    pub(crate) release: bool,
    pub(crate) watch: bool,
    pub(crate) allow_hosts: Vec<String>,
}

/// `DIR/config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ConfigFile {
    http: Option<String>,
    data: Option<String>,
    executors: Option<usize>,
    pool: Option<usize>,
    idle: Option<String>,
    max_active: Option<usize>,
    isolation: Option<Isolation>,
    congestion: Option<String>,
    require_isolation: Option<bool>,
    release: Option<bool>,
    watch: Option<bool>,
    allow_hosts: Option<Vec<String>>,
}

impl Settings {
    /// Merges what was typed with `dir/config.toml`.
    pub(crate) fn of(typed: &cli::Dev, dir: &Path) -> Result<Settings, Failure> {
        let path = dir.join("config.toml");
        let file = ConfigFile::read(&path)?;
        let http = match (&typed.http, &file.http) {
            (Some(typed), _) => parse_http(typed)?,
            (None, Some(written)) => parse_http(written).map_err(|failure| failure.within(&path))?,
            (None, None) => parse_http(DEFAULT_HTTP)?,
        };
        let data = match (&typed.data, &file.data) {
            (Some(typed), _) => parse_data(typed)?,
            (None, Some(written)) => parse_data(written).map_err(|failure| failure.within(&path))?,
            (None, None) => parse_data(DEFAULT_DATA)?,
        };
        let data_elsewhere = typed.data.is_none() && file.data.is_none();
        let executors = typed.executors.or(file.executors).unwrap_or_else(default_executors);
        if executors == 0 {
            return Err(Failure::usage("a node needs at least one executor").remedy("--executors 1"));
        }
        let max_active = typed.max_active.or(file.max_active);
        if max_active == Some(0) {
            return Err(
                Failure::usage("a node without a single sandbox runs nothing").remedy("--max-active 1")
            );
        }
        let allow_hosts = if typed.allow_hosts.is_empty() {
            file.allow_hosts.unwrap_or_default()
        } else {
            typed.allow_hosts.clone()
        };
        let idle = file.idle.as_deref().map(units::parse_duration).transpose().map_err(|what| {
            Failure::usage(format!("{}: idle: {what}", path.display())).remedy("write it like idle = \"30s\"")
        })?;
        Ok(Settings {
            idle: typed.idle.or(idle),
            max_active,
            http,
            data,
            data_elsewhere,
            executors,
            pool: typed.pool.or(file.pool).unwrap_or(DEFAULT_POOL),
            isolation: typed.isolation.or(file.isolation).unwrap_or_default(),
            congestion: typed.congestion.clone().or(file.congestion),
            require_isolation: typed.require_isolation.or(file.require_isolation).unwrap_or(false),
            release: typed.release.or(file.release).unwrap_or(false),
            watch: typed.no_watch.map(|no| !no).or(file.watch).unwrap_or(true),
            allow_hosts,
        })
    }

    /// For a node that nobody configures: a free port on loopback.
    pub(crate) fn for_demo() -> Settings {
        Settings {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            data: None,
            data_elsewhere: false,
            executors: 1,
            pool: 1,
            idle: None,
            max_active: None,
            isolation: Isolation::default(),
            congestion: None,
            require_isolation: false,
            release: false,
            watch: false,
            allow_hosts: Vec::new(),
        }
    }
}

impl ConfigFile {
    fn read(path: &Path) -> Result<ConfigFile, Failure> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
            // What is wrong with the directory itself is for the node to say.
            Err(_) if path.parent().is_none_or(|dir| fs::read_dir(dir).is_err()) => {
                return Ok(ConfigFile::default());
            }
            Err(error) => {
                return Err(Failure::host(format!("{} cannot be read", path.display()))
                    .because(&error)
                    .remedy("let this user read it, or remove it"));
            }
        };
        toml::from_str(&text).map_err(|error| {
            let before = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes()[..before].iter().filter(|&&byte| byte == b'\n').count();
            let what = error.message().lines().next().unwrap_or_default().to_owned();
            Failure::usage(format!("{}:{line}: {what}", path.display()))
                .remedy("correct that line, or take it out")
        })
    }
}

fn default_executors() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(DEFAULT_EXECUTORS_MAX))
}

/// An address, or `none`.
fn parse_data(text: &str) -> Result<Option<SocketAddr>, Failure> {
    if text == "none" { Ok(None) } else { parse_http(text).map(Some) }
}

/// `127.0.0.1:7070`, `localhost:7070`, `[::1]:7070`, or a port alone for loopback.
fn parse_http(text: &str) -> Result<SocketAddr, Failure> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let found = text.to_socket_addrs().ok().into_iter().flatten();
    // Of a name with several addresses the IPv4 one: it is what people type into curl.
    let best = found.min_by_key(|address| matches!(address.ip(), IpAddr::V6(_)));
    best.ok_or_else(|| {
        Failure::usage(format!("`{text}` is not an address to serve on"))
            .remedy("write it like 127.0.0.1:7070, or a port alone")
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr};

    use clap::{CommandFactory as _, Parser as _};

    use denizen_image::Isolation;

    use super::{ConfigFile, Settings, parse_http};
    use crate::{cli, terminal::Paint};

    fn typed(words: &[&str]) -> cli::Dev {
        match cli::Cli::parse_from(["denizen", "dev"].iter().chain(words)).command {
            cli::Command::Dev(dev) => dev,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), "http = \"127.0.0.1:9\"\npool = 7\nwatch = false\n")
            .unwrap();
        let settings = Settings::of(&typed(&["--http", "8081"]), dir.path()).unwrap();
        assert_eq!((settings.http.port(), settings.pool, settings.watch), (8081, 7, false));
        assert!(!settings.require_isolation);
        assert_eq!(
            (
                settings.max_active,
                Settings::of(&typed(&["--max-active", "3"]), dir.path()).unwrap().max_active
            ),
            (None, Some(3))
        );
        assert!(Settings::of(&typed(&["--max-active", "0"]), dir.path()).is_err());
        assert_eq!(settings.isolation, Isolation::Ring);
        let relayed = Settings::of(&typed(&["--isolation", "relay"]), dir.path()).unwrap();
        assert_eq!(relayed.isolation, Isolation::Relay);
        assert_eq!(settings.congestion, None);
        let reno = Settings::of(&typed(&["--congestion", "reno"]), dir.path()).unwrap();
        assert_eq!(reno.congestion.as_deref(), Some("reno"));
        assert!(Settings::of(&typed(&["--no-watch=false"]), dir.path()).unwrap().watch);
        assert!(Settings::of(&typed(&["--require-isolation"]), dir.path()).unwrap().require_isolation);
    }

    #[test]
    fn the_data_port_can_be_elsewhere_and_can_be_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let of = |words: &[&str]| Settings::of(&typed(words), dir.path()).unwrap();
        let unsaid = of(&[]);
        assert_eq!((unsaid.data.map(|address| address.port()), unsaid.data_elsewhere), (Some(7071), true));
        assert_eq!(of(&["--data", "none"]).data, None);
        let said = of(&["--data", "7072"]);
        assert_eq!((said.data.map(|address| address.port()), said.data_elsewhere), (Some(7072), false));
        fs::write(dir.path().join("config.toml"), "data = \"none\"\n").unwrap();
        assert_eq!(of(&[]).data, None);
        assert!(Settings::of(&typed(&["--data", "nowhere"]), dir.path()).is_err());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), "# mine\npool = 1\nhtp = \"x\"\n").unwrap();
        let failure = Settings::of(&typed(&[]), dir.path()).unwrap_err();
        let text = failure.to_text(Paint::PLAIN);
        assert!(text.contains("config.toml:3: unknown field `htp`"), "{text}");
        fs::write(dir.path().join("config.toml"), "\n\npool = \"many\"\n").unwrap();
        let text = Settings::of(&typed(&[]), dir.path()).unwrap_err().to_text(Paint::PLAIN);
        assert!(text.contains("config.toml:3: invalid type"), "{text}");
    }

    #[test]
    fn the_page_has_every_flag_variable_and_key() {
        let page = include_str!("../../../docs/settings.md");
        let whole = cli::Cli::command();
        for argument in whole.find_subcommand("dev").unwrap().get_arguments() {
            let Some(variable) = argument.get_env() else { continue };
            let (flag, variable) = (argument.get_long().unwrap(), variable.to_str().unwrap());
            let row = page.lines().find(|line| line.contains(&format!("`{variable}`")));
            assert!(row.is_some_and(|row| row.contains(&format!("`--{flag}"))), "--{flag}, {variable}");
        }
        let refused = toml::from_str::<ConfigFile>("nothing = 1").unwrap_err();
        let (_, keys) = refused.message().split_once("expected one of").unwrap();
        for key in keys.split('`').skip(1).step_by(2) {
            assert!(page.contains(&format!("| `{key}` |")), "{key}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_http("7071").unwrap(), "127.0.0.1:7071".parse::<SocketAddr>().unwrap());
        assert_eq!(parse_http("[::1]:7").unwrap(), "[::1]:7".parse::<SocketAddr>().unwrap());
        for bad in ["", "70700", "127.0.0.1", "nonsense here:1", "1.2.3.4:x"] {
            assert!(parse_http(bad).is_err(), "{bad}");
        }
    }
}
