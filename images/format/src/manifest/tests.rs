//! Each rule of `docs/manifest.md`, kept and broken.

use std::path::Path;
use std::time::Duration;

use super::*;

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text, Path::new("denizen.toml"))
}

/// The error's text, one line per problem.
fn refusal(text: &str) -> String {
    parse(text).expect_err("the manifest should be refused").to_string()
}

#[test]
fn a_name_is_enough() {
    assert_eq!(parse("name = \"hello\"\n").unwrap(), Manifest::default_for("hello"));
}

#[test]
fn every_field_is_read() {
    let manifest = parse(
        r#"
name = "shop"
base = "none"
egress = "none"
files = "image"
isolation = "relay"
[limits]
memory = "64MiB"
state = "2GiB"
body = "1MiB"
reply = "512 KiB"
deadline = "5m"
threads = 8
cpu = 150
processes = 3
[process]
create = "explicit"
idle = "500ms"
durability = "process"
remember = "30d"
[functions.pay]
deadline = "2s"
durability = "node"
body = "9B"
[functions.list]
"#,
    )
    .unwrap();
    assert_eq!(manifest.files, Files::Image);
    assert_eq!(manifest.isolation, Isolation::Relay);
    assert_eq!(manifest.limits.memory, ByteSize::mib(64));
    assert_eq!(manifest.limits.state, ByteSize::mib(2048));
    assert_eq!(manifest.limits.reply.bytes(), 512 << 10);
    assert_eq!((manifest.limits.threads, manifest.limits.processes), (8, 3));
    assert_eq!(manifest.process.create, Create::Explicit);
    assert_eq!(manifest.process.idle, Duration::from_millis(500));
    assert_eq!(manifest.process.remember, Duration::from_secs(30 * 86_400));
    assert_eq!(
        (manifest.deadline_of("pay"), manifest.deadline_of("list")),
        (Duration::from_secs(2), Duration::from_secs(300))
    );
    assert_eq!((manifest.body_of("pay").bytes(), manifest.body_of("list")), (9, ByteSize::mib(1)));
    assert_eq!(
        (manifest.durability_of("pay"), manifest.durability_of("list")),
        (Durability::Node, Durability::Process)
    );
    assert_eq!((manifest.limits.cpu, manifest.limits.files, manifest.files_bytes()), (Some(150), None, 0));
}

#[test]
fn a_function_may_promise_less_than_its_process() {
    let manifest =
        parse("name = \"a\"\nprocess.durability = \"node\"\nfunctions.f.durability = \"process\"\n");
    let manifest = manifest.unwrap();
    assert_eq!(
        (manifest.durability_of("f"), manifest.durability_of("other")),
        (Durability::Process, Durability::Node)
    );
}

