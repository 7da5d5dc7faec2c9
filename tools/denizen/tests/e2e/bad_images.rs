//! Images that are wrong: refused at building or deploying, with the reason, and what ran before runs on.

use crate::node::{Node, c_image, compile_c, image_of_plugin, scratch, text, try_c_image};
use sha2::{Digest, Sha256};

/// A plugin in C with one function `count` that answers "ok", with `extra` before it and `abi` as its version.
pub(crate) fn c_plugin(extra: &str, abi: &str) -> String {
    format!(
        r#"
#include "denizen.h"
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
static const dz_host *host;
{extra}
const uint32_t denizen_plugin_abi = {abi};
static int32_t count(void *data, dz_call *call) {{
    (void)data;
    uint8_t *reply;
    int32_t status = host->reply_alloc(call, 2, &reply);
    if (status != DZ_OK) return status;
    reply[0] = 'o'; reply[1] = 'k';
    return DZ_OK;
}}
int32_t denizen_plugin_init(const dz_host *h, const dz_init *init) {{
    host = h;
    dz_function f = {{0}};
    f.size = sizeof f;
    f.name.ptr = (const uint8_t *)"count"; f.name.len = 5;
    f.entry = count;
    return h->declare_function(init->registry, &f);
}}
"#
    )
}

/// Deploys an image that is loaded and found wrong; asserts the problem, and that the node works on.
fn refused_at_deploy(name: &str, source: &str, kind: &str, word: &str) {
    let node = Node::with_faulty();
    let archive = c_image(name, source);
    let output = node.denizen(&["image", "deploy", archive.to_str().unwrap(), "--json"]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(&format!("urn:denizen:problem:{kind}")), "{said}\n{}", node.said());
    assert!(said.contains(word), "{said}");
    node.assert_others_work("faulty");
    assert!(!node.ok(&["image", "ls"]).contains(name), "a refused image is not deployed");
}

#[test]
fn the_c_plugin_that_the_bad_ones_differ_from_is_good() {
    let node = Node::with_faulty();
    node.deploy(&c_image("good", &c_plugin("", "DZ_ABI_VERSION")));
    assert_eq!(node.call("good", "p", "count", b"").body(), "ok");
}

#[test]
fn another_abi_version_is_refused_when_the_image_is_built() {
    let output = try_c_image("other-abi", &c_plugin("", "99"), &[]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("99") && said.contains("ABI"), "{said}");
}

#[test]
fn a_missing_symbol_is_named() {
    let output = try_c_image("no-symbol", "int nothing;", &[]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("denizen_plugin_"), "{said}");
}

