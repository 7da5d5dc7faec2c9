//! Who may talk to the node at all: no web page that a developer happens to open. Pure.
//!
//! A page can make a browser send requests here in two ways. With a name of its own that resolves to this machine (DNS rebinding), the
//! `Host` is foreign; from its own site, the `Origin` is. Addresses cannot be rebound, so this node's own are accepted with any port
//! (a forwarded one differs from ours); a name must be on the list.

use std::net::{IpAddr, SocketAddr};

use crate::front::routes::shown;
use crate::problem::{Kind, Problem};

/// The hosts that this node answers to.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    /// The commonest `Host` as it stands on the wire.
    own: String,
    ip: IpAddr,
    /// Lower case.
    names: Vec<String>,
}

impl Hosts {
    /// The address that is listened on, and names that an operator allowed.
    pub(crate) fn new(address: SocketAddr, names: &[String]) -> Hosts {
        let names = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Hosts { own: address.to_string(), ip: address.ip(), names }
    }

    /// Checks the `Host` (or the authority of an absolute request target) and the `Origin` of a request.
    ///
    /// # Errors
    /// `foreign-host`, `foreign-origin`.
    pub(crate) fn check(&self, host: Option<&[u8]>, origin: Option<&[u8]>) -> Result<(), Problem> {
        let host = host.unwrap_or_default();
        if host != self.own.as_bytes() && !std::str::from_utf8(host).is_ok_and(|host| self.is_ours(host)) {
            let shown = shown(&String::from_utf8_lossy(host));
            return Err(Problem::new(
                Kind::ForeignHost,
                format!("the request names the host {shown}, which is not this node"),
            ));
        }
        match origin {
            Some(origin) if !is_same_site(origin, host) => {
                let shown = shown(&String::from_utf8_lossy(origin));
                Err(Problem::new(
                    Kind::ForeignOrigin,
                    format!("the request comes from {shown}, which is not this node"),
                ))
            }
            _ => Ok(()),
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = without_port(host);
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            // Listening on all addresses, any of them may be ours.
            return ip == self.ip || ip.is_loopback() || self.ip.is_unspecified();
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
    }
}

/// A host without its port; an IPv6 address keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) && !name.ends_with(':') => {
            if name.starts_with('[') == name.ends_with(']') {
                name
            } else {
                host
            }
        }
        _ => host,
    }
}

/// An origin is this node's when it is exactly what the request names as host: same name, same port.
fn is_same_site(origin: &[u8], host: &[u8]) -> bool {
    origin.strip_prefix(b"http://").is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        Hosts::new("127.0.0.1:7070".parse().unwrap(), &["node.example".to_owned()])
    }

    fn answer(host: &str, origin: Option<&str>) -> Result<(), Kind> {
        hosts().check(Some(host.as_bytes()), origin.map(str::as_bytes)).map_err(|problem| problem.kind())
    }

    #[test]
    fn own_names_are_accepted_with_any_port() {
        for host in [
            "127.0.0.1:7070",
            "127.0.0.1",
            "localhost:7070",
            "LOCALHOST",
            "localhost.",
            "[::1]:7070",
            "[::1]",
            "Node.Example:80",
        ] {
            assert_eq!(answer(host, None), Ok(()), "{host}");
        }
    }

    #[test]
    fn foreign_names_are_refused() {
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1:7070",
            "",
            "xnode.example",
            "::",
            "[::1",
        ] {
            assert_eq!(answer(host, None), Err(Kind::ForeignHost), "{host}");
        }
        assert_eq!(hosts().check(None, None).map_err(|problem| problem.kind()), Err(Kind::ForeignHost));
    }

    #[test]
    fn only_the_nodes_own_pages_are_no_foreign_origin() {
        assert_eq!(answer("localhost:7070", Some("http://localhost:7070")), Ok(()));
        for origin in [
            "null",
            "",
            "https://localhost:7070",
            "http://localhost",
            "http://localhost:3000",
            "http://evil.example",
            "http://127.0.0.1:7070",
        ] {
            assert_eq!(answer("localhost:7070", Some(origin)), Err(Kind::ForeignOrigin), "{origin}");
        }
    }

    #[test]
    fn a_node_on_all_addresses_accepts_each_of_them() {
        let hosts = Hosts::new("0.0.0.0:80".parse().unwrap(), &[]);
        assert!(hosts.check(Some(b"192.0.2.7"), None).is_ok());
        assert!(hosts.check(Some(b"evil.example"), None).is_err());
    }
}