#[test]
fn files_of_its_own_have_room_in_memory_and_in_the_state() {
    let files = |limits: &str| {
        let manifest = parse(&format!("name = \"a\"\nfiles = \"state\"\n{limits}")).unwrap();
        assert_eq!(manifest.files, Files::State);
        manifest.limits.files.unwrap()
    };
    assert_eq!(files(""), ByteSize::mib(64));
    assert_eq!(files("limits.memory = \"64MiB\"\n"), ByteSize::mib(16));
    assert_eq!(files("limits.state = \"4MiB\"\n"), ByteSize::mib(2));
    assert_eq!(files("[limits]\nmemory = \"64MiB\"\nfiles = \"32MiB\"\n"), ByteSize::mib(32));
    for (text, says) in [
        (
            "files = \"state\"\n[limits]\nmemory = \"64MiB\"\nfiles = \"33MiB\"\n",
            "denizen.toml:5:9: `files` of 33MiB is over 32MiB, half of the memory limit",
        ),
        (
            "files = \"state\"\n[limits]\nstate = \"1MiB\"\nfiles = \"2MiB\"\n",
            "denizen.toml:5:9: `files` of 2MiB is over the state limit of 1MiB",
        ),
        (
            "files = \"state\"\n[limits]\nfiles = \"1B\"\n",
            "denizen.toml:4:9: `files` of 1B is out of range; it may be 64KiB to 1TiB",
        ),
        (
            "files = \"image\"\n[limits]\nfiles = \"2MiB\"\n",
            "denizen.toml:4:9: `files` bounds what lies in /state",
        ),
        (
            "files = \"own\"\n",
            "denizen.toml:2:9: `files` cannot be \"own\"; write \"none\" or \"image\" or \"state\"",
        ),
    ] {
        let refused = refusal(&format!("name = \"a\"\n{text}"));
        assert!(refused.starts_with(says), "{refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[test]
fn isolation_is_a_dial_of_two_steps() {
    let of = |word: &str| parse(&format!("name = \"a\"\nisolation = \"{word}\"\n"));
    assert_eq!(parse("name = \"a\"\n").unwrap().isolation, Isolation::Ring);
    assert_eq!(of("ring").unwrap().isolation, Isolation::Ring);
    assert_eq!(of("relay").unwrap().isolation.max(Isolation::Ring), Isolation::Relay);
    let refused = of("vm").unwrap_err().to_string();
    assert_eq!(refused, "denizen.toml:2:13: `isolation` cannot be \"vm\"; write \"ring\" or \"relay\"");
    // As JSON of an image that was made before there was a choice.
    let mut json = serde_json::to_value(Manifest::default_for("a")).unwrap();
    json.as_object_mut().unwrap().remove("isolation");
    assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), Manifest::default_for("a"));
}

#[test]
fn processor_time_is_a_percentage_of_a_core() {
    for value in ["0", "6401", "-1", "1.5", "\"50%\""] {
        let text = refusal(&format!("name = \"a\"\n[limits]\ncpu = {value}\n"));
        assert!(text.starts_with("denizen.toml:3:7: `cpu`"), "{value}: {text}");
    }
    assert_eq!(parse("name = \"a\"\nlimits.cpu = 6400\n").unwrap().limits.cpu, Some(6400));
}

#[test]
fn a_small_memory_limit_shrinks_the_default_body() {
    let manifest = parse("name = \"a\"\n[limits]\nmemory = \"32MiB\"\n").unwrap();
    assert_eq!((manifest.limits.body, manifest.limits.reply), (ByteSize::mib(8), ByteSize::mib(8)));
}

#[test]
fn json_has_units_in_its_names_and_comes_back_equal() {
    let manifest = parse("name = \"a\"\n[functions.f]\ndeadline = \"2s\"\n").unwrap();
    let json = serde_json::to_value(&manifest).unwrap();
    assert_eq!(json["limits"]["memory_bytes"], 256 << 20);
    assert_eq!(json["limits"]["deadline_ms"], 30_000);
    assert_eq!(
        json["process"],
        serde_json::json!({"create": "on-call", "idle_ms": 60_000, "durability": "process", "remember_ms": 86_400_000})
    );
    assert_eq!(json["functions"]["f"], serde_json::json!({"deadline_ms": 2000}));
    assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), manifest);
    let manifest = parse("name = \"a\"\nfiles = \"state\"\nlimits.cpu = 50\nprocess.durability = \"node\"\n");
    let manifest = manifest.unwrap();
    let json = serde_json::to_value(&manifest).unwrap();
    assert_eq!((&json["files"], &json["limits"]["files_bytes"]), (&"state".into(), &(64 << 20).into()));
    assert_eq!(
        (&json["limits"]["cpu_percent"], &json["process"]["durability"]),
        (&50.into(), &"node".into())
    );
    assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), manifest);
}

#[test]
fn a_mistyped_field_names_its_line_and_the_nearest_name() {
    assert_eq!(
        refusal("name = \"a\"\n\n[limits]\n  memroy = \"1GiB\"\n"),
        "denizen.toml:4:3: unknown field `memroy`, did you mean `memory`?"
    );
}

#[test]
fn a_field_in_the_wrong_section_is_told_where_it_belongs() {
    assert_eq!(
        refusal("name = \"a\"\nmemory = \"1GiB\""),
        "denizen.toml:2:1: unknown field `memory` in the top of the file; it belongs to [limits]"
    );
    assert!(
        refusal("name = \"a\"\n[process]\nzzz = 1")
            .contains("there are `create`, `idle`, `durability`, `remember`")
    );
}

