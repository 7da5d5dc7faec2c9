//! `denizen state`: the same answers whether a sandbox serves the process, none does, or no node runs at all.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::node::{DENIZEN, Node, Start, build_image, repository, text};

/// Keeps objects of several types, and tells what it sees of them.
const SOURCE: &str = r#"
use denizen::prelude::*;
use std::collections::{BTreeMap, HashMap};

#[state]
#[derive(Default)]
struct Book {
    title: String,
    pages: Vec<u32>,
    ratio: f64,
    shelf: Option<Shelf>,
    readers: HashMap<String, i64>,
    index: BTreeMap<u16, String>,
}

#[state]
enum Shelf { Nowhere, Row(u8), At { row: u8, column: u8 } }

#[function]
fn save(cx: &mut Context) -> Result<()> {
    let readers = (0..40).map(|n| (format!("reader {n} of many"), n)).collect();
    let index = (0..40).map(|n| (n, format!("entry {n}"))).collect();
    let shelf = Some(Shelf::At { row: 3, column: 4 });
    let book = Book { title: "A harbour".to_owned(), pages: vec![1, 2, 3], ratio: 0.1, shelf, readers, index };
    cx.put("book", &book)?;
    cx.put("number", &7_u64)?;
    cx.put("shelves/1", &Shelf::Row(9))?;
    cx.put("shelves/2", &Shelf::Nowhere)?;
    cx.put_bytes("text", b"plain text")?;
    cx.put_bytes([0xff, 0, 1], &[0, 159, 146, 150])
}

/// One line that depends on every field.
#[function]
fn read(cx: &Context) -> Result<String> {
    let Some(book) = cx.get::<Book>("book")? else { return Ok("no book".to_owned()) };
    let pages: u32 = book.pages.iter().map(|page| page.to_native()).sum();
    let known = book.readers.get("reader 39 of many").map_or(0, |n| n.to_native());
    let entries = book.index.iter().count();
    let number = cx.get::<u64>("number")?.map_or(0, |n| n.to_native());
    let text = cx.get_bytes("text")?.unwrap_or_default();
    Ok(format!("{} {pages} {known} {entries} {} {number} {}", book.title, book.ratio.to_native(), text.len()))
}

denizen::export!(save, read);
"#;

const SAVED: &str = "A harbour 6 39 40 0.1 7 10";

fn library() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        // Outside of the repository, where an author's package is.
        let parent = tempfile::tempdir().expect("a directory");
        let output = Command::new(DENIZEN).args(["new", "library"]).current_dir(parent.path()).output();
        assert!(output.as_ref().is_ok_and(|output| output.status.success()), "{output:?}");
        let package = parent.path().join("library");
        std::fs::write(package.join("src/lib.rs"), SOURCE).expect("the package is there");
        build_image(&package, "library")
    })
}

fn node_with_objects() -> Node {
    let node = Start::new().node();
    node.deploy(library());
    let reply = node.call("library", "p", "save", b"");
    assert!((200..300).contains(&reply.status), "{}\n{}", reply.body(), node.said());
    node
}

/// Where a process and its node may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    Active,
    Swapped,
    NoNode,
}

