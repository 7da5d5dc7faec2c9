//! Kept breakages: each patch in `breaks/` takes one mechanism away, and names the test that must notice. A test that stays green under
//! its patch guards nothing.
//!
//! A patch begins with four lines, which git ignores:
//!
//! ```text
//! Breaks: what is taken away
//! Promise: what users are told that hangs on it
//! Run: cargo test --locked -p denizen-engine torn
//! Fails: tests::a_torn_tail_is_cut
//! ```
//!
//! A test in a comment is printed with the number of its line, which the next change above it makes another. `(line _)` in the last
//! line stands for any number, and so for every such test of that item: one of them must fail.
//!
//! The working tree as it stands, uncommitted changes included, is checked out under `target/break/tree` and tested there: first as it
//! is, because a test that is red anyway notices nothing, then under each patch. The checkout and the build products beside it are
//! kept, so that only what a patch touches is built again. The tree that people work in is never touched.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::repository::{Repository, output};

/// How long one test command may take, building included, in seconds. A broken mechanism may well end in a wait for ever.
const LIMIT_S: u32 = 900;

/// A line number that changes with every edit.
const ANY_LINE: &str = "(line _)";

/// One patch.
#[derive(Debug)]
struct Break {
    name: String,
    patch: PathBuf,
    what: String,
    run: Vec<String>,
    fails: String,
}

/// What came of one patch.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The named test passes without the patch and fails with it.
    Caught,
    /// The named test passes with the patch, too.
    Missed,
    /// Nothing is shown: the patch no longer applies or compiles, another test failed, or the named one fails anyway.
    Unclear(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Caught => "caught",
            Verdict::Missed => "MISSED",
            Verdict::Unclear(_) => "UNCLEAR",
        })
    }
}

/// One line of the table.
#[derive(Debug)]
struct Row<'a> {
    one: &'a Break,
    verdict: Verdict,
    took: Duration,
}

pub(crate) fn list(repository: &Repository) -> Result<(), String> {
    let breaks = read_all(repository)?;
    let width = breaks.iter().map(|one| one.name.len()).max().unwrap_or(0);
    for one in breaks {
        println!("{:width$}  {}\n{:width$}  caught by {}", one.name, one.what, "", one.fails);
    }
    Ok(())
}

pub(crate) fn run_all(repository: &Repository) -> Result<(), String> {
    let breaks = read_all(repository)?;
    run_each(repository, &breaks.iter().collect::<Vec<_>>())
}

pub(crate) fn run(repository: &Repository, names: &[&str]) -> Result<(), String> {
    let all = read_all(repository)?;
    let find = |name: &&str| {
        let found = all.iter().find(|one| one.name == *name);
        found.ok_or_else(|| format!("there is no breakage {name}; `cargo xtask break --list` names them"))
    };
    run_each(repository, &names.iter().map(find).collect::<Result<Vec<_>, _>>()?)
}

fn run_each(repository: &Repository, breaks: &[&Break]) -> Result<(), String> {
    let tree = Tree::of_working_tree(repository)?;
    // All of these before the first patch: the unbroken program is then built once.
    let mut unbroken: BTreeMap<&[String], Said> = BTreeMap::new();
    for one in breaks {
        if !unbroken.contains_key(one.run.as_slice()) {
            eprintln!("unbroken: {}", one.run.join(" "));
            unbroken.insert(&one.run, tree.run(&one.run)?);
        }
    }
    let width = breaks.iter().map(|one| one.name.len()).max().unwrap_or(0);
    let mut rows = Vec::new();
    for one in breaks {
        eprintln!("broken: {}", one.name);
        let begun = Instant::now();
        let verdict = judge(&tree, one, &unbroken[one.run.as_slice()]);
        let row = Row { one, verdict, took: begun.elapsed() };
        if let Verdict::Unclear(why) = &row.verdict {
            eprintln!("{why}");
        }
        rows.push(row);
    }
    tree.restore()?;
    conclude(&rows, width)
}

fn judge(tree: &Tree<'_>, one: &Break, unbroken: &Said) -> Verdict {
    if !unbroken.has_line(one, "ok") || unbroken.has_line(one, "FAILED") {
        let said = unbroken.last_lines();
        return Verdict::Unclear(format!("{} does not pass without the patch:\n{said}", one.fails));
    }
    match tree.patch(one).and_then(|()| tree.run(&one.run)) {
        Ok(said) => verdict(one, &said),
        Err(why) => Verdict::Unclear(why),
    }
}

/// Caught means: the named test ran, and failed. A patch that does not compile proves nothing.
fn verdict(one: &Break, said: &Said) -> Verdict {
    if said.has_line(one, "FAILED") {
        return Verdict::Caught;
    }
    if said.has_line(one, "ok") {
        return Verdict::Missed;
    }
    Verdict::Unclear(format!("{} neither passed nor failed:\n{}", one.fails, said.last_lines()))
}

