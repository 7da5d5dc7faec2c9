//! Requests that are wrong. The caller is told what and why; the node lives.

use crate::node::{Node, Start, agent, c_image_with};
use std::io::{Read, Write};

/// Sends bytes as they are and returns what comes back until the node closes or pauses.
fn raw(node: &Node, bytes: &[u8]) -> String {
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_millis(1500))).unwrap();
    let _ = stream.write_all(bytes);
    let mut all = vec![];
    let mut chunk = [0; 4096];
    while let Ok(got) = stream.read(&mut chunk) {
        if got == 0 {
            break;
        }
        all.extend_from_slice(&chunk[..got]);
        let text = String::from_utf8_lossy(&all);
        if text.contains("\r\n\r\n") && text.trim_end().ends_with('}') {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn raw_call(node: &Node, process: &[u8]) -> String {
    let mut request = b"POST /v1/apps/faulty/processes/".to_vec();
    request.extend_from_slice(process);
    request.extend_from_slice(
        format!(
            "/functions/count HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            node.address()
        )
        .as_bytes(),
    );
    raw(node, &request)
}

#[test]
fn names_that_are_none_are_refused() {
    let node = Node::with_faulty();
    let long = "x".repeat(10_000);
    for name in [
        "..", ".", "a%2Fb", "%2e%2e", "a%00b", "a%ff%feb", ".hidden", "-dash", "a%20b", "", "%", "%zz", &long,
    ] {
        let reply = raw_call(&node, name.as_bytes());
        let status = reply.get(9..12).unwrap_or("none").to_owned();
        assert!(["400", "404", "414", "431"].contains(&status.as_str()), "{:.60}: {reply:.300}", name);
        assert!(!reply.contains("panicked"), "{reply}");
    }
    for bytes in [&b"a\xff\xfeb"[..], b"a\0b"] {
        let reply = raw_call(&node, bytes);
        assert!(reply.starts_with("HTTP/1.1 4") || reply.is_empty(), "{reply:.200}");
    }
    let bad = raw_call(&node, b"a%2Fb");
    assert!(bad.contains("urn:denizen:problem:bad-name") && bad.contains("\"blame\":\"caller\""), "{bad}");
    node.assert_others_work("faulty");
    // None of them became a process.
    let list = node.get("/v1/apps/faulty/processes").json();
    assert_eq!(list["processes"].as_array().map(Vec::len), Some(1), "{list}");
}

#[test]
fn unknown_things_are_named() {
    let node = Node::with_faulty();
    node.call("nobody", "p", "count", b"").problem(404, "unknown-app", "caller");
    let problem = node.call("faulty", "p", "conut", b"").problem(404, "unknown-function", "caller");
    assert!(problem.to_string().contains("count"), "it names what there is: {problem}");
    assert_eq!(node.get("/v1/apps/faulty/processes/p").status, 404, "a call that cannot be does not create");
    assert_eq!(node.get("/nowhere").problem(404, "unknown-path", "caller")["retry"], "never");
    let reply = node.get("/v1/apps/faulty/processes/p/functions/count");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    node.assert_others_work("faulty");
}

#[test]
fn a_body_over_the_limit_is_refused_with_the_limit() {
    let node = Node::with_faulty();
    let body = vec![0; (1 << 20) + 1];
    let problem = node.call("faulty", "p", "echo", &body).problem(413, "body-too-large", "caller");
    assert!(problem["detail"].as_str().unwrap().contains("1 MiB"), "{problem}");
    // The same without a length up front.
    let mut request = format!(
        "POST /v1/apps/faulty/processes/p/functions/echo HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        node.address()
    )
    .into_bytes();
    for _ in 0..40 {
        request.extend_from_slice(b"10000\r\n");
        request.extend_from_slice(&[b'x'; 0x10000]);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let reply = raw(&node, &request);
    assert!(reply.starts_with("HTTP/1.1 413") && reply.contains("body-too-large"), "{reply:.300}");
    node.assert_others_work("faulty");
    assert_eq!(node.call("faulty", "p", "count", b"").status, 200, "the same process works on");
}

#[test]
fn a_page_of_another_site_gets_nothing() {
    let node = Node::with_faulty();
    let path = "/v1/apps/faulty/processes/p/functions/count";
    node.post(path, &[("Origin", "https://evil.example")], b"").problem(403, "foreign-origin", "caller");
    node.post(path, &[("Origin", "null")], b"").problem(403, "foreign-origin", "caller");
    node.post(path, &[("Host", "evil.example")], b"").problem(403, "foreign-host", "caller");
    let own = format!("http://{}", node.address());
    assert_eq!(node.post(path, &[("Origin", &own)], b"").status, 200);
    let local = format!("localhost:{}", node.address().port());
    assert_eq!(node.post(path, &[("Host", &local)], b"").status, 200);
}

#[test]
fn changes_need_the_token() {
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    for bearer in [None, Some("Bearer wrong"), Some("Basic xyz"), Some("")] {
        let mut request = agent().delete(node.url("/v1/apps/faulty/processes/p"));
        if let Some(bearer) = bearer {
            request = request.header("Authorization", bearer);
        }
        assert_eq!(request.call().unwrap().status(), 401, "{bearer:?}");
    }
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "1", "nothing was deleted");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(node.dir().join("token")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600, "only its owner reads the token");
}

#[test]
fn bytes_that_are_no_http_do_not_hurt() {
    let node = Node::with_faulty();
    for bytes in [
        &b"\0\0\0\0"[..],
        b"GET",
        b"\x16\x03\x01\x02\x00\x01\x00",
        &[b'A'; 100_000],
        b"POST / HTTP/9.9\r\n\r\n",
    ] {
        let _ = raw(&node, bytes);
    }
    // A body that breaks off: the function must not see half of it as the whole.
    let mut stream = std::net::TcpStream::connect(node.address()).unwrap();
    let head = format!(
        "POST /v1/apps/faulty/processes/p/functions/count HTTP/1.1\r\nHost: {}\r\nContent-Length: 100000\r\n\r\nhalf",
        node.address()
    );
    stream.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(stream);
    node.assert_others_work("faulty");
}

#[test]
fn bad_headers_are_named() {
    let node = Node::with_faulty();
    let path = "/v1/apps/faulty/processes/p/functions/count";
    for (name, value) in
        [("Denizen-Deadline-Ms", "soon"), ("Denizen-Deadline-Ms", "0"), ("Denizen-Create", "maybe")]
    {
        let problem = node.post(path, &[(name, value)], b"").problem(400, "bad-header", "caller");
        assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
    }
}

#[test]
fn a_shorter_deadline_of_the_caller_counts() {
    let node = Start::new().node();
    // Nobody would wait for the image's own.
    node.deploy(&c_image_with("patient", include_str!("room.c"), &[], "[limits]\ndeadline = \"1h\"\n"));
    let path = "/v1/apps/patient/processes/p/functions/wait";
    node.post(path, &[("Denizen-Deadline-Ms", "100")], b"").problem(504, "deadline-exceeded", "function");
    assert_eq!(node.call("patient", "bystander", "quick", b"").status, 200);
}
