//! The client against a peer that says exactly what each test wants, the way a broken node or a stranger might.

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use denizen_client::{Blame, Call, ClientError, DeployOptions, Input, LogQuery, Node};

/// Answers one connection with `answer` once the head of its request is in, and hands the request over.
fn fake_node(answer: impl AsRef<[u8]>) -> (Node, mpsc::Receiver<String>) {
    let answer = answer.as_ref().to_vec();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let node =
        Node::at(&listener.local_addr().expect("bound").to_string()).expect("an address").with_token("T0KEN");
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("a caller");
        let mut seen = Vec::new();
        let mut buf = [0; 4096];
        while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
            match peer.read(&mut buf) {
                Ok(0) | Err(_) => break,
                Ok(n) => seen.extend_from_slice(&buf[..n]),
            }
        }
        peer.write_all(&answer).expect("it is sent");
        // The rest of the body, so that closing does not reset the connection under the answer.
        peer.set_read_timeout(Some(std::time::Duration::from_millis(200))).expect("not zero");
        while let Ok(n @ 1..) = peer.read(&mut buf) {
            seen.extend_from_slice(&buf[..n]);
        }
        drop(peer);
        let _ = tell.send(String::from_utf8_lossy(&seen).into_owned());
    });
    (node, told)
}

/// A whole answer with its length.
fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn counter_call() -> Call<'static> {
    Call { app: "counter", process: Some("alice"), function: "increment", ..Call::default() }
}

#[test]
fn a_call_is_spelled_as_the_interface_says() {
    let head = "200 OK\r\nDenizen-Commit: 7\r\nDenizen-Process: alice\r\nDenizen-Replayed: true\r\nContent-Type: application/json";
    let (node, told) = fake_node(answer(head, r#"{"count":2}"#));
    let call = Call {
        deadline: Some(std::time::Duration::from_micros(1)),
        never_create: true,
        idempotency_key: Some("order \"7\\"),
        durability: Some("node"),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        content_type: Some("text/x"),
        ..counter_call()
    };
    let mut reply = node.call(&call, Input::Bytes(b"{\"by\":2}")).unwrap();
    let mut text = String::new();
    reply.read_to_string(&mut text).unwrap();
    assert_eq!(text, "{\"count\":2}");
    assert_eq!((reply.head.commit, reply.head.process.as_deref()), (Some(7), Some("alice")));
    assert!(reply.head.replayed);
    drop(reply);
    drop(node);
    let request = told.recv().unwrap().to_ascii_lowercase();
    assert!(
        request.starts_with("post /v1/apps/counter/processes/alice/functions/increment http/1.1\r\n"),
        "{request}"
    );
    for expected in [
        "denizen-deadline-ms: 1\r\n",
        "denizen-create: never\r\n",
        "denizen-durability: node\r\n",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
        "idempotency-key: \"order \\\"7\\\\\"\r\n",
        "content-type: text/x\r\n",
        "content-length: 8\r\n",
        "authorization: bearer t0ken\r\n",
    ] {
        assert!(request.contains(expected), "{expected} is missing in {request}");
    }
}

#[test]
fn a_problem_arrives_whole() {
    let body = r#"{"type":"urn:denizen:problem:function-panicked","title":"the function panicked","status":500,
        "detail":"d","blame":"function","retry":"safe"}"#;
    let (node, _told) = fake_node(answer("500 Oops\r\nContent-Type: application/problem+json", body));
    let error = node.call(&counter_call(), Input::Bytes(b"")).unwrap_err();
    assert_eq!(error.blame(), Blame::Function);
    assert_eq!(error.problem().unwrap().name(), "function-panicked");
}

#[test]
fn an_early_refusal_of_a_large_body_is_heard() {
    let body = r#"{"type":"urn:denizen:problem:body-too-large","title":"too large","blame":"caller","retry":"never"}"#;
    let (node, _told) = fake_node(answer("413 No\r\nConnection: close", body));
    let mut body = io::repeat(b'x').take(64 << 20);
    let input = Input::Stream { reader: &mut body, len_bytes: Some(64 << 20) };
    let error = node.call(&counter_call(), input).unwrap_err();
    assert!(matches!(error, ClientError::Problem(_)), "{error:?}");
    assert!(body.limit() == 64 << 20, "nothing of the body is sent to a node that refuses it");
}

#[test]
fn an_input_that_cannot_be_read_is_not_the_nodes_fault() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::IsADirectory))
        }
    }
    let (node, _told) = fake_node(b"HTTP/1.1 100 Continue\r\n\r\n");
    let error =
        node.call(&counter_call(), Input::Stream { reader: &mut Broken, len_bytes: None }).unwrap_err();
    assert!(matches!(error, ClientError::Input { .. }), "{error:?}");
    assert_eq!(error.blame(), Blame::Caller);
}

#[test]
fn a_reply_that_breaks_off_is_an_error_and_not_a_short_reply() {
    let (node, _told) = fake_node(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
    let mut reply = node.call(&counter_call(), Input::Bytes(b"")).unwrap();
    assert!(reply.read_to_end(&mut Vec::new()).is_err());

    let (node, _told) = fake_node(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\n");
    let mut reply = node.call(&counter_call(), Input::Bytes(b"")).unwrap();
    assert!(reply.read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn silence_garbage_and_absence_are_three_things() {
    let (node, _told) = fake_node(b"");
    let error = node.info().unwrap_err();
    assert!(matches!(error, ClientError::BrokeOff { .. }), "{error:?}");

    let (node, _told) = fake_node(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]");
    let error = node.info().unwrap_err();
    assert!(matches!(error, ClientError::Nonsense { .. }), "{error:?}");

    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Node::at(&port.to_string()).unwrap().info().unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");

    assert!(matches!(Node::at("not an address"), Err(ClientError::BadAddress { .. })));
    let nowhere = Node::on_directory(std::path::Path::new("/nonexistent/denizen")).unwrap_err();
    assert!(matches!(nowhere, ClientError::NoNode { .. }), "{nowhere:?}");
}

#[test]
fn a_deploy_sends_its_archive_with_its_length() {
    // The node agrees to the archive first: it is asked to, so that a refusal is heard before a long archive is sent.
    let agreed = answer("200 OK", r#"{"app":"a","image":"0","x":1}"#);
    let (node, told) = fake_node(format!("HTTP/1.1 100 Continue\r\n\r\n{agreed}"));
    let options = DeployOptions { replace_layout: true };
    let deployed = node.deploy("a", &mut &b"TARTAR"[..], 6, options).unwrap();
    assert_eq!(deployed.more["x"], 1);
    drop(node);
    let request = told.recv().unwrap().to_ascii_lowercase();
    assert!(
        ["content-length: 6\r\n", "denizen-layout: replace\r\n", "expect: 100-continue\r\n"]
            .iter()
            .all(|header| request.contains(header)),
        "{request}"
    );
    assert!(request.ends_with("tartar"), "{request}");
}

#[test]
fn logs_end_with_the_node() {
    let line = r#"{"at":"t","app":"a","process":"p","invocation":null,"stream":"output","text":"hi"}"#;
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (node, _told) = fake_node(format!("{head}{:x}\r\n{line}\n\r\n", line.len() + 1));
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let lines: Vec<_> = node.logs(&query).unwrap().take(3).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].as_ref().unwrap().text, "hi");
}

#[test]
fn a_log_that_is_garbage_is_one_error_and_then_over() {
    let (node, _told) = fake_node("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    let lines: Vec<_> = node.logs(&LogQuery::default()).unwrap().take(3).collect();
    assert!(matches!(lines[..], [Err(_)]), "{lines:?}");
}
