//! A command that did not do what it was asked: what happened, whose doing it is, what to do. The exit status follows from whose
//! doing it is, and nothing else in this program decides one.

use std::{error::Error, fmt::Write as _, io, path::Path, process::ExitCode};

use denizen_client::{Blame, ClientError, Problem, Retry};
use serde_json::json;

use crate::terminal::{Paint, printable};

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    blame: Blame,
    detail: Option<String>,
    cause: Option<String>,
    remedy: Option<String>,
    problem: Option<Box<Problem>>,
    quiet: bool,
}

impl Failure {
    /// The command was asked for something that cannot be.
    pub(crate) fn usage(what: impl Into<String>) -> Failure {
        Failure::new(what, Blame::Caller)
    }

    /// This machine, or this program, failed.
    pub(crate) fn host(what: impl Into<String>) -> Failure {
        Failure::new(what, Blame::Host)
    }

    /// The function's code, or its build, failed.
    pub(crate) fn function(what: impl Into<String>) -> Failure {
        Failure::new(what, Blame::Function)
    }

    /// What was typed makes no command.
    pub(crate) fn of_usage(error: &clap::Error) -> Failure {
        let text = error.to_string();
        let mut paragraphs = text.strip_prefix("error: ").unwrap_or(&text).split("\n\n").map(str::trim);
        let what = match error.kind() {
            // clap has the whole help in the place of a message.
            clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "there is no command",
            _ => paragraphs.next().unwrap_or_default(),
        };
        let is_tip = |paragraph: &&str| paragraph.starts_with("tip: ");
        let tip = paragraphs.find(is_tip).and_then(|tip| tip.strip_prefix("tip: "));
        Failure::usage(what)
            .remedy(tip.unwrap_or("`denizen --help`, or `denizen COMMAND --help`, says what can be typed"))
    }

    fn new(what: impl Into<String>, blame: Blame) -> Failure {
        Failure {
            what: what.into(),
            blame,
            detail: None,
            cause: None,
            remedy: None,
            problem: None,
            quiet: false,
        }
    }

    /// Whoever reads stdout has gone (`| head`): nothing to say, and no failure either.
    fn nobody_listens() -> Failure {
        Failure { quiet: true, ..Failure::host("") }
    }

    /// The findings are already on the screen; only the status is left to say.
    pub(crate) fn already_said(blame: Blame) -> Failure {
        Failure { what: String::new(), ..Failure::new("", blame) }
    }

    /// Writing to stdout failed.
    pub(crate) fn output(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::nobody_listens(),
            _ => Failure::host("the answer cannot be written").because(error),
        }
    }

    /// Adds the error that led to it, with its own sources.
    #[must_use]
    pub(crate) fn because(mut self, error: &dyn Error) -> Failure {
        self.cause = Some(chain(error));
        self
    }

    /// Adds an error of the node's own as what happened and what to do.
    #[must_use]
    pub(crate) fn told_by(self, error: &dyn Error) -> Failure {
        let text = chain(error);
        let (what, remedy) = parted(&text);
        Failure { remedy: remedy.map(str::to_owned), ..self.detail(what) }
    }

    /// Adds what exactly happened.
    #[must_use]
    pub(crate) fn detail(mut self, text: impl Into<String>) -> Failure {
        self.detail = Some(text.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub(crate) fn remedy(mut self, text: impl Into<String>) -> Failure {
        self.remedy = Some(text.into());
        self
    }

    /// Says which file the fault is in.
    #[must_use]
    pub(crate) fn within(mut self, file: &Path) -> Failure {
        self.what = format!("{}: {}", file.display(), self.what);
        self
    }

    /// The problem document behind it, if the node sent one.
    pub(crate) fn problem(&self) -> Option<&Problem> {
        self.problem.as_deref()
    }

    /// 1: the function's; 2: the caller's; 3: the host's or its store's.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.blame {
            _ if self.quiet => 0,
            Blame::Function => 1,
            Blame::Caller => 2,
            Blame::Host | Blame::Store => 3,
        })
    }

    /// What exactly happened, on one line.
    pub(crate) fn in_short(&self) -> &str {
        self.detail.as_deref().and_then(|detail| detail.lines().next()).unwrap_or(&self.what)
    }

    /// Whether there is anything to print.
    pub(crate) fn is_silent(&self) -> bool {
        self.what.is_empty()
    }

    /// The failure as people read it: several lines, the last with its end. Much of it may be a function's own words.
    pub(crate) fn to_text(&self, paint: Paint) -> String {
        let mut text = format!("{} {}\n", paint.red("error:"), printable_lines(&self.what));
        for line in self.detail.iter().flat_map(|detail| detail.lines()) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {}", printable(line));
        }
        let mut row = |label: &str, body: &str| {
            let indented = printable_lines(body.trim_end()).replace('\n', "\n          ");
            let _ = writeln!(text, "  {}  {indented}", paint.dim(&format!("{label:<6}")));
        };
        if let Some(cause) = &self.cause {
            row("cause", cause);
        }
        row("fault", &self.fault());
        if let Some(remedy) = &self.remedy {
            row("remedy", remedy);
        }
        text
    }

    fn fault(&self) -> String {
        let whose = match self.blame {
            Blame::Caller => "the request's",
            Blame::Function => "the function's",
            Blame::Host => "the host's",
            Blame::Store => "the store's",
        };
        match self.problem.as_ref().map(|problem| problem.retry) {
            Some(Retry::Safe) => format!("{whose}; nothing was committed, so it may be tried again"),
            Some(Retry::Unknown) => {
                format!("{whose}; something may have been committed, so look before trying again")
            }
            Some(Retry::Never) | None => whose.to_owned(),
        }
    }

    /// The failure as programs read it: the node's own document where there is one.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.problem {
            Some(problem) => json!({ "error": problem }),
            None => json!({ "error": {
                "title": self.what, "blame": self.blame, "detail": self.detail, "cause": self.cause, "remedy": self.remedy,
            }}),
        }
    }
}

fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let mut failure = Failure::new(error.to_string(), error.blame());
        failure.remedy = match error.problem().map(Problem::name) {
            // The node speaks of its HTTP interface.
            Some("unknown-process") => Some(
                "look at the name; a process comes to be with its first call, unless that or its image says not to: then with \
                 `denizen create`"
                    .to_owned(),
            ),
            _ => error.remedy().map(|remedy| as_spoken(&remedy)),
        };
        match error {
            ClientError::Problem(problem) => {
                failure.detail = problem.detail.clone().filter(|detail| *detail != problem.title);
                failure.cause = problem.cause.clone();
                failure.problem = Some(problem);
            }
            other => failure.cause = other.source().map(chain),
        }
        failure
    }
}

/// A node's remedy as a row of this program's: on a terminal the member `detail` has no name, it is the line above; and a row does
/// not begin with a capital.
fn as_spoken(remedy: &str) -> String {
    let remedy = remedy.replace("`detail`", "the line above");
    let mut rest = remedy.chars();
    match (rest.next(), rest.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(rest).collect(),
        _ => remedy,
    }
}

/// What happened and what to do: the node's own errors carry their remedy at the end of the sentence.
pub(crate) fn parted(text: &str) -> (&str, Option<&str>) {
    match text.split_once("Remedy: ") {
        Some((what, remedy)) => (what.trim_end(), Some(remedy)),
        None => (text, None),
    }
}

/// An error with its sources, each told once: libraries differ in whether an error repeats its source.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Failure;
    use crate::terminal::Paint;

    #[test]
    fn a_failure_reads_well() {
        let failure = Failure::usage("`a//b` is no process").detail("two\nlines").remedy("write app/process");
        assert_eq!(
            failure.to_text(Paint::PLAIN),
            "error: `a//b` is no process\n  two\n  lines\n  fault   the request's\n  remedy  write app/process\n"
        );
    }

    #[test]
    fn a_functions_words_cannot_steer_the_terminal() {
        let failure = Failure::function("a\x1b[2J").detail("b\x1b]0;c\x07\nd").remedy("e\x1b");
        let text = failure.to_text(Paint::PLAIN);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(text.lines().count(), 5, "{text:?}");
    }

    #[test]
    fn what_the_node_says_is_parted_from_its_remedy() {
        let failure = Failure::host("no").told_by(&std::io::Error::other("it is full. Remedy: make room"));
        let expected = "error: no\n  it is full.\n  fault   the host's\n  remedy  make room\n";
        assert_eq!(failure.to_text(Paint::PLAIN), expected);
        assert_eq!(super::parted("it is full"), ("it is full", None));
    }

    #[test]
    fn a_remedy_fits_its_row() {
        assert_eq!(
            super::as_spoken("Correct it; `detail` says where"),
            "correct it; the line above says where"
        );
        assert_eq!(super::as_spoken("POST it"), "POST it");
        assert_eq!(super::as_spoken(""), "");
    }

    #[test]
    fn a_slip_of_the_keyboard_is_told_to_programs_as_well() {
        use clap::Parser as _;
        let told = |words: &[&str]| {
            let error =
                crate::cli::Cli::try_parse_from(std::iter::once(&"denizen").chain(words)).unwrap_err();
            Failure::of_usage(&error).to_json()["error"].clone()
        };
        let slip = told(&["image", "lss"]);
        assert_eq!(
            (&slip["title"], &slip["blame"]),
            (&"unrecognized subcommand 'lss'".into(), &"caller".into()),
            "{slip}"
        );
        assert!(slip["remedy"].as_str().is_some_and(|tip| tip.contains("'ls'")), "{slip}");
        assert_eq!(told(&[])["title"], "there is no command");
        assert!(told(&["invoke"])["title"].as_str().is_some_and(|title| title.contains("<FUNCTION>")));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::output(&std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(failure.is_silent());
        assert_eq!(failure.exit_code(), std::process::ExitCode::SUCCESS);
    }
}