#[test]
fn what_is_no_plugin_at_all_is_refused() {
    let node = Node::with_faulty();
    let good = std::fs::read(compile_c("patched", &c_plugin("", "DZ_ABI_VERSION"), &[])).unwrap();
    let mut other_machine = good.clone();
    // e_machine of the ELF header: AArch64 on x86-64, and the other way round.
    other_machine[18] = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    let half = good[..good.len() / 2].to_vec();
    for (name, bytes, word) in [
        ("wrong-machine", other_machine, "aarch64"),
        ("half-a-plugin", half, "damaged or cut off"),
        ("text", b"#!/bin/sh\n".to_vec(), "ELF"),
        ("empty", vec![], "empty"),
    ] {
        let plugin = scratch().join(format!("{name}.so"));
        std::fs::write(&plugin, bytes).unwrap();
        let output = image_of_plugin(name, &plugin);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(said.to_lowercase().contains(&word.to_lowercase()), "{name} should say {word:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        // The same in an archive that `denizen image build` would not make.
        refused_in_an_archive(&node, name, &std::fs::read(plugin).unwrap());
    }
}

#[test]
fn a_plugin_that_nobody_looked_at_is_refused_by_the_node() {
    let node = Node::with_faulty();
    let compiled = |name, source: &str| std::fs::read(compile_c(name, source, &[])).unwrap();
    let other_abi = compiled("unseen-abi", &c_plugin("", "99"));
    let problem = refused_in_an_archive(&node, "unseen-abi", &other_abi);
    assert!(problem.contains("urn:denizen:problem:abi-version") && problem.contains("99"), "{problem}");
    let problem = refused_in_an_archive(&node, "unseen-symbol", &compiled("unseen-symbol", "int nothing;"));
    assert!(problem.contains("missing-symbol") && problem.contains("denizen_plugin_"), "{problem}");
}

/// Deploys an archive with these bytes for its plugin, made by hand. What the node says of it; another process works then.
fn refused_in_an_archive(node: &Node, name: &str, plugin: &[u8]) -> String {
    let manifest = format!("name = \"{name}\"\n");
    let files = [("denizen.toml", manifest.as_bytes()), ("plugin.so", plugin)];
    let listed = files.map(|(path, bytes)| {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        serde_json::json!({ "path": path, "bytes": bytes.len(), "mode": "0444", "sha256": digest })
    });
    let list = serde_json::json!({ "format": 1, "name": name, "libraries": [], "files": listed }).to_string();
    let mut archive = tar::Builder::new(vec![]);
    for (path, bytes) in [("image.json", list.as_bytes())].into_iter().chain(files) {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len().try_into().unwrap());
        header.set_mode(0o444);
        archive.append_data(&mut header, path, bytes).unwrap();
    }
    let mut answer = crate::node::agent()
        .put(node.url(&format!("/v1/apps/{name}/image")))
        .header("Authorization", format!("Bearer {}", node.token()))
        .send(&archive.into_inner().unwrap()[..])
        .unwrap();
    let said = answer.body_mut().read_to_string().unwrap();
    assert_eq!(answer.status(), 422, "{name}: {said}\n{}", node.said());
    assert_eq!(node.get(&format!("/v1/apps/{name}/image")).status, 404, "{name} is not deployed");
    node.assert_others_work("faulty");
    said
}

#[test]
fn a_constructor_that_makes_a_forbidden_call_is_named() {
    let extra = "__attribute__((constructor)) static void early(void) { socket(AF_INET, SOCK_STREAM, 0); }";
    refused_at_deploy("early-socket", &c_plugin(extra, "DZ_ABI_VERSION"), "init-crashed", "socket");
}

#[test]
fn a_constructor_that_aborts_is_named() {
    let extra = "__attribute__((constructor)) static void early(void) { abort(); }";
    refused_at_deploy("early-abort", &c_plugin(extra, "DZ_ABI_VERSION"), "init-crashed", "abort");
}

#[test]
fn a_constructor_that_loops_is_stopped() {
    let extra = "__attribute__((constructor)) static void early(void) { for (;;) __asm__ volatile(\"\"); }";
    refused_at_deploy("early-loop", &c_plugin(extra, "DZ_ABI_VERSION"), "init-timeout", "seconds");
}

#[test]
fn a_constructor_that_allocates_without_end_is_stopped() {
    let extra = r"
#include <string.h>
__attribute__((constructor)) static void early(void) {
    for (;;) { char *p = malloc(1 << 20); if (!p) abort(); memset(p, 1, 1 << 20); }
}";
    refused_at_deploy("early-memory", &c_plugin(extra, "DZ_ABI_VERSION"), "init-crashed", "memory");
}

#[test]
fn a_constructor_that_overflows_its_stack_is_named() {
    let extra = r"
static int deeper(int depth) {
    volatile char here[4096];
    here[depth % 4096] = 1;
    return deeper(depth + 1) + here[0];
}
__attribute__((constructor)) static void early(void) { if (deeper(0) == 7) abort(); }";
    refused_at_deploy("early-stack", &c_plugin(extra, "DZ_ABI_VERSION"), "init-crashed", "stack");
}

