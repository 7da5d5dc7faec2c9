//! Images that nothing needs any more go, and no other.

use crate::bad_images::c_plugin;
use crate::node::{Node, PATIENCE, Start, Until, await_within, c_image, text};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Images of one application that differ.
fn versions() -> &'static [PathBuf; 4] {
    static VERSIONS: OnceLock<[PathBuf; 4]> = OnceLock::new();
    VERSIONS.get_or_init(|| {
        [1, 2, 3, 4].map(|version| {
            let differing = format!("const int version = {version};");
            c_image(&format!("version-{version}"), &c_plugin(&differing, "DZ_ABI_VERSION"))
        })
    })
}

/// Deploys it as the application `app`, and tells its id.
fn deploy(node: &Node, archive: &Path) -> String {
    let said = node.ok(&["image", "deploy", "--json", "--app", "app", archive.to_str().unwrap()]);
    let deployed: serde_json::Value = serde_json::from_str(&said).unwrap();
    deployed["image"].as_str().expect("an id").to_owned()
}

/// What is in the store.
fn stored(node: &Node) -> Vec<String> {
    let names = std::fs::read_dir(node.dir().join("images")).unwrap().flatten();
    let mut names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn sorted<const N: usize>(mut images: [&String; N]) -> Vec<String> {
    images.sort();
    images.map(Clone::clone).to_vec()
}

#[test]
fn an_image_that_is_used_is_kept_and_one_that_is_not_can_be_removed() {
    let node = Start::new().node();
    let [first, second] = [0, 1].map(|version| deploy(&node, &versions()[version]));
    let refused = node.denizen(&["image", "rm", &second[..12]]);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("in use") && said.contains("by the application app"), "{said}");
    let said = node.ok(&["image", "rm", &first[..8]]);
    assert!(said.contains(&first[..12]), "{said}");
    assert_eq!(stored(&node), std::slice::from_ref(&second));
    node.control("DELETE", &format!("/v1/images/{first}")).problem(404, "unknown-image", "caller");
    node.control("DELETE", "/v1/images/nonsense").problem(400, "bad-name", "caller");
    for slip in ["0", "zzzz", &first[..12]] {
        assert_eq!(node.denizen(&["image", "rm", slip]).status.code(), Some(2), "{slip}");
    }
    let without_token =
        crate::node::agent().delete(node.url(&format!("/v1/images/{second}"))).call().unwrap();
    assert_eq!(without_token.status().as_u16(), 401);
    assert_eq!(node.call("app", "p", "count", b"").body(), "ok");
}

#[test]
fn the_last_image_the_one_before_it_and_those_of_processes_survive_a_pruning() {
    let node = Start::new().node();
    let first = deploy(&node, &versions()[0]);
    assert_eq!(node.call("app", "rests", "count", b"").body(), "ok");
    node.control("POST", "/v1/apps/app/processes/rests/swap-out");
    let [second, third, fourth] = [1, 2, 3].map(|version| deploy(&node, &versions()[version]));
    assert_eq!(stored(&node).len(), 4);
    let pruned: serde_json::Value = serde_json::from_str(&node.ok(&["image", "prune", "--json"])).unwrap();
    assert_eq!(pruned["removed"][0]["image"], second.as_str(), "{pruned}");
    assert_eq!(stored(&node), sorted([&first, &third, &fourth]));
    let listed = node.ok(&["image", "ls"]);
    assert!(listed.contains("app (before)") && listed.contains("1 process at rest"), "{listed}");
    // Its next start is with the present image, and nothing names the first one then.
    assert_eq!(node.call("app", "rests", "count", b"").body(), "ok");
    let said = node.ok(&["image", "prune"]);
    assert!(said.contains(&first[..12]), "{said}");
    assert_eq!(stored(&node), sorted([&third, &fourth]));
}

/// Whatever the moment: an image that was deployed is whole, and one that is being deployed is not taken away.
#[test]
fn pruning_and_deploying_at_once_breaks_nothing() {
    let node = Start::new().node();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut times = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(node.control("POST", "/v1/images/prune").status, 200);
                times += 1;
            }
            times
        });
        let deploying = Until(&stop);
        for round in 0..12 {
            deploy(&node, &versions()[round % 4]);
            // A process that is new has to load it.
            let reply = node.call("app", &format!("p{round}"), "count", b"");
            assert_eq!((reply.status, reply.body().as_str()), (200, "ok"), "{}", node.said());
        }
        drop(deploying);
        assert!(pruning.join().unwrap() > 0);
    });
    assert!(node.ok(&["image", "verify"]).contains("every byte is as it was"));
}

#[test]
fn an_image_that_was_refused_is_not_kept() {
    let node = Start::new().node();
    let kept = deploy(&node, &versions()[0]);
    let dies = c_plugin("__attribute__((constructor)) static void die(void) { abort(); }", "DZ_ABI_VERSION");
    let refused = node.denizen(&["image", "deploy", c_image("dies", &dies).to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    await_within(PATIENCE, || stored(&node) == [kept.clone()], || format!("{:?}", stored(&node)));
}