#[test]
fn all_problems_come_at_once_in_the_order_of_lines() {
    let text = refusal("[process]\nidle = \"soon\"\n[limits]\nmemory = 256\nthreads = \"many\"\n");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    for (line, start) in lines.iter().zip([
        "denizen.toml:1:1: `name` is missing",
        "denizen.toml:2:8: ",
        "denizen.toml:4:10: ",
        "denizen.toml:5:11: ",
    ]) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn units_are_required_and_binary() {
    for (value, say) in [
        ("256", "`memory` is of type integer; it is a text in quotes, like memory = \"64MiB\""),
        ("\"256\"", "give a unit"),
        ("\"256MB\"", "units are binary"),
        ("\"1.5GiB\"", "is not a size"),
        ("\"-1MiB\"", "is not a size"),
        ("\"99999999TiB\"", "more than 2^64 bytes"),
        ("\"99999999999999999999B\"", "is not a size"),
        ("\"1MiB\"", "`memory` of 1MiB is out of range; it may be 16MiB to 1TiB"),
    ] {
        let text = refusal(&format!("name = \"a\"\n[limits]\nmemory = {value}\n"));
        assert!(text.starts_with("denizen.toml:3:10: ") && text.contains(say), "{value}: {text}");
    }
    for (value, say) in [
        ("\"30\"", "give a unit"),
        ("\"1w\"", "is not a duration"),
        ("\"0s\"", "may be 1ms to 1d"),
        ("30", "in quotes"),
    ] {
        let text = refusal(&format!("name = \"a\"\n[limits]\ndeadline = {value}\n"));
        assert!(text.contains(say), "{value}: {text}");
    }
}

#[test]
fn integers_have_bounds() {
    for value in ["0", "1", "1025", "-4", "1.5", "99999999999999999999999", "\"4\""] {
        let text = refusal(&format!("name = \"a\"\n[limits]\nthreads = {value}\n"));
        assert!(text.starts_with("denizen.toml:3:11: `threads`"), "{value}: {text}");
    }
    let hex = parse("name = \"a\"\n[limits]\nthreads = 0x10\nprocesses = 1_000\n").unwrap().limits;
    assert_eq!((hex.threads, hex.processes), (16, 1000));
}

#[test]
fn what_this_release_does_not_keep_is_refused_by_name() {
    for (line, word) in [
        ("base = \"debian\"", "`base` is reserved"),
        ("egress = [\"example.org\"]", "`egress` is reserved"),
        ("process = { durability = \"store\" }", "`durability` = \"store\" is reserved"),
        ("functions = { f = { durability = \"store\" } }", "`durability` = \"store\" is reserved"),
    ] {
        let text = refusal(&format!("name = \"a\"\n{line}\n"));
        assert!(text.starts_with("denizen.toml:2:") && text.contains(word), "{text}");
    }
}

#[test]
fn contradictions_are_refused() {
    let text = refusal("name = \"a\"\n[limits]\nmemory = \"32MiB\"\nbody = \"64MiB\"\nreply = \"33MiB\"\n");
    assert!(
        text.starts_with("denizen.toml:4:8: `body` of 64MiB cannot be over the memory limit of 32MiB"),
        "{text}"
    );
    assert!(text.contains("denizen.toml:5:9: `reply` of 33MiB"), "{text}");
    let text = refusal("name = \"a\"\n[limits]\ndeadline = \"1s\"\n[functions.f]\ndeadline = \"1500ms\"\n");
    assert!(
        text.starts_with("denizen.toml:5:12: this `deadline` of 1500ms is over the image's of 1s"),
        "{text}"
    );
}

#[test]
fn functions_are_checked_against_the_plugin() {
    let manifest =
        parse("name = \"a\"\n[functions.incremnt]\n[functions.upload]\nbody = \"1GiB\"\n").unwrap();
    let declared = |streams_input| {
        [Declared { name: "increment", streams_input: false }, Declared { name: "upload", streams_input }]
    };
    assert_eq!(
        manifest.check_functions(&declared(true)).unwrap_err().to_string(),
        "denizen.toml:2:12: the plugin has no function `incremnt`; did you mean `[functions.increment]`?"
    );
    let text = manifest.check_functions(&declared(false)).unwrap_err().to_string();
    assert!(text.contains("denizen.toml:3:12: `upload` takes its input whole"), "{text}");
    assert!(manifest.check_functions(&[]).unwrap_err().to_string().contains("no function at all"));
    assert_eq!(Manifest::default_for("a").check_functions(&[]), Ok(()));
}

#[test]
fn names_obey_the_rule() {
    for name in ["", "a/b", "..", "-x", "a b", "\\u0000"] {
        let text = refusal(&format!("name = \"{name}\"\n"));
        assert!(text.starts_with("denizen.toml:1:8: the name"), "{text}");
    }
    assert!(refusal("name = \"a\"\n[functions.\"x/y\"]\n").contains("denizen.toml:2:12"));
    assert!(refusal("name = 7\n").contains("`name` is of type integer"));
}

#[test]
fn broken_toml_names_the_line() {
    assert!(refusal("name = \"a\"\n[limits\n").starts_with("denizen.toml:2:"));
    assert!(refusal("name = \"a\"\nname = \"b\"\n").starts_with("denizen.toml:2:"));
    let error = Manifest::parse_bytes(b"name = \"a\"\n# \xff\n", Path::new("x/denizen.toml")).unwrap_err();
    assert!(error.to_string().starts_with("x/denizen.toml:2:3: these bytes are not UTF-8"), "{error}");
}

#[test]
fn sections_that_are_not_sections() {
    assert!(refusal("name = \"a\"\nlimits = 3\n").contains("`limits` is not a section"));
    assert!(refusal("name = \"a\"\n[functions]\nf = 3\n").contains("`functions.f` is not a section"));
    assert!(refusal("name = \"a\"\n[[process]]\n").contains("`process` is not a section"));
}

/// The reader walks a tree made by others: whatever comes, it answers.
#[test]
fn no_text_makes_it_panic() {
    let seed = "name = \"a\"\n[limits]\nmemory = \"64MiB\"\n[functions.\"é\"]\nbody = \"1B\"\n";
    for cut in 0..seed.len() {
        let _ = Manifest::parse_bytes(&seed.as_bytes()[..cut], Path::new("x"));
        let mut bytes = seed.as_bytes().to_vec();
        for byte in [b'"', b'[', b'=', 0, 0xff, b'\n'] {
            bytes[cut] = byte;
            let _ = Manifest::parse_bytes(&bytes, Path::new("x"));
        }
    }
}

/// The example of the reference, and its JSON form, are what they say they are.
#[test]
fn the_reference_tells_the_truth() {
    let reference = include_str!("../../../../docs/manifest.md");
    let block = |language: &str| {
        let start = reference.find(&format!("```{language}\n")).unwrap() + language.len() + 4;
        &reference[start..start + reference[start..].find("```").unwrap()]
    };
    let example = parse(block("toml")).unwrap();
    let json: serde_json::Value = serde_json::from_str(block("json")).unwrap();
    assert_eq!(serde_json::to_value(&example).unwrap(), json);
    let default = Limits::default();
    for text in [default.memory, default.state, default.body].map(|size| format!("`\"{size}\"`")) {
        assert!(reference.contains(&text), "{text}");
    }
    let mistakes = refusal("name = \"a\"\n\n[limits]\nmemroy = 1\n\n\n\n[process]\nidle = \"10\"\n");
    assert_eq!(mistakes.trim(), block("text").trim());
}

#[test]
fn replies_are_remembered_for_a_while_and_not_for_ever() {
    for (text, remembered) in [("1s", 1), ("30d", 30 * 86_400), ("90m", 5_400)] {
        let manifest = parse(&format!("name = \"a\"\nprocess.remember = \"{text}\"\n")).unwrap();
        assert_eq!(manifest.process.remember, Duration::from_secs(remembered));
    }
    for text in ["0s", "999ms", "31d"] {
        let refused = refusal(&format!("name = \"a\"\nprocess.remember = \"{text}\"\n"));
        assert!(refused.contains("it may be 1s to 30d"), "{refused}");
    }
    // Of an image that was built before there was a choice.
    let mut json = serde_json::to_value(Manifest::default_for("a")).unwrap();
    json["process"].as_object_mut().unwrap().remove("remember_ms");
    assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), Manifest::default_for("a"));
}
