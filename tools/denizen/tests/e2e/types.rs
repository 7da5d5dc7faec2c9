//! Types that changed between two images of an application: migrated when they are met, refused, or a typed error.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::node::{DENIZEN, Node, Reply, Start, build_image, text};

/// Images of one package as it grew.
#[derive(Debug)]
struct Versions {
    v1: PathBuf,
    /// Migrates from V1, unless the count is 13.
    v2: PathBuf,
    /// Laid out as V2, without the migration.
    v2_bare: PathBuf,
    /// Migrates from V1 by way of V2.
    v3: PathBuf,
    /// Migrates from V2 only.
    v3_forgetful: PathBuf,
}

/// They are built once, one after the other in one package, so that the SDK is compiled once.
fn versions() -> &'static Versions {
    static VERSIONS: OnceLock<Versions> = OnceLock::new();
    VERSIONS.get_or_init(|| {
        // Outside of the repository, as an author's package is.
        let parent = tempfile::tempdir().expect("a temporary directory");
        let package = new_package(parent.path());
        let build = |name: &str, types: &[&str]| {
            let source = [&[HEAD], types, &[FUNCTIONS]].concat().concat();
            std::fs::write(package.join("src/lib.rs"), source).expect("the package is there");
            build_image(&package, &format!("types-{name}"))
        };
        Versions {
            v1: build("v1", &[V1, NO_OLDER]),
            v2: build("v2", &[OLD_V1, V2, FROM_V1, OLDER_V1]),
            v2_bare: build("v2-bare", &[V2, NO_OLDER]),
            v3: build(
                "v3",
                &[
                    OLD_V1,
                    OLD_V2,
                    V3,
                    &FROM_V1.replace("Counter {", "CounterV2 {").replace("<Counter>", "<CounterV2>"),
                    FROM_V2,
                    OLDER_V1,
                ],
            ),
            v3_forgetful: build("v3-forgetful", &[OLD_V2, V3, FROM_V2, NO_OLDER]),
        }
    })
}

fn new_package(parent: &Path) -> PathBuf {
    let output = Command::new(DENIZEN).args(["new", "types"]).current_dir(parent).output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output));
    parent.join("types")
}

const HEAD: &str = "use denizen::prelude::*;\n";

const V1: &str = r#"
#[state]
#[derive(Default)]
struct Counter { count: u64 }
"#;

const OLD_V1: &str = r#"
#[state(name = "Counter")]
struct CounterV1 { count: u64 }
"#;

const V2: &str = r#"
#[state]
#[derive(Default)]
struct Counter { count: u64, name: String }
"#;

const OLD_V2: &str = r#"
#[state(name = "Counter")]
struct CounterV2 { count: u64, name: String }
"#;

const V3: &str = r#"
#[state]
#[derive(Default)]
struct Counter { count: u64, name: String, tags: Vec<String> }
"#;

const FROM_V1: &str = r#"
#[migrate]
fn from_v1(old: CounterV1) -> Result<Counter> {
    if old.count == 13 {
        return Err(failed("13 cannot be carried over"));
    }
    Ok(Counter { count: old.count, name: "from-v1".into() })
}
"#;

const FROM_V2: &str = r#"
#[migrate]
fn from_v2(old: &Archived<CounterV2>) -> Counter {
    Counter { count: old.count.to_native(), name: old.name.to_string(), tags: vec!["from-v2".into()] }
}
"#;

/// Whether what is stored has the layout of the first version, as far as this one knows that.
const OLDER_V1: &str = "fn older(info: denizen::KeyInfo) -> bool { info.is::<CounterV1>() }\n";
const NO_OLDER: &str = "fn older(_: denizen::KeyInfo) -> bool { false }\n";

const FUNCTIONS: &str = r#"
#[function]
fn count(cx: &mut Context) -> Result<String> {
    let mut counter = cx.edit_or_default::<Counter>("counter")?;
    counter.count += 1;
    Ok(counter.count.to_string())
}

#[function]
fn count_in_place(cx: &mut Context) -> Result<String> {
    let count = cx.update::<Counter, _>("counter", |counter| {
        munge!(let ArchivedCounter { mut count, .. } = counter);
        *count += 1;
        count.to_native()
    })?;
    Ok(count.unwrap_or_default().to_string())
}

#[function]
fn set(cx: &mut Context, count: &str) -> Result<()> {
    cx.put("counter", &Counter { count: count.parse().map_err(bad_input)?, ..Counter::default() })
}

#[function]
fn read(cx: &Context) -> Result<String> {
    Ok(cx.get::<Counter>("counter")?.map_or_else(|| "none".into(), |counter| format!("{counter:?}")))
}

#[function]
fn stored_as(cx: &Context) -> Result<&'static str> {
    let info = cx.info("counter")?.ok_or_else(|| bad_input("none"))?;
    Ok(if info.is::<Counter>() { "this" } else if older(info) { "v1" } else { "another" })
}

/// Keys of every length that there can be, and of some that there cannot.
#[function]
fn keys(cx: &mut Context) -> Result<String> {
    let mut told = String::new();
    for len in [0, 1, denizen::MAX_KEY_BYTES, denizen::MAX_KEY_BYTES + 1, 64 * 1024] {
        let kept = cx.put_bytes(vec![b'k'; len], b"v").is_ok();
        told.push_str(&format!("{len}:{kept} "));
    }
    Ok(told)
}

