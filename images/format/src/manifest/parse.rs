//! From text to a checked [`Manifest`].
//!
//! The reader walks the parsed table itself instead of deriving: only so does each complaint know its line,
//! and only so are all of them collected before the author has to come back.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::units::{duration_text, parse_duration};
use super::{
    ByteSize, Create, Declared, Durability, Files, FunctionPolicy, Isolation, Limits, Manifest,
    ManifestError, Origin, Position, Problem, ProcessPolicy,
};
use crate::names;

type Span = Range<usize>;

const TOP: &[&str] = &["name", "base", "files", "isolation", "egress", "limits", "process", "functions"];
const LIMITS: &[&str] =
    &["memory", "state", "files", "body", "reply", "deadline", "threads", "cpu", "processes"];
const PROCESS: &[&str] = &["create", "idle", "durability", "remember"];
const FUNCTION: &[&str] = &["deadline", "durability", "body"];
const SECTIONS: [(&str, &[&str]); 4] = [
    ("the top of the file", TOP),
    ("[limits]", LIMITS),
    ("[process]", PROCESS),
    ("[functions.NAME]", FUNCTION),
];

const MEMORY: RangeInclusive<ByteSize> = ByteSize::mib(16)..=ByteSize::new(1 << 40);
const STATE: RangeInclusive<ByteSize> = ByteSize::mib(1)..=ByteSize::new(1 << 40);
const FILES: RangeInclusive<ByteSize> = ByteSize::new(64 << 10)..=ByteSize::new(1 << 40);
const BODY: RangeInclusive<ByteSize> = ByteSize::new(1)..=ByteSize::new(1 << 40);
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);
const IDLE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(365 * 86_400);
const REMEMBER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
const CPU: RangeInclusive<u64> = 1..=6400;
const THREADS: RangeInclusive<u64> = 2..=1024;
const PROCESSES: RangeInclusive<u64> = 1..=10_000_000;

impl Manifest {
    /// Reads a manifest. `path` is only named in errors.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ManifestError> {
        let mut reader = Reader { text, problems: Vec::new() };
        let manifest = match DeTable::parse(text) {
            Ok(table) => reader.manifest(table.get_ref(), path),
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                let why = error.message().replace('\n', ", ");
                let at = text.get(span.clone()).and_then(|part| part.lines().next()).unwrap_or_default();
                let at = if at.is_empty() { String::new() } else { format!(" at `{at}`") };
                reader.problem(&span, format!("this is not TOML{at}: {why}"));
                None
            }
        };
        match manifest {
            Some(manifest) if reader.problems.is_empty() => Ok(manifest),
            _ => Err(ManifestError::new(path.to_owned(), reader.problems)),
        }
    }

    /// As [`Manifest::parse`], for bytes that may not be UTF-8.
    ///
    /// # Errors
    /// As [`Manifest::parse`]; bytes that are not UTF-8 are named with their line.
    pub fn parse_bytes(bytes: &[u8], path: &Path) -> Result<Self, ManifestError> {
        let error = match str::from_utf8(bytes) {
            Ok(text) => return Self::parse(text, path),
            Err(error) => error,
        };
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let message = "these bytes are not UTF-8; save the file as UTF-8".to_owned();
        Err(ManifestError::new(path.to_owned(), vec![Problem { at: position(&good, good.len()), message }]))
    }

    /// Checks the sections `[functions.NAME]` against the functions that the plugin declares: a policy for a
    /// function that does not exist would silently bound nothing.
    ///
    /// # Errors
    /// A section of an unknown function, and a body limit over the memory limit for a function that takes its
    /// input whole.
    pub fn check_functions(&self, declared: &[Declared<'_>]) -> Result<(), ManifestError> {
        let names: Vec<&str> = declared.iter().map(|function| function.name).collect();
        let problems: Vec<Problem> = self
            .functions
            .iter()
            .filter_map(|(name, policy)| {
                let message = match declared.iter().find(|function| function.name == name) {
                    None => unknown_function(name, &names),
                    Some(function) => whole_body_over_memory(function, policy, self.limits.memory)?,
                };
                let at = self.origin.lines.get(name).copied().unwrap_or(Position { line: 1, column: 1 });
                Some(Problem { at, message })
            })
            .collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(ManifestError::new(self.origin.path.clone(), problems))
    }
}