/// Brings the node to a stand. Without a node the endpoint file is left behind, as a killed one leaves it.
fn bring_to(node: &mut Node, stand: Stand) {
    match stand {
        Stand::Active => assert_eq!(node.call("library", "p", "read", b"").status, 200),
        Stand::Swapped => drop(node.ok(&["swap", "out", "library/p"])),
        Stand::NoNode => node.kill(),
    }
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn fed(node: &Node, words: &[&str], input: &[u8]) -> Output {
    use std::io::Write as _;
    let mut child = Command::new(DENIZEN)
        .args(words)
        .env("DENIZEN_DIR", node.dir())
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("denizen runs");
    child.stdin.take().expect("piped").write_all(input).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn everything(node: &mut Node, stand: Stand) {
    let keys = |node: &Node, words: &[&str]| {
        let list = json_of(&node.ok(&[&["state", "ls", "library/p", "--json"], words].concat()));
        let rows = list["keys"].as_array().expect("a list").clone();
        rows.iter().map(|row| (row["key"].clone(), row["type"].clone())).collect::<Vec<_>>()
    };
    let expected = [
        (json!("book"), json!("Book")),
        (json!("number"), json!("u64")),
        (json!("shelves/1"), json!("Shelf")),
        (json!("shelves/2"), json!("Shelf")),
        (json!("text"), json!(null)),
        (json!("0xff0001"), json!(null)),
    ];
    assert_eq!(keys(node, &[]), expected, "{stand:?}");
    assert_eq!(keys(node, &["shelves/"]), expected[2..4], "{stand:?}");
    let table = node.ok(&["state", "ls", "library/p"]);
    assert!(
        table.lines().next().is_some_and(|head| head.starts_with("KEY")) && table.contains("0xff0001"),
        "{table}"
    );

    let book = json_of(&node.ok(&["state", "get", "library/p", "book"]));
    assert_eq!(book["title"], "A harbour");
    assert_eq!(book["readers"]["reader 39 of many"], 39);
    assert_eq!(book["index"]["7"], "entry 7");
    assert_eq!(book["shelf"], json!({"At": {"row": 3, "column": 4}}));
    assert_eq!(node.ok(&["state", "get", "library/p", "text"]), "plain text");
    let raw = node.denizen(&["state", "get", "library/p", "0xff0001", "--raw"]);
    assert_eq!(raw.stdout, [0, 159, 146, 150], "{}", text(&raw));
    let object = json_of(&node.ok(&["state", "get", "library/p", "number", "--json"]));
    assert_eq!((&object["value"], &object["type"], &object["bytes"]), (&json!(7), &json!("u64"), &json!(8)));

    // An edit of every kind, and each is there for the function afterwards.
    let mut changed = book.clone();
    changed["title"] = json!("Another harbour");
    changed["pages"] = json!([10, 20]);
    let put = fed(node, &["state", "put", "library/p", "book", "-"], changed.to_string().as_bytes());
    assert!(put.status.success(), "{stand:?}: {}", text(&put));
    node.ok(&["state", "put", "library/p", "number", "18446744073709551615"]);
    node.ok(&["state", "put", "library/p", "text", "--raw", "longer than before"]);
    node.ok(&["state", "put", "library/p", "shelves/3", "--type", "Shelf", r#"{"Row":1}"#]);
    let removed = json_of(&node.ok(&["state", "rm", "library/p", "shelves/1", "--json"]));
    assert_eq!((&removed["key"], &removed["deleted"]), (&json!("shelves/1"), &json!(true)));
    assert_eq!(node.ok(&["state", "get", "library/p", "number"]).trim(), u64::MAX.to_string());
    assert_eq!(
        keys(node, &["shelves/"]),
        [(json!("shelves/2"), json!("Shelf")), (json!("shelves/3"), json!("Shelf"))]
    );

    refusals(node, stand);
}

fn refusals(node: &Node, stand: Stand) {
    let refused = |words: &[&str], remedy: &str| {
        let output = node.denizen(words);
        assert_eq!(output.status.code(), Some(2), "{stand:?} {words:?}: {}", text(&output));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(remedy), "{stand:?} {words:?}: {stderr}");
    };
    refused(&["state", "get", "library/p", "nothing"], "denizen state ls library/p");
    refused(&["state", "rm", "library/p", "text", "nothing"], "denizen state ls library/p");
    refused(&["state", "get", "library/none", "k"], "first call");
    refused(&["state", "ls", "nowhere/p"], "nowhere");
    refused(&["state", "put", "library/p", "book", "{}"], "`title` is missing");
    refused(&["state", "put", "library/p", "number", "-1"], "64 bits");
    refused(&["state", "put", "library/p", "number", "seven"], "--raw");
    refused(&["state", "put", "library/p", "fresh", "1"], "--type");
    refused(&["state", "put", "library/p", "text", "1"], "--raw");
    refused(&["state", "put", "library/p", "fresh", "--type", "Lamp", "1"], "Book");
    refused(&["state", "put", "library/p", "", "--raw", "1"], "key");
    refused(&["state", "put", "library/p", &"k".repeat(1025), "--raw", "1"], "key");
    let output = node.denizen(&["state", "get", "library/p", "nothing", "--json"]);
    assert_eq!(json_of(&String::from_utf8_lossy(&output.stderr))["error"]["blame"], "caller");
    assert_eq!(
        node.ok(&["state", "get", "library/p", "text"]),
        "longer than before",
        "something was deleted"
    );
}

fn seen_by_the_function(node: Node, stand: Stand) {
    // A node that was killed is started again on its directory.
    let dir = node.dir().to_owned();
    let node = if stand == Stand::NoNode { Start::new().dir(&dir).node() } else { node };
    let seen = node.call("library", "p", "read", b"");
    assert_eq!(
        seen.body(),
        "Another harbour 30 39 40 0.1 18446744073709551615 18",
        "{stand:?}\n{}",
        node.said()
    );
}

#[test]
fn objects_of_a_process_that_serves() {
    let mut node = node_with_objects();
    bring_to(&mut node, Stand::Active);
    everything(&mut node, Stand::Active);
    assert_eq!(node.process("library", "p")["phase"], "active");
    seen_by_the_function(node, Stand::Active);
}

#[test]
fn objects_of_a_process_that_rests() {
    let mut node = node_with_objects();
    bring_to(&mut node, Stand::Swapped);
    everything(&mut node, Stand::Swapped);
    assert_eq!(node.process("library", "p")["phase"], "swapped", "a sandbox was started for it");
    seen_by_the_function(node, Stand::Swapped);
}

#[test]
fn objects_without_a_node() {
    let own = tempfile::tempdir().expect("a directory");
    let mut node = Start::new().dir(own.path()).node();
    node.deploy(library());
    assert!(node.call("library", "p", "save", b"").status < 300);
    bring_to(&mut node, Stand::NoNode);
    everything(&mut node, Stand::NoNode);
    let exported = node.ok(&["state", "export", "library/p"]);
    assert_eq!(exported.lines().count(), 6);
    seen_by_the_function(node, Stand::NoNode);
}

#[test]
fn what_is_exported_is_imported() {
    let mut node = node_with_objects();
    let all = node.ok(&["state", "export", "library/p"]);
    let lines: Vec<Value> = all.lines().map(json_of).collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[0]["value"]["title"], "A harbour");
    assert_eq!((&lines[4]["text"], &lines[5]["base64"]), (&json!("plain text"), &json!("AJ+Slg==")));
    let archive = node.dir().join("p.dzs");
    let archive = archive.to_str().expect("UTF-8").to_owned();
    let told =
        json_of(&node.ok(&["state", "export", "library/p", "--format", "archive", "-o", &archive, "--json"]));
    assert_eq!(told["keys"], 6);
    assert_eq!(&std::fs::read(&archive).expect("it is there")[..8], b"DZSTATE1");

    let seen = |node: &Node, process: &str| node.call("library", process, "read", b"").body();
    assert_eq!((seen(&node, "by-lines"), seen(&node, "by-archive")), ("no book".into(), "no book".into()));
    let output = fed(&node, &["state", "import", "library/by-lines"], all.as_bytes());
    assert!(output.status.success(), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("6 objects are put"), "{}", text(&output));
    node.ok(&["state", "import", "library/by-archive", &archive]);
    assert_eq!((seen(&node, "by-lines"), seen(&node, "by-archive")), (SAVED.into(), SAVED.into()));

    // At rest, with the node and without.
    assert_eq!(seen(&node, "later"), "no book");
    node.ok(&["swap", "out", "library/later"]);
    node.ok(&["state", "import", "library/later", &archive]);
    assert_eq!(seen(&node, "later"), SAVED);
    let cut = node.dir().join("cut.dzs");
    let bytes = std::fs::read(&archive).expect("it is there");
    std::fs::write(&cut, &bytes[..bytes.len() - 5]).expect("it can be written");
    let cut = cut.to_str().expect("UTF-8").to_owned();
    assert_eq!(seen(&node, "last"), "no book");
    node.kill();
    for (input, words) in [
        (&b""[..], &["state", "import", "library/last", &cut][..]),
        (b"{\"key\":\"a\",\"text\":\"1\"}\n\n{\"key\":\"b\"", &["state", "import", "library/last"]),
        (
            b"{\"key\":\"a\",\"text\":\"1\"}\n{\"key\":\"number\",\"type\":\"u64\",\"value\":-1}",
            &["state", "import", "library/last"],
        ),
    ] {
        let output = fed(&node, words, input);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    }
    assert_eq!(node.ok(&["state", "export", "library/last"]), "", "half an import was kept");
    node.ok(&["state", "import", "library/last", &archive]);
    assert_eq!(node.ok(&["state", "export", "library/last"]).lines().count(), 6);
}

#[test]
fn without_a_node_a_damaged_object_costs_itself_alone() {
    let own = tempfile::tempdir().expect("a directory");
    let mut node = Start::new().dir(own.path()).node();
    node.deploy(library());
    assert!(node.call("library", "p", "save", b"").status < 300);
    node.ok(&["swap", "out", "library/p"]);
    node.kill();
    let mut hits = 0;
    for epoch in std::fs::read_dir(own.path().join("swap/library/p")).expect("it was swapped out") {
        for segment in std::fs::read_dir(epoch.expect("an entry").path()).expect("a folder of segments") {
            let path = segment.expect("an entry").path();
            let mut bytes = std::fs::read(&path).expect("it can be read");
            let found = bytes.windows(10).position(|window| window == b"plain text");
            if let Some(at) = found {
                bytes[at] ^= 1;
                hits += 1;
            }
            std::fs::write(path, bytes).expect("it can be written");
        }
    }
    assert_eq!(hits, 1);
    let output = node.denizen(&["state", "get", "library/p", "text"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(node.ok(&["state", "get", "library/p", "number"]).trim(), "7");
    let output = node.denizen(&["state", "export", "library/p"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let output = node.denizen(&["state", "export", "library/p", "--salvage"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 5, "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("\"text\"") && said.contains("no export has files"), "{said}");
    // Deleting it heals.
    node.ok(&["state", "rm", "library/p", "text"]);
    assert_eq!(node.ok(&["state", "export", "library/p"]).lines().count(), 5);
}

#[test]
fn a_directory_without_a_node_is_said() {
    let own = tempfile::tempdir().expect("a directory");
    let output = Command::new(DENIZEN)
        .args(["state", "ls", "a/p", "--dir"])
        .arg(own.path())
        .current_dir(repository())
        .output()
        .expect("denizen runs");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no node runs on"), "{}", text(&output));
    assert!(std::fs::read_dir(own.path()).expect("it is there").next().is_none(), "it was made into one");
}