/// The table, and an error that names what was not caught.
fn conclude(rows: &[Row<'_>], width: usize) -> Result<(), String> {
    rows.iter().for_each(|row| println!("{}", line(row, width)));
    let caught = rows.iter().filter(|row| row.verdict == Verdict::Caught).count();
    println!("{caught} of {} caught", rows.len());
    let others: Vec<_> =
        rows.iter().filter(|row| row.verdict != Verdict::Caught).map(|row| row.one.name.as_str()).collect();
    if others.is_empty() { Ok(()) } else { Err(format!("not caught: {}", others.join(", "))) }
}

fn line(row: &Row<'_>, width: usize) -> String {
    format!("{:7}  {:width$}  {:4} s  {}", row.verdict, row.one.name, row.took.as_secs(), row.one.fails)
}

/// What a test command printed.
#[derive(Debug)]
struct Said {
    text: String,
}

impl Said {
    /// Whether the patch's test ended so.
    fn has_line(&self, one: &Break, how: &str) -> bool {
        let wanted = format!("test {} ... {how}", one.fails);
        let any_line = one.fails.contains(ANY_LINE);
        self.text.lines().map(str::trim_end).any(|line| {
            if any_line { without_line_number(line).as_deref() == Some(&wanted) } else { line == wanted }
        })
    }

    fn last_lines(&self) -> String {
        const LINES: usize = 40;
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// `test src/a.rs - b (line 12) - compile fail ... ok` with `_` for its number.
fn without_line_number(line: &str) -> Option<String> {
    let (before, rest) = line.split_once("(line ")?;
    let (number, after) = rest.split_once(')')?;
    number.parse::<u32>().ok()?;
    Some(format!("{before}{ANY_LINE}{after}"))
}

/// A checkout of the working tree. Only one process works in it at a time.
struct Tree<'a> {
    repository: &'a Repository,
    path: PathBuf,
    target: PathBuf,
    commit: String,
    _lock: File,
}

impl<'a> Tree<'a> {
    fn of_working_tree(repository: &'a Repository) -> Result<Tree<'a>, String> {
        let base = repository.target_dir().join("break");
        let cannot = |error: std::io::Error| format!("{} cannot be used: {error}", base.display());
        fs::create_dir_all(&base).map_err(cannot)?;
        let lock = File::create(base.join("lock")).map_err(cannot)?;
        if lock.try_lock().is_err() {
            eprintln!("waiting for another `xtask break`");
            lock.lock().map_err(cannot)?;
        }
        let commit = snapshot(repository, &base.join("index"))?;
        let tree =
            Tree { repository, path: base.join("tree"), target: base.join("target"), commit, _lock: lock };
        // What is there from the last run keeps its file times, so that cargo sees what has changed and only that.
        if tree.restore().is_err() {
            tree.make_anew()?;
        }
        Ok(tree)
    }

    /// Takes the last patch away.
    fn restore(&self) -> Result<(), String> {
        if !self.path.join(".git").exists() {
            return Err("there is no checkout yet".to_owned());
        }
        output(self.git().args(["checkout", "--quiet", "--force", "--detach", &self.commit]))?;
        output(self.git().args(["clean", "--quiet", "--force", "-d"])).map(drop)
    }

    fn make_anew(&self) -> Result<(), String> {
        let _ = fs::remove_dir_all(&self.path);
        output(self.repository.git_command().args(["worktree", "prune"]))?;
        let mut add = self.repository.git_command();
        add.args(["worktree", "add", "--quiet", "--detach"]).arg(&self.path).arg(&self.commit);
        output(&mut add).map(drop)
    }

    fn patch(&self, one: &Break) -> Result<(), String> {
        self.restore()?;
        output(self.git().arg("apply").arg(&one.patch))
            .map(drop)
            .map_err(|why| format!("the patch no longer applies: {why}"))
    }

    /// Runs a test command to its end, or to the limit, and gives what it printed. It may fail.
    fn run(&self, command: &[String]) -> Result<Said, String> {
        let result = Command::new("timeout")
            .args(["--kill-after=10", &LIMIT_S.to_string()])
            .args(command)
            .current_dir(&self.path)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_TERM_COLOR", "never")
            .env("RUST_BACKTRACE", "0")
            // A test that is skipped notices nothing.
            .env("DENIZEN_TEST_NO_SKIP", "1")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("`timeout {}` cannot be run: {error}", command.join(" ")))?;
        let mut text = String::from_utf8_lossy(&result.stderr).into_owned();
        text.push_str(&String::from_utf8_lossy(&result.stdout));
        Ok(Said { text })
    }

    fn git(&self) -> Command {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.path);
        git
    }
}

/// A commit of everything that is not ignored, made through an index of its own: neither the branch nor the real index notices.
fn snapshot(repository: &Repository, index: &Path) -> Result<String, String> {
    let _ = fs::remove_file(index);
    let real = repository.root().join(repository.git(&["rev-parse", "--git-path", "index"])?.trim());
    // A copy spares hashing every file again; without one everything is simply hashed.
    let _ = fs::copy(real, index);
    output(repository.git_command().env("GIT_INDEX_FILE", index).args(["add", "--all"]))?;
    let tree = output(repository.git_command().env("GIT_INDEX_FILE", index).arg("write-tree"))?;
    let author = ["-c", "user.name=xtask", "-c", "user.email=xtask@localhost"];
    let mut commit = repository.git_command();
    commit.args(author).args(["commit-tree", "-m", "working tree"]).arg(tree.trim());
    Ok(output(&mut commit)?.trim().to_owned())
}

fn read_all(repository: &Repository) -> Result<Vec<Break>, String> {
    let dir = repository.root().join("tools/xtask/breaks");
    let entries = fs::read_dir(&dir).map_err(|error| format!("{} cannot be read: {error}", dir.display()))?;
    let mut breaks = Vec::new();
    for entry in entries.flatten() {
        let patch = entry.path();
        if patch.extension().is_some_and(|extension| extension == "patch") {
            let text = fs::read_to_string(&patch)
                .map_err(|error| format!("{} cannot be read: {error}", patch.display()))?;
            breaks.push(Break::parse(&patch, &text)?);
        }
    }
    breaks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(breaks)
}

impl Break {
    fn parse(patch: &Path, text: &str) -> Result<Break, String> {
        let line = |label: &str| {
            let head =
                text.lines().take_while(|line| !line.starts_with("diff ") && !line.starts_with("--- "));
            let mut found = head.filter_map(|line| line.strip_prefix(label));
            let value = found.next().map(str::trim).filter(|value| !value.is_empty());
            value
                .map(str::to_owned)
                .ok_or_else(|| format!("{}: no line `{label} ...` at its beginning", patch.display()))
        };
        let run: Vec<String> = line("Run:")?.split_whitespace().map(str::to_owned).collect();
        line("Promise:")?;
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Break { name, patch: patch.to_owned(), what: line("Breaks:")?, run, fails: line("Fails:")? })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::{Break, Said, Verdict, read_all, verdict};
    use crate::repository::Repository;

    const PATCH: &str = "Breaks: the cut
Promise: none is lost
Run: cargo test -p x torn
Fails: tests::torn

diff --git a/x b/x
Run: not this
";

    fn said(text: &str) -> Said {
        Said { text: text.to_owned() }
    }

    #[test]
    fn the_page_lists_what_is_kept() {
        let repository = Repository::around_this_crate();
        let page = fs::read_to_string(repository.root().join("tools/xtask/breaks/README.md")).unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let listed: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).collect();
        let breaks = read_all(&repository).unwrap();
        let kept: BTreeSet<String> = breaks.iter().map(|one| one.name.clone()).collect();
        assert_eq!(listed, kept);
        for one in breaks {
            assert!(
                page.contains(&format!("`{}` |", one.fails)),
                "{}: {} is not on the page",
                one.name,
                one.fails
            );
        }
    }

    #[test]
    fn a_patch_says_what_it_breaks_and_who_must_notice() {
        let one = Break::parse(Path::new("breaks/no-cut.patch"), PATCH).unwrap();
        assert_eq!(
            (one.name.as_str(), one.what.as_str(), one.fails.as_str()),
            ("no-cut", "the cut", "tests::torn")
        );
        assert_eq!(one.run, ["cargo", "test", "-p", "x", "torn"]);
        for label in ["Breaks:", "Promise:", "Run:", "Fails:"] {
            let without = PATCH.replacen(label, "", 1);
            assert!(Break::parse(Path::new("x.patch"), &without).is_err(), "{label}");
        }
    }

    #[test]
    fn a_test_in_a_comment_is_known_on_whatever_line_it_is() {
        let patch = PATCH.replace("Fails: tests::torn", "Fails: src/a.rs - b (line _) - compile fail");
        let one = Break::parse(Path::new("x.patch"), &patch).unwrap();
        assert_eq!(
            verdict(&one, &said("test src/a.rs - b (line 7) - compile fail ... FAILED\n")),
            Verdict::Caught
        );
        assert_eq!(
            verdict(&one, &said("test src/a.rs - b (line 12) - compile fail ... ok\n")),
            Verdict::Missed
        );
        for text in [
            "test src/a.rs - c (line 7) - compile fail ... FAILED\n",
            "test src/a.rs - b (line 7) ... FAILED\n",
        ] {
            assert!(matches!(verdict(&one, &said(text)), Verdict::Unclear(_)), "{text}");
        }
    }

    #[test]
    fn only_the_named_failure_counts() {
        let one = Break::parse(Path::new("x.patch"), PATCH).unwrap();
        assert_eq!(verdict(&one, &said("test tests::torn ... FAILED\n")), Verdict::Caught);
        assert_eq!(verdict(&one, &said("test tests::torn ... ok\n")), Verdict::Missed);
        for text in ["error: could not compile\n", "test tests::torn_too ... FAILED\n"] {
            assert!(matches!(verdict(&one, &said(text)), Verdict::Unclear(_)), "{text}");
        }
    }
}