denizen::export!(count, count_in_place, set, read, stored_as, keys);
"#;

const APP: &str = "types";

fn running(image: &Path) -> Node {
    let node = Start::new().node();
    node.deploy(image);
    node
}

fn call(node: &Node, process: &str, function: &str) -> Reply {
    node.call(APP, process, function, b"")
}

fn said(node: &Node, process: &str, function: &str) -> String {
    let reply = call(node, process, function);
    assert_eq!(reply.status, 200, "{function}: {}\n{}", reply.body(), node.said());
    reply.body()
}

fn set(node: &Node, process: &str, count: &str) {
    let reply = node.call(APP, process, "set", count.as_bytes());
    assert_eq!(reply.status, 200, "{}\n{}", reply.body(), node.said());
}

/// Asserts that the image is refused for its layouts; then takes it all the same.
fn deploy_by_force(node: &Node, image: &Path) {
    let image = image.to_str().expect("a UTF-8 path");
    let before = node.get(&format!("/v1/apps/{APP}/image")).json()["image"].clone();
    let refused = text(&node.denizen(&["image", "deploy", image, "--json"]));
    for words in ["urn:denizen:problem:layout-changed", "#[migrate]", "struct Counter"] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    let after = node.get(&format!("/v1/apps/{APP}/image")).json()["image"].clone();
    assert_eq!(before, after, "the old plugin serves on");
    node.ok(&["image", "deploy", image, "--layout", "replace"]);
}

#[test]
fn objects_of_an_older_layout_are_migrated_where_they_are_met() {
    let versions = versions();
    let node = running(&versions.v1);
    for process in ["active", "swapped", "in-place"] {
        set(&node, process, "7");
    }
    node.ok(&["swap", "out", &format!("{APP}/swapped")]);
    node.deploy(&versions.v2);

    // To read changes nothing.
    let before = call(&node, "active", "stored_as");
    assert_eq!(before.body(), "v1");
    let read = call(&node, "active", "read");
    assert!(read.body().contains("count: 7") && read.body().contains("from-v1"), "{}", read.body());
    assert_eq!(read.header("denizen-commit"), before.header("denizen-commit"));
    assert_eq!(said(&node, "active", "stored_as"), "v1");

    // To write carries it over, with the rest of the call.
    for (process, function) in [("active", "count"), ("swapped", "count"), ("in-place", "count_in_place")] {
        assert_eq!(said(&node, process, function), "8");
        assert_eq!(said(&node, process, "stored_as"), "this");
        let read = said(&node, process, "read");
        assert!(read.contains("count: 8") && read.contains("from-v1"), "{read}");
    }
}

#[test]
fn a_migration_that_fails_leaves_the_old_object() {
    let versions = versions();
    let node = running(&versions.v1);
    set(&node, "unlucky", "13");
    set(&node, "lucky", "12");
    node.deploy(&versions.v2);
    for function in ["read", "count", "count_in_place"] {
        let problem = call(&node, "unlucky", function).problem(409, "state-type-changed", "function");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("`from_v1`") && detail.contains("13 cannot be carried over"), "{detail}");
        assert_eq!(said(&node, "unlucky", "stored_as"), "v1");
    }
    assert_eq!(said(&node, "lucky", "count"), "13");

    // Back to the first version: it reads what was left as it was, and not what is newer.
    deploy_by_force(&node, &versions.v1);
    assert!(said(&node, "unlucky", "read").contains("13"));
    for function in ["read", "count"] {
        let problem = call(&node, "lucky", function).problem(409, "state-type-changed", "function");
        assert!(problem["detail"].as_str().unwrap().contains("no #[migrate] function"), "{problem}");
    }
    assert_eq!(said(&node, "lucky", "stored_as"), "another");
}

#[test]
fn a_changed_layout_without_a_migration_is_refused_or_a_typed_error() {
    let versions = versions();
    let node = running(&versions.v1);
    set(&node, "p", "7");
    deploy_by_force(&node, &versions.v2_bare);
    for function in ["read", "count", "count_in_place"] {
        call(&node, "p", function).problem(409, "state-type-changed", "function");
    }
    set(&node, "p", "1");
    assert_eq!(said(&node, "p", "count"), "2", "it may be overwritten");
}

#[test]
fn migrations_chain_and_none_may_be_left_out() {
    let versions = versions();
    let node = running(&versions.v1);
    set(&node, "first", "1");
    node.deploy(&versions.v2);
    set(&node, "second", "2");

    let forgetful = versions.v3_forgetful.to_str().unwrap();
    let refused = text(&node.denizen(&["image", "deploy", forgetful, "--json"]));
    assert!(refused.contains("urn:denizen:problem:layout-changed"), "{refused}");

    node.deploy(&versions.v3);
    for (process, then, name) in [("first", "2", "from-v1"), ("second", "3", "")] {
        let read = said(&node, process, "read");
        assert!(read.contains(name) && read.contains("from-v2"), "{read}");
        assert_eq!(said(&node, process, "count"), then);
        assert_eq!(said(&node, process, "stored_as"), "this");
    }
}

#[test]
fn keys_are_as_long_as_the_sdk_says() {
    let node = running(&versions().v1);
    assert_eq!(said(&node, "p", "keys"), "0:false 1:true 1024:true 1025:false 65536:false ");
}
