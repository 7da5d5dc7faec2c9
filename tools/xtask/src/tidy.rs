//! The house rules that a program can check. Each finding names a file, a line and the rule, so that it can be mended without asking.
//!
//! Rules here are about the text of the repository; what the compiler and clippy can see is theirs.

use std::{collections::BTreeSet, fmt, fs};

use crate::repository::Repository;

mod code;
mod links;

/// Wider than rustfmt's limit, which does not break comments.
const LINE_CHARS_MAX: usize = 140;
const FILE_LINES_MAX: usize = 900;

/// Where `unsafe` may be written: each is a room with a safe façade.
const UNSAFE_ROOMS: [&str; 8] = [
    "fn-abi/",
    "node/ring/",
    "node/sandbox/",
    "node/runner/",
    "node/engine/",
    "node/agent/src/executor",
    "benches/",
    // A plugin that misbehaves on purpose.
    "tools/denizen/tests/faulty/",
];

/// Split, so that this file does not break its own rule.
const BANNED: [(&str, &str); 3] = [
    (concat!("todo", "!("), "finish it, or return a typed error"),
    (concat!("dbg", "!("), "log it, or take it out"),
    (concat!("FIX", "ME"), "fix it, or open an issue"),
];

/// Roots of somebody's machine. Split for the same reason.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];

/// One rule broken at one place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Checks every file of the repository.
pub(crate) fn check(repository: &Repository) -> Result<Vec<Finding>, String> {
    let files = repository.files()?;
    let known: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    let mut findings = Vec::new();
    for file in &files {
        let bytes = fs::read(repository.root().join(file))
            .map_err(|error| format!("{file} cannot be read: {error}"))?;
        // Whatever is not text has no lines to check.
        let Ok(text) = String::from_utf8(bytes) else { continue };
        check_file(file, &text, &known, &mut findings);
    }
    Ok(findings)
}

fn check_file(file: &str, text: &str, known: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    let mut tell = |line: usize, what: String| findings.push(Finding { file: file.to_owned(), line, what });
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
    if !is_written_by_hand(file) {
        return;
    }
    for (number, line) in (1..).zip(text.lines()) {
        for path in MACHINE_PATHS {
            if names_machine_path(line, path) {
                tell(number, format!("{path} is a path of one machine: make it relative"));
            }
        }
        for (banned, instead) in BANNED {
            if extension != "patch" && line.contains(banned) {
                tell(number, format!("`{banned}` is not to stay: {instead}"));
            }
        }
        if is_code(extension) && line.chars().count() > LINE_CHARS_MAX {
            tell(number, format!("over {LINE_CHARS_MAX} characters: break the line"));
        }
        if line.ends_with([' ', '\t']) && extension != "patch" && extension != "md" {
            tell(number, "ends in blanks: take them out".to_owned());
        }
    }
    let lines = text.lines().count();
    if is_code(extension) && lines > FILE_LINES_MAX {
        tell(
            FILE_LINES_MAX,
            format!("{lines} lines: a file is about one thing; over {FILE_LINES_MAX} it is about several"),
        );
    }
    match extension {
        "rs" => {
            if !text.starts_with("//!") {
                tell(1, "has no `//!` header: say what the file owns, what must hold, and why".to_owned());
            }
            if !UNSAFE_ROOMS.iter().any(|room| file.starts_with(room)) {
                for line in code::lines_with_word(text, "unsafe") {
                    tell(line, format!("`unsafe` outside its rooms ({})", UNSAFE_ROOMS.join(" ")));
                }
            }
        }
        "md" => {
            for (line, link) in links::dead(file, text, known) {
                tell(line, format!("dead link: {link}"));
            }
        }
        _ => {}
    }
}

fn is_written_by_hand(file: &str) -> bool {
    !file.ends_with("Cargo.lock")
}

fn is_code(extension: &str) -> bool {
    matches!(extension, "rs" | "c" | "h" | "toml" | "sh" | "yml" | "py")
}

/// Whether `path` stands in `line` as the beginning of an absolute path: the middle of a relative path is none, nor is one in a URL.
fn names_machine_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/}*~$".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{MACHINE_PATHS, check, check_file};
    use crate::repository::Repository;

    #[test]
    fn the_house_is_tidy() {
        let findings = check(&Repository::around_this_crate()).unwrap();
        let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(text.is_empty(), "{} to tidy up:\n{}", text.len(), text.join("\n"));
    }

    fn findings(file: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_file(file, text, &BTreeSet::from([file, "docs/other.md"]), &mut findings);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let long = format!("//! x\n// {}\n", "x".repeat(140));
        let tall = format!("//! x\n{}", "\n".repeat(900));
        let todo = concat!("//! x\nfn f() { todo", "!() }\n");
        let machine = format!("//! x\n// see {}main\n", MACHINE_PATHS[0]);
        let unsafe_code = "//! x\nfn f() { unsafe { g() } }\n";
        for (text, what) in [
            (long.as_str(), "over 140"),
            (&tall, "901 lines"),
            (todo, "not to stay"),
            (&machine, "one machine"),
            (unsafe_code, "outside its rooms"),
            ("fn f() {}\n", "no `//!` header"),
            ("//! x \n", "ends in blanks"),
        ] {
            let found = findings("sched/src/x.rs", text);
            assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:?}");
        }
        assert_eq!(findings("node/engine/src/x.rs", unsafe_code), [""; 0]);
        assert_eq!(findings("sched/src/x.rs", "//! x\n#![forbid(unsafe_code)] // unsafe\n"), [""; 0]);
        assert_eq!(findings("a.md", "[x](docs/other.md) [y](docs/gone.md)\n").len(), 1);
    }
}