impl ManifestError {
    fn new(path: PathBuf, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.at.line, problem.at.column));
        Self { path, problems }
    }
}

fn unknown_function(name: &str, declared: &[&str]) -> String {
    let hint = match nearest(name, declared) {
        Some(near) => format!("did you mean `[functions.{near}]`?"),
        None if declared.is_empty() => "it has no function at all".to_owned(),
        None => format!("it has {}", quoted(declared)),
    };
    format!("the plugin has no function `{name}`; {hint}")
}

fn whole_body_over_memory(
    function: &Declared<'_>,
    policy: &FunctionPolicy,
    memory: ByteSize,
) -> Option<String> {
    let body = policy.body.filter(|body| !function.streams_input && *body > memory)?;
    Some(format!(
        "`{}` takes its input whole, so its `body` of {body} cannot be over the memory limit of {memory}; lower it, raise \
         `memory`, or let the function read a stream",
        function.name
    ))
}

struct Reader<'t> {
    text: &'t str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, span: &Span, message: String) {
        self.problems.push(Problem { at: position(self.text, span.start), message });
    }

    fn manifest(&mut self, top: &DeTable<'_>, path: &Path) -> Option<Manifest> {
        self.refuse_unknown(top, "the top of the file", TOP);
        self.refuse_reserved(top);
        let name = self.name(top);
        let files = self.files(top).unwrap_or_default();
        let isolation = self.isolation(top).unwrap_or_default();
        let none = DeTable::new();
        let limits = self.table(top, "limits").unwrap_or(&none);
        let limits = self.limits(limits, files);
        let process = self.table(top, "process").map(|table| self.process(table)).unwrap_or_default();
        let mut lines = BTreeMap::new();
        let functions = self
            .table(top, "functions")
            .map(|table| self.functions(table, &limits, &mut lines))
            .unwrap_or_default();
        let origin = Origin { path: path.to_owned(), lines };
        Some(Manifest { name: name?, files, isolation, limits, process, functions, origin })
    }

    fn name(&mut self, top: &DeTable<'_>) -> Option<String> {
        if !top.contains_key("name") {
            self.problem(
                &(0..0),
                "`name` is missing; begin the file with a line like name = \"hello\"".to_owned(),
            );
            return None;
        }
        let (span, name) = self.string(top, "name", "\"hello\"")?;
        if let Err(error) = names::check(name) {
            self.problem(&span, error.to_string());
            return None;
        }
        Some(name.to_owned())
    }

    /// What a later release will honour must not be accepted by one that does not.
    fn refuse_reserved(&mut self, top: &DeTable<'_>) {
        for (key, consequence) in [
            ("base", "images have no base in this release"),
            ("egress", "functions reach no network in this release"),
        ] {
            let Some(value) = top.get(key) else { continue };
            if value.get_ref().as_str() != Some("none") {
                let message = format!(
                    "`{key}` is reserved for a coming release: {consequence}; remove the line or write {key} = \"none\""
                );
                self.problem(&value.span(), message);
            }
        }
    }

    fn files(&mut self, top: &DeTable<'_>) -> Option<Files> {
        let choices = [("none", Files::None), ("image", Files::Image), ("state", Files::State)];
        self.choice(top, "files", &choices, &[])
    }

    fn isolation(&mut self, top: &DeTable<'_>) -> Option<Isolation> {
        self.choice(top, "isolation", &[("ring", Isolation::Ring), ("relay", Isolation::Relay)], &[])
    }

    fn limits(&mut self, table: &DeTable<'_>, files: Files) -> Limits {
        self.refuse_unknown(table, "[limits]", LIMITS);
        let default = Limits::default();
        let memory = self.size(table, "memory", MEMORY).unwrap_or(default.memory);
        // A default must not contradict a memory limit that the author chose.
        let share = ByteSize::new(memory.bytes() / 4);
        let state = self.size(table, "state", STATE).unwrap_or(default.state);
        let limits = Limits {
            memory,
            state,
            files: self.files_limit(table, files, memory, state),
            body: self.size(table, "body", BODY).unwrap_or(default.body.min(share)),
            reply: self.size(table, "reply", BODY).unwrap_or(default.reply.min(share)),
            deadline: self.duration(table, "deadline", DEADLINE).unwrap_or(default.deadline),
            threads: self
                .integer(table, "threads", THREADS)
                .and_then(|threads| u32::try_from(threads).ok())
                .unwrap_or(default.threads),
            cpu: self.integer(table, "cpu", CPU).and_then(|percent| u32::try_from(percent).ok()),
            processes: self.integer(table, "processes", PROCESSES).unwrap_or(default.processes),
        };
        self.refuse_over_memory(table, "body", limits.body, memory);
        self.refuse_over_memory(table, "reply", limits.reply, memory);
        limits
    }

    /// The files lie in memory, and what is captured of them in the state: there must be room in both.
    fn files_limit(
        &mut self,
        table: &DeTable<'_>,
        files: Files,
        memory: ByteSize,
        state: ByteSize,
    ) -> Option<ByteSize> {
        const DEFAULT: ByteSize = ByteSize::mib(64);
        let size = self.size(table, "files", FILES);
        let Some(found) = table.get("files") else {
            let most = ByteSize::new((memory.bytes() / 4).min(state.bytes() / 2));
            return (files == Files::State).then(|| DEFAULT.min(most));
        };
        let size = size?;
        let most = ByteSize::new(memory.bytes() / 2);
        let message = if files != Files::State {
            "`files` bounds what lies in /state, and this image has no such files; remove the line, or write files = \"state\" at the \
             top of the file"
                .to_owned()
        } else if size > most {
            format!(
                "`files` of {size} is over {most}, half of the memory limit, in which they lie; lower it or raise `memory`"
            )
        } else if size > state {
            format!(
                "`files` of {size} is over the state limit of {state}, in which they are kept; lower it or raise `state`"
            )
        } else {
            return Some(size);
        };
        self.problem(&found.span(), message);
        None
    }

    fn refuse_over_memory(&mut self, table: &DeTable<'_>, key: &str, value: ByteSize, memory: ByteSize) {
        let Some(found) = table.get(key).filter(|_| value > memory) else { return };
        let way_out = if key == "body" { "; a function that streams may set its own `body`" } else { "" };
        let message = format!(
            "`{key}` of {value} cannot be over the memory limit of {memory}; lower it or raise `memory`{way_out}"
        );
        self.problem(&found.span(), message);
    }

    fn process(&mut self, table: &DeTable<'_>) -> ProcessPolicy {
        self.refuse_unknown(table, "[process]", PROCESS);
        let default = ProcessPolicy::default();
        let creates = [("on-call", Create::OnCall), ("explicit", Create::Explicit)];
        ProcessPolicy {
            create: self.choice(table, "create", &creates, &[]).unwrap_or(default.create),
            idle: self.duration(table, "idle", IDLE).unwrap_or(default.idle),
            durability: self.durability(table).unwrap_or(default.durability),
            remember: self.duration(table, "remember", REMEMBER).unwrap_or(default.remember),
        }
    }

    fn durability(&mut self, table: &DeTable<'_>) -> Option<Durability> {
        let reserved = [("store", "this release promises what survives on its node, and no more")];
        let choices = [("process", Durability::Process), ("node", Durability::Node)];
        self.choice(table, "durability", &choices, &reserved)
    }

    fn functions(
        &mut self,
        table: &DeTable<'_>,
        limits: &Limits,
        lines: &mut BTreeMap<String, Position>,
    ) -> BTreeMap<String, FunctionPolicy> {
        let mut functions = BTreeMap::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if let Err(error) = names::check(name) {
                self.problem(&key.span(), error.to_string());
            }
            let Some(policy) = value.get_ref().as_table() else {
                let message = format!(
                    "`functions.{name}` is not a section; write [functions.{name}] with its fields below"
                );
                self.problem(&value.span(), message);
                continue;
            };
            lines.insert(name.to_owned(), position(self.text, key.span().start));
            functions.insert(name.to_owned(), self.function(policy, limits));
        }
        functions
    }

    fn function(&mut self, table: &DeTable<'_>, limits: &Limits) -> FunctionPolicy {
        self.refuse_unknown(table, "[functions.NAME]", FUNCTION);
        let policy = FunctionPolicy {
            deadline: self.duration(table, "deadline", DEADLINE),
            durability: self.durability(table),
            body: self.size(table, "body", BODY),
        };
        if let (Some(value), Some(deadline)) = (table.get("deadline"), policy.deadline)
            && deadline > limits.deadline
        {
            let message = format!(
                "this `deadline` of {} is over the image's of {}, which no call may pass; lower it or raise `deadline` in [limits]",
                duration_text(deadline),
                duration_text(limits.deadline)
            );
            self.problem(&value.span(), message);
        }
        policy
    }

    fn refuse_unknown(&mut self, table: &DeTable<'_>, place: &str, fields: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !fields.contains(&name) {
                self.problem(&key.span(), format!("unknown field `{name}`{}", hint(name, place, fields)));
            }
        }
    }

    fn table<'a, 'i>(&mut self, table: &'a DeTable<'i>, key: &str) -> Option<&'a DeTable<'i>> {
        let value = table.get(key)?;
        let found = value.get_ref().as_table();
        if found.is_none() {
            self.problem(
                &value.span(),
                format!("`{key}` is not a section; write [{key}] with its fields below"),
            );
        }
        found
    }

    fn string<'a>(&mut self, table: &'a DeTable<'_>, key: &str, example: &str) -> Option<(Span, &'a str)> {
        let value = table.get(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            let kind = value.get_ref().type_str();
            self.problem(
                &value.span(),
                format!("`{key}` is of type {kind}; it is a text in quotes, like {key} = {example}"),
            );
        }
        Some((value.span(), text?))
    }

    /// `reserved` holds words that a coming release will know, each with why this one does not.
    fn choice<T: Copy>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        choices: &[(&str, T)],
        reserved: &[(&str, &str)],
    ) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let (span, text) = self.string(table, key, &format!("{:?}", words[0]))?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let message = match reserved.iter().find(|(word, _)| *word == text) {
            Some((word, why)) => {
                format!(
                    "`{key}` = \"{word}\" is reserved for a coming release: {why}; write {}",
                    quoted(&words)
                )
            }
            None => format!("`{key}` cannot be {text:?}; write {}", quoted(&words)),
        };
        self.problem(&span, message);
        None
    }

    fn size(&mut self, table: &DeTable<'_>, key: &str, range: RangeInclusive<ByteSize>) -> Option<ByteSize> {
        let (span, text) = self.string(table, key, "\"64MiB\"")?;
        match ByteSize::parse(text) {
            Ok(size) => self.in_range(&span, key, size, &range, ToString::to_string),
            Err(error) => self.refuse(&span, key, &error),
        }
    }

    fn duration(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let (span, text) = self.string(table, key, "\"30s\"")?;
        match parse_duration(text) {
            Ok(duration) => self.in_range(&span, key, duration, &range, |duration| duration_text(*duration)),
            Err(error) => self.refuse(&span, key, &error),
        }
    }

    fn integer(&mut self, table: &DeTable<'_>, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = table.get(key)?;
        match integer(value) {
            Some(number) => self.in_range(&value.span(), key, number, &range, ToString::to_string),
            None => {
                let message = format!(
                    "`{key}` is not a whole number; write it without quotes, like {key} = {}",
                    range.start()
                );
                self.problem(&value.span(), message);
                None
            }
        }
    }

    fn refuse<T>(&mut self, span: &Span, key: &str, error: &dyn std::error::Error) -> Option<T> {
        self.problem(span, format!("`{key}`: {error}"));
        None
    }

    fn in_range<T: PartialOrd>(
        &mut self,
        span: &Span,
        key: &str,
        value: T,
        range: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let (low, high) = (show(range.start()), show(range.end()));
        self.problem(span, format!("`{key}` of {} is out of range; it may be {low} to {high}", show(&value)));
        None
    }
}

fn integer(value: &Spanned<DeValue<'_>>) -> Option<u64> {
    let integer = value.get_ref().as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// Where byte `offset` of `text` is.
fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Position {
        line: count(before.matches('\n').count() + 1),
        column: count(before[line_start..].chars().count() + 1),
    }
}

/// What the author may have meant: a field of this section spelled almost like it, the same word in another
/// section, or else the list of what there is.
fn hint(name: &str, place: &str, fields: &[&str]) -> String {
    if let Some(near) = nearest(name, fields) {
        return format!(", did you mean `{near}`?");
    }
    match SECTIONS.iter().find(|(_, fields)| fields.contains(&name)) {
        Some((section, _)) => format!(" in {place}; it belongs to {section}"),
        None => format!(
            " in {place}; there are {}",
            fields.iter().map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The candidate at the least edit distance, if that is at most 2 and less than half of the word.
pub(crate) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (edit_distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && distance * 2 < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` ("optimal string
/// alignment").
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
}