#[test]
fn a_constructor_that_starts_threads_without_end_gets_its_limit() {
    let extra = r#"
#include <pthread.h>
static void *stay(void *unused) { pause(); return unused; }
__attribute__((constructor)) static void early(void) { pthread_t t; while (pthread_create(&t, NULL, stay, NULL) == 0); }"#;
    let plugin = c_plugin(extra, "DZ_ABI_VERSION");
    let fails = "h->init_failed(init->registry, dz_text(\"a thread was refused\")); return 1;";
    let plugin = plugin.replace("host = h;", &format!("host = h; {fails}"));
    refused_at_deploy("early-threads", &plugin, "init-failed", "a thread was refused");
}

#[test]
fn a_manifest_error_names_file_and_line() {
    let node = Node::with_faulty();
    let plugin = compile_c("manifest", &c_plugin("", "DZ_ABI_VERSION"), &[]);
    for (manifest, line, word) in [
        ("name = \"x\"\n[limits]\nmemroy = \"1MiB\"\n", ":3", "memory"),
        ("name = \"x\"\n[limits]\nmemory = 12\n", ":3", "memory"),
        ("name = \"x\"\nname = \"y\"\n", ":2", "name"),
        ("name = \"../x\"\n", ":1", "name"),
        ("name = \"x\"\n[process]\nidle = \"60 parsecs\"\n", ":3", "idle"),
        // Fields that contradict each other.
        ("name = \"x\"\n[limits]\nmemory = \"16MiB\"\nbody = \"17MiB\"\n", ":4", "body"),
    ] {
        let file = scratch().join("bad-manifest.toml");
        std::fs::write(&file, manifest).unwrap();
        let output = std::process::Command::new(crate::node::DENIZEN)
            .args(["image", "build", "-o"])
            .arg(scratch().join("bad-manifest.dzi"))
            .arg("--plugin")
            .arg(&plugin)
            .arg("--manifest")
            .arg(&file)
            .output()
            .unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(&format!("bad-manifest.toml{line}")) && said.contains(word),
            "{manifest}: {said}"
        );
        node.assert_others_work("faulty");
    }
}

/// Objects of the old layout are there, and the new plugin could not read them.
#[test]
fn a_changed_layout_is_refused_until_it_is_asked_for() {
    let node = Node::with_faulty();
    let build = |fingerprint: u32, layout: &str| {
        let text = |text: &str| format!("{{ (const uint8_t *)\"{text}\", {} }}", text.len());
        let (name, layout) = (text("Thing"), text(layout));
        let declare = format!(
            "host = h; dz_type t = {{ sizeof t, 0, {fingerprint}, {name}, {layout} }}; h->declare_type(init->registry, &t);"
        );
        c_image("layouts", &c_plugin("", "DZ_ABI_VERSION").replace("host = h;", &declare))
    };
    let deployed = || node.get("/v1/apps/layouts/image").json()["image"].clone();
    node.deploy(&build(1, "struct Thing { count: u64 }"));
    node.call("layouts", "p", "count", b"");
    let before = deployed();
    let changed = build(2, "struct Thing { name: String }");
    let changed = changed.to_str().unwrap();
    let said = text(&node.denizen(&["image", "deploy", changed, "--json"]));
    for words in ["urn:denizen:problem:layout-changed", "count: u64", "name: String"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(deployed(), before, "the old plugin serves on");
    node.ok(&["image", "deploy", changed, "--layout", "replace"]);
    assert_ne!(deployed(), before);
}

#[test]
fn an_archive_that_is_none_is_refused() {
    let node = Node::with_faulty();
    for (name, bytes) in [("garbage", vec![7_u8; 10_000]), ("nothing", vec![])] {
        let reply = crate::node::agent()
            .put(node.url("/v1/apps/other/image"))
            .header("Authorization", format!("Bearer {}", node.token()))
            .send(&bytes[..])
            .unwrap();
        assert_eq!(reply.status(), 400, "{name}");
    }
    node.assert_others_work("faulty");
}
