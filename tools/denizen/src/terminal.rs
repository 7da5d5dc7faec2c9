//! Where words go: answers to stdout, talk to stderr, colour only to a terminal that wants it. Nothing else in this program writes
//! to either.

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

use crate::failure::Failure;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) const PLAIN: Paint = Paint(false);

    fn for_stream(stream: &impl IsTerminal) -> Paint {
        // https://no-color.org: set and not empty means no.
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Paint(stream.is_terminal() && !refused && !dumb)
    }

    /// Whether there are any.
    pub(crate) fn is_on(self) -> bool {
        self.0
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.with("36", text)
    }
}

/// The two streams, and how to speak on them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// Answers are JSON.
    pub(crate) json: bool,
    /// Colours of stdout.
    pub(crate) out: Paint,
    /// Colours of stderr.
    pub(crate) err: Paint,
}

impl Terminal {
    pub(crate) fn new(json: bool) -> Terminal {
        let out = if json { Paint::PLAIN } else { Paint::for_stream(&io::stdout()) };
        Terminal { json, out, err: Paint::for_stream(&io::stderr()) }
    }

    /// One line of an answer.
    pub(crate) fn answer(&self, line: impl Display) -> Result<(), Failure> {
        self.raw(format!("{line}\n").as_bytes())
    }

    /// One JSON document, on one line.
    pub(crate) fn document(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::host("the answer cannot be put into JSON").because(&error))?;
        self.answer(text)
    }

    /// Bytes of an answer, as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
    }

    /// One line of talk. That nobody listens is no reason to fail.
    pub(crate) fn say(&self, line: impl Display) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// Prints why a command failed.
    pub(crate) fn explain(&self, failure: &Failure) {
        if failure.is_silent() {
            return;
        }
        let text = if self.json { format!("{}\n", failure.to_json()) } else { failure.to_text(self.err) };
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// Whether somebody sits before stdout.
    pub(crate) fn is_watched(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    /// Whether somebody can be asked, and see the question.
    pub(crate) fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Asks; only `y` and `yes` are yes.
    pub(crate) fn ask(&self, question: &str) -> bool {
        let _ = write!(io::stderr().lock(), "{question} [y/N] ");
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        read.is_ok() && matches!(line.trim().to_lowercase().as_str(), "y" | "yes")
    }
}

/// Text in columns, each as wide as its widest cell, two spaces apart.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

/// One cell: its text, and how it is painted once its width is known.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    paint: fn(Paint, &str) -> String,
    right: bool,
}

impl Cell {
    pub(crate) fn plain(text: impl Into<String>) -> Cell {
        // Control characters in a process's own words must not reach the terminal.
        let text = printable(&text.into());
        Cell { text, paint: |_, text| text.to_owned(), right: false }
    }

    pub(crate) fn number(text: impl Into<String>) -> Cell {
        Cell { right: true, ..Cell::plain(text) }
    }

    #[must_use]
    pub(crate) fn painted(mut self, paint: fn(Paint, &str) -> String) -> Cell {
        self.paint = paint;
        self
    }
}

impl Table {
    pub(crate) fn with_head(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|text| Cell::plain(*text).painted(Paint::dim)).collect()] }
    }

    pub(crate) fn without_head() -> Table {
        Table { rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        // A heading stands over numbers as they stand.
        for (index, cell) in cells.iter().enumerate() {
            if cell.right
                && let Some(head) = self.rows.first_mut().and_then(|head| head.get_mut(index))
            {
                head.right = true;
            }
        }
        self.rows.push(cells);
    }

    /// All rows, each with its line end.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (index, cell) in row.iter().enumerate() {
                let gap = " ".repeat(widths[index] - cell.text.chars().count());
                let last = index + 1 == row.len();
                let painted = (cell.paint)(paint, &cell.text);
                match (cell.right, last) {
                    (true, _) => line.push_str(&format!("{gap}{painted}")),
                    (false, true) => line.push_str(&painted),
                    (false, false) => line.push_str(&format!("{painted}{gap}")),
                }
                if !last {
                    line.push_str("  ");
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` with control characters made visible: what a tenant prints must not steer the terminal of whoever reads it.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// [`printable`] for what comes in pieces, lines and all. A piece may end inside a character.
#[derive(Debug, Default)]
pub(crate) struct Escaped {
    /// The beginning of a character: at most three bytes.
    unfinished: Vec<u8>,
}

impl Escaped {
    /// What can be shown of what came so far.
    pub(crate) fn add(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.unfinished);
        bytes.extend_from_slice(piece);
        let mut shown = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            shown.push_str(&printable_text(chunk.valid()));
            if chunks.peek().is_none() && is_beginning(chunk.invalid()) {
                self.unfinished = chunk.invalid().to_vec();
            } else {
                shown.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
            }
        }
        shown
    }

    /// What is left when nothing more comes.
    pub(crate) fn end(self) -> String {
        self.unfinished.iter().map(|byte| format!("\\x{byte:02x}")).collect()
    }
}

fn printable_text(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Whether more bytes could make a character of it.
fn is_beginning(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::{Cell, Escaped, Paint, Table, printable};

    #[test]
    fn what_comes_in_pieces_is_shown_as_if_it_came_whole() {
        let bytes =
            "plain\n\tä€𝄞\x1b[2J\u{9b}1m\r\n".as_bytes().iter().copied().chain([0xff, b'x', 0xe2, 0x82]);
        let bytes: Vec<u8> = bytes.collect();
        let whole = "plain\n\tä€𝄞\\u{1b}[2J\\u{9b}1m\\r\n\\xffx\\xe2\\x82";
        for size in 1..=bytes.len() {
            let mut escaped = Escaped::default();
            let mut shown: String = bytes.chunks(size).map(|piece| escaped.add(piece)).collect();
            shown.push_str(&escaped.end());
            assert_eq!(shown, whole, "in pieces of {size}");
        }
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::with_head(&["NAME", "N", "END"]);
        table.row(vec![Cell::plain("a"), Cell::number("10"), Cell::plain("x")]);
        table.row(vec![Cell::plain("longer"), Cell::number("7"), Cell::plain("y")]);
        assert_eq!(table.render(Paint::PLAIN), "NAME     N  END\na       10  x\nlonger   7  y\n");
    }

    #[test]
    fn a_tenant_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\tc\r"), "a\\u{1b}[2Jb\tc\\r");
    }
}
