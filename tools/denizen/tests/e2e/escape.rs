//! A plugin that uses its ring by itself, once its process has connections: their sockets lead nowhere but to their clients, whatever
//! the plugin tells the agent about them.

use std::net::TcpListener;

use denizen_protocol::Hello;
use denizen_protocol::token::Claims;

use crate::isolation::has_rings;
use crate::node::{Node, PATIENCE, Start, await_within, c_image};
use crate::peer::{Peer, claims, issue};

/// Connections of one attempt. The more, the likelier is it that one of them is open to the world for a moment, if any can be.
const CONNECTIONS: usize = 32;
/// The same where nothing depends on the moment.
const LATER: usize = 4;

/// A send with `MSG_FASTOPEN` connects a socket that was disconnected, in the network of the host. So no socket may be disconnected
/// that a sandbox can still send on.
#[test]
fn a_connection_that_is_reset_does_not_lead_elsewhere() {
    if !has_rings() {
        return denizen_testing::skip("a_connection_that_is_reset_does_not_lead_elsewhere", "no rings here");
    }
    let node = Start::new().args(&["--executors", "1", "--isolation", "ring"]).node();
    node.deploy(&c_image("escape", include_str!("escape.c")));
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    // Its runner, which uses the same ring, sometimes comes in between, or ends.
    let tried = (0..24).map(|attempt| {
        let said = attack(&node, "escape", attempt, CONNECTIONS, port);
        assert!(elsewhere.accept().is_err(), "a sandbox connected to a port of the host: {said}");
        said
    });
    let tried: Vec<_> = tried.collect();
    // One at least used its ring undisturbed: a no-op was done, and the first socket was connected as long as nobody had reset it.
    let connected = rustix::io::Errno::ISCONN.raw_os_error();
    let undisturbed = format!("nop 0, first -{connected}, told {}, ", 32 * CONNECTIONS);
    assert!(tried.iter().any(|said| said.contains(&undisturbed)), "{tried:?}");
}

/// What was begun on a socket keeps it, also when its place in the table is empty. So no socket is disconnected that a living sandbox was
/// given, at no time.
#[test]
fn what_waits_on_a_connection_that_is_reset_does_not_lead_elsewhere() {
    if !has_rings() {
        let name = "what_waits_on_a_connection_that_is_reset_does_not_lead_elsewhere";
        return denizen_testing::skip(name, "no rings here");
    }
    let node = Start::new().args(&["--executors", "1", "--isolation", "ring"]).node();
    node.deploy(&c_image("escape", include_str!("escape.c")));
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    // Here, too, its runner sometimes comes in between, or ends.
    let tried = (0..8).map(|attempt| {
        let said = attack(&node, "escape_later", attempt, LATER, port);
        assert!(elsewhere.accept().is_err(), "a sandbox connected to a port of the host: {said}");
        said
    });
    let tried: Vec<_> = tried.collect();
    let undisturbed = format!("begun 0, told {}", 32 * LATER);
    assert!(tried.iter().any(|said| said.contains(&undisturbed)), "{tried:?}");
}

/// One process tells the agent that all of its connections broke, and tries to connect them to a port of the host. What is in its log.
fn attack(node: &Node, function: &str, attempt: usize, connections: usize, port: u16) -> String {
    let process = &*format!("p{attempt}");
    let claims = Claims { app: "escape".to_owned(), ..claims() };
    let hello = Hello { token: issue(node, &claims), ..Hello::new("escape", Some(process)) };
    let mut peers: Vec<_> = (0..connections).map(|_| Peer::with(node, &hello)).collect();
    for peer in &mut peers {
        assert_eq!(peer.call("greet", b"").unwrap().text(), "hello");
    }
    assert_eq!(node.process("escape", process)["connections"]["given"], connections, "{}", node.said());
    // As the agent numbers them: each takes one before it is bound, too.
    let first = attempt * connections + 1;
    let numbers = (first..first + connections).map(|count| (2 * count).to_string());
    let input = std::iter::once(port.to_string()).chain(numbers).collect::<Vec<_>>().join(" ");
    node.call("escape", process, function, input.as_bytes());
    let log = || node.ok(&["logs", &format!("escape/{process}")]);
    let is_over = || log().contains("told ") || log().contains("[ended");
    await_within(PATIENCE, is_over, || format!("{}\n{}", log(), node.said()));
    log()
}
