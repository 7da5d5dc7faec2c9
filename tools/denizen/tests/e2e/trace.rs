//! The `traceparent` of W3C Trace Context: from callers of every kind to the function, and to the lines of its log.

use std::io::Write as _;

use denizen_framed::{Connection, Options, Request, TraceParent};
use denizen_protocol::client::Call;

use crate::node::Node;
use crate::peer::{Mode, Peer, address, hello, in_both_modes};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

in_both_modes! {
    a_trace_reaches_the_function_and_its_lines,
    what_is_no_trace_is_none,
    clients_set_it_call_by_call,
}

fn traced() -> Call<'static> {
    Call { traceparent: TraceParent::from_text(TRACE), ..Call::new("traced") }
}

/// The lines of a process that a call made, with the trace that each belongs to.
fn lines(node: &Node, process: &str) -> Vec<(String, Option<String>)> {
    let said = node.ok(&["logs", &format!("faulty/{process}"), "--json"]);
    let lines = said.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of_calls = lines.filter(|line| line["stream"] != "host");
    let text = |line: &serde_json::Value, member: &str| line[member].as_str().map(str::to_owned);
    of_calls.map(|line| (text(&line, "text").unwrap(), text(&line, "traceparent"))).collect()
}

fn a_trace_reaches_the_function_and_its_lines(mode: Mode) {
    let node = mode.with_faulty();
    let mut bound = Peer::open(&node, "bound");
    let id = bound.begin(&traced(), b"");
    assert_eq!(bound.end(id).unwrap().text(), TRACE);
    mode.assert_served(&node, "bound");
    assert_eq!(bound.call("traced", b"").unwrap().text(), "none", "the next call is of none");
    let logged = |trace: Option<&str>| ("logged".to_owned(), trace.map(str::to_owned));
    let of_bound = lines(&node, "bound");
    assert!(of_bound.contains(&logged(Some(TRACE))) && of_bound.contains(&logged(None)), "{of_bound:?}");

    let mut unbound = Peer::with(&node, &hello(&node, None));
    let there = Call { process: Some("unbound"), ..traced() };
    let id = unbound.begin(&there, b"");
    assert_eq!(unbound.end(id).unwrap().text(), TRACE);

    let path = |process: &str| format!("/v1/apps/faulty/processes/{process}/functions/traced");
    let reply = node.post(&path("http"), &[("traceparent", TRACE)], b"");
    assert_eq!((reply.status, reply.body().as_str()), (200, TRACE));
    for process in ["unbound", "http"] {
        let of_calls = lines(&node, process);
        assert_eq!(of_calls.len(), 2, "{of_calls:?}");
        assert!(of_calls.iter().all(|(_, trace)| trace.as_deref() == Some(TRACE)), "{of_calls:?}");
    }
    // A call that finds its process by itself, too.
    let reply = node.post("/v1/apps/faulty/functions/traced", &[("traceparent", TRACE)], b"");
    assert_eq!((reply.status, reply.body().as_str()), (200, TRACE));
}

fn what_is_no_trace_is_none(mode: Mode) {
    let node = mode.with_faulty();
    for wrong in [
        "",
        "00",
        "no trace",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-00",
    ] {
        let reply = node.post("/v1/apps/faulty/processes/p/functions/traced", &[("traceparent", wrong)], b"");
        assert_eq!((reply.status, reply.body().as_str()), (200, "none"), "{wrong:?}");
    }
    // In frames: the bytes of a real one, blotted out in place.
    let ours = TraceParent::from_text(TRACE).unwrap().to_bytes();
    for blotted in [0..16, 16..24] {
        let mut peer = Peer::open(&node, "p");
        let mut out = Vec::new();
        let id = peer.protocol.call(&traced(), 0, true, &mut out).unwrap();
        let at = out.windows(ours.len()).position(|bytes| bytes == ours).unwrap();
        out[at..][blotted].fill(0);
        peer.stream.write_all(&out).unwrap();
        assert_eq!(peer.end(id).unwrap().text(), "none");
    }
}

fn clients_set_it_call_by_call(mode: Mode) {
    let node = mode.with_faulty();
    let token = node.ok(&["token", "issue", "--app", "faulty"]);
    let options = Options::new(address(&node).to_string(), "faulty").process("p").token(token.trim());
    let with = || Request::new("traced").traceparent(TraceParent::from_text(TRACE).unwrap());

    let mut connection = Connection::open(options).unwrap();
    assert_eq!(*connection.call(with(), b"").unwrap().body, *TRACE.as_bytes());
    assert_eq!(*connection.call(Request::new("traced"), b"").unwrap().body, *b"none");

    for way in [&[][..], &["--http"]] {
        let said = node.ok(&[&["invoke", "faulty/p", "traced", "--traceparent", TRACE], way].concat());
        assert_eq!(said.trim(), TRACE, "{way:?}");
    }
}
